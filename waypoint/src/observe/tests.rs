use std::sync::Arc;

use http::header::HeaderMap;
use karst_api::telemetry::{self as wire, ALL, HeaderTag, SpanTag, span_tag};
use karst_identity::SpiffeId;
use karst_telemetry::settings::{Reporting, Skipped, Verdict};
use karst_telemetry::span::{Span, Value};
use karst_tunnel::headers::TraceParent;

use super::Observed;
use crate::access_log::{ConnectionRecord, Reporter, RequestRecord, Spoken};
use crate::client::Client;
use crate::reason::Reason;

const OWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
const SPAN: u64 = 0xb7ad_6b71_6920_3331;

fn reporting(wire: wire::Reporting) -> Arc<Reporting> {
    let (reporting, problem) = Reporting::read(&wire);
    assert_eq!(problem, None);
    Arc::new(reporting)
}

fn tracing(sampling: u32) -> Arc<Reporting> {
    reporting(wire::Reporting {
        tracing: Some(wire::Tracing {
            collector: "obs/otel/4317".to_owned(),
            sampling,
            tags: vec![SpanTag {
                name: "tenant".to_owned(),
                kind: Some(span_tag::Kind::Header(HeaderTag {
                    name: "x-tenant".to_owned(),
                    default_value: String::new(),
                })),
            }],
            ..wire::Tracing::default()
        }),
        ..wire::Reporting::default()
    })
}

fn filtering(expression: &str) -> Arc<Reporting> {
    reporting(wire::Reporting {
        log_filter: expression.to_owned(),
        ..wire::Reporting::default()
    })
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().expect("value"));
    }
    headers
}

fn client() -> Client {
    let identity = SpiffeId::parse("spiffe://t/ns/a/sa/b").expect("valid");
    Client::new("10.0.0.1:4000".parse().expect("address"), Some(identity))
}

fn record() -> RequestRecord {
    let mut record = RequestRecord::new(Reporter::Waypoint, client());
    record.uri = "/a?secret=1".parse().expect("uri");
    record.authority = "shop.example".parse().expect("value");
    record.status = 200;
    record
}

/// What goes on, and the span.
fn seen(
    reporting: &Arc<Reporting>,
    came: &[(&'static str, &str)],
    connection: Option<TraceParent>,
) -> (Vec<String>, Option<Span>) {
    let mut headers = headers(came);
    let observed = Observed::request(reporting, &headers, connection);
    observed.write(&mut headers);
    let sent = headers.get_all("traceparent").iter();
    let sent = sent.map(|value| value.to_str().expect("text").to_owned());
    let span = observed.request_span(&record()).map(|(_, span)| span);
    (sent.collect(), span)
}

fn connection(is_sampled: bool) -> Option<TraceParent> {
    Some(TraceParent::of(7, 8, is_sampled))
}

#[test]
fn a_trace_of_the_application_comes_first() {
    // Nothing begins here, and all the same its trace is followed.
    let (sent, span) = seen(&tracing(0), &[("traceparent", OWN)], connection(true));
    let span = span.expect("span");
    assert_eq!((span.trace_id, span.parent), (TRACE, Some(SPAN)));
    assert_eq!(span.link, Some((7, 8)));
    let expected = format!("00-{TRACE:032x}-{:016x}-01", span.span_id);
    assert_eq!(sent, [expected]);
    // A connection without a span has none to link.
    let (_, span) = seen(&tracing(0), &[("traceparent", OWN)], connection(false));
    assert_eq!(span.expect("span").link, None);
}

#[test]
fn one_that_is_not_sampled_is_passed_on_as_it_came() {
    for connection in [None, connection(true)] {
        let (sent, span) = seen(&tracing(ALL), &[("traceparent", UNSAMPLED)], connection);
        assert_eq!(sent, [UNSAMPLED]);
        assert!(span.is_none());
    }
}

#[test]
fn without_one_the_connections_trace_goes_on() {
    let (sent, span) = seen(&tracing(0), &[], connection(true));
    let span = span.expect("span");
    assert_eq!((span.trace_id, span.parent, span.link), (7, Some(8), None));
    assert_eq!(sent, [format!("00-{:032x}-{:016x}-01", 7, span.span_id)]);
}

#[test]
fn else_one_begins_if_it_is_sampled() {
    let (sent, span) = seen(&tracing(ALL), &[], connection(false));
    let span = span.expect("span");
    assert_eq!(span.parent, None);
    assert_ne!(span.trace_id, 7);
    assert!(sent[0].ends_with("-01"));
    let (sent, span) = seen(&tracing(0), &[], connection(false));
    assert!(span.is_none());
    assert!(
        sent[0].ends_with("-00"),
        "the next one need not decide anew"
    );
}

#[test]
fn what_cannot_be_read_is_replaced() {
    let (garbage, both) = ("00-nonsense", [("traceparent", OWN), ("traceparent", OWN)]);
    for came in [&[("traceparent", garbage)][..], &both] {
        let (sent, span) = seen(&tracing(ALL), came, None);
        let span = span.expect("span");
        assert_eq!(span.parent, None);
        assert_eq!(sent.len(), 1);
        assert!(sent[0].contains(&format!("{:032x}", span.trace_id)));
    }
    // Its state belonged to it.
    for connection in [None, connection(true)] {
        let mut headers = headers(&[("traceparent", garbage), ("tracestate", "a=1")]);
        Observed::request(&tracing(ALL), &headers, connection).write(&mut headers);
        assert!(!headers.contains_key("tracestate"), "{connection:?}");
    }
    let mut headers = headers(&[("traceparent", garbage), ("tracestate", "a=1")]);
    Observed::request(&tracing(ALL), &headers, None).write(&mut headers);
    assert!(!headers.contains_key("tracestate"));
}

#[test]
fn without_tracing_nothing_is_touched() {
    let (sent, span) = seen(
        &filtering("true"),
        &[("traceparent", OWN)],
        connection(true),
    );
    assert_eq!(sent, [OWN]);
    assert!(span.is_none());
    let (sent, _) = seen(&filtering("true"), &[], connection(true));
    assert!(sent.is_empty());
}

#[test]
fn a_span_says_what_the_log_says_and_no_secrets() {
    let came = headers(&[
        ("tracestate", "vendor=1"),
        ("traceparent", OWN),
        ("x-tenant", "blue"),
        ("authorization", "Bearer secret"),
        ("cookie", "secret"),
    ]);
    let mut record = record();
    record.protocol = Spoken::Grpc;
    record.grpc_status = Some(14);
    record.status = 503;
    record.reason = Some(Reason::NoRoute);
    record.method = "SECRETIVE".parse().expect("method");
    let observed = Observed::request(&tracing(0), &came, None);
    let (_, span) = observed.request_span(&record).expect("span");
    let text = |name: &str| {
        let found = span.attributes.iter().find(|(it, _)| it == name);
        match found.map(|(_, value)| value) {
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            None => "none".to_owned(),
        }
    };
    assert_eq!(text("url.path"), "/a");
    assert_eq!(text("http.request.method"), "HTTP");
    assert_eq!(text("http.response.status_code"), "503");
    assert_eq!(text("rpc.grpc.status_code"), "14");
    assert_eq!(text("src.identity"), "spiffe://t/ns/a/sa/b");
    assert_eq!(text("reason"), Reason::NoRoute.as_str());
    assert_eq!(text("tenant"), "blue");
    assert_eq!(span.state, "vendor=1");
    assert_eq!(span.error.as_deref(), Some(Reason::NoRoute.as_str()));
    assert!(!format!("{span:?}").contains("secret"), "{span:?}");
}

#[test]
fn filters_see_requests() {
    let check = |expression: &str, expected: bool| {
        let came = headers(&[("x-debug", "yes")]);
        let observed = Observed::request(&filtering(expression), &came, None);
        let expected = match expected {
            true => Verdict::Log,
            false => Verdict::Skip(Skipped::Filter),
        };
        assert_eq!(
            observed.request_verdict(&record()),
            expected,
            "{expression}"
        );
    };
    check("response.code >= 400", false);
    check("response.code == 200 && connection.mtls", true);
    check("request.host == 'shop.example'", true);
    check(
        "request.path == '/a?secret=1' && request.url_path == '/a'",
        true,
    );
    check("request.headers['x-debug'] == 'yes'", true);
    check("source.address == '10.0.0.1:4000'", true);
    check("response.code_details != ''", false);
    check("request.scheme == 'http' && request.method == 'GET'", true);
}

#[test]
fn connections_have_spans_and_filters_too() {
    let mut record = ConnectionRecord::new(Reporter::Gateway, client(), "0.0.0.0:443".to_owned());
    record.sni = Some("db.example".to_owned());
    let observed = Observed::connection(&tracing(0), connection(true));
    let (_, span) = observed.connection_span(&record).expect("span");
    assert_eq!((span.trace_id, span.parent), (7, Some(8)));
    assert_eq!(
        observed.context().map(TraceParent::span_id),
        Some(span.span_id)
    );
    let observed = Observed::connection(&tracing(0), connection(false));
    assert!(observed.connection_span(&record).is_none());
    let verdict = |expression: &str| {
        Observed::connection(&filtering(expression), None).connection_verdict(&record)
    };
    assert_eq!(
        verdict("connection.requested_server_name == 'db.example'"),
        Verdict::Log
    );
    assert_eq!(verdict("response.code > 0"), Verdict::Skip(Skipped::Filter));
    // Bytes have no method: what is asked of requests alone does not silence them.
    assert!(matches!(
        verdict("request.method == 'GET'"),
        Verdict::Unknown(_)
    ));
}
