//! Istio's metrics of requests and connections: one set of counters for each combination of labels.
//!
//! A worker finds the set in a cache of its own, by what a record says; the shared map and its lock are for what
//! that cache misses. Sets that were silent for long are dropped, and there is a ceiling on their number.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use karst_identity::SpiffeId;

use crate::access_log::{ConnectionRecord, Destination, Reporter, RequestRecord, Spoken};
use crate::client::SourceWorkload;
use karst_process::metrics::histogram::{BYTES, Histogram, MILLISECONDS};

/// Ticks of [`Traffic::expire`] after which a silent set is dropped: with one a minute, half an hour. A counter
/// that begins anew is what Prometheus expects of one that was away.
const SILENT_TICKS: u64 = 30;

/// Most sets at once, about 1 KB each. Beyond it, what is new is counted without its client.
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
    workload: Option<Arc<SourceWorkload>>,
    destination: Option<Arc<Destination>>,
    principal: Option<SpiffeId>,
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

    /// Names and values of the labels.
    pub(super) fn labels(&self) -> Vec<(&'static str, String)> {
        let known = |text: &str| if text.is_empty() { UNKNOWN } else { text }.to_owned();
        let default = SourceWorkload::default();
        let workload = self.workload.as_deref().unwrap_or(&default);
        // The certificate's word on the namespace goes before the agent's.
        let namespace = self
            .source
            .as_ref()
            .map_or(workload.namespace.as_str(), SpiffeId::namespace);
        let principal = |id: &Option<SpiffeId>| known(id.as_ref().map_or("", SpiffeId::as_str));
        let service = self.destination.as_deref();
        let target = |get: fn(&Destination) -> &Arc<str>| known(service.map_or("", |d| get(d)));
        let target_namespace = self
            .principal
            .as_ref()
            .map_or_else(|| target(|d| &d.namespace), |id| id.namespace().to_owned());
        let security = if self.source.is_some() {
            "mutual_tls"
        } else {
            "none"
        };
        let mut labels = vec![
            ("reporter", self.reporter.as_str().to_owned()),
            ("source_workload", known(&workload.name)),
            ("source_canonical_service", known(&workload.service)),
            ("source_canonical_revision", known(&workload.version)),
            ("source_workload_namespace", known(namespace)),
            ("source_principal", principal(&self.source)),
            ("source_app", known(&workload.service)),
            ("source_version", known(&workload.version)),
            ("source_cluster", known(&workload.cluster)),
            ("destination_workload", UNKNOWN.to_owned()),
            ("destination_canonical_service", UNKNOWN.to_owned()),
            ("destination_canonical_revision", UNKNOWN.to_owned()),
            ("destination_workload_namespace", target_namespace),
            ("destination_app", UNKNOWN.to_owned()),
            ("destination_version", UNKNOWN.to_owned()),
            ("destination_cluster", UNKNOWN.to_owned()),
            ("destination_principal", principal(&self.principal)),
            ("destination_service", target(|d| &d.hostname)),
            ("destination_service_name", target(|d| &d.name)),
            ("destination_service_namespace", target(|d| &d.namespace)),
            ("request_protocol", self.protocol.as_str().to_owned()),
            ("response_flags", self.flag.to_owned()),
            ("connection_security_policy", security.to_owned()),
        ];
        if self.protocol != Spoken::Tcp {
            let status = self.grpc.map(|status| status.to_string());
            labels.push(("response_code", self.code.to_string()));
            labels.push(("grpc_response_status", status.unwrap_or_default()));
        }
        labels
    }
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
    pub(super) duration: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
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
                duration: Histogram::new(&MILLISECONDS),
                request_bytes: Histogram::new(&BYTES),
                response_bytes: Histogram::new(&BYTES),
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
            // Microseconds keep the sum exact without a floating point number in it.
            let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
            counts.duration.observe(micros);
            counts.request_bytes.observe(record.bytes_received);
            counts.response_bytes.observe(record.bytes_sent);
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

    /// Drops sets that were silent for [`SILENT_TICKS`] calls of this, which should come once a minute; returns
    /// how many.
    pub fn expire(&self) -> usize {
        let now = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        let mut map = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let before = map.len();
        map.retain(|_, series| {
            let silent = series.touched.load(Ordering::Relaxed) + SILENT_TICKS < now;
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
            series,
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
#[derive(Debug)]
pub struct OpenConnection {
    series: Arc<Series>,
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
        self.series.bytes(more, back);
        (self.received, self.sent) = (received, sent);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.series.closed();
    }
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
