//! Kernel and sockets: who listens in the pods that the kernel captures.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use karst_datapath::inspect::PodEntry;
use karst_node_agent::pod::{HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT};
use serde_json::Value;

use super::codes::{APPLICATION_SILENT, LISTENER_MISSING, NAMESPACE_GONE};
use super::layers::{Layers, Mesh};
use super::report::{Found, Object, add};

/// Compares.
pub fn compare(layers: &Layers, found: &mut Found) {
    let Ok(kernel) = &layers.kernel else { return };
    for entry in &kernel.pods {
        let object = layers.pod(&entry.uid);
        let Some(pod) = layers.sockets.get(&entry.uid) else {
            continue;
        };
        if pod.netns.is_none() {
            let expected = format!("network namespace {}", entry.netns_cookie);
            add(
                found,
                NAMESPACE_GONE,
                ("kernel", "sockets"),
                object,
                (expected, "nobody has it"),
            );
            continue;
        }
        let Ok(listening) = &pod.listening else {
            continue;
        };
        let missing: Vec<String> = own_listeners(&entry.addresses)
            .into_iter()
            .filter(|at| !listens(listening, *at))
            .map(|at| at.to_string())
            .collect();
        if !missing.is_empty() {
            add(
                found,
                LISTENER_MISSING,
                ("kernel", "sockets"),
                object.clone(),
                (
                    format!("listeners at {}", missing.join(", ")),
                    "nobody listens there",
                ),
            );
        }
        applications(layers, entry, listening, &object, found);
    }
}

/// Where the agent listens in a pod with these addresses.
fn own_listeners(addresses: &[IpAddr]) -> Vec<SocketAddr> {
    let mut listeners = Vec::new();
    for address in addresses {
        let loopback = match address {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        listeners.push(SocketAddr::new(loopback, OUTBOUND_PORT));
        listeners.push(SocketAddr::new(loopback, PLAINTEXT_PORT));
        listeners.push(SocketAddr::new(*address, HBONE_PORT));
    }
    listeners
}

/// Whether a connection to `at` finds a listener.
fn listens(listening: &[SocketAddr], at: SocketAddr) -> bool {
    listening.iter().any(|socket| {
        let ip = socket.ip();
        // A socket for any IPv6 address takes IPv4 too, unless it was told not to, which is not told here.
        let any = ip.is_unspecified() && (at.is_ipv4() || ip.is_ipv6());
        socket.port() == at.port() && (ip == at.ip() || any)
    })
}

/// Ports of the pod that Services send connections to.
fn applications(
    layers: &Layers,
    entry: &PodEntry,
    listening: &[SocketAddr],
    object: &Object,
    found: &mut Found,
) {
    let (mesh, above) = match (&layers.intent, &layers.agent) {
        (Ok(intent), _) => (&intent.mesh, "intent"),
        (Err(_), Ok(agent)) => (&agent.mesh, "agent"),
        (Err(_), Err(_)) => return,
    };
    for (service, port, target) in targets(mesh, &entry.addresses) {
        let silent = |ip: &IpAddr| !listens(listening, SocketAddr::new(*ip, target));
        // One family is enough: an application may have chosen.
        if entry.addresses.iter().all(silent) {
            add(
                found,
                APPLICATION_SILENT,
                (above, "sockets"),
                object.clone(),
                (
                    format!("a listener at port {target}, for Service {service} port {port}"),
                    "nobody listens there",
                ),
            );
        }
    }
}

/// Services, their ports and the port of the pod with these addresses that stands behind each.
fn targets(mesh: &Mesh, addresses: &[IpAddr]) -> BTreeSet<(String, u16, u16)> {
    let mut targets = BTreeSet::new();
    let array = |value: &Value, key: &str| {
        let list = value.get(key).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let number = |value: &Value| {
        let number = value.get("port").and_then(Value::as_u64);
        number.and_then(|port| u16::try_from(port).ok())
    };
    for (key, service) in &mesh.services {
        let text = |field: &str| service.get(field).and_then(Value::as_str);
        let name = match (text("namespace"), text("name")) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => key.clone(),
        };
        for port in array(service, "ports") {
            for endpoint in array(&port, "endpoints") {
                let own = array(&endpoint, "addresses").iter().any(|address| {
                    let address = address.as_str().and_then(|text| text.parse().ok());
                    address.is_some_and(|address: IpAddr| addresses.contains(&address))
                });
                if let (true, Some(port), Some(target)) = (own, number(&port), number(&endpoint)) {
                    targets.insert((name.clone(), port, target));
                }
            }
        }
    }
    targets
}
