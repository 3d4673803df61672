//! What outlives an update, and what the wire may not say.

use std::sync::Arc;

use karst_api::waypoint::{
    Algorithm, Backend, ConnectionLimits, LoadBalancing, OutlierDetection, TrafficPolicy, Tunnel,
    Workload,
};
use karst_waypoint::balance::{Clusters, Limit, PickError, PickRequest, Via};

use crate::support::{
    NAME, OK, UNAVAILABLE, backend, balancing, cluster, endpoint, key, of, outliers, send_to, used,
};

fn any() -> PickRequest<'static> {
    PickRequest::default()
}

#[test]
fn a_backend_that_is_named_before_it_is_held_fills_later() {
    let clusters = Clusters::default();
    let early = clusters.get(NAME);
    assert_eq!(early.pick(&any()).unwrap_err(), PickError::NoEndpoints);
    clusters
        .update(&backend(2, Default::default()), None)
        .unwrap();
    assert!(early.pick(&any()).is_ok());
    assert!(Arc::ptr_eq(&early, &clusters.get(NAME)));
    clusters.remove(NAME);
    assert_eq!(early.pick(&any()).unwrap_err(), PickError::NoEndpoints);
    assert!(clusters.list().is_empty());
    assert!(Arc::ptr_eq(&early, &clusters.get(NAME)), "it may come back");
    drop(early);
    clusters.remove("another");
    assert_eq!(clusters.get(NAME).stats().endpoints, 0);
}

fn in_turn() -> TrafficPolicy {
    crate::support::algorithm(Algorithm::RoundRobin)
}

#[test]
fn an_endpoint_that_stays_keeps_its_state_and_one_that_goes_does_not() {
    let (clusters, cluster) = cluster(&backend(4, in_turn()));
    let first = cluster.endpoints()[0].clone();
    let request = key(1);
    let request = PickRequest {
        sticky: Some(&request),
        ..any()
    };
    let picked = cluster.pick(&request).unwrap();
    for _ in 0..5 {
        send_to(&cluster, 2, UNAVAILABLE);
    }
    // Another zone for the first: the same endpoint, described anew.
    let mut changed = backend(4, in_turn());
    changed.endpoints[0].node = "moved".to_owned();
    clusters.update(&changed, None).unwrap();
    let again = cluster.endpoints()[0].clone();
    assert_ne!(first.serial(), again.serial());
    assert_eq!(again.in_flight(), 1);
    picked.finish(OK);
    assert_eq!((again.in_flight(), first.in_flight()), (0, 0));
    assert_eq!(
        used(&cluster),
        [1, 3, 4],
        "the ejection outlives the update"
    );
    assert_eq!(
        cluster.endpoints()[1].serial(),
        cluster.endpoints()[1].serial()
    );

    let without = of(
        vec![endpoint(1), endpoint(3), endpoint(4)],
        Default::default(),
    );
    clusters.update(&without, None).unwrap();
    clusters.update(&backend(4, in_turn()), None).unwrap();
    assert_eq!(used(&cluster), [1, 2, 3, 4], "it is a new one");
}

#[test]
fn an_unchanged_endpoint_is_the_same_object() {
    let (clusters, cluster) = cluster(&backend(2, Default::default()));
    let before = cluster.endpoints();
    clusters
        .update(&backend(3, Default::default()), None)
        .unwrap();
    let after = cluster.endpoints();
    assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
}

#[test]
fn requests_beyond_the_limit_are_turned_away() {
    let mut limited = backend(2, Default::default());
    limited.policy.get_or_insert_default().limits = Some(ConnectionLimits {
        max_requests: 3,
        max_connections: 2,
        max_pending_requests: 1,
        ..ConnectionLimits::default()
    });
    let (_clusters, cluster) = cluster(&limited);
    let held: Vec<_> = (0..3).map(|_| cluster.pick(&any()).unwrap()).collect();
    let error = cluster.pick(&any()).unwrap_err();
    assert_eq!(error, PickError::Overloaded(Limit::Requests));
    assert_eq!(
        (error.reason(), error.status().as_u16()),
        ("overloaded_requests", 503)
    );
    drop(held);
    assert!(cluster.pick(&any()).is_ok());

    let slots = (cluster.try_connection(), cluster.try_connection());
    assert!(cluster.try_connection().is_none());
    assert_eq!(cluster.stats().connections, 2);
    drop(slots);
    assert!(cluster.try_connection().is_some());
    let waits = cluster.try_wait();
    assert!(waits.is_some() && cluster.try_wait().is_none());
}

#[test]
fn a_workload_is_reached_at_the_port_and_address_asked_for() {
    let clusters = Clusters::default();
    let mut wire = endpoint(7);
    wire.port = 0;
    let cluster = clusters.single(&wire, None).unwrap();
    assert_eq!(
        cluster.pick(&any()).unwrap_err(),
        PickError::NoEndpoints,
        "no port"
    );
    let request = PickRequest {
        port: Some(9090),
        address: Some("fd00::7".parse().unwrap()),
        ..any()
    };
    let picked = cluster.pick(&request).unwrap();
    assert_eq!(picked.destination(), "[fd00::7]:9090".parse().unwrap());
    assert!(matches!(
        picked.endpoint().via(),
        Via::Hbone {
            authority: None,
            ..
        }
    ));
    assert!(Arc::ptr_eq(
        &cluster,
        &clusters.single(&wire, None).unwrap()
    ));
    assert_eq!(clusters.list().len(), 1);
    drop((picked, cluster));
    assert!(clusters.list().is_empty(), "nobody has it any more");
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
    let check = |field: &str, wrong: &dyn Fn(&mut Backend)| {
        let (clusters, cluster) = cluster(&backend(2, Default::default()));
        let mut backend = backend(3, Default::default());
        wrong(&mut backend);
        let error = clusters.update(&backend, None).unwrap_err();
        assert_eq!(error.field, field);
        assert_eq!(cluster.stats().endpoints, 2, "{field}");
    };
    check("port", &|backend| backend.port = 0);
    check("protocol", &|backend| backend.protocol = 99);
    check("endpoints.uid", &|backend| backend.endpoints[1].uid.clear());
    check("endpoints.port", &|backend| {
        backend.endpoints[1].port = 70_000
    });
    check("endpoints.address", &|backend| {
        backend.endpoints[1].address = vec![1, 2, 3]
    });
    check("endpoints.identity", &|backend| {
        backend.endpoints[1].identity = "shop".to_owned()
    });
    check("endpoints.tunnel", &|backend| {
        backend.endpoints[1].tunnel = 9
    });
    check("endpoints.health", &|backend| {
        backend.endpoints[1].health = 9
    });
    check("endpoints.authority", &|backend| {
        backend.endpoints[1].authority = "a b".to_owned()
    });
    check("policy.load_balancing.hash", &|backend| {
        backend.policy = Some(crate::support::algorithm(Algorithm::RingHash));
    });
    check("policy.load_balancing.algorithm", &|backend| {
        backend.policy = Some(balancing(LoadBalancing {
            algorithm: 77,
            ..LoadBalancing::default()
        }));
    });
    check("policy.outlier_detection.panic_percent", &|backend| {
        backend.policy = Some(outliers(OutlierDetection {
            panic_percent: 101,
            ..OutlierDetection::default()
        }));
    });
}

#[test]
fn plain_endpoints_need_no_identity() {
    let mut plain = endpoint(1);
    plain.tunnel = Tunnel::None.into();
    plain.identity.clear();
    let (_clusters, cluster) = cluster(&of(vec![plain], Default::default()));
    let picked = cluster.pick(&any()).unwrap();
    assert_eq!(picked.endpoint().via(), &Via::Plain);
    assert_eq!(picked.destination(), "10.0.0.1:8080".parse().unwrap());
}

#[test]
fn endpoints_share_what_they_are_parts_of() {
    let clusters = Clusters::default();
    let part = |version: &str| Workload {
        namespace: "test".to_owned(),
        name: "shop".to_owned(),
        canonical_name: "shop".to_owned(),
        canonical_revision: version.to_owned(),
        cluster: "Kubernetes".to_owned(),
    };
    let mut wire = backend(4, TrafficPolicy::default());
    wire.workloads = vec![part("v1"), part("v2")];
    for (endpoint, place) in wire.endpoints.iter_mut().zip([1, 2, 1, 0]) {
        endpoint.workload = place;
    }
    clusters.update(&wire, None).unwrap();
    let versions = || -> Vec<_> {
        let endpoints = clusters.get(NAME).endpoints();
        let versions = endpoints
            .iter()
            .map(|each| Some(each.workload()?.version.clone()));
        versions.collect()
    };
    let known = |version: &str| Some(version.to_owned());
    assert_eq!(versions(), [known("v1"), known("v2"), known("v1"), None]);
    assert_eq!(clusters.workloads().len(), 2);
    let endpoints = clusters.get(NAME).endpoints();
    let of = |place: usize| endpoints[place].workload().unwrap();
    assert!(Arc::ptr_eq(of(0), of(2)));
    // Nothing of the endpoint has changed when its workload has another place in the list.
    let serial = endpoints[0].serial();
    wire.workloads.rotate_left(1);
    for (endpoint, place) in wire.endpoints.iter_mut().zip([2, 2, 2, 0]) {
        endpoint.workload = place;
    }
    clusters.update(&wire, None).unwrap();
    assert_eq!(versions(), [known("v1"), known("v1"), known("v1"), None]);
    assert_eq!(clusters.get(NAME).endpoints()[0].serial(), serial);
    assert_eq!(clusters.workloads().len(), 1);
    wire.endpoints[3].workload = 3;
    let error = clusters.update(&wire, None).unwrap_err().to_string();
    assert_eq!(error, "endpoints.workload 3 is beyond the 2 there are");
    clusters.remove(NAME);
    assert!(clusters.workloads().is_empty());
}
