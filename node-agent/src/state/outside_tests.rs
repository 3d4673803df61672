use std::net::IpAddr;
use std::sync::Arc;

use karst_api::node::MAX_SERVICES_OF_ADDRESS;

use super::{Audience, Block, Outside, OutsideTable};
use crate::state::service::{HealthPolicy, LoadBalancingMode, Service, ServiceSpec};
use crate::state::workload::{Locality, Via};

fn block(text: &str) -> Block {
    let (ip, length) = text.split_once('/').expect("length");
    let ip: IpAddr = ip.parse().expect("ip");
    Block::around(ip, length.parse().expect("number")).expect("block")
}

fn service(
    name: &str,
    blocks: &[&str],
    ports: &[u16],
    created: i64,
    audience: &[&str],
) -> Arc<Service> {
    let outside = Outside {
        audience: match audience {
            [] => Audience::All,
            some => Audience::Namespaces(some.iter().map(|one| Arc::from(*one)).collect()),
        },
        blocks: blocks.iter().map(|text| block(text)).collect(),
        created,
        entry: Arc::from(name),
    };
    let spec = ServiceSpec {
        key: Arc::from(format!("ns/{name}")),
        name: Arc::from(name),
        namespace: Arc::from("ns"),
        hostname: Arc::from(name),
        vips: Vec::new(),
        ports: ports.iter().map(|port| (*port, 0)).collect(),
        via: Via::Direct,
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Passthrough,
        health_policy: HealthPolicy::OnlyHealthy,
        outside: Some(outside),
    };
    Arc::new(Service::assemble(spec, &[], &Locality::default()))
}

fn found(table: &OutsideTable, ip: &str, port: u16, namespace: &str) -> String {
    let found = table.find(ip.parse().expect("ip"), port, namespace);
    found.map_or_else(String::new, |service| service.spec.name.to_string())
}

#[test]
fn blocks_begin_at_their_network() {
    assert_eq!(block("192.0.2.77/24"), block("192.0.2.0/24"));
    assert_eq!(block("192.0.2.77/0"), block("0.0.0.0/0"));
    assert_eq!(block("2001:db8::7/32"), block("2001:db8:1::/32"));
    assert_eq!(block("2001:db8::7/0"), block("::/0"));
    assert_eq!(block("::ffff:192.0.2.1/32"), block("192.0.2.1/32"));
    assert_ne!(block("0.0.0.0/0"), block("::/0"));
    assert_eq!(Block::around(IpAddr::from([10, 0, 0, 1]), 33), None);
    assert_eq!(Block::around("::1".parse().expect("ip"), 129), None);
}

#[test]
fn the_longest_block_with_the_port_counts() {
    let table = OutsideTable::new([
        service("all", &["0.0.0.0/0"], &[443], 1, &[]),
        service(
            "net",
            &["192.0.2.0/24", "2001:db8::/32"],
            &[443, 80],
            2,
            &[],
        ),
        service("host", &["192.0.2.1/32", "2001:db8::1/128"], &[443], 3, &[]),
    ]);
    for (ip, port, expected) in [
        ("192.0.2.1", 443, "host"),
        ("::ffff:192.0.2.1", 443, "host"),
        ("192.0.2.1", 80, "net"),
        ("192.0.2.2", 443, "net"),
        ("198.51.100.1", 443, "all"),
        ("198.51.100.1", 80, ""),
        ("192.0.2.1", 22, ""),
        ("2001:db8::1", 443, "host"),
        ("2001:db8::1", 80, "net"),
        ("2001:db8:ffff::2", 443, "net"),
        // An IPv4 block of everything is none for IPv6.
        ("2001:db9::1", 443, ""),
    ] {
        assert_eq!(found(&table, ip, port, "any"), expected, "{ip} {port}");
    }
    assert_eq!(table.counts(), (5, 0));
    assert_eq!(found(&OutsideTable::default(), "192.0.2.1", 443, "any"), "");
}

#[test]
fn the_oldest_for_the_namespace_counts() {
    let table = OutsideTable::new([
        service("young", &["192.0.2.1/32"], &[443], 9, &[]),
        service("b", &["192.0.2.1/32"], &[443], 5, &[]),
        service("a", &["192.0.2.1/32"], &[443], 5, &[]),
        service("mine", &["192.0.2.1/32"], &[443], 1, &["mine", "other"]),
        service("hidden", &["192.0.2.9/32"], &[443], 1, &["mine"]),
    ]);
    assert_eq!(found(&table, "192.0.2.1", 443, "mine"), "mine");
    assert_eq!(found(&table, "192.0.2.1", 443, "other"), "mine");
    assert_eq!(found(&table, "192.0.2.1", 443, "third"), "a");
    assert_eq!(found(&table, "192.0.2.9", 443, "mine"), "hidden");
    assert_eq!(found(&table, "192.0.2.9", 443, "third"), "");
}

/// As the controller has it, and not by the host's name.
#[test]
fn of_equal_age_the_first_by_namespace_and_entry_counts() {
    let named = |namespace: &str, entry: &str, host: &str| {
        let mut spec = service(host, &["192.0.2.1/32"], &[443], 5, &[])
            .spec
            .clone();
        spec.key = Arc::from(format!("{namespace}/{host}"));
        spec.namespace = Arc::from(namespace);
        if let Some(outside) = &mut spec.outside {
            outside.entry = Arc::from(entry);
        }
        Arc::new(Service::assemble(spec, &[], &Locality::default()))
    };
    for (one, other, first) in [
        (
            named("ns", "a", "z.example"),
            named("ns", "b", "a.example"),
            "z.example",
        ),
        // A namespace is a part of its own: "a-b" is behind "a", whatever comes between entry and it.
        (
            named("a", "z", "z.example"),
            named("a-b", "a", "a.example"),
            "z.example",
        ),
        (
            named("ns", "a", "b.example"),
            named("ns", "a", "a.example"),
            "a.example",
        ),
    ] {
        for both in [[&one, &other], [&other, &one]] {
            let table = OutsideTable::new(both.map(Arc::clone));
            assert_eq!(found(&table, "192.0.2.1", 443, "any"), first);
        }
    }
}

#[test]
fn what_is_beyond_the_limit_is_not_known() {
    let one = |n: usize| {
        let created = i64::try_from(n).expect("small");
        let port = u16::try_from(n + 1).expect("small");
        service(&format!("s{n}"), &["192.0.2.1/32"], &[port], created, &[])
    };
    // The newest first: its age decides, not when it came.
    let table = OutsideTable::new((0..=MAX_SERVICES_OF_ADDRESS).rev().map(one));
    assert_eq!(table.counts(), (MAX_SERVICES_OF_ADDRESS, 1));
    assert_eq!(found(&table, "192.0.2.1", 1, "any"), "s0");
    let last = u16::try_from(MAX_SERVICES_OF_ADDRESS).expect("small");
    assert_eq!(
        found(&table, "192.0.2.1", last, "any"),
        format!("s{}", last - 1)
    );
    assert_eq!(found(&table, "192.0.2.1", last + 1, "any"), "");
}
