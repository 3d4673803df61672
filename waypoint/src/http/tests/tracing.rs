//! Traces through the whole path: what the application sees, what a collector gets, and what is not logged.

use std::cell::RefCell;
use std::rc::Rc;

use http::Response;
use http_body_util::BodyExt as _;
use karst_api::telemetry as wire;
use karst_telemetry::metrics::Dropped;
use karst_telemetry::settings::Skipped;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::support::{Proxy, application, backend, body_of, echo, eventually, get, name_of, run};
use crate::body::Body;

const OWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced() -> wire::Reporting {
    wire::Reporting {
        tracing: Some(wire::Tracing {
            collector: name_of("otel"),
            ..wire::Tracing::default()
        }),
        ..wire::Reporting::default()
    }
}

/// A collector that answers with this gRPC status, and the spans that it has taken.
async fn collector(proxy: &Proxy, status: &'static str) -> Rc<RefCell<Vec<Span>>> {
    let taken = Rc::new(RefCell::new(Vec::new()));
    let spans = Rc::clone(&taken);
    let address = application(move |request| {
        let spans = Rc::clone(&spans);
        async move {
            assert_eq!(request.uri().path(), karst_telemetry::export::PATH);
            assert_eq!(request.version(), http::Version::HTTP_2);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let message = ExportTraceServiceRequest::decode(&body[5..]).unwrap();
            if status == "0" {
                let scopes = message.resource_spans.into_iter();
                let scopes = scopes.flat_map(|resource| resource.scope_spans);
                spans
                    .borrow_mut()
                    .extend(scopes.flat_map(|scope| scope.spans));
            }
            let mut response = Response::new(Body::full(&[0_u8, 0, 0, 0, 0][..]));
            let headers = response.headers_mut();
            headers.insert("content-type", "application/grpc".parse().unwrap());
            headers.insert("grpc-status", status.parse().unwrap());
            response
        }
    })
    .await;
    proxy.backend(backend("otel", &[address]));
    taken
}

async fn ask(proxy: &Proxy, headers: &[(&'static str, &str)]) -> String {
    let mut request = get("/a?secret=1");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let answer = proxy.http1().await.send_request(request).await.unwrap();
    body_of(answer).await
}

#[test]
fn the_application_and_the_collector_see_the_same_span() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let taken = collector(&proxy, "0").await;
        *proxy.telemetry.borrow_mut() = Some(traced());
        proxy.listen(&[]);
        let seen = ask(&proxy, &[("traceparent", OWN), ("tracestate", "vendor=1")]).await;
        eventually(|| !taken.borrow().is_empty()).await;
        let span = taken.borrow()[0].clone();
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|it| format!("{it:02x}")).collect() };
        assert_eq!(hex(&span.trace_id), &OWN[3..35]);
        assert_eq!(hex(&span.parent_span_id), &OWN[36..52]);
        let sent = format!(
            "traceparent: 00-{}-{}-01",
            hex(&span.trace_id),
            hex(&span.span_id)
        );
        assert!(seen.contains(&sent), "{seen}");
        assert!(seen.contains("tracestate: vendor=1"), "{seen}");
        assert_eq!(span.trace_state, "vendor=1");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        assert!(!format!("{span:?}").contains("secret"));
        eventually(|| proxy.metrics.telemetry.exported_total() == 1).await;
    });
}

#[test]
fn a_collector_that_refuses_is_counted_and_holds_nobody_up() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let taken = collector(&proxy, "3").await;
        *proxy.telemetry.borrow_mut() = Some(traced());
        proxy.listen(&[]);
        for _ in 0..3 {
            ask(&proxy, &[("traceparent", OWN)]).await;
        }
        let telemetry = &proxy.metrics.telemetry;
        eventually(|| telemetry.dropped_total(Dropped::Rejected) == 3).await;
        assert!(taken.borrow().is_empty());
    });
}

#[test]
fn without_tracing_nothing_is_touched() {
    run(async {
        let proxy = Proxy::of(echo).await;
        *proxy.telemetry.borrow_mut() = Some(wire::Reporting {
            log_disabled: true,
            ..wire::Reporting::default()
        });
        proxy.listen(&[]);
        let seen = ask(&proxy, &[("traceparent", OWN)]).await;
        assert!(seen.contains(&format!("traceparent: {OWN}")), "{seen}");
        // The log itself is off in these tests, and then nothing is left out of it.
        let skipped = proxy.metrics.telemetry.skipped_total(Skipped::Disabled);
        assert_eq!(skipped, 0);
    });
}

#[test]
fn what_cannot_be_understood_stops_nothing() {
    run(async {
        let proxy = Proxy::of(echo).await;
        *proxy.telemetry.borrow_mut() = Some(wire::Reporting {
            log_filter: "no such thing".to_owned(),
            ..wire::Reporting::default()
        });
        proxy.listen(&[]);
        let seen = ask(&proxy, &[]).await;
        assert!(seen.starts_with("GET /a"), "{seen}");
    });
}
