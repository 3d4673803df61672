use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use karst_api::telemetry as wire;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::task::LocalSet;

use super::{ExportError, MAX_WAITING, Spans, Transport};
use crate::metrics::{Dropped, Metrics};
use crate::settings::{Reporting, Tracing};
use crate::span::{Resource, Span, SpanKind};

#[derive(Clone, Default)]
struct Collector {
    /// Sizes of the batches taken.
    taken: Rc<RefCell<Vec<usize>>>,
    /// Codes to refuse the next calls with.
    refusals: Rc<RefCell<Vec<u32>>>,
    calls: Rc<Cell<usize>>,
    rejects: Rc<Cell<i64>>,
}

impl Transport for Collector {
    async fn export(
        &self,
        collector: &str,
        request: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, ExportError> {
        assert_eq!(collector, "ns/host/4317");
        self.calls.set(self.calls.get() + 1);
        if let Some(code) = self.refusals.borrow_mut().pop() {
            return Err(ExportError::of_grpc(code, "no"));
        }
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        self.taken.borrow_mut().push(spans.len());
        Ok(ExportTraceServiceResponse {
            partial_success: (self.rejects.get() > 0).then(|| ExportTracePartialSuccess {
                rejected_spans: self.rejects.get(),
                error_message: String::new(),
            }),
        })
    }
}

fn tracing() -> Arc<Tracing> {
    let (reporting, _) = Reporting::read(&wire::Reporting {
        tracing: Some(wire::Tracing {
            collector: "ns/host/4317".to_owned(),
            ..wire::Tracing::default()
        }),
        ..wire::Reporting::default()
    });
    Arc::clone(reporting.tracing().expect("tracing"))
}

fn span() -> Span {
    Span {
        trace_id: 1,
        span_id: 2,
        parent: None,
        link: None,
        state: String::new(),
        kind: SpanKind::Server,
        name: "GET".to_owned(),
        started: SystemTime::now(),
        duration: Duration::from_millis(1),
        attributes: Vec::new(),
        error: None,
    }
}

/// Records that many spans and lets the exporter do all it will. Time is a clock's that nobody waits for.
fn run(collector: &Collector, count: usize) -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("runtime");
    LocalSet::new().block_on(&runtime, async {
        let spans = Spans::new(
            collector.clone(),
            Resource::new("test"),
            Arc::clone(&metrics),
        );
        let tracing = tracing();
        for _ in 0..count {
            spans.record(&tracing, span());
        }
        spans.finish(Duration::from_secs(600)).await;
    });
    metrics
}

#[test]
fn spans_go_in_batches() {
    let collector = Collector::default();
    let metrics = run(&collector, 1000);
    assert_eq!(*collector.taken.borrow(), [512, 488]);
    assert_eq!(metrics.exported_total(), 1000);
}

#[test]
fn a_full_queue_drops_and_counts() {
    let collector = Collector::default();
    let metrics = run(&collector, MAX_WAITING + 7);
    assert_eq!(metrics.dropped_total(Dropped::QueueFull), 7);
    assert_eq!(metrics.exported_total(), MAX_WAITING as u64);
}

#[test]
fn what_may_pass_is_tried_again() {
    let collector = Collector::default();
    *collector.refusals.borrow_mut() = vec![14, 8];
    let metrics = run(&collector, 3);
    assert_eq!(collector.calls.get(), 3);
    assert_eq!(metrics.exported_total(), 3);
}

#[test]
fn tries_have_an_end() {
    let collector = Collector::default();
    *collector.refusals.borrow_mut() = vec![14; 100];
    let metrics = run(&collector, 3);
    assert_eq!(collector.calls.get(), 5);
    assert_eq!(metrics.dropped_total(Dropped::Failed), 3);
}

#[test]
fn what_is_refused_for_good_is_not_tried_again() {
    let collector = Collector::default();
    *collector.refusals.borrow_mut() = vec![3];
    let metrics = run(&collector, 3);
    assert_eq!(collector.calls.get(), 1);
    assert_eq!(metrics.dropped_total(Dropped::Rejected), 3);
}

#[test]
fn a_collector_may_take_a_part() {
    let collector = Collector::default();
    collector.rejects.set(2);
    let metrics = run(&collector, 5);
    assert_eq!(metrics.exported_total(), 3);
    assert_eq!(metrics.dropped_total(Dropped::Rejected), 2);
}
