use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;

use super::{Destination, Source, Target, Way};
use crate::egress::Egress;
use crate::pod::{Pod, PodSpec};
use crate::reason::Reason;
use crate::state::MeshState;
use crate::state::outside::{Audience, Block, Outside};
use crate::state::service::{HealthPolicy, LoadBalancingMode, ServiceSpec};
use crate::state::store::{Change, Store};
use crate::state::waypoint::{Place, Waypoint};
use crate::state::workload::{Health, Locality, Protocol, ServiceMembership, Via, Workload};

fn pod() -> Pod {
    let spec = PodSpec {
        uid: Arc::from("u"),
        namespace: Arc::from("ns"),
        name: Arc::from("client"),
        workload_uid: Arc::from("c//Pod/ns/client"),
        identity: SpiffeId::new("cluster.local", "ns", "client").expect("id"),
        addresses: vec!["10.0.0.1".parse().expect("ip")],
        waypoints: Arc::default(),
        egress: crate::egress::Egress::default(),
    };
    Pod::new(
        spec,
        Netns::open(Path::new("/proc/self/ns/net")).expect("netns"),
    )
}

fn source<'a>(state: &'a MeshState, pod: &'a Pod, egress: Egress) -> Source<'a> {
    Source {
        state,
        workload_uid: &pod.workload_uid,
        namespace: &pod.namespace,
        addresses: &pod.addresses,
        egress,
    }
}

fn workload(name: &str, ip: &str) -> Workload {
    Workload {
        uid: Arc::from(name),
        identity: SpiffeId::new("cluster.local", "ns", name).ok(),
        addresses: vec![ip.parse().expect("ip")],
        protocol: Protocol::Hbone,
        services: Arc::from([ServiceMembership {
            service: Arc::from("ns/svc"),
            ports: vec![(80, 8080)],
        }]),
        ..Workload::default()
    }
}

fn service() -> ServiceSpec {
    ServiceSpec {
        key: Arc::from("ns/svc"),
        name: Arc::from("svc"),
        namespace: Arc::from("ns"),
        hostname: Arc::from("svc"),
        vips: vec!["10.96.0.1".parse().expect("ip")],
        ports: vec![(80, 0)],
        via: Via::Direct,
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Any,
        health_policy: HealthPolicy::OnlyHealthy,
        outside: None,
    }
}

fn find(changes: Vec<Change>, original: &str, tried: &[Arc<str>]) -> Result<Target, Reason> {
    find_as(Egress::AllowAny, changes, original, tried)
}

fn find_as(
    egress: Egress,
    changes: Vec<Change>,
    original: &str,
    tried: &[Arc<str>],
) -> Result<Target, Reason> {
    let state = Arc::new(MeshState::default());
    Store::new(Arc::clone(&state), Locality::default()).apply(changes);
    let original: SocketAddr = original.parse().expect("address");
    let (state, pod) = (&state, &pod());
    let source = source(state, pod, egress);
    let found = source.destination(original).map_err(|r| r.reason)?;
    let target = source.target(&found, original, tried);
    target.map_err(|r| r.reason)
}

fn server() -> Vec<Change> {
    vec![
        Change::Workload(workload("server", "10.0.0.2")),
        Change::Service(service()),
    ]
}

#[test]
fn workload_keeps_the_port_and_goes_by_its_tunnel() {
    let t = find(server(), "10.0.0.2:9000", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.2:9000");
    assert_eq!(
        t.hbone_addr().expect("tunnel").to_string(),
        "10.0.0.2:15008"
    );
}

#[test]
fn service_port_becomes_the_target_port() {
    let t = find(server(), "10.96.0.1:80", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.2:8080");
    let t = find(server(), "[::ffff:10.96.0.1]:80", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.2:8080");
}

#[test]
fn refusals_have_their_reason() {
    let refused = |changes, original: &str| find(changes, original, &[]).expect_err("refused");
    assert_eq!(
        refused(server(), "10.96.0.1:81"),
        Reason::ServicePortUnknown
    );
    assert_eq!(
        refused(vec![Change::Service(service())], "10.96.0.1:80"),
        Reason::NoHealthyUpstream
    );
    let sick = Workload {
        health: Health::Unhealthy,
        ..workload("server", "10.0.0.2")
    };
    let changes = vec![Change::Workload(sick), Change::Service(service())];
    assert_eq!(refused(changes, "10.96.0.1:80"), Reason::NoHealthyUpstream);
    let behind = Workload {
        via: Via::UnusableWaypoint,
        ..workload("server", "10.0.0.2")
    };
    assert_eq!(
        refused(vec![Change::Workload(behind)], "10.0.0.2:80"),
        Reason::WaypointUnsupported
    );
    let far = Workload {
        via: Via::NetworkGateway,
        ..workload("server", "10.0.0.2")
    };
    assert_eq!(
        refused(vec![Change::Workload(far)], "10.0.0.2:80"),
        Reason::NetworkUnsupported
    );
    let spec = ServiceSpec {
        via: Via::UnusableWaypoint,
        ..service()
    };
    assert_eq!(
        refused(vec![Change::Service(spec)], "10.96.0.1:80"),
        Reason::WaypointUnsupported
    );
    for own in [
        "127.0.0.1:15001",
        "10.0.0.1:15008",
        "[::1]:15006",
        "[::ffff:127.0.0.1]:15001",
    ] {
        assert_eq!(refused(server(), own), Reason::SelfCall, "{own}");
    }
}

#[test]
fn unknown_addresses_are_external() {
    let t = find(server(), "203.0.113.1:15008", &[]).expect("target");
    assert!(t.workload.is_none() && t.way == Way::Plain);
    assert_eq!(t.address.to_string(), "203.0.113.1:15008");
}

#[test]
fn passthrough_services_are_dialled_as_asked() {
    let spec = ServiceSpec {
        mode: LoadBalancingMode::Passthrough,
        ..service()
    };
    let changes = vec![
        Change::Workload(workload("server", "10.0.0.2")),
        Change::Service(spec),
    ];
    let t = find(changes, "10.96.0.1:80", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.96.0.1:80");
}

#[test]
fn retry_takes_another_endpoint_or_none() {
    let mut changes = server();
    changes.push(Change::Workload(workload("other", "10.0.0.3")));
    let t = find(changes, "10.96.0.1:80", &[Arc::from("server")]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.3:8080");
    let error = find(server(), "10.96.0.1:80", &[Arc::from("server")]).expect_err("refused");
    assert_eq!(error, Reason::NoHealthyUpstream);
    // A workload that was asked for by address is tried again itself.
    let t = find(server(), "10.0.0.2:80", &[Arc::from("server")]).expect("target");
    assert!(matches!(t.workload, Some(w) if &*w.uid == "server"));
}

#[test]
fn destination_tells_services_from_workloads() {
    let state = Arc::new(MeshState::default());
    Store::new(Arc::clone(&state), Locality::default()).apply(server());
    let (state, pod) = (&state, &pod());
    let source = source(state, pod, Egress::AllowAny);
    let kind = |text: &str| source.destination(text.parse().expect("address"));
    assert!(matches!(kind("10.96.0.1:80"), Ok(Destination::Service(_))));
    assert!(matches!(kind("10.0.0.2:80"), Ok(Destination::Workload(_))));
    assert!(matches!(kind("192.0.2.1:80"), Ok(Destination::External)));
}

const WAYPOINT: &str = "infra/waypoint.infra.svc.cluster.local";

/// The way through the waypoint below.
fn through() -> Via {
    Via::Waypoint(Waypoint {
        place: Place::Service(Arc::from(WAYPOINT)),
        port: 15008,
    })
}

fn waypoint_pod(name: &str, ip: &str) -> Workload {
    Workload {
        services: Arc::from([ServiceMembership {
            service: Arc::from(WAYPOINT),
            ports: vec![(15008, 15008)],
        }]),
        ..workload(name, ip)
    }
}

fn waypoint_service() -> ServiceSpec {
    ServiceSpec {
        key: Arc::from(WAYPOINT),
        vips: vec!["10.96.0.9".parse().expect("ip")],
        ports: vec![(15008, 15008)],
        ..service()
    }
}

/// A service and its endpoint with `via` in front of the former, and a waypoint of one pod.
fn behind(via: Via) -> Vec<Change> {
    vec![
        Change::Workload(workload("server", "10.0.0.2")),
        Change::Service(ServiceSpec { via, ..service() }),
        Change::Service(waypoint_service()),
        Change::Workload(waypoint_pod("waypoint", "10.0.0.9")),
    ]
}

/// (what is asked for, whom is dialled, the tunnel listener if it is a waypoint's)
fn shape(target: &Target) -> (String, String, Option<String>) {
    let listener = match target.way {
        Way::Waypoint(listener) => Some(listener.to_string()),
        Way::Tunnel(_) | Way::Plain => None,
    };
    let uid = target.workload.as_ref().map(|w| w.uid.to_string());
    (
        target.address.to_string(),
        uid.unwrap_or_default(),
        listener,
    )
}

fn expected(asked: &str, listener: &str) -> (String, String, Option<String>) {
    (
        asked.to_owned(),
        "waypoint".to_owned(),
        Some(listener.to_owned()),
    )
}

#[test]
fn a_service_behind_a_waypoint_is_asked_for_there() {
    let t = find(behind(through()), "10.96.0.1:80", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.96.0.1:80", "10.0.0.9:15008"));
    assert_eq!(
        t.hbone_addr().expect("tunnel").to_string(),
        "10.0.0.9:15008"
    );
    // Endpoints are the waypoint's business, ports are not.
    let changes = behind(through()).into_iter().skip(1).collect();
    assert!(find(changes, "10.96.0.1:80", &[]).is_ok());
    let port = find(behind(through()), "10.96.0.1:81", &[]).expect_err("refused");
    assert_eq!(port, Reason::ServicePortUnknown);
    // Also one that is dialled as asked: it would get past the waypoint.
    let mut changes = behind(Via::Direct);
    changes.push(Change::Service(ServiceSpec {
        via: through(),
        mode: LoadBalancingMode::Passthrough,
        ..service()
    }));
    let t = find(changes, "10.96.0.1:80", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.96.0.1:80", "10.0.0.9:15008"));
}

#[test]
fn a_workload_behind_a_waypoint_is_asked_for_there() {
    let mut changes = behind(Via::Direct);
    changes.push(Change::Workload(Workload {
        via: through(),
        ..workload("server", "10.0.0.2")
    }));
    let t = find(changes, "10.0.0.2:9000", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.0.0.2:9000", "10.0.0.9:15008"));
    // So is the endpoint of a service that has none itself.
    let mut changes = behind(Via::Direct);
    changes.push(Change::Workload(Workload {
        via: through(),
        ..workload("server", "10.0.0.2")
    }));
    let t = find(changes, "10.96.0.1:80", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.0.0.2:8080", "10.0.0.9:15008"));
}

#[test]
fn a_waypoint_may_be_named_by_address() {
    let at = |ip: &str, port| {
        behind(Via::Waypoint(Waypoint {
            place: Place::Address(ip.parse().expect("ip")),
            port,
        }))
    };
    let t = find(at("10.0.0.9", 15008), "10.96.0.1:80", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.96.0.1:80", "10.0.0.9:15008"));
    let t = find(at("10.96.0.9", 15008), "10.96.0.1:80", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.96.0.1:80", "10.0.0.9:15008"));
    for (ip, port) in [("10.0.0.99", 15008), ("10.96.0.9", 15009)] {
        let refused = find(at(ip, port), "10.96.0.1:80", &[]).expect_err("refused");
        assert_eq!(refused, Reason::WaypointUnknown);
    }
}

#[test]
fn without_a_usable_waypoint_there_is_no_other_way() {
    let refused = |changes| find(changes, "10.96.0.1:80", &[]).expect_err("refused");
    let mut changes = behind(through());
    changes.truncate(2);
    assert_eq!(refused(changes), Reason::WaypointUnknown);
    let mut changes = behind(through());
    changes.truncate(3);
    assert_eq!(refused(changes), Reason::WaypointNoEndpoints);
    let with_pod = |pod| {
        let mut changes = behind(through());
        changes.push(Change::Workload(pod));
        changes
    };
    let sick = Workload {
        health: Health::Unhealthy,
        ..waypoint_pod("waypoint", "10.0.0.9")
    };
    assert_eq!(refused(with_pod(sick)), Reason::WaypointNoEndpoints);
    let plain = || Workload {
        protocol: Protocol::Tcp,
        ..waypoint_pod("waypoint", "10.0.0.9")
    };
    assert_eq!(refused(with_pod(plain())), Reason::WaypointNotHbone);
    let far = Workload {
        via: Via::NetworkGateway,
        ..waypoint_pod("waypoint", "10.0.0.9")
    };
    assert_eq!(refused(with_pod(far)), Reason::NetworkUnsupported);
    // One that cannot be used does not stand in the way of one that can.
    for _ in 0..20 {
        let mut changes = with_pod(plain());
        changes.push(Change::Workload(waypoint_pod("other", "10.0.0.10")));
        let t = find(changes, "10.96.0.1:80", &[]).expect("target");
        assert_eq!(
            t.hbone_addr().expect("tunnel").ip().to_string(),
            "10.0.0.10"
        );
    }
}

#[test]
fn another_pod_of_the_waypoint_is_tried_next() {
    let tried = [Arc::from("waypoint")];
    let mut changes = behind(through());
    changes.push(Change::Workload(waypoint_pod("other", "10.0.0.10")));
    let t = find(changes, "10.96.0.1:80", &tried).expect("target");
    assert_eq!(
        t.hbone_addr().expect("tunnel").ip().to_string(),
        "10.0.0.10"
    );
    let refused = find(behind(through()), "10.96.0.1:80", &tried).expect_err("refused");
    assert_eq!(refused, Reason::WaypointNoEndpoints);
}

#[test]
fn a_waypoint_does_not_ask_itself() {
    let mut changes = behind(through());
    changes.push(Change::Workload(waypoint_pod(
        "c//Pod/ns/client",
        "10.0.0.1",
    )));
    let refused = find(changes, "10.96.0.1:80", &[]).expect_err("refused");
    assert_eq!(refused, Reason::WaypointLoop);
}

/// What stands in front of the waypoint itself is not asked for.
#[test]
fn a_waypoint_is_reached_directly() {
    let mut changes = behind(through());
    changes.push(Change::Service(ServiceSpec {
        via: through(),
        ..waypoint_service()
    }));
    changes.push(Change::Workload(Workload {
        via: through(),
        ..waypoint_pod("waypoint", "10.0.0.9")
    }));
    let t = find(changes, "10.96.0.1:80", &[]).expect("target");
    assert_eq!(shape(&t), expected("10.96.0.1:80", "10.0.0.9:15008"));
}

/// A service for hosts outside at these addresses, with port 443, for all or for one namespace.
fn outside(blocks: &[(&str, u8)], mode: LoadBalancingMode, only: Option<&str>) -> Change {
    let blocks = blocks.iter().map(|(ip, length)| {
        let ip = ip.parse().expect("ip");
        Block::around(ip, *length).expect("block")
    });
    Change::Service(ServiceSpec {
        key: Arc::from("out/api.example.com"),
        hostname: Arc::from("api.example.com"),
        vips: Vec::new(),
        ports: vec![(443, 0)],
        mode,
        outside: Some(Outside {
            audience: only.map_or(Audience::All, |one| Audience::Namespaces(vec![one.into()])),
            blocks: blocks.collect(),
            created: 0,
            entry: Arc::from("api"),
        }),
        ..service()
    })
}

/// Where a pod that is limited to what the mesh knows gets to.
fn limited(changes: Vec<Change>, original: &str) -> Result<Target, Reason> {
    find_as(Egress::RegistryOnly, changes, original, &[])
}

const API: &[(&str, u8)] = &[("192.0.2.1", 32), ("2001:db8::", 32)];

#[test]
fn only_what_the_mesh_knows_is_reached_where_that_is_wanted() {
    for inside in ["10.0.0.2:9000", "10.96.0.1:80", "[::ffff:10.96.0.1]:80"] {
        assert!(limited(server(), inside).is_ok(), "{inside}");
    }
    for outside in [
        "192.0.2.1:443",
        "[::ffff:192.0.2.1]:443",
        "[2001:db8::1]:443",
        "169.254.169.254:80",
        "10.0.0.3:80",
    ] {
        assert_eq!(
            limited(server(), outside).expect_err("refused"),
            Reason::EgressDenied
        );
        assert!(find(server(), outside, &[]).is_ok(), "{outside}");
    }
    // Its own address and loopback never leave it.
    for own in ["127.0.0.1:80", "[::1]:80", "10.0.0.1:80"] {
        assert!(limited(server(), own).is_ok(), "{own}");
    }
    assert_eq!(
        limited(server(), "10.96.0.1:81").expect_err("no port"),
        Reason::ServicePortUnknown
    );
}

#[test]
fn an_entry_opens_its_addresses_and_ports() {
    let with = |only| {
        let mut all = server();
        all.push(outside(API, LoadBalancingMode::Passthrough, only));
        all
    };
    for open in [
        "192.0.2.1:443",
        "[::ffff:192.0.2.1]:443",
        "[2001:db8:7::1]:443",
    ] {
        let target = limited(with(None), open).expect("open");
        let asked: SocketAddr = open.parse().expect("address");
        assert_eq!(target.address.ip(), asked.ip().to_canonical());
        assert_eq!((target.address.port(), target.way), (443, Way::Plain));
        assert!(limited(with(Some("ns")), open).is_ok(), "{open}");
        let other = limited(with(Some("other")), open);
        assert_eq!(
            other.expect_err("another namespace's"),
            Reason::EgressDenied
        );
    }
    for closed in ["192.0.2.1:80", "192.0.2.2:443", "[2001:db9::1]:443"] {
        assert_eq!(
            limited(with(None), closed).expect_err("closed"),
            Reason::EgressDenied
        );
        assert!(find(with(None), closed, &[]).is_ok(), "{closed}");
    }
    let mut gone = with(None);
    gone.push(Change::Removed(Arc::from("out/api.example.com")));
    assert_eq!(
        limited(gone, "192.0.2.1:443").expect_err("gone"),
        Reason::EgressDenied
    );
}

#[test]
fn what_the_cluster_has_counts_before_an_entry() {
    let with_all = || {
        let mut all = server();
        all.insert(
            0,
            outside(&[("0.0.0.0", 0)], LoadBalancingMode::Passthrough, None),
        );
        all
    };
    let target = limited(with_all(), "10.0.0.2:443").expect("the workload");
    assert_eq!(
        target.hbone_addr().expect("tunnel").to_string(),
        "10.0.0.2:15008"
    );
    let refused = limited(with_all(), "10.96.0.1:443").expect_err("no port of the Service's");
    assert_eq!(refused, Reason::ServicePortUnknown);
}

fn endpoint(ip: &str) -> Change {
    let uid = format!("c/networking.istio.io/ServiceEntry/out/api/{ip}");
    Change::Workload(Workload {
        uid: Arc::from(uid),
        identity: None,
        protocol: Protocol::Tcp,
        services: Arc::from([ServiceMembership {
            service: Arc::from("out/api.example.com"),
            ports: vec![(443, 8443)],
        }]),
        ..workload("endpoint", ip)
    })
}

#[test]
fn endpoints_of_an_entry_are_reached_by_its_address_alone() {
    let with = |ip: &str| vec![endpoint(ip), outside(API, LoadBalancingMode::Any, None)];
    let target = limited(with("198.51.100.7"), "192.0.2.1:443").expect("open");
    assert_eq!(target.address.to_string(), "198.51.100.7:8443");
    assert_eq!(target.way, Way::Plain);
    for direct in ["198.51.100.7:8443", "198.51.100.7:443", "192.0.2.1:8443"] {
        let refused = limited(with("198.51.100.7"), direct).expect_err("closed");
        assert_eq!(refused, Reason::EgressDenied, "{direct}");
    }
    // What is in the mesh is reached in the mesh's way, or not at all.
    let mut inside = server();
    inside.extend(with("10.0.0.2"));
    let target = limited(inside, "192.0.2.1:443").expect("open");
    assert_eq!(
        target.hbone_addr().expect("tunnel").to_string(),
        "10.0.0.2:15008"
    );
    let mut virtual_address = server();
    virtual_address.extend(with("10.96.0.1"));
    let refused = limited(virtual_address, "192.0.2.1:443").expect_err("a Service's");
    assert_eq!(refused, Reason::NoHealthyUpstream);
}

/// Every second choice would fall on the bad one.
#[test]
fn a_bad_endpoint_of_an_entry_does_not_stand_in_the_way() {
    let with = |bad: &str| {
        let mut all = server();
        all.extend([
            endpoint(bad),
            endpoint("198.51.100.7"),
            outside(API, LoadBalancingMode::Any, None),
        ]);
        all
    };
    let tried = |uid: &str| [Arc::from(uid)];
    for _ in 0..40 {
        // One that is a Service's address.
        let target = limited(with("10.96.0.1"), "192.0.2.1:443").expect("the other");
        assert_eq!(target.address.to_string(), "198.51.100.7:8443");
        // One that is a pod of the mesh, and was tried under the pod's own name.
        let again = |uid| {
            let egress = Egress::RegistryOnly;
            find_as(egress, with("10.0.0.2"), "192.0.2.1:443", &tried(uid))
        };
        let target = again("server").expect("the other");
        assert_eq!(target.address.to_string(), "198.51.100.7:8443");
        let target = again("c/networking.istio.io/ServiceEntry/out/api/198.51.100.7");
        assert_eq!(
            target.expect("the pod").address.to_string(),
            "10.0.0.2:8443"
        );
    }
    // With none left there is an end.
    let only = [
        endpoint("10.0.0.2"),
        outside(API, LoadBalancingMode::Any, None),
    ];
    let mut only = Vec::from(only);
    only.extend(server());
    let egress = Egress::RegistryOnly;
    let refused = find_as(egress, only, "192.0.2.1:443", &tried("server"));
    assert_eq!(refused.expect_err("none left"), Reason::NoHealthyUpstream);
}

#[test]
fn nodes_are_known_while_workloads_share_their_addresses() {
    let shared = || {
        Change::Workload(Workload {
            host_network: true,
            protocol: Protocol::Tcp,
            services: Arc::default(),
            ..workload("agent", "172.30.0.1")
        })
    };
    let target = limited(vec![shared()], "172.30.0.1:6443").expect("a node");
    assert_eq!((target.workload.is_none(), target.way), (true, Way::Plain));
    // An entry takes it away no more than that of a pod, and opens or closes nothing there.
    for mode in [LoadBalancingMode::Passthrough, LoadBalancingMode::Any] {
        for block in [("172.30.0.1", 32), ("172.30.0.0", 16)] {
            for egress in [Egress::RegistryOnly, Egress::AllowAny] {
                let entry = outside(&[block], mode, None);
                let changes = vec![entry, endpoint("198.51.100.7"), shared()];
                let target = find_as(egress, changes, "172.30.0.1:443", &[]).expect("a node");
                assert_eq!(target.address.to_string(), "172.30.0.1:443");
                assert!(target.workload.is_none());
            }
        }
    }
    let gone = vec![shared(), Change::Removed(Arc::from("agent"))];
    assert_eq!(
        limited(gone, "172.30.0.1:6443").expect_err("gone"),
        Reason::EgressDenied
    );
}
