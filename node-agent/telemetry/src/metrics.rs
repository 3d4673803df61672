//! Counts of what was not logged, and of spans.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::settings::Skipped;

/// Why a span never got to its collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// As many wait as may.
    QueueFull,
    /// The collector has refused it, for good.
    Rejected,
    /// It could not be sent, as often as it was tried.
    Failed,
    /// There are more collectors than there may be.
    TooManyCollectors,
}

const DROPPED: [Dropped; 4] = [
    Dropped::QueueFull,
    Dropped::Rejected,
    Dropped::Failed,
    Dropped::TooManyCollectors,
];

const SKIPPED: [Skipped; 3] = [Skipped::Disabled, Skipped::Filter, Skipped::Sampling];

impl Dropped {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::TooManyCollectors => "too_many_collectors",
        }
    }
}

/// The counts of a process.
#[derive(Debug, Default)]
pub struct Metrics {
    skipped: [AtomicU64; SKIPPED.len()],
    unknown: AtomicU64,
    exported: AtomicU64,
    dropped: [AtomicU64; DROPPED.len()],
    retries: AtomicU64,
    /// Spans that wait now.
    pub(crate) waiting: AtomicU64,
}

impl Metrics {
    /// Something was not logged.
    pub fn skipped(&self, why: Skipped) {
        self.skipped[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A filter could not be evaluated.
    pub fn unknown(&self) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
    }

    /// Spans were taken by their collector.
    pub fn exported(&self, spans: u64) {
        self.exported.fetch_add(spans, Ordering::Relaxed);
    }

    /// Spans never got there.
    pub fn dropped(&self, why: Dropped, spans: u64) {
        self.dropped[why as usize].fetch_add(spans, Ordering::Relaxed);
    }

    /// A batch is sent again.
    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were dropped so far.
    #[must_use]
    pub fn dropped_total(&self, why: Dropped) -> u64 {
        self.dropped[why as usize].load(Ordering::Relaxed)
    }

    /// How many were exported so far.
    #[must_use]
    pub fn exported_total(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// How many were not logged so far.
    #[must_use]
    pub fn skipped_total(&self, why: Skipped) -> u64 {
        self.skipped[why as usize].load(Ordering::Relaxed)
    }
}

/// Shows [`Metrics`] at each scrape.
#[derive(Debug)]
pub struct TelemetryCollector(pub Arc<Metrics>);

impl Collector for TelemetryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut family = encoder.encode_descriptor(
            "karst_access_log_skipped",
            "Connections and requests that are not in the access log because a Telemetry resource says so",
            None,
            MetricType::Counter,
        )?;
        for why in SKIPPED {
            let labels = [("cause", why.as_str())];
            let count = ConstCounter::new(read(&metrics.skipped[why as usize]));
            count.encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "karst_spans_dropped",
            "Spans that never got to their collector",
            None,
            MetricType::Counter,
        )?;
        for why in DROPPED {
            let labels = [("cause", why.as_str())];
            let count = ConstCounter::new(read(&metrics.dropped[why as usize]));
            count.encode(family.encode_family(&labels)?)?;
        }
        for (name, help, count) in [
            (
                "karst_access_log_filter_errors",
                "Filters of the access log that could not be evaluated; what they were for was logged",
                &metrics.unknown,
            ),
            (
                "karst_spans_exported",
                "Spans that a collector has taken",
                &metrics.exported,
            ),
            (
                "karst_spans_export_retries",
                "Batches of spans that were sent again",
                &metrics.retries,
            ),
        ] {
            let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(read(count)).encode(descriptor)?;
        }
        let descriptor = encoder.encode_descriptor(
            "karst_spans_waiting",
            "Spans that wait for their export",
            None,
            MetricType::Gauge,
        )?;
        let waiting = i64::try_from(read(&metrics.waiting)).unwrap_or(i64::MAX);
        ConstGauge::new(waiting).encode(descriptor)
    }
}
