//! The way of spans to their collectors: a bounded queue for each, batches, a few tries, and what does not get there is
//! counted. Nothing here ever waits where a connection or request is served.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::metrics::{Dropped, Metrics};
use crate::settings::Tracing;
use crate::span::{Resource, Span};

/// Spans that wait for one collector, of one worker. A span has about 1 KiB.
const MAX_WAITING: usize = 2048;

/// Spans of one request; OpenTelemetry's own default.
const MAX_BATCH: usize = 512;

/// How long spans wait for more to go with.
const LINGER: Duration = Duration::from_secs(1);

/// Time for one try; OTLP's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Tries for one batch.
const MAX_TRIES: u32 = 5;

/// Wait before the second try. It doubles with each.
const BACKOFF: Duration = Duration::from_millis(500);

/// Collectors of one worker at once.
const MAX_COLLECTORS: usize = 16;

/// Path of OTLP's service over gRPC.
pub const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Why a batch was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportError {
    /// What happened.
    pub message: String,
    /// Another try may help.
    pub retry: bool,
}

impl ExportError {
    /// By the status of a gRPC call, as OTLP's specification says which ones are worth another try.
    #[must_use]
    pub fn of_grpc(code: u32, message: impl fmt::Display) -> Self {
        Self {
            // Cancelled, deadline exceeded, resource exhausted, aborted, out of range, unavailable, data loss.
            retry: matches!(code, 1 | 4 | 8 | 10 | 11 | 14 | 15),
            message: format!("gRPC status {code}: {message}"),
        }
    }

    /// No answer at all.
    #[must_use]
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            retry: true,
        }
    }
}

/// Calls collectors.
pub trait Transport: 'static {
    /// One call; the caller limits its time. `collector` is `NAMESPACE/HOSTNAME/PORT`.
    fn export(
        &self,
        collector: &str,
        request: ExportTraceServiceRequest,
    ) -> impl Future<Output = Result<ExportTraceServiceResponse, ExportError>>;
}

/// What takes the spans of one worker thread.
pub struct Spans<T> {
    transport: Rc<T>,
    resource: Rc<Resource>,
    metrics: Arc<Metrics>,
    queues: RefCell<HashMap<Arc<str>, Queue>>,
}

struct Queue {
    spans: mpsc::Sender<Span>,
    task: JoinHandle<()>,
}

impl<T> fmt::Debug for Spans<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").finish_non_exhaustive()
    }
}

impl<T: Transport> Spans<T> {
    /// Without collectors so far.
    #[must_use]
    pub fn new(transport: T, resource: Resource, metrics: Arc<Metrics>) -> Self {
        Self {
            transport: Rc::new(transport),
            resource: Rc::new(resource),
            metrics,
            queues: RefCell::default(),
        }
    }

    /// Hands a span over, or drops and counts it. Must run inside a `LocalSet`.
    pub fn record(&self, tracing: &Tracing, span: Span) {
        let mut queues = self.queues.borrow_mut();
        if !queues.contains_key(&tracing.collector) {
            // Those of former configurations that have nothing left to do.
            queues.retain(|_, queue| queue.spans.capacity() < MAX_WAITING);
            if queues.len() >= MAX_COLLECTORS {
                return self.metrics.dropped(Dropped::TooManyCollectors, 1);
            }
            let queue = self.start(Arc::clone(&tracing.collector));
            queues.insert(Arc::clone(&tracing.collector), queue);
        }
        let Some(queue) = queues.get(&tracing.collector) else {
            return;
        };
        match queue.spans.try_send(span) {
            Ok(()) => {
                self.metrics.waiting.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => self.metrics.dropped(Dropped::QueueFull, 1),
        }
    }

    /// Takes no more, and sends what waits for as long as `limit`.
    pub async fn finish(&self, limit: Duration) {
        let queues = std::mem::take(&mut *self.queues.borrow_mut());
        let deadline = Instant::now() + limit;
        for queue in queues.into_values() {
            drop(queue.spans);
            if timeout_at(deadline, queue.task).await.is_err() {
                return;
            }
        }
    }

    fn start(&self, collector: Arc<str>) -> Queue {
        let (spans, receiver) = mpsc::channel(MAX_WAITING);
        let exporter = Exporter {
            collector,
            transport: Rc::clone(&self.transport),
            resource: Rc::clone(&self.resource),
            metrics: Arc::clone(&self.metrics),
            failing: false,
        };
        let task = spawn_local(exporter.run(receiver));
        Queue { spans, task }
    }
}

struct Exporter<T> {
    collector: Arc<str>,
    transport: Rc<T>,
    resource: Rc<Resource>,
    metrics: Arc<Metrics>,
    /// The last batch was not taken: said once, not with each.
    failing: bool,
}

impl<T: Transport> Exporter<T> {
    async fn run(mut self, mut spans: mpsc::Receiver<Span>) {
        loop {
            let mut batch = Vec::new();
            if spans.recv_many(&mut batch, MAX_BATCH).await == 0 {
                return;
            }
            let more = async {
                while batch.len() < MAX_BATCH {
                    let room = MAX_BATCH - batch.len();
                    if spans.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            // Full, or for as long as that.
            let _ = timeout(LINGER, more).await;
            let count = batch.len() as u64;
            self.metrics.waiting.fetch_sub(count, Ordering::Relaxed);
            self.send(batch, count).await;
        }
    }

    async fn send(&mut self, batch: Vec<Span>, count: u64) {
        let request = self.resource.request(batch);
        let mut tries = 1;
        let error = loop {
            let sent = self.transport.export(&self.collector, request.clone());
            let error = match timeout(TIMEOUT, sent).await {
                Ok(Ok(response)) => return self.taken(&response, count),
                Ok(Err(error)) => error,
                Err(_) => ExportError::unreachable("no answer in time"),
            };
            if !error.retry || tries == MAX_TRIES {
                break error;
            }
            let wait = BACKOFF * (1 << (tries - 1));
            // Those of one failure do not come back together.
            sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
            self.metrics.retried();
            tries += 1;
        };
        let why = if error.retry {
            Dropped::Failed
        } else {
            Dropped::Rejected
        };
        self.metrics.dropped(why, count);
        if !std::mem::replace(&mut self.failing, true) {
            let (collector, error) = (&*self.collector, error.message.as_str());
            tracing::warn!(
                collector,
                error,
                spans = count,
                "spans are not taken by their collector"
            );
        }
    }

    fn taken(&mut self, response: &ExportTraceServiceResponse, count: u64) {
        let partial = response.partial_success.as_ref();
        let rejected = partial.map_or(0, |partial| partial.rejected_spans);
        let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
        self.metrics.dropped(Dropped::Rejected, rejected);
        self.metrics.exported(count - rejected);
        if std::mem::take(&mut self.failing) {
            let collector = &*self.collector;
            tracing::info!(collector, "spans are taken by their collector again");
        }
    }
}

#[cfg(test)]
mod tests;
