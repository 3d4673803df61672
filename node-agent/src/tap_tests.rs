use std::sync::Arc;
use std::time::Duration;

use karst_identity::SpiffeId;
use karst_process::tap::facts::{Event, Verdict};
use karst_process::tap::selector::Selector;

use super::{facts, verdict};
use crate::access_log::{Party, Record};
use crate::metrics::traffic::Security;
use crate::proxy::Direction;
use crate::reason::Reason;
use crate::state::policy::Denial;
use crate::state::workload::Workload;

fn record() -> Record {
    let party = |name: &str, owner: &str, addr: &str| Party {
        addr: addr.parse().ok(),
        workload: Some(Arc::new(Workload {
            name: name.into(),
            namespace: "shop".into(),
            workload_name: owner.into(),
            ..Workload::default()
        })),
        identity: SpiffeId::new("cluster.local", "shop", owner).ok(),
    };
    let denial = |policy: &str| {
        Some(Box::new(Denial {
            reason: Reason::PolicyDenied,
            policy: Some(policy.into()),
            rule: Some(0),
            detail: None,
        }))
    };
    Record {
        direction: Direction::Inbound,
        source: party("cart-0", "cart", "10.0.0.1:4000"),
        destination: party("web-0", "web", "10.0.0.2:8080"),
        hbone_addr: "10.0.0.2:15008".parse().ok(),
        service: None,
        service_port: None,
        bytes_sent: 0,
        bytes_recv: 0,
        duration: Duration::from_millis(3),
        security: Security::MutualTls,
        tls: None,
        reason: Some(Reason::PolicyDenied),
        error: None,
        denial: denial("shop/nobody"),
        dry_run: denial("shop/trial"),
        observed: None,
    }
}

#[test]
fn a_connection_is_selected_by_what_the_agent_knows() {
    let record = record();
    let facts = facts(Event::Refused, &record);
    for (parameter, value, holds) in [
        ("from", "shop/cart-0", true),
        ("from", "shop/cart", true),
        ("from", "spiffe://cluster.local/ns/shop/sa/cart", true),
        ("to", "shop/web", true),
        // The application's address, not that of the tunnel.
        ("to", "10.0.0.2:8080", true),
        ("to", "10.0.0.2:15008", false),
        ("to", "svc/web.shop", false),
        ("verdict", "denied", true),
        ("policy", "shop/nobody", true),
        ("policy", "trial", true),
        ("direction", "inbound", true),
        ("direction", "outbound", false),
        ("event", "refused", true),
        ("path", "/", false),
    ] {
        let mut selector = Selector::default();
        selector.add(parameter, value).expect("valid");
        assert_eq!(selector.matches(&facts), holds, "{parameter}={value}");
    }
}

#[test]
fn verdicts_follow_reasons() {
    assert_eq!(verdict(None), Verdict::Allowed);
    for reason in [
        Reason::PolicyDenied,
        Reason::EgressDenied,
        Reason::WaypointRequired,
        Reason::PolicyUnknown,
    ] {
        assert_eq!(verdict(Some(reason)), Verdict::Denied, "{reason}");
    }
    for reason in [
        Reason::NoHealthyUpstream,
        Reason::Shutdown,
        Reason::Other("tls_expired"),
    ] {
        assert_eq!(verdict(Some(reason)), Verdict::Failed, "{reason}");
    }
}
