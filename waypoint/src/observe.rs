//! What is reported of one request or connection besides metrics: whether it is logged, and its span.
//!
//! A request's own `traceparent` comes first: its span is a child of the application's, and linked to that of the
//! connection it came by. Without one it is a child of its connection's span, where that is sampled; else a trace
//! begins with it. What goes on carries the span that was made here, and so does the CONNECT of the connection that is
//! opened for it, so that the agent at the other end joins.

mod facts;
mod spans;
mod transport;

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{HeaderMap, HeaderName};
use karst_telemetry::settings::{Kept, Reporting, Verdict};
use karst_telemetry::span::new_span_id;
use karst_tunnel::headers::{TRACEPARENT, TraceParent};

pub use transport::UpstreamTransport;

use crate::access_log::{ConnectionRecord, RequestRecord};
use facts::{ConnectionFacts, RequestFacts};

static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Longest `tracestate` that is in a span, bytes: what the recommendation asks everyone to pass on.
const MAX_STATE_BYTES: usize = 512;

/// What is known at the beginning.
#[derive(Clone, Debug)]
pub struct Observed {
    reporting: Arc<Reporting>,
    kept: Kept,
    trace: Option<Trace>,
}

/// Its place in a trace.
#[derive(Clone, Debug)]
struct Trace {
    own: TraceParent,
    parent: Option<u64>,
    /// The connection's trace and span, where they are others.
    link: Option<(u128, u64)>,
    state: String,
    started: SystemTime,
    /// The parent is from the request itself, and so is its state.
    is_of_request: bool,
    /// What goes on says the same as what came.
    is_passed_on: bool,
}

impl Trace {
    fn child(parent: TraceParent) -> Self {
        Self {
            own: TraceParent::of(parent.trace_id(), new_span_id(), parent.is_sampled()),
            parent: Some(parent.span_id()),
            link: None,
            state: String::new(),
            started: SystemTime::now(),
            is_of_request: false,
            is_passed_on: false,
        }
    }

    fn root(samples: impl FnOnce(u128) -> bool) -> Self {
        Self {
            own: TraceParent::sampled_by(samples),
            parent: None,
            link: None,
            state: String::new(),
            started: SystemTime::now(),
            is_of_request: false,
            is_passed_on: false,
        }
    }
}

impl Observed {
    /// Of a request; `connection` is what its connection's agent says.
    #[must_use]
    pub fn request(
        reporting: &Arc<Reporting>,
        headers: &HeaderMap,
        connection: Option<TraceParent>,
    ) -> Box<Self> {
        let trace = reporting.tracing().map(|tracing| {
            let sampled = connection.filter(|connection| connection.is_sampled());
            match (traceparent(headers), sampled) {
                (Some(parent), _) => {
                    let mut trace = Trace::child(parent);
                    let differs = |of: &TraceParent| of.trace_id() != parent.trace_id();
                    trace.link = sampled
                        .filter(differs)
                        .map(|of| (of.trace_id(), of.span_id()));
                    trace.state = state(headers);
                    trace.is_of_request = true;
                    // No span of ours is in between.
                    trace.is_passed_on = !parent.is_sampled();
                    trace
                }
                (None, Some(connection)) => Trace::child(connection),
                (None, None) => Trace::root(|id| tracing.samples(id)),
            }
        });
        Box::new(Self {
            kept: reporting.keep(headers),
            reporting: Arc::clone(reporting),
            trace,
        })
    }

    /// Of a connection of bytes.
    #[must_use]
    pub fn connection(reporting: &Arc<Reporting>, connection: Option<TraceParent>) -> Box<Self> {
        let trace = reporting.tracing().map(|tracing| match connection {
            Some(parent) if parent.is_sampled() => Trace::child(parent),
            _ => Trace::root(|id| tracing.samples(id)),
        });
        Box::new(Self {
            kept: Kept::default(),
            reporting: Arc::clone(reporting),
            trace,
        })
    }

    /// Says in a request that goes on whose child it is.
    pub fn write(&self, headers: &mut HeaderMap) {
        let trace = self.trace.as_ref().filter(|trace| !trace.is_passed_on);
        let Some(trace) = trace else {
            return;
        };
        if let Some(value) = trace.own.to_value() {
            headers.insert(TRACEPARENT, value);
        }
        if !trace.is_of_request {
            // It belongs to another trace: that of a traceparent that could not be read.
            headers.remove(&TRACESTATE);
        }
    }

    /// Its own place in a trace.
    #[must_use]
    pub fn context(&self) -> Option<TraceParent> {
        self.trace.as_ref().map(|trace| trace.own)
    }

    /// The same if the trace is sampled, so that there is a span of it.
    #[must_use]
    pub fn sampled(&self) -> Option<TraceParent> {
        self.context().filter(|own| own.is_sampled())
    }

    /// Whether a request is logged.
    #[must_use]
    pub fn request_verdict(&self, record: &RequestRecord) -> Verdict {
        let facts = RequestFacts {
            record,
            kept: &self.kept,
        };
        self.reporting.verdict(&facts, record.reason.is_some())
    }

    /// Whether a connection is logged.
    #[must_use]
    pub fn connection_verdict(&self, record: &ConnectionRecord) -> Verdict {
        let facts = ConnectionFacts { record };
        self.reporting.verdict(&facts, record.reason.is_some())
    }
}

/// The one `traceparent` of a request; several, or one that cannot be read, are none.
fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    TraceParent::parse(value.as_bytes())
}

fn state(headers: &HeaderMap) -> String {
    let values = headers.get_all(&TRACESTATE).iter();
    let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let text = texts.join(",");
    match text.len() <= MAX_STATE_BYTES {
        true => text,
        false => String::new(),
    }
}

#[cfg(test)]
mod tests;
