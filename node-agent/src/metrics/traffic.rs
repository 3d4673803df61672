//! Istio's TCP metrics: one set of counters for each pair of workloads.
//!
//! A connection looks its series up once, by the revision numbers of what it
//! connects, in a cache of its worker; the 25 label strings are compared only
//! when that cache misses. Series end with the pods they speak of.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use karst_identity::SpiffeId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::reason::ResponseFlag;
use crate::state::endpoint::{ms_at, now_ms};
use crate::state::service::Service;
use crate::state::workload::Workload;

/// A series whose workloads or policies are gone is kept this long after its last event, so
/// that the last values are scraped.
const LINGER: Duration = Duration::from_secs(120);

/// Whether a series whose last event was at `touched_ms` has been silent for [`LINGER`].
pub(super) fn is_silent(touched_ms: u64, now_ms: u64) -> bool {
    let linger = u64::try_from(LINGER.as_millis()).unwrap_or(u64::MAX);
    touched_ms.saturating_add(linger) < now_ms
}

/// Most series at once, about 1 KiB each; a scrape writes five lines for each. Beyond it, connections are counted
/// without their far end, of which there may be any number; near ends are the pods of this node.
pub const MAX_SERIES: usize = 16_384;

/// How often it is said that connections are counted so.
const SAY_FOLDED_EVERY: Duration = Duration::from_secs(60);

/// Most series a worker caches by revision; the cache starts afresh when full.
const MAX_CACHED: usize = 8192;

/// Missing label value, as Istio writes it.
const UNKNOWN: &str = "unknown";

/// Which end of the connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's agent.
    Source,
    /// The server's agent.
    Destination,
}

/// How the connection was protected between the agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Mutual TLS.
    MutualTls,
    /// Not encrypted: it never left the node's memory, and the kernel knows both ends.
    SameNode,
    /// Not at all, or not by us.
    Unknown,
}

impl Security {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::SameNode => "same_node",
            Self::Unknown => UNKNOWN,
        }
    }
}

/// The parties of a connection, as labels see them.
#[derive(Clone, Copy, Debug)]
pub struct Parties<'a> {
    /// Which end we are.
    pub reporter: Reporter,
    /// How it is protected.
    pub security: Security,
    /// Client.
    pub source: Option<&'a Workload>,
    /// Client's verified identity.
    pub source_identity: Option<&'a SpiffeId>,
    /// Server.
    pub destination: Option<&'a Workload>,
    /// Server's identity.
    pub destination_identity: Option<&'a SpiffeId>,
    /// Service that was dialled.
    pub service: Option<&'a Service>,
}

impl Parties<'_> {
    /// The same without what the other end of the connection is, and without what it was called.
    fn without_far_end(&self) -> Self {
        let mut near = Self {
            service: None,
            ..*self
        };
        match self.reporter {
            Reporter::Source => (near.destination, near.destination_identity) = (None, None),
            Reporter::Destination => (near.source, near.source_identity) = (None, None),
        }
        near
    }
}

/// Counters of one label set.
#[derive(Debug)]
pub struct Series {
    labels: Labels,
    uids: [Arc<str>; 2],
    touched_ms: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    failed: [AtomicU64; ResponseFlag::ALL.len()],
}

impl Series {
    fn new(labels: Labels, uids: [Arc<str>; 2]) -> Self {
        Self {
            labels,
            uids,
            touched_ms: AtomicU64::new(now_ms()),
            opened: AtomicU64::default(),
            closed: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            failed: Default::default(),
        }
    }

    /// A series that no scrape shows.
    pub fn unseen() -> Arc<Self> {
        let nobody = [Arc::from(""), Arc::from("")];
        Arc::new(Self::new(Labels(Vec::new()), nobody))
    }

    /// A connection was established.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// An established connection ended `now`.
    pub fn closed(&self, now: Instant) {
        self.touched_ms.store(ms_at(now), Ordering::Relaxed);
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of requests (from the client) and responses passed since the last call.
    pub fn bytes(&self, requests: u64, responses: u64) {
        self.received.fetch_add(requests, Ordering::Relaxed);
        self.sent.fetch_add(responses, Ordering::Relaxed);
    }

    /// A connection could not be established.
    pub fn failed(&self, flag: ResponseFlag) {
        self.touched_ms.store(now_ms(), Ordering::Relaxed);
        if let Some(counter) = self.failed.get(flag as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Label names and values, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, Arc<str>)>);

/// The label set of the parties.
fn labels(parties: &Parties<'_>) -> Labels {
    let unknown: Arc<str> = Arc::from(UNKNOWN);
    let or_unknown = |value: Option<Arc<str>>| {
        value
            .filter(|v| !v.is_empty())
            .unwrap_or_else(|| Arc::clone(&unknown))
    };
    let reporter = match parties.reporter {
        Reporter::Source => "source",
        Reporter::Destination => "destination",
    };
    let mut list = Vec::with_capacity(28);
    list.push(("reporter", Arc::from(reporter)));
    let side = [
        (parties.source, parties.source_identity, &SOURCE),
        (
            parties.destination,
            parties.destination_identity,
            &DESTINATION,
        ),
    ];
    for (workload, identity, names) in side {
        // A workload we do not know still has the namespace its certificate says.
        let of = |get: fn(&Workload) -> &Arc<str>| or_unknown(workload.map(|w| Arc::clone(get(w))));
        let namespace = workload
            .map(|w| Arc::clone(&w.namespace))
            .or_else(|| identity.map(|id| Arc::from(id.namespace())));
        let values = [
            of(|w| &w.workload_name),
            of(|w| &w.canonical_name),
            of(|w| &w.canonical_revision),
            or_unknown(namespace),
            or_unknown(identity.map(|id| Arc::from(id.as_str()))),
            of(|w| &w.canonical_name),
            of(|w| &w.canonical_revision),
            of(|w| &w.locality.cluster),
            of(|w| &w.locality.region),
            of(|w| &w.locality.zone),
        ];
        list.extend(names.iter().copied().zip(values));
    }
    let spec = parties.service.map(|s| &s.spec);
    list.push((
        "destination_service",
        or_unknown(spec.map(|s| Arc::clone(&s.hostname))),
    ));
    list.push((
        "destination_service_namespace",
        or_unknown(spec.map(|s| Arc::clone(&s.namespace))),
    ));
    list.push((
        "destination_service_name",
        or_unknown(spec.map(|s| Arc::clone(&s.name))),
    ));
    list.push(("request_protocol", Arc::from("tcp")));
    list.push((
        "connection_security_policy",
        Arc::from(parties.security.as_str()),
    ));
    Labels(list)
}

const SOURCE: [&str; 10] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
];

const DESTINATION: [&str; 10] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
];

/// All series of this agent.
#[derive(Debug, Default)]
pub struct TrafficMetrics {
    series: Mutex<HashMap<Labels, Arc<Series>>>,
    folded: AtomicU64,
    said_folded_ms: AtomicU64,
}

impl TrafficMetrics {
    fn intern(&self, parties: &Parties<'_>) -> Arc<Series> {
        let all = labels(parties);
        let mut map = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = map.get(&all) {
            return Arc::clone(series);
        }
        if map.len() < MAX_SERIES {
            return Self::add(&mut map, all, parties);
        }
        self.say_folded();
        let parties = parties.without_far_end();
        let near = labels(&parties);
        match map.get(&near) {
            Some(series) => Arc::clone(series),
            None => Self::add(&mut map, near, &parties),
        }
    }

    fn add(
        map: &mut HashMap<Labels, Arc<Series>>,
        labels: Labels,
        parties: &Parties<'_>,
    ) -> Arc<Series> {
        let uid = |w: Option<&Workload>| w.map_or_else(|| Arc::from(""), |w| Arc::clone(&w.uid));
        let uids = [uid(parties.source), uid(parties.destination)];
        let series = Arc::new(Series::new(labels.clone(), uids));
        map.insert(labels, Arc::clone(&series));
        series
    }

    /// Counts a connection whose far end is left out, and says so from time to time.
    fn say_folded(&self) {
        let folded = self.folded.fetch_add(1, Ordering::Relaxed) + 1;
        let (now, said) = (now_ms(), self.said_folded_ms.load(Ordering::Relaxed));
        let pause = u64::try_from(SAY_FOLDED_EVERY.as_millis()).unwrap_or(u64::MAX);
        if folded == 1 || now.saturating_sub(said) >= pause {
            self.said_folded_ms.store(now, Ordering::Relaxed);
            tracing::warn!(
                limit = MAX_SERIES,
                folded,
                "too many metric series: new pairs of workloads are counted without their far end"
            );
        }
    }

    /// Series held.
    pub fn len(&self) -> usize {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Times that a far end was left out because there were too many series.
    pub fn folded(&self) -> u64 {
        self.folded.load(Ordering::Relaxed)
    }

    /// Drops series of workloads that `exists` no longer knows once they have
    /// been silent for [`LINGER`]; returns how many.
    pub(super) fn expire_at(&self, now: u64, exists: impl Fn(&str) -> bool) -> usize {
        let mut map = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let before = map.len();
        let mut checked: HashMap<Arc<str>, bool> = HashMap::new();
        map.retain(|_, series| {
            let live =
                series.opened.load(Ordering::Relaxed) > series.closed.load(Ordering::Relaxed);
            let silent = is_silent(series.touched_ms.load(Ordering::Relaxed), now);
            let gone = series.uids.iter().filter(|uid| !uid.is_empty()).any(|uid| {
                !*checked
                    .entry(Arc::clone(uid))
                    .or_insert_with(|| exists(uid))
            });
            live || !silent || !gone
        });
        before - map.len()
    }

    fn snapshot(&self) -> Vec<Arc<Series>> {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

/// A worker's way to its series.
#[derive(Debug)]
pub struct SeriesCache {
    metrics: Arc<TrafficMetrics>,
    cached: HashMap<CacheKey, Arc<Series>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    reporter: Reporter,
    security: Security,
    source: u64,
    destination: u64,
    service: u64,
}

impl SeriesCache {
    /// An empty cache over `metrics`.
    pub fn new(metrics: Arc<TrafficMetrics>) -> Self {
        Self {
            metrics,
            cached: HashMap::new(),
        }
    }

    /// The series of the parties.
    pub fn get(&mut self, parties: &Parties<'_>) -> Arc<Series> {
        // The identity of a known workload follows from its revision; that of
        // an unknown one does not, so such series are not cached here.
        let identified = |w: Option<&Workload>, id: Option<&SpiffeId>| match (w, id) {
            (Some(w), Some(id)) => w.identity.as_ref() == Some(id),
            (_, None) => true,
            (None, Some(_)) => false,
        };
        if !identified(parties.source, parties.source_identity)
            || !identified(parties.destination, parties.destination_identity)
        {
            return self.metrics.intern(parties);
        }
        let key = CacheKey {
            reporter: parties.reporter,
            security: parties.security,
            source: parties.source.map_or(0, |w| {
                w.revision << 1 | u64::from(parties.source_identity.is_some())
            }),
            destination: parties.destination.map_or(0, |w| {
                w.revision << 1 | u64::from(parties.destination_identity.is_some())
            }),
            service: parties.service.map_or(0, |s| s.revision),
        };
        if let Some(series) = self.cached.get(&key) {
            return Arc::clone(series);
        }
        if self.cached.len() >= MAX_CACHED {
            self.cached.clear();
        }
        let series = self.metrics.intern(parties);
        self.cached.insert(key, Arc::clone(&series));
        series
    }

    /// Forgets everything, so that expired series do not live on unseen.
    pub fn clear(&mut self) {
        self.cached.clear();
    }
}

type Value = fn(&Series) -> u64;

const COUNTERS: [(&str, &str, Value); 4] = [
    (
        "istio_tcp_connections_opened",
        "Connections established",
        |s| s.opened.load(Ordering::Relaxed),
    ),
    (
        "istio_tcp_connections_closed",
        "Established connections that ended",
        |s| s.closed.load(Ordering::Relaxed),
    ),
    (
        "istio_tcp_received_bytes",
        "Bytes received from clients (requests)",
        |s| s.received.load(Ordering::Relaxed),
    ),
    (
        "istio_tcp_sent_bytes",
        "Bytes sent to clients (responses)",
        |s| s.sent.load(Ordering::Relaxed),
    ),
];

impl Collector for TrafficMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let series = self.snapshot();
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for s in &series {
                let labels = s.labels.with_flag("-");
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value(s), None)?;
            }
        }
        let help = "Connections that could not be established";
        let name = "istio_tcp_connections_failed";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for s in &series {
            for (flag, counter) in ResponseFlag::ALL.iter().zip(&s.failed) {
                let value = counter.load(Ordering::Relaxed);
                if value > 0 {
                    let labels = s.labels.with_flag(flag.as_str());
                    metric
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
            }
        }
        let series = i64::try_from(series.len()).unwrap_or(i64::MAX);
        let help = "Pairs of workloads that Istio's metrics have now";
        let name = "karst_tcp_series";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&series)?;
        let help = "Lookups of pairs counted without their far end because there were too many";
        let name = "karst_tcp_series_folded";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&self.folded(), None)
    }
}

impl Labels {
    fn with_flag<'a>(&'a self, flag: &'a str) -> Vec<(&'static str, &'a str)> {
        let mut list: Vec<_> = self
            .0
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        list.push(("response_flags", flag));
        list
    }
}

/// Uids named by any series, for tests.
#[cfg(test)]
fn uids(metrics: &TrafficMetrics) -> hashbrown::HashSet<Arc<str>> {
    metrics
        .snapshot()
        .iter()
        .flat_map(|s| s.uids.clone())
        .filter(|u| !u.is_empty())
        .collect()
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
