use http::HeaderMap;
use karst_api::telemetry::{self as wire, ALL, HeaderTag, SpanTag, span_tag};

use super::{Reporting, Skipped, Verdict};
use crate::filter::{Attribute, Fact, Facts};

struct Code(i64);

impl Facts for Code {
    fn fact(&self, attribute: Attribute) -> Option<Fact<'_>> {
        (attribute == Attribute::ResponseCode).then_some(Fact::Number(self.0))
    }
}

fn reporting(wire: &wire::Reporting) -> Reporting {
    let (reporting, problem) = Reporting::read(wire);
    assert_eq!(problem, None);
    reporting
}

#[test]
fn filters_and_samples() {
    let filtered = reporting(&wire::Reporting {
        log_filter: "response.code >= 400".to_owned(),
        log_sampling: Some(250_000),
        ..wire::Reporting::default()
    });
    let verdict = |code, has_reason, roll| filtered.verdict_by(&Code(code), has_reason, || roll);
    assert_eq!(verdict(200, false, 0), Verdict::Skip(Skipped::Filter));
    assert_eq!(verdict(500, false, 249_999), Verdict::Log);
    assert_eq!(
        verdict(500, false, 250_000),
        Verdict::Skip(Skipped::Sampling)
    );
    // What ended for a reason of ours is in every sample, but not past the filter.
    assert_eq!(verdict(503, true, ALL - 1), Verdict::Log);
    assert_eq!(verdict(200, true, 0), Verdict::Skip(Skipped::Filter));
    let off = reporting(&wire::Reporting {
        log_disabled: true,
        ..wire::Reporting::default()
    });
    assert_eq!(
        off.verdict(&Code(500), true),
        Verdict::Skip(Skipped::Disabled)
    );
    assert!(reporting(&wire::Reporting::default()).is_default());
}

#[test]
fn what_cannot_be_evaluated_is_logged() {
    let filtered = reporting(&wire::Reporting {
        log_filter: "response.grpc_status == 0".to_owned(),
        ..wire::Reporting::default()
    });
    let verdict = filtered.verdict(&Code(200), false);
    assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
}

#[test]
fn what_cannot_be_read_logs_everything_and_says_so() {
    let (reporting, problem) = Reporting::read(&wire::Reporting {
        log_filter: "no.such == 1".to_owned(),
        ..wire::Reporting::default()
    });
    assert!(reporting.logs_all());
    assert!(problem.expect("problem").contains("log_filter"));
    let (reporting, problem) = Reporting::read(&wire::Reporting {
        tracing: Some(wire::Tracing::default()),
        ..wire::Reporting::default()
    });
    assert!(reporting.tracing().is_none());
    assert!(problem.expect("problem").contains("collector"));
}

#[test]
fn the_share_of_traces_is_exact_over_evenly_spread_ids() {
    let traced = |sampling| {
        let wire = wire::Tracing {
            collector: "ns/host/4317".to_owned(),
            sampling,
            ..wire::Tracing::default()
        };
        let reporting = reporting(&wire::Reporting {
            tracing: Some(wire),
            ..wire::Reporting::default()
        });
        let tracing = reporting.tracing().expect("tracing").clone();
        // The same distance between all of them, so that the share is no matter of luck.
        const STEP: u128 = (1 << 56) / 1000;
        let ids = (0..1000_u128).map(|n| (7 << 64) + n * STEP + STEP / 2);
        ids.filter(|id| tracing.samples(*id)).count()
    };
    assert_eq!(traced(0), 0);
    assert_eq!(traced(10_000), 10);
    assert_eq!(traced(500_000), 500);
    assert_eq!(traced(ALL), 1000);
}

#[test]
fn tags_are_what_was_asked_for() {
    let header = |name: &str, default: &str| {
        Some(span_tag::Kind::Header(HeaderTag {
            name: name.to_owned(),
            default_value: default.to_owned(),
        }))
    };
    let tag = |name: &str, kind| SpanTag {
        name: name.to_owned(),
        kind,
    };
    let reporting = reporting(&wire::Reporting {
        tracing: Some(wire::Tracing {
            collector: "ns/host/4317".to_owned(),
            tags: vec![
                tag("zone", Some(span_tag::Kind::Literal("a".to_owned()))),
                tag("tenant", header("x-tenant", "none")),
                tag("long", header("x-long", "")),
                tag("absent", header("x-absent", "")),
                tag("default", header("x-absent", "d")),
            ],
            ..wire::Tracing::default()
        }),
        ..wire::Reporting::default()
    });
    let mut headers = HeaderMap::new();
    headers.insert("x-tenant", "t1".parse().expect("value"));
    headers.insert("x-long", "é".repeat(200).parse().expect("value"));
    headers.insert("authorization", "secret".parse().expect("value"));
    let kept = reporting.keep(&headers);
    assert_eq!(kept.get("authorization"), None);
    let tags = reporting.tracing().expect("tracing").tags(&kept);
    let tags: Vec<(&str, &str)> = tags
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let long = "é".repeat(128);
    assert_eq!(
        tags,
        [
            ("zone", "a"),
            ("tenant", "t1"),
            ("long", long.as_str()),
            ("default", "d")
        ]
    );
}

#[test]
fn a_collector_is_a_port_of_a_service() {
    let read = |collector: &str| {
        Reporting::read(&wire::Reporting {
            tracing: Some(wire::Tracing {
                collector: collector.to_owned(),
                sampling: ALL,
                ..wire::Tracing::default()
            }),
            ..wire::Reporting::default()
        })
    };
    let (taken, problem) = read("obs/otel.obs.svc.cluster.local/4317");
    assert!(taken.tracing().is_some() && problem.is_none());
    for (collector, said) in [
        ("https://otel.obs:4317", "neither https nor http"),
        ("http://otel.obs:4318/v1/traces", "neither https nor http"),
        ("", "NAMESPACE/HOSTNAME/PORT"),
        ("otel.obs/4317", "NAMESPACE/HOSTNAME/PORT"),
        ("obs/otel/0", "NAMESPACE/HOSTNAME/PORT"),
        ("obs/otel/grpc", "NAMESPACE/HOSTNAME/PORT"),
        ("obs//4317", "NAMESPACE/HOSTNAME/PORT"),
        ("obs/otel/4317/x", "NAMESPACE/HOSTNAME/PORT"),
    ] {
        let (refused, problem) = read(collector);
        assert!(refused.tracing().is_none(), "{collector}");
        assert!(problem.is_some_and(|p| p.contains(said)), "{collector}");
    }
}
