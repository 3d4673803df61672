//! What the agents themselves say of the connections: their access logs, source and destination
//! side put together.

use std::net::{IpAddr, SocketAddr};

use karst_harness::LabStatus;
use serde::Serialize;
use serde_json::Value;

/// One connection that crossed the mesh, as both agents logged it.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Flow {
    /// `namespace/pod` of the client.
    pub src: String,
    /// `namespace/pod` of the server.
    pub dst: String,
    /// Address of the server's application.
    pub dst_address: String,
    /// Who the client proved to be: what the server's agent verified.
    pub src_identity: String,
    /// Who the server proved to be: what the client's agent verified.
    pub dst_identity: String,
    /// As negotiated, seen by the server's agent.
    pub tls_version: String,
    /// As negotiated, seen by the server's agent.
    pub cipher: String,
    /// As negotiated, seen by the server's agent.
    pub key_exchange: String,
    /// The client's node.
    pub node_src: String,
    /// The server's node.
    pub node_dst: String,
}

/// The flows in the agents' logs: every pair of an outbound and an inbound record that speak of the
/// same connection and agree about it.
pub fn flows(logs: &[String], status: &LabStatus) -> Vec<Flow> {
    let records: Vec<Value> = logs
        .iter()
        .flat_map(|log| log.lines())
        .filter_map(access_record)
        .collect();
    let going = |direction: &'static str| {
        records
            .iter()
            .filter(move |record| text(record, "direction") == Some(direction))
    };
    going("outbound")
        .filter_map(|outbound| going("inbound").find_map(|inbound| flow(outbound, inbound, status)))
        .collect()
}

fn access_record(line: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(line).ok()?;
    let mutual = text(&record, "connection_security_policy") == Some("mutual_tls");
    (text(&record, "target") == Some("access") && mutual && record.get("reason").is_none())
        .then_some(record)
}

fn flow(outbound: &Value, inbound: &Value, status: &LabStatus) -> Option<Flow> {
    let same =
        |key: &str| text(outbound, key).is_some() && text(outbound, key) == text(inbound, key);
    // The client's address and the address behind the tunnel name a connection on both sides.
    if ![
        "src.addr",
        "dst.hbone_addr",
        "src.identity",
        "dst.identity",
        "tls_version",
        "cipher",
        "key_exchange",
    ]
    .into_iter()
    .all(same)
    {
        return None;
    }
    let source = pod(status, text(inbound, "src.addr")?)?;
    let destination = pod(status, text(inbound, "dst.hbone_addr")?)?;
    let owned = |record: &Value, key: &str| text(record, key).map(str::to_owned);
    Some(Flow {
        src: source.0,
        dst: destination.0,
        dst_address: owned(inbound, "dst.hbone_addr")?,
        src_identity: owned(inbound, "src.identity")?,
        dst_identity: owned(outbound, "dst.identity")?,
        tls_version: owned(inbound, "tls_version")?,
        cipher: owned(inbound, "cipher")?,
        key_exchange: owned(inbound, "key_exchange")?,
        node_src: source.1,
        node_dst: destination.1,
    })
}

fn text<'a>(record: &'a Value, key: &str) -> Option<&'a str> {
    record.get(key)?.as_str()
}

/// `namespace/name` and node of the pod that has an address.
fn pod(status: &LabStatus, address: &str) -> Option<(String, String)> {
    let ip: IpAddr = address.parse::<SocketAddr>().ok()?.ip();
    let pod = status.pods.iter().find(|pod| pod.addresses.contains(&ip))?;
    Some((format!("{}/{}", pod.namespace, pod.name), pod.node.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> LabStatus {
        let pod = |name: &str, node: &str, address: &str| {
            serde_json::json!({
                "namespace": "shop", "name": name, "node": node, "netns": "x", "addresses": [address],
                "pid": null, "log": "/x", "enrolled": true
            })
        };
        let pods = [
            pod("client", "node1", "10.0.1.2"),
            pod("web", "node2", "10.0.2.2"),
        ];
        serde_json::from_value(serde_json::json!({ "nodes": [], "pods": pods })).unwrap()
    }

    fn record(direction: &str, client_port: u16, changes: &[(&str, &str)]) -> String {
        let mut record = serde_json::json!({
            "target": "access", "direction": direction, "src.addr": format!("10.0.1.2:{client_port}"),
            "dst.addr": "10.0.2.2:15008", "dst.hbone_addr": "10.0.2.2:80", "src.identity": "spiffe://td/ns/shop/sa/client",
            "dst.identity": "spiffe://td/ns/shop/sa/web", "connection_security_policy": "mutual_tls",
            "tls_version": "TLSv1_3", "cipher": "TLS13_AES_128_GCM_SHA256", "key_exchange": "X25519MLKEM768",
        });
        for (key, value) in changes {
            record[*key] = (*value).into();
        }
        record.to_string()
    }

    fn found(source: &str, destination: &str) -> Vec<Flow> {
        flows(
            &[format!("a text line\n{source}\n"), destination.to_owned()],
            &status(),
        )
    }

    #[test]
    fn both_sides_of_a_connection_make_a_flow() {
        let flows = found(
            &record("outbound", 4000, &[]),
            &record("inbound", 4000, &[]),
        );
        assert_eq!(flows.len(), 1);
        let flow = &flows[0];
        assert_eq!(
            (flow.src.as_str(), flow.dst.as_str()),
            ("shop/client", "shop/web")
        );
        assert_eq!(
            (flow.node_src.as_str(), flow.node_dst.as_str()),
            ("node1", "node2")
        );
        assert_eq!(flow.src_identity, "spiffe://td/ns/shop/sa/client");
        assert_eq!(flow.key_exchange, "X25519MLKEM768");
    }

    #[test]
    fn one_side_alone_is_no_flow() {
        assert!(
            found(
                &record("outbound", 4000, &[]),
                &record("inbound", 4001, &[])
            )
            .is_empty()
        );
        assert!(found(&record("outbound", 4000, &[]), "").is_empty());
    }

    #[test]
    fn sides_that_disagree_are_no_flow() {
        let other = record(
            "inbound",
            4000,
            &[("src.identity", "spiffe://td/ns/shop/sa/other")],
        );
        assert!(found(&record("outbound", 4000, &[]), &other).is_empty());
    }

    #[test]
    fn what_was_refused_or_plain_is_no_flow() {
        let inbound = record("inbound", 4000, &[]);
        assert!(
            found(
                &record("outbound", 4000, &[("reason", "no_certificate")]),
                &inbound
            )
            .is_empty()
        );
        assert!(
            found(
                &record(
                    "outbound",
                    4000,
                    &[("connection_security_policy", "unknown")]
                ),
                &inbound
            )
            .is_empty()
        );
    }
}
