//! The lab's wires: one bridge between the hosts (nodes, controller, external host), one
//! bridge in each node for its pods. Every end of every link lies in a namespace of the
//! lab, so nothing in it has a route out of the machine.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::addresses::{self, CONTROL_HOST, EXTERNAL_HOST, EXTERNAL_V4, EXTERNAL_V6, Pair};
use crate::host::ip_batch;
use crate::netns;
use crate::paths::{POD_BRIDGE, Paths, WIRE_BRIDGE};
use crate::state::{PodRecord, State, node_name};

/// The wire's host name.
pub const WIRE: &str = "wire";
/// The controller's host name.
pub const CONTROL: &str = "control";
/// The external host's name.
pub const EXTERNAL: &str = "external";

/// Settings of every namespace. Duplicate address detection would keep IPv6 addresses
/// unusable for a second; short test connections need their ports back at once.
const SETTINGS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/ip_local_port_range", "20000 65000"),
];

/// More settings of hosts that forward.
const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// Makes what is missing of the wire and its hosts, up to `nodes` nodes.
pub fn ensure_hosts(paths: &Paths, state: &mut State, nodes: u8) -> Result<()> {
    ensure!(
        nodes >= state.nodes,
        "the lab has {} nodes; a node cannot be taken from a running lab",
        state.nodes
    );
    ensure_host(paths, state, WIRE, |netns| {
        ip_batch(
            Some(netns),
            &format!(
                "link set lo up\nlink add {WIRE_BRIDGE} type bridge mcast_snooping 0\nlink set {WIRE_BRIDGE} up\n"
            ),
        )
    })?;
    ensure_host(paths, state, CONTROL, |netns| {
        join_wire(paths, netns, CONTROL, CONTROL_HOST)
    })?;
    ensure_host(paths, state, EXTERNAL, |netns| {
        join_wire(paths, netns, EXTERNAL, EXTERNAL_HOST)?;
        ip_batch(
            Some(netns),
            &format!("addr add {EXTERNAL_V4}/32 dev lo\naddr add {EXTERNAL_V6}/128 dev lo nodad\n"),
        )
    })?;
    for number in 1..=nodes {
        let node = node_name(number);
        ensure_host(paths, state, &node, |netns| {
            netns::sysctl(netns, FORWARDING)?;
            join_wire(paths, netns, &node, number)?;
            make_pod_bridge(netns, number)
        })?;
    }
    state.nodes = nodes;
    state.save(paths)?;
    set_routes(paths, nodes)
}

fn ensure_host(
    paths: &Paths,
    state: &mut State,
    host: &str,
    build: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let netns = paths.host_netns(host);
    if state.hosts.contains(host) && netns::exists(&netns) {
        return Ok(());
    }
    // One that is not in the record is a rest of a crash, perhaps half built.
    netns::remove(&netns)?;
    ip_batch(None, &format!("netns add {netns}\n"))?;
    netns::sysctl(&netns, SETTINGS)?;
    build(&netns)?;
    state.hosts.insert(host.to_owned());
    state.save(paths)
}

fn join_wire(paths: &Paths, netns: &str, host: &str, number: u8) -> Result<()> {
    let Pair { v4, v6 } = addresses::wire(number);
    let wire = paths.host_netns(WIRE);
    let mac = addresses::mac(v4);
    ip_batch(
        None,
        &format!(
            "link add {host} netns {wire} type veth peer name eth0 address {mac} netns {netns}\n"
        ),
    )?;
    ip_batch(
        Some(&wire),
        &format!("link set {host} master {WIRE_BRIDGE} up\n"),
    )?;
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"
        ),
    )
}

fn make_pod_bridge(netns: &str, number: u8) -> Result<()> {
    let Pair { v4, v6 } = addresses::gateway(number);
    let mac = addresses::mac(v4);
    ip_batch(
        Some(netns),
        &format!(
            "link add {POD_BRIDGE} address {mac} type bridge mcast_snooping 0\n\
             addr add {v4}/24 dev {POD_BRIDGE}\naddr add {v6}/64 dev {POD_BRIDGE} nodad\n\
             link set {POD_BRIDGE} up\n"
        ),
    )
}

/// Routes between the hosts: pod ranges lie behind their nodes, the external address behind
/// the external host. There is no default route on any host.
fn set_routes(paths: &Paths, nodes: u8) -> Result<()> {
    let mut hosts = vec![(CONTROL.to_owned(), 0), (EXTERNAL.to_owned(), 0)];
    hosts.extend((1..=nodes).map(|number| (node_name(number), number)));
    for (host, own) in hosts {
        let mut script = String::new();
        for other in (1..=nodes).filter(|other| *other != own) {
            let via = addresses::wire(other);
            let [v4, v6] = addresses::pod_ranges(other);
            writeln!(script, "route replace {v4} via {}", via.v4)?;
            writeln!(script, "route replace {v6} via {}", via.v6)?;
        }
        if host != EXTERNAL {
            let via = addresses::wire(EXTERNAL_HOST);
            writeln!(script, "route replace {EXTERNAL_V4}/32 via {}", via.v4)?;
            writeln!(script, "route replace {EXTERNAL_V6}/128 via {}", via.v6)?;
        }
        ip_batch(Some(&paths.host_netns(&host)), &script)?;
    }
    Ok(())
}

/// Makes a pod's namespace and links it to its node.
pub fn make_pod(paths: &Paths, node: u8, pod: &PodRecord) -> Result<()> {
    let netns = &pod.netns;
    let node_netns = paths.host_netns(&pod.node);
    let link = pod_link(pod);
    let gateway = addresses::gateway(node);
    netns::remove(netns)?;
    ip_batch(None, &format!("netns add {netns}\n"))?;
    netns::sysctl(netns, SETTINGS)?;
    let mac = pod.addresses.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(addresses::mac(*v4)),
        IpAddr::V6(_) => None,
    });
    let mac = mac.map(|mac| format!("address {mac}")).unwrap_or_default();
    ip_batch(
        None,
        &format!(
            "link add {link} netns {node_netns} type veth peer name eth0 {mac} netns {netns}\n"
        ),
    )?;
    ip_batch(
        Some(&node_netns),
        &format!("link set {link} master {POD_BRIDGE} up\n"),
    )?;
    let mut script = String::from("link set lo up\n");
    for address in &pod.addresses {
        match address {
            IpAddr::V4(v4) => writeln!(script, "addr add {v4}/24 dev eth0")?,
            IpAddr::V6(v6) => writeln!(script, "addr add {v6}/64 dev eth0 nodad")?,
        }
    }
    script.push_str("link set eth0 up\n");
    for address in &pod.addresses {
        match address {
            IpAddr::V4(_) => writeln!(script, "route add default via {}", gateway.v4)?,
            IpAddr::V6(_) => writeln!(script, "route add default via {}", gateway.v6)?,
        }
    }
    ip_batch(Some(netns), &script)
}

/// Removes a pod's link and namespace. The link goes first and by itself: a namespace lives
/// on for as long as any socket or file of it is open.
pub fn remove_pod(paths: &Paths, pod: &PodRecord) -> Result<()> {
    let node_netns = paths.host_netns(&pod.node);
    if netns::exists(&node_netns) {
        // The link is gone already if the namespace was the last to hold it.
        let _ = ip_batch(
            Some(&node_netns),
            &format!("link delete {}\n", pod_link(pod)),
        );
    }
    netns::remove(&pod.netns)
}

/// The node's end of a pod's link; interface names have at most 15 bytes.
fn pod_link(pod: &PodRecord) -> String {
    format!("pod{}", pod.uid.replace('-', "").get(..11).unwrap_or("0"))
}
