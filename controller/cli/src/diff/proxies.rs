//! Intent and proxies: what waypoints and gateways of the node were sent and made of it.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use karst_datapath::netns::Netns;
use serde_json::Value;

use super::agent::text;
use super::codes::{CONTROLLER_UNREACHABLE, PROXY_DIFFERS, PROXY_UNREACHABLE, RESOURCE_REJECTED};
use super::layers::{Layers, WantedProxy};
use super::report::{Found, add};
use crate::admin::{Source, Stream};
use crate::cluster;
use crate::failure::Failure;

/// Where a proxy's admin pages are, on the loopback of its pod.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// Time for a connection to the loopback.
const LIMIT: Duration = Duration::from_secs(5);

const BETWEEN: (&str, &str) = ("intent", "proxy");

/// Asks the proxy in the network namespace `netns` for its state and its configuration.
///
/// # Errors
/// It does not answer, or its namespace was not found.
pub fn ask(netns: io::Result<Netns>) -> Result<(Value, Vec<Value>), Failure> {
    let proxy = Source::Waypoint(ADMIN.to_string());
    let netns = netns.map_err(|error| proxy.unreachable(error))?;
    let page = |path: &str| {
        // To the loopback: it is answered at once, and never waits in the other namespace.
        let stream = netns.run(|| TcpStream::connect_timeout(&ADMIN, LIMIT));
        let stream = stream.and_then(|made| made);
        cluster::run(async {
            let stream = stream.and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::TcpStream::from_std(stream)
            });
            let stream = stream.map_err(|error| proxy.unreachable(error))?;
            proxy.document_over(Stream::new(stream), path).await
        })
    };
    let status = page("/v1/status")?;
    let config = page("/v1/config")?;
    Ok((status, config.as_array().cloned().unwrap_or_default()))
}

/// Compares.
pub fn compare(layers: &Layers, found: &mut Found) {
    let Ok(intent) = &layers.intent else { return };
    for (wanted, proxy) in intent.proxies.iter().zip(&layers.proxies) {
        let object = format!("proxy {} of Gateway {}", wanted.pod, wanted.gateway);
        match &proxy.pages {
            Err(why) => add(
                found,
                PROXY_UNREACHABLE,
                BETWEEN,
                object,
                ("an answer", why),
            ),
            Ok((status, config)) => {
                one(wanted, status, config, &object, found);
            }
        }
    }
}

pub(super) fn one(
    wanted: &WantedProxy,
    status: &Value,
    config: &[Value],
    object: &str,
    found: &mut Found,
) {
    let controller = status.get("controller").cloned().unwrap_or_default();
    if controller.get("connected") == Some(&Value::Bool(false)) {
        let expected = format!(
            "a stream to the controller at {}",
            text(&controller, "address")
        );
        let instead = format!("none: {}", text(&controller, "last_reason"));
        add(
            found,
            CONTROLLER_UNREACHABLE,
            BETWEEN,
            object,
            (expected, instead),
        );
    }
    let mut held = BTreeSet::new();
    for resource in config {
        let (kind, name) = (text(resource, "kind"), text(resource, "name"));
        let problems = resource.get("problems").and_then(Value::as_array);
        let problems = problems.into_iter().flatten().filter_map(Value::as_str);
        let problems = problems.collect::<Vec<_>>().join("; ");
        if matches!(text(resource, "state"), "rejected" | "stale") {
            let object = format!("{kind} {name} at {object}");
            add(
                found,
                RESOURCE_REJECTED,
                BETWEEN,
                object,
                ("its newest version in force", problems),
            );
        }
        held.insert((kind, name));
    }
    if text(status, "version") != env!("CARGO_PKG_VERSION") {
        return;
    }
    for ((kind, name), version) in &wanted.resources {
        let is_it = |one: &&Value| text(one, "kind") == *kind && text(one, "name") == *name;
        let object = format!("{kind} {name} at {object}");
        match config.iter().find(is_it) {
            None => add(
                found,
                PROXY_DIFFERS,
                BETWEEN,
                object,
                ("known", "not known"),
            ),
            Some(held) if text(held, "version") != version => add(
                found,
                PROXY_DIFFERS,
                BETWEEN,
                object,
                (
                    format!("version {version}"),
                    format!("version {}", text(held, "version")),
                ),
            ),
            Some(_) => {}
        }
    }
    for (kind, name) in held {
        let is_it = |(wanted, of): &(&'static str, String)| *wanted == kind && of == name;
        // Certificates are of Secrets, which are not read of a cluster.
        if kind != "tls_secret" && !wanted.resources.keys().any(is_it) {
            let object = format!("{kind} {name} at {object}");
            add(
                found,
                PROXY_DIFFERS,
                BETWEEN,
                object,
                ("not there", "known"),
            );
        }
    }
}
