use std::sync::Arc;
use std::time::Duration;

use karst_api::telemetry::{ALL, Reporting as Wire, Telemetry, Tracing};
use karst_telemetry::settings::{Reporting, Skipped, Verdict};
use karst_tunnel::headers::TraceParent;

use super::{Observed, PodReporting};
use crate::access_log::{Party, Record};
use crate::metrics::traffic::Security;
use crate::proxy::Direction;
use crate::reason::Reason;

fn traced(sampling: u32) -> Wire {
    Wire {
        tracing: Some(Tracing {
            collector: "obs/otel/4317".to_owned(),
            sampling,
            ..Tracing::default()
        }),
        ..Wire::default()
    }
}

fn filtered(expression: &str) -> Wire {
    Wire {
        log_filter: expression.to_owned(),
        ..Wire::default()
    }
}

fn observed(wire: &Wire, parent: Option<TraceParent>) -> Box<Observed> {
    let (reporting, problem) = Reporting::read(wire);
    assert_eq!(problem, None);
    Observed::new(Arc::new(reporting), parent)
}

fn record(direction: Direction) -> Record {
    let party = |addr: &str| Party {
        addr: addr.parse().ok(),
        ..Party::default()
    };
    Record {
        direction,
        source: party("10.0.0.1:5"),
        destination: party("10.0.0.2:80"),
        hbone_addr: None,
        service_port: None,
        service: None,
        bytes_sent: 7,
        bytes_recv: 9,
        duration: Duration::from_millis(3),
        security: Security::MutualTls,
        tls: None,
        reason: None,
        error: None,
        denial: None,
        dry_run: None,
        observed: None,
    }
}

#[test]
fn a_trace_begins_at_the_client() {
    let sampled = observed(&traced(ALL), None);
    let (_, span) = sampled.span(&record(Direction::Outbound)).expect("span");
    let context = sampled.context().expect("context");
    assert!(context.is_sampled());
    assert_eq!(span.parent, None);
    assert_eq!(
        (span.trace_id, span.span_id),
        (context.trace_id(), context.span_id())
    );
    let unsampled = observed(&traced(0), None);
    assert!(unsampled.span(&record(Direction::Outbound)).is_none());
    assert!(!unsampled.context().expect("context").is_sampled());
}

#[test]
fn what_came_with_the_tunnel_decides() {
    let came = TraceParent::of(7, 8, true);
    let joined = observed(&traced(0), Some(came));
    let (_, span) = joined.span(&record(Direction::Inbound)).expect("span");
    assert_eq!((span.trace_id, span.parent), (7, Some(8)));
    assert_ne!(span.span_id, 8);
    let not = observed(&traced(ALL), Some(TraceParent::of(7, 8, false)));
    assert!(not.span(&record(Direction::Inbound)).is_none());
}

#[test]
fn a_refusal_is_an_error() {
    let refused = Record {
        reason: Some(Reason::SelfCall),
        ..record(Direction::Inbound)
    };
    let observed = observed(&traced(ALL), None);
    let (_, span) = observed.span(&refused).expect("span");
    assert_eq!(span.error.as_deref(), Some("self_call"));
}

#[test]
fn filters_see_connections() {
    let check = |expression: &str, expected: Verdict| {
        let observed = observed(&filtered(expression), None);
        let found = observed.verdict(&record(Direction::Inbound));
        assert_eq!(found, expected, "{expression}");
    };
    check("destination.port == 80", Verdict::Log);
    check("!connection.mtls", Verdict::Log);
    check(
        "connection.termination_details != ''",
        Verdict::Skip(Skipped::Filter),
    );
    check("response.code >= 400", Verdict::Skip(Skipped::Filter));
    check("source.address.startsWith('10.0.0.1:')", Verdict::Log);
}

#[test]
fn pods_have_what_they_were_told_last() {
    let pods = PodReporting::default();
    let uid: Arc<str> = Arc::from("u");
    let silent = Telemetry {
        client: Some(Wire {
            log_disabled: true,
            ..Wire::default()
        }),
        server: None,
    };
    assert!(pods.get("u", Direction::Outbound).is_none());
    pods.update([(Arc::clone(&uid), Some(&silent))]);
    assert!(pods.get("u", Direction::Outbound).is_some());
    assert!(pods.get("u", Direction::Inbound).is_none());
    assert!(pods.get("other", Direction::Outbound).is_none());
    // Others come, and this one stays.
    pods.update([(Arc::from("other"), Some(&silent))]);
    assert!(pods.get("u", Direction::Outbound).is_some());
    pods.update([(Arc::clone(&uid), None), (Arc::from("other"), None)]);
    assert!(pods.get("u", Direction::Outbound).is_none());
}
