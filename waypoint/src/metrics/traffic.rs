//! Istio's metrics of requests and connections: one set of counters for each combination of labels.
//!
//! A worker finds the set in a cache of its own, by what a record says; the shared map and its lock are for what
//! that cache misses. Sets that were silent for long are dropped, and there is a ceiling on their number.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::{HashMap, HashSet};
use karst_identity::SpiffeId;

use crate::access_log::{ConnectionRecord, Destination, Reporter, RequestRecord, Spoken};
use crate::observe::Observed;
use crate::workload::WorkloadLabels;
use karst_process::metrics::exemplar::{TraceSpan, TracedHistogram};
use karst_process::metrics::histogram::{BYTES, Histogram, MILLISECONDS};

/// Ticks of [`Traffic::expire`] after which a silent set is dropped: with one a minute, half an hour. A counter
/// that begins anew is what Prometheus expects of one that was away.
const SILENT_TICKS: u64 = 30;

/// The same for a set whose endpoint's workload is gone: long enough that its last values are scraped.
const GONE_TICKS: u64 = 2;

/// Most sets at once. Beyond it, what is new is counted without its client. A set is about 1 KB, and 1.3 KB more once
/// a request of it was sampled, for one exemplar in each of the 20 buckets: for all of them about 40 MB.
const MAX_SERIES: usize = 16_384;

/// Sets a worker remembers; it starts afresh when full.
const MAX_CACHED: usize = 4096;

/// Missing label value, as Istio writes it.
const UNKNOWN: &str = "unknown";

/// What tells one set from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    reporter: Reporter,
    protocol: Spoken,
    source: Option<SpiffeId>,
    workload: Option<Arc<WorkloadLabels>>,
    destination: Option<Arc<Destination>>,
    principal: Option<SpiffeId>,
    endpoint: Option<Arc<WorkloadLabels>>,
    code: u16,
    grpc: Option<u32>,
    flag: &'static str,
}

impl Key {
    fn of_request(record: &RequestRecord) -> Self {
        Self {
            reporter: record.reporter,
            protocol: record.protocol,
            source: record.client.identity.clone(),
            workload: record.client.workload.clone(),
            destination: record.destination.clone(),
            principal: record.endpoint.as_ref().and_then(|e| e.identity.clone()),
            endpoint: record.endpoint.as_ref().and_then(|e| e.workload.clone()),
            code: record.status,
            // What is no status of gRPC is as good as UNKNOWN, and a peer must not choose the number of sets.
            grpc: record
                .grpc_status
                .map(|status| if status > 16 { 2 } else { status }),
            flag: record.reason.map_or("-", |reason| reason.response_flag()),
        }
    }

    fn of_connection(record: &ConnectionRecord) -> Self {
        Self {
            reporter: record.reporter,
            protocol: Spoken::Tcp,
            source: record.client.identity.clone(),
            workload: record.client.workload.clone(),
            destination: record.destination.clone(),
            principal: record.endpoint.as_ref().and_then(|e| e.identity.clone()),
            endpoint: record.endpoint.as_ref().and_then(|e| e.workload.clone()),
            code: 0,
            grpc: None,
            flag: record.reason.map_or("-", |reason| reason.response_flag()),
        }
    }

    fn without_client(&self) -> Self {
        Self {
            source: None,
            workload: None,
            ..self.clone()
        }
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.protocol == Spoken::Grpc
    }

    /// Names and values of the labels.
    pub(super) fn labels(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let mut labels = Vec::with_capacity(SOURCE.len() + DESTINATION.len() + 9);
        labels.push(("reporter", known(self.reporter.as_str())));
        let source = (self.workload.as_deref(), self.source.as_ref());
        labels.extend(SOURCE.into_iter().zip(party(source, "")));
        let service = self.destination.as_deref();
        let target = |get: fn(&Destination) -> &Arc<str>| known(service.map_or("", |d| get(d)));
        let endpoint = (self.endpoint.as_deref(), self.principal.as_ref());
        let namespace = service.map_or("", |service| &*service.namespace);
        labels.extend(DESTINATION.into_iter().zip(party(endpoint, namespace)));
        let security = if self.source.is_some() {
            "mutual_tls"
        } else {
            "none"
        };
        labels.extend([
            ("destination_service", target(|d| &d.hostname)),
            ("destination_service_name", target(|d| &d.name)),
            ("destination_service_namespace", target(|d| &d.namespace)),
            ("request_protocol", self.protocol.as_str().into()),
            ("response_flags", self.flag.into()),
            ("connection_security_policy", security.into()),
        ]);
        if self.protocol != Spoken::Tcp {
            let status = self.grpc.map(|status| status.to_string());
            labels.push(("response_code", self.code.to_string().into()));
            labels.push(("grpc_response_status", status.unwrap_or_default().into()));
        }
        labels
    }
}

/// Names of what [`party`] says of a client.
const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

/// Names of what [`party`] says of an endpoint.
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// Label values of a client or endpoint. `namespace` is taken where neither knows it.
fn party<'a>(
    (workload, identity): (Option<&'a WorkloadLabels>, Option<&'a SpiffeId>),
    namespace: &'a str,
) -> [Cow<'a, str>; 8] {
    let of = |get: fn(&WorkloadLabels) -> &str| known(workload.map_or("", get));
    // The certificate's word on the namespace goes before that of whoever describes the workload.
    let proven = identity.map(SpiffeId::namespace);
    let said = workload.map(|workload| workload.namespace.as_str());
    let said = said.filter(|said| !said.is_empty());
    [
        of(|w| &w.name),
        of(|w| &w.service),
        of(|w| &w.version),
        known(proven.or(said).unwrap_or(namespace)),
        known(identity.map_or("", SpiffeId::as_str)),
        of(|w| &w.service),
        of(|w| &w.version),
        of(|w| &w.cluster),
    ]
}

fn known(text: &str) -> Cow<'_, str> {
    if text.is_empty() { UNKNOWN } else { text }.into()
}

/// Counters of one set.
#[derive(Debug)]
pub struct Series {
    pub(super) key: Key,
    /// Counts down to nothing from the last use on; see [`Traffic::expire`].
    touched: AtomicU64,
    /// It is no longer in the map: who remembers it looks again.
    retired: AtomicBool,
    pub(super) detail: Detail,
}

/// What is counted, by kind.
#[derive(Debug)]
pub(super) enum Detail {
    Requests(Box<RequestCounts>),
    Connections(ConnectionCounts),
}

#[derive(Debug)]
pub(super) struct RequestCounts {
    /// The last sampled request in each bucket is its exemplar.
    pub(super) duration: TracedHistogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
    /// Messages of gRPC, which HTTP without it has none of.
    pub(super) request_messages: AtomicU64,
    /// Those of responses.
    pub(super) response_messages: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct ConnectionCounts {
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
}

impl Series {
    fn new(key: Key, now: u64) -> Self {
        let detail = if key.protocol == Spoken::Tcp {
            Detail::Connections(ConnectionCounts::default())
        } else {
            Detail::Requests(Box::new(RequestCounts {
                duration: TracedHistogram::new(&MILLISECONDS),
                request_bytes: Histogram::new(&BYTES),
                response_bytes: Histogram::new(&BYTES),
                request_messages: AtomicU64::new(0),
                response_messages: AtomicU64::new(0),
            }))
        };
        Self {
            key,
            touched: AtomicU64::new(now),
            retired: AtomicBool::new(false),
            detail,
        }
    }

    fn request(&self, record: &RequestRecord) {
        if let Detail::Requests(counts) = &self.detail {
            let sampled = record.observed.as_deref().and_then(Observed::sampled);
            let exemplar = sampled.map(|own| TraceSpan {
                trace: own.trace_id(),
                span: own.span_id(),
            });
            counts.duration.observe_time(record.duration, exemplar);
            counts.request_bytes.observe(record.bytes_received);
            counts.response_bytes.observe(record.bytes_sent);
            if self.key.protocol == Spoken::Grpc {
                let (requests, responses) = record.messages;
                counts
                    .request_messages
                    .fetch_add(requests, Ordering::Relaxed);
                let total = &counts.response_messages;
                total.fetch_add(responses, Ordering::Relaxed);
            }
        }
    }

    fn opened(&self) {
        if let Detail::Connections(counts) = &self.detail {
            counts.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn bytes(&self, received: u64, sent: u64) {
        if let Detail::Connections(counts) = &self.detail {
            counts.received.fetch_add(received, Ordering::Relaxed);
            counts.sent.fetch_add(sent, Ordering::Relaxed);
        }
    }

    fn closed(&self) {
        if let Detail::Connections(counts) = &self.detail {
            counts.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_live(&self) -> bool {
        match &self.detail {
            Detail::Requests(_) => false,
            Detail::Connections(counts) => {
                counts.opened.load(Ordering::Relaxed) > counts.closed.load(Ordering::Relaxed)
            }
        }
    }
}

/// All sets of this process.
#[derive(Debug, Default)]
pub struct Traffic {
    series: Mutex<HashMap<Key, Arc<Series>>>,
    ticks: AtomicU64,
    folded: AtomicU64,
}

impl Traffic {
    fn intern(&self, key: Key) -> Arc<Series> {
        let now = self.ticks.load(Ordering::Relaxed);
        let mut map = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = map.get(&key) {
            return Arc::clone(series);
        }
        let mut key = key;
        if map.len() >= MAX_SERIES {
            self.folded.fetch_add(1, Ordering::Relaxed);
            key = key.without_client();
        }
        let new = || Arc::new(Series::new(key.clone(), now));
        Arc::clone(map.entry(key.clone()).or_insert_with(new))
    }

    /// Drops sets that were silent for [`SILENT_TICKS`] calls of this, or for [`GONE_TICKS`] where no endpoint is a
    /// part of what they name as their destination any more, which `endpoints` are. It should be called once a
    /// minute; returns how many are dropped.
    pub fn expire(&self, endpoints: &HashSet<Arc<WorkloadLabels>>) -> usize {
        let now = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        let is_gone = |endpoint: &Arc<WorkloadLabels>| !endpoints.contains(endpoint);
        let mut map = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let before = map.len();
        map.retain(|_, series| {
            let ticks = match series.key.endpoint.as_ref().is_some_and(is_gone) {
                true => GONE_TICKS,
                false => SILENT_TICKS,
            };
            let silent = series.touched.load(Ordering::Relaxed) + ticks < now;
            let gone = silent && !series.is_live();
            series.retired.store(gone, Ordering::Relaxed);
            !gone
        });
        before - map.len()
    }

    /// Sets held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock_len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock_len() == 0
    }

    fn lock_len(&self) -> usize {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Times that a client was left out because there were too many sets.
    #[must_use]
    pub fn folded(&self) -> u64 {
        self.folded.load(Ordering::Relaxed)
    }

    pub(super) fn snapshot(&self) -> Vec<Arc<Series>> {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

/// A worker's way to the sets.
pub struct TrafficCache {
    traffic: Arc<Traffic>,
    cached: HashMap<Key, Arc<Series>>,
}

impl fmt::Debug for TrafficCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficCache")
            .field("cached", &self.cached.len())
            .finish_non_exhaustive()
    }
}

impl TrafficCache {
    /// An empty cache over `traffic`.
    #[must_use]
    pub fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            traffic,
            cached: HashMap::new(),
        }
    }

    fn get(&mut self, key: Key) -> Arc<Series> {
        let now = self.traffic.ticks.load(Ordering::Relaxed);
        if let Some(series) = self.cached.get(&key)
            && !series.retired.load(Ordering::Relaxed)
        {
            series.touched.store(now, Ordering::Relaxed);
            return Arc::clone(series);
        }
        if self.cached.len() >= MAX_CACHED {
            self.cached.clear();
        }
        let series = self.traffic.intern(key.clone());
        series.touched.store(now, Ordering::Relaxed);
        self.cached.insert(key, Arc::clone(&series));
        series
    }

    /// Counts a request.
    pub fn request(&mut self, record: &RequestRecord) {
        self.get(Key::of_request(record)).request(record);
    }

    /// Counts a connection that is established; the rest is counted by what is returned.
    pub fn opened(&mut self, record: &ConnectionRecord) -> OpenConnection {
        let series = self.get(Key::of_connection(record));
        series.opened();
        OpenConnection {
            series: Some(series),
            received: 0,
            sent: 0,
        }
    }

    /// Counts a connection that could not be established.
    pub fn failed(&mut self, record: &ConnectionRecord) {
        let series = self.get(Key::of_connection(record));
        series.opened();
        series.closed();
    }
}

/// A connection that is counted as open until this is dropped.
#[derive(Debug, Default)]
pub struct OpenConnection {
    /// `None`: it is not counted.
    series: Option<Arc<Series>>,
    received: u64,
    sent: u64,
}

impl OpenConnection {
    /// Counts what has passed in all since the connection was opened.
    pub fn total(&mut self, received: u64, sent: u64) {
        let (more, back) = (
            received.saturating_sub(self.received),
            sent.saturating_sub(self.sent),
        );
        if let Some(series) = &self.series {
            series.bytes(more, back);
        }
        (self.received, self.sent) = (received, sent);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(series) = &self.series {
            series.closed();
        }
    }
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
