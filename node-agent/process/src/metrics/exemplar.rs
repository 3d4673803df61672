//! Traces as exemplars of a histogram's buckets, and their way into the text of a scrape.
//!
//! The library makes exemplars for its own histogram alone, which takes a lock for each value, and nobody else can make
//! one of its type. So it writes ours as labels at the end of their bucket's line, and [`in_place`] moves them behind
//! the count, where OpenMetrics wants them.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use super::histogram::{Histogram, Reading, Scale, micros};

/// The label that begins an exemplar until it is in its place: value and time. No metric has a label of this name.
const MARK: &str = "__exemplar";

/// Lines that the library writes of a histogram before its buckets: sum and count.
const LINES_BEFORE: usize = 2;

/// A trace, and the span in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceSpan {
    /// Id of the trace.
    pub trace: u128,
    /// Id of the span.
    pub span: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    of: TraceSpan,
    /// In the unit that is observed.
    value: u64,
    at: SystemTime,
}

/// A histogram that keeps the last trace of each bucket. What has no trace is counted without a lock.
#[derive(Debug)]
pub struct TracedHistogram {
    histogram: Histogram,
    /// One for each bucket, 64 bytes each; none at all until there is a trace.
    kept: OnceLock<Mutex<Box<[Option<Kept>]>>>,
}

impl TracedHistogram {
    /// An empty one.
    #[must_use]
    pub fn new(scale: &'static Scale) -> Self {
        Self {
            histogram: Histogram::new(scale),
            kept: OnceLock::new(),
        }
    }

    /// Counts a value, in the unit that is observed; `of` is its exemplar.
    pub fn observe(&self, value: u64, of: Option<TraceSpan>) {
        self.histogram.observe(value);
        if let Some(of) = of {
            self.keep(value, of);
        }
    }

    /// Counts a time, where microseconds are observed; `of` is its exemplar.
    pub fn observe_time(&self, time: Duration, of: Option<TraceSpan>) {
        self.observe(micros(time), of);
    }

    fn keep(&self, value: u64, of: TraceSpan) {
        let scale = self.histogram.scale();
        let kept = self
            .kept
            .get_or_init(|| Mutex::new(vec![None; scale.buckets()].into()));
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = kept.get_mut(scale.bucket_of(value)) {
            // Asked under the lock, so that a later one never has an earlier time.
            let at = SystemTime::now();
            *place = Some(Kept { of, value, at });
        }
    }

    /// How often a value was counted so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.read().count
    }

    /// What has been observed so far.
    #[must_use]
    pub fn read(&self) -> TracedReading {
        // Read first: what is an exemplar is in the counts by then.
        let kept = self.kept.get().map(|kept| {
            let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clone()
        });
        let scale = self.histogram.scale();
        let shown = |kept: &Kept| Exemplar {
            of: kept.of,
            value: scale.show(kept.value),
            at: kept.at,
        };
        let kept = kept.iter().flatten();
        TracedReading {
            exemplars: kept.map(|kept| kept.as_ref().map(shown)).collect(),
            reading: self.histogram.read(),
        }
    }
}

/// What a [`TracedHistogram`] says at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedReading {
    /// Counts.
    pub reading: Reading,
    /// The exemplar of each bucket; empty if there is none at all.
    pub exemplars: Vec<Option<Exemplar>>,
}

/// One value of a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// Where it was observed.
    pub of: TraceSpan,
    /// In the unit that is shown.
    pub value: f64,
    /// When.
    pub at: SystemTime,
}

impl Exemplar {
    /// Value and time as they stand behind an exemplar's labels.
    fn observed(&self) -> String {
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Seconds; milliseconds are what Prometheus keeps.
        let (seconds, millis) = (at.as_secs(), at.subsec_millis());
        format!("{:?} {seconds}.{millis:03}", self.value)
    }
}

/// Labels of a series, of whose buckets some have an exemplar. The library encodes them once for each line.
pub(super) struct Marked<'l> {
    labels: Vec<(&'l str, &'l str)>,
    exemplars: Vec<Option<Exemplar>>,
    line: Cell<usize>,
}

impl<'l> Marked<'l> {
    pub(super) fn new(labels: Vec<(&'l str, &'l str)>, exemplars: Vec<Option<Exemplar>>) -> Self {
        Self {
            labels,
            exemplars,
            line: Cell::new(0),
        }
    }
}

impl EncodeLabelSet for Marked<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        self.labels.encode(encoder)?;
        let line = self.line.get();
        self.line.set(line + 1);
        let bucket = line.checked_sub(LINES_BEFORE);
        let Some(exemplar) = bucket.and_then(|bucket| *self.exemplars.get(bucket)?) else {
            return Ok(());
        };
        // OpenMetrics allows an exemplar 128 characters of names and values; these are 63.
        let labels = [
            (MARK, exemplar.observed()),
            ("trace_id", format!("{:032x}", exemplar.of.trace)),
            ("span_id", format!("{:016x}", exemplar.of.span)),
        ];
        labels.encode(encoder)
    }
}

/// The text with each exemplar behind the count of its bucket.
pub(super) fn in_place(text: String) -> String {
    let mark = format!(",{MARK}=\"");
    if !text.contains(&mark) {
        return text;
    }
    let mut placed = String::with_capacity(text.len());
    for line in text.lines() {
        placed.push_str(&moved(line, &mark));
        placed.push('\n');
    }
    placed
}

/// A line with its exemplar in place; one without is as it was, whatever its labels' values say.
fn moved<'t>(line: &'t str, mark: &str) -> Cow<'t, str> {
    let parts = || {
        let (series, exemplar) = line.rsplit_once(mark)?;
        let (observed, exemplar) = exemplar.split_once("\",")?;
        let (labels, count) = exemplar.rsplit_once("} ")?;
        let is_observed = |byte: u8| byte.is_ascii_digit() || b". e-".contains(&byte);
        observed
            .bytes()
            .all(is_observed)
            .then(|| format!("{series}}} {count} # {{{labels}}} {observed}"))
    };
    parts().map_or(Cow::Borrowed(line), Cow::Owned)
}

#[cfg(test)]
#[path = "exemplar_tests.rs"]
mod tests;
