//! The wire: a bridge in a network namespace of its own, the control plane and the nodes on it, and
//! static routes to the pods behind the nodes. No host has a default route.

use std::fmt::Write as _;

use anyhow::Result;
use karst_harness::host::ip_batch;
use karst_harness::netns;

use crate::paths::{API_SERVER, BALANCED, Paths, SERVICES, node_address, node_name, pod_range};

/// The control plane's host.
pub const CONTROL: &str = "cp";

/// The namespace of the bridge.
const WIRE: &str = "wire";

/// Lets a node forward its pods' packets.
const FORWARDING: &[(&str, &str)] = &[("net/ipv4/ip_forward", "1")];

/// Makes the wire, the control plane's host and `nodes` nodes.
pub fn build(paths: &Paths, nodes: u8) -> Result<()> {
    remove(paths)?;
    let mut hosts = vec![(CONTROL.to_owned(), API_SERVER)];
    hosts.extend((1..=nodes).map(|number| (node_name(number), node_address(number))));
    let wire = paths.netns(WIRE);
    let mut script = format!("netns add {wire}\n");
    for (host, _) in &hosts {
        let netns = paths.netns(host);
        writeln!(script, "netns add {netns}")?;
        writeln!(
            script,
            "link add {host} netns {wire} type veth peer name eth0 netns {netns}"
        )?;
    }
    ip_batch(None, &script)?;
    let mut script = "link set lo up\nlink add wire0 type bridge mcast_snooping 0\n\
                      link set wire0 up\n"
        .to_owned();
    for (host, _) in &hosts {
        writeln!(script, "link set {host} master wire0 up")?;
    }
    ip_batch(Some(&wire), &script)?;
    for (host, address) in &hosts {
        if host != CONTROL {
            netns::sysctl(&paths.netns(host), FORWARDING)?;
        }
        let mut script =
            format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n");
        for number in (1..=nodes).filter(|number| node_name(*number) != *host) {
            let via = node_address(number);
            writeln!(script, "route add {} via {via}", pod_range(number))?;
        }
        // Without a route a connection to a Service would fail before kube-proxy's rules see
        // it; the control plane, which has no kube-proxy, sends it to a node.
        for range in [SERVICES, BALANCED] {
            match (host.as_str(), nodes) {
                (CONTROL, 0) => {}
                (CONTROL, _) => writeln!(script, "route add {range} via {}", node_address(1))?,
                _ => writeln!(script, "route add {range} dev eth0")?,
            }
        }
        ip_batch(Some(&paths.netns(host)), &script)?;
    }
    Ok(())
}

/// Removes every network namespace of the cluster; fine if there is none.
pub fn remove(paths: &Paths) -> Result<()> {
    let mut hosts = vec![CONTROL.to_owned(), WIRE.to_owned()];
    hosts.extend((1..=crate::NODES).map(node_name));
    for host in hosts {
        netns::remove(&paths.netns(&host))?;
    }
    Ok(())
}
