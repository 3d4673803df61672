use std::sync::Arc;
use std::time::Duration;

use karst_identity::SpiffeId;
use karst_process::tap::facts::{Event, Verdict};
use karst_process::tap::selector::Selector;

use super::{of_connection, of_request, verdict};
use crate::access_log::{ConnectionRecord, Destination, EndpointRecord, Reporter, RequestRecord};
use crate::authz::Denial;
use crate::client::Client;
use crate::reason::Reason;
use crate::workload::WorkloadLabels;

fn client() -> Client {
    let identity = SpiffeId::new("cluster.local", "shop", "cart").ok();
    let mut client = Client::new("10.0.0.1:4000".parse().expect("address"), identity);
    client.workload = Some(Arc::new(WorkloadLabels {
        name: "cart".to_owned(),
        // An agent's word, which does not go before the certificate's.
        namespace: "elsewhere".to_owned(),
        ..WorkloadLabels::default()
    }));
    client
}

fn denial() -> Option<Denial> {
    Some(Denial {
        policy: "front/nobody".into(),
        rule: Some(1),
        unusable: false,
        external: None,
    })
}

fn request() -> RequestRecord {
    let mut record = RequestRecord::new(Reporter::Waypoint, client());
    record.uri = "/api?q=1".parse().expect("uri");
    record.status = 403;
    record.duration = Duration::from_millis(3);
    record.reason = Some(Reason::Other("policy_denied"));
    record.denial = denial();
    record.audited = Some("front/noted".into());
    record.destination = Some(Arc::new(Destination {
        namespace: "front".into(),
        name: "web".into(),
        hostname: "web.front.svc.cluster.local".into(),
        port: 80,
    }));
    record.endpoint = Some(EndpointRecord {
        uid: "Kubernetes//Pod/front/web-0".into(),
        address: "10.0.0.2:8080".parse().expect("address"),
        identity: None,
        workload: Some(Arc::new(WorkloadLabels {
            name: "web".to_owned(),
            ..WorkloadLabels::default()
        })),
    });
    record
}

#[test]
fn a_request_is_selected_by_what_the_proxy_knows() {
    let record = request();
    let facts = of_request(&record);
    for (parameter, value, holds) in [
        ("from", "shop/cart", true),
        ("from", "elsewhere", false),
        ("from", "spiffe://cluster.local/ns/shop/sa/cart", true),
        ("to", "front/web-0", true),
        ("to", "front/web", true),
        ("to", "web/front", false),
        ("to", "svc/web.front:80", true),
        ("to", "svc/web.front:8080", false),
        ("verdict", "denied", true),
        ("policy", "nobody", true),
        ("policy", "front/noted", true),
        ("policy", "other", false),
        ("method", "GET", true),
        ("path", "/api", true),
        ("status", "4xx", true),
        ("event", "request", true),
    ] {
        let mut selector = Selector::default();
        selector.add(parameter, value).expect("valid");
        assert_eq!(selector.matches(&facts), holds, "{parameter}={value}");
    }
    assert_eq!(facts.http.map(|http| http.path), Some("/api"));
}

#[test]
fn verdicts_follow_reasons() {
    let of = |reason| verdict(Some(Reason::Other(reason)), None);
    assert_eq!(verdict(None, None), Verdict::Allowed);
    for reason in [
        "policy_denied",
        "jwt_expired",
        "custom_denied",
        "jwks_unavailable",
    ] {
        assert_eq!(of(reason), Verdict::Denied, "{reason}");
    }
    for reason in ["redirect", "cors_preflight"] {
        assert_eq!(of(reason), Verdict::Allowed, "{reason}");
    }
    for reason in ["no_route", "upstream_reset", "client_gone"] {
        assert_eq!(of(reason), Verdict::Failed, "{reason}");
    }
    let cut = Some(Reason::Shutdown);
    assert_eq!(verdict(cut, denial().as_ref()), Verdict::Denied);
}

#[test]
fn a_connection_has_no_request() {
    let record = ConnectionRecord::new(Reporter::Gateway, client(), "0.0.0.0:443".to_owned());
    let facts = of_connection(Event::Refused, &record);
    assert!(facts.http.is_none() && facts.service.is_none());
    let mut selector = Selector::default();
    selector.add("path", "/").expect("valid");
    assert!(!selector.matches(&facts));
}
