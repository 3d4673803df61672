//! Where a worker says what has become of requests and connections: one call counts and logs.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_identity::SpiffeId;
use karst_process::tap::Tap;
use karst_process::tap::facts::Event;
use karst_telemetry::export::Spans;
use karst_telemetry::settings::{Tracing, Verdict};
use karst_telemetry::span::Span;

use crate::access_log::{AccessLog, ConnectionRecord, RequestRecord};
use crate::authz::{Attributes, Denial, Observed, Outcome};
use crate::metrics::Metrics;
use crate::metrics::traffic::{OpenConnection, TrafficCache};
use crate::observe::UpstreamTransport;
use crate::reason::Reason;
use crate::tap;

/// Lines about policies that decide nothing, a worker and second. Clients decide how many there would be; all are
/// counted.
const OBSERVED_A_SECOND: u32 = 100;

/// Lines that may still be written in this second.
#[derive(Debug)]
struct Budget {
    since: Instant,
    left: u32,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            left: OBSERVED_A_SECOND,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }
}

/// A worker's metrics and access log.
#[derive(Debug)]
pub struct Recorder {
    metrics: Arc<Metrics>,
    log: AccessLog,
    tap: Tap,
    cache: RefCell<TrafficCache>,
    budget: RefCell<Budget>,
    spans: OnceCell<Spans<UpstreamTransport>>,
}

impl Recorder {
    /// A recorder for one worker, which nobody can follow live.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, log: AccessLog) -> Rc<Self> {
        Self::tapped(metrics, log, Tap::new(Vec::new()))
    }

    /// A recorder for one worker, of which `tap` tells who follows live.
    #[must_use]
    pub fn tapped(metrics: Arc<Metrics>, log: AccessLog, tap: Tap) -> Rc<Self> {
        let cache = TrafficCache::new(Arc::clone(&metrics.traffic));
        Rc::new(Self {
            metrics,
            log,
            tap,
            cache: RefCell::new(cache),
            budget: RefCell::new(Budget::new(Instant::now())),
            spans: OnceCell::new(),
        })
    }

    /// The shared counters.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A request has ended: counted, its reason too, and logged.
    pub fn request_finished(&self, record: RequestRecord) {
        self.refused(record.reason, record.denial.as_ref());
        if self.tap.is_on() {
            tap::request(&self.tap, &record);
        }
        if !self.metrics.without_traffic {
            self.cache.borrow_mut().request(&record);
        }
        self.report_request(&record);
    }

    /// A connection below HTTP is established.
    #[must_use]
    pub fn connection_opened(&self, record: &ConnectionRecord) -> OpenConnection {
        if self.tap.is_on() {
            tap::connection(&self.tap, Event::Opened, record);
        }
        if self.metrics.without_traffic {
            return OpenConnection::default();
        }
        self.cache.borrow_mut().opened(record)
    }

    /// An established connection has ended; `open` counts it as closed.
    pub fn connection_finished(&self, record: ConnectionRecord, mut open: OpenConnection) {
        open.total(record.bytes_received, record.bytes_sent);
        self.refused(record.reason, record.denial.as_ref());
        if self.tap.is_on() {
            tap::connection(&self.tap, Event::Closed, &record);
        }
        self.report_connection(&record);
    }

    /// A connection was refused, or failed before it was established.
    pub fn connection_refused(&self, record: ConnectionRecord) {
        self.refused(record.reason, record.denial.as_ref());
        if !self.metrics.without_traffic {
            self.cache.borrow_mut().failed(&record);
        }
        if self.tap.is_on() {
            tap::connection(&self.tap, Event::Refused, &record);
        }
        self.report_connection(&record);
    }

    /// Hands spans to `spans` from now on.
    pub fn export_by(&self, spans: Spans<UpstreamTransport>) {
        // A worker does this once, at its start.
        let _ = self.spans.set(spans);
    }

    /// Sends what waits of spans, for as long as `limit`.
    pub async fn finish_spans(&self, limit: Duration) {
        if let Some(spans) = self.spans.get() {
            spans.finish(limit).await;
        }
    }

    fn report_request(&self, record: &RequestRecord) {
        let Some(observed) = &record.observed else {
            return self.log.record(record);
        };
        if self.log.is_on() && self.is_logged(observed.request_verdict(record)) {
            self.log.record(record);
        }
        self.export(observed.request_span(record));
    }

    fn report_connection(&self, record: &ConnectionRecord) {
        let Some(observed) = &record.observed else {
            return self.log.record(record);
        };
        if self.log.is_on() && self.is_logged(observed.connection_verdict(record)) {
            self.log.record(record);
        }
        self.export(observed.connection_span(record));
    }

    fn is_logged(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Log => true,
            Verdict::Unknown(error) => {
                self.metrics.telemetry.unknown();
                tracing::debug!(error, "a filter of the access log cannot be evaluated");
                true
            }
            Verdict::Skip(why) => {
                self.metrics.telemetry.skipped(why);
                false
            }
        }
    }

    fn export(&self, span: Option<(&Arc<Tracing>, Span)>) {
        if let (Some((tracing, span)), Some(spans)) = (span, self.spans.get()) {
            spans.record(tracing, span);
        }
    }

    fn refused(&self, reason: Option<Reason>, denial: Option<&Denial>) {
        if let Some(reason) = reason {
            self.metrics.refusals.count(reason);
        }
        if let Some(denial) = denial {
            let policies = &self.metrics.policies;
            policies.count(&denial.policy, Outcome::Denied);
        }
    }

    /// A policy that decides nothing has something to say: counted, and logged as long as there is not too much of it.
    pub fn observed(&self, observed: &Observed<'_>, attributes: &Attributes<'_>) {
        let policies = &self.metrics.policies;
        policies.count(observed.policy, observed.outcome);
        if !self.budget.borrow_mut().take(Instant::now()) {
            return;
        }
        let request = attributes.request.as_ref();
        let identity = attributes.client.identity.as_ref();
        tracing::info!(
            target: "authorization",
            policy = observed.policy,
            rule = observed.rule,
            outcome = observed.outcome.as_str(),
            src.addr = %attributes.client.address,
            src.identity = identity.map(SpiffeId::as_str),
            dst.port = attributes.destination.port,
            method = request.map(|request| request.method),
            host = request.map(|request| request.host),
            path = request.map(|request| request.path),
            "policy observed"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use std::sync::Arc;

    use super::{Budget, OBSERVED_A_SECOND, Recorder};
    use crate::access_log::{AccessLog, ConnectionRecord, Reporter, RequestRecord};
    use crate::args::AccessLogFormat;
    use crate::client::Client;
    use crate::metrics::Metrics;

    #[test]
    fn what_is_not_wanted_is_not_counted() {
        for without_traffic in [false, true] {
            let metrics = Arc::new(Metrics {
                without_traffic,
                ..Metrics::default()
            });
            let log = AccessLog::start(AccessLogFormat::Off).expect("starts");
            let recorder = Recorder::new(Arc::clone(&metrics), log);
            let client = || Client::new("10.0.0.1:4000".parse().expect("address"), None);
            let connection = || ConnectionRecord::new(Reporter::Waypoint, client(), "a".to_owned());
            let series = |count: usize| if without_traffic { 0 } else { count };
            recorder.request_finished(RequestRecord::new(Reporter::Waypoint, client()));
            assert_eq!(metrics.traffic.len(), series(1));
            let open = recorder.connection_opened(&connection());
            recorder.connection_finished(connection(), open);
            assert_eq!(metrics.traffic.len(), series(2));
            let refused = ConnectionRecord::new(Reporter::Gateway, client(), "a".to_owned());
            recorder.connection_refused(refused);
            assert_eq!(metrics.traffic.len(), series(3));
        }
    }

    #[test]
    fn lines_have_a_budget() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let taken = |budget: &mut Budget, now| (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, start), OBSERVED_A_SECOND as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(taken(&mut budget, later), OBSERVED_A_SECOND as usize);
    }
}
