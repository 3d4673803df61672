//! `karst inspect connection`: live connections of enrolled pods, joined with what the kernel measures on the two
//! sockets that the agent has of each in the pod's network namespace.
//!
//! The agent says who talks to whom, through what, and how much; the kernel how fast and how well. Nothing is
//! measured that the kernel does not measure anyway, and nothing is asked but now. Without root, or where the
//! agent is on another machine, the agent's part stands alone; `sockets` says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use karst_datapath::netns::Netns;
use karst_datapath::sock_diag::{TcpSocket, tcp_sockets};
use serde_json::Value;

use crate::failure::Failure;
use crate::table::Column;

/// How an agent is asked: the JSON of a path.
pub type Ask<'a> = dyn Fn(&str) -> Result<Value, Failure> + 'a;

/// Columns of the text.
pub const COLUMNS: &[Column] = &[
    ("POD", "/pod"),
    ("DIRECTION", "/direction"),
    ("SOURCE", "/src/addr"),
    ("DESTINATION", "/dst/addr"),
    ("SERVICE", "/service"),
    ("PATH", "/path"),
    ("SOURCE IDENTITY", "/src/identity"),
    ("DESTINATION IDENTITY", "/dst/identity"),
    ("SECURITY", "/connection_security_policy"),
    ("KEY EXCHANGE", "/tls/key_exchange"),
    ("SENT", "/bytes_sent"),
    ("RECEIVED", "/bytes_recv"),
    ("AGE ms", "/duration_ms"),
    ("APP RTT us", "/application/rtt_us"),
    ("APP RETRANS", "/application/retransmits_total"),
    ("NET RTT us", "/network/rtt_us"),
    ("NET RETRANS", "/network/retransmits_total"),
];

/// The connections.
///
/// # Errors
/// The agent does not answer.
pub fn list(ask: &Ask<'_>) -> Result<Vec<Value>, Failure> {
    let mut connections = rows(ask("/v1/connections")?);
    if connections.is_empty() {
        return Ok(connections);
    }
    let pods = rows(ask("/v1/pods")?);
    let mut by_pod: BTreeMap<String, Result<Vec<TcpSocket>, String>> = BTreeMap::new();
    for connection in &mut connections {
        let uid = text(connection, "pod_uid").to_owned();
        let sockets = by_pod.entry(uid).or_insert_with_key(|uid| {
            let pod = pods.iter().find(|pod| text(pod, "uid") == uid);
            let netns = pod.map(|pod| text(pod, "netns")).unwrap_or_default();
            read(netns)
        });
        join(connection, sockets);
    }
    Ok(connections)
}

fn rows(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn read(netns: &str) -> Result<Vec<TcpSocket>, String> {
    if netns.is_empty() {
        return Err("the agent does not say where the pod's network namespace is".to_owned());
    }
    let sockets = Netns::open(Path::new(netns)).and_then(|netns| tcp_sockets(&netns));
    sockets
        .map(|found| found.sockets)
        .map_err(|error| format!("{netns}: {error}"))
}

/// Puts the measurements of both legs into a connection, in place of the legs' addresses.
fn join(connection: &mut Value, sockets: &Result<Vec<TcpSocket>, String>) {
    let Some(object) = connection.as_object_mut() else {
        return;
    };
    let legs = object.remove("legs").unwrap_or_default();
    for leg in ["application", "network"] {
        let ends = legs.get(leg).cloned().unwrap_or_default();
        let view = match sockets {
            Ok(sockets) => socket(sockets, &ends).map_or(ends, view),
            Err(_) => ends,
        };
        object.insert(leg.to_owned(), view);
    }
    let said = match sockets {
        Ok(_) => Value::from("read"),
        Err(why) => Value::from(format!("not read: {why}")),
    };
    object.insert("sockets".to_owned(), said);
}

fn socket<'a>(sockets: &'a [TcpSocket], ends: &Value) -> Option<&'a TcpSocket> {
    let end = |key: &str| {
        let address: SocketAddr = ends.get(key)?.as_str()?.parse().ok()?;
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    };
    let (local, remote) = (end("local")?, end("remote")?);
    sockets
        .iter()
        .find(|socket| socket.local == local && socket.remote == remote)
}

/// One object: the socket, and the measurements beside it.
fn view(socket: &TcpSocket) -> Value {
    let mut value = serde_json::to_value(socket).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        let measured = object.remove("tcp").unwrap_or_default();
        if let Value::Object(measured) = measured {
            object.extend(measured);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use serde_json::json;

    use super::*;

    /// An item as an agent without sockets that can be read would give it, for tests of the text.
    fn example() -> Value {
        json!({
            "pod_uid": "u", "pod": "shop/cart", "direction": "outbound", "path": "hbone",
            "legs": {
                "application": {"local": "127.0.0.1:15001", "remote": "10.0.0.1:40000"},
                "network": {"local": "10.0.0.1:50000", "remote": "10.0.0.2:15008"},
            },
        })
    }

    #[test]
    fn legs_are_joined_by_both_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let at = listener.local_addr().expect("address");
        let mut client = TcpStream::connect(at).expect("connects");
        let (mut server, from) = listener.accept().expect("accepts");
        client.write_all(b"hello").expect("writes");
        server.read_exact(&mut [0; 5]).expect("reads");
        let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
        let sockets = Ok(tcp_sockets(&netns).expect("needs root").sockets);
        let mut connection = example();
        connection["legs"]["application"] = json!({"local": at, "remote": from});
        join(&mut connection, &sockets);
        let application = &connection["application"];
        assert_eq!(application["state"], "established");
        assert_eq!(application["bytes_received"], 5);
        assert!(application["cookie"].as_u64() > Some(0));
        // The other socket is not there: its ends are all that is known.
        assert_eq!(
            connection["network"],
            json!({"local": "10.0.0.1:50000", "remote": "10.0.0.2:15008"})
        );
        assert_eq!(connection["sockets"], "read");
        assert!(connection.get("legs").is_none());
    }

    #[test]
    fn without_sockets_the_agents_part_stands_alone() {
        let ask = |path: &str| match path {
            "/v1/connections" => Ok(json!([example()])),
            _ => Ok(json!([{"uid": "u", "netns": "/nonexistent/netns"}])),
        };
        let list = list(&ask).expect("lists");
        let said = list[0]["sockets"].as_str().unwrap_or_default();
        assert!(said.starts_with("not read: /nonexistent/netns: "), "{said}");
        assert_eq!(list[0]["network"]["remote"], "10.0.0.2:15008");
        assert_eq!(list[0]["application"].get("rtt_us"), None);
    }
}
