//! What external authorizers were asked, how it ended, and how long it took.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use karst_process::metrics::Out;
use karst_process::metrics::histogram::{Histogram, MILLISECONDS};

/// Providers that have counts of their own. Names come and go with the configuration, and a count stays.
const MAX_PROVIDERS: usize = 256;

/// Where those beyond the limit are counted.
const OTHERS: &str = "others";

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// The provider allows.
    Allowed,
    /// It refuses.
    Denied,
    /// There is no answer to go by.
    Failed,
    /// Likewise, and the request has passed.
    FailedOpen,
}

const RESULTS: [CheckResult; 4] = [
    CheckResult::Allowed,
    CheckResult::Denied,
    CheckResult::Failed,
    CheckResult::FailedOpen,
];

impl CheckResult {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::FailedOpen => "failed_open",
        }
    }
}

/// Counts of one provider.
#[derive(Debug)]
pub struct ProviderCounts {
    active: AtomicI64,
    results: [AtomicU64; RESULTS.len()],
    duration: Histogram,
}

impl ProviderCounts {
    fn new() -> Self {
        Self {
            active: AtomicI64::new(0),
            results: Default::default(),
            duration: Histogram::new(&MILLISECONDS),
        }
    }

    /// Counts a check as under way until the guard is dropped; `None` if there are `most` already.
    #[must_use]
    pub fn enter(self: &Arc<Self>, most: i64) -> Option<UnderWay> {
        let under_way = UnderWay(Arc::clone(self));
        (self.active.fetch_add(1, Ordering::Relaxed) < most).then_some(under_way)
    }

    /// Counts one that has ended.
    pub fn ended(&self, result: CheckResult, duration: Duration) {
        let index = RESULTS.iter().position(|other| *other == result);
        if let Some(count) = index.and_then(|index| self.results.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(micros);
    }

    /// How many are under way.
    #[must_use]
    pub fn active(&self) -> i64 {
        self.active.load(Ordering::Relaxed)
    }

    /// How many have ended so.
    #[must_use]
    pub fn get(&self, result: CheckResult) -> u64 {
        let mut counts = RESULTS.iter().zip(&self.results);
        let found = counts.find(|(other, _)| **other == result);
        found.map_or(0, |(_, count)| count.load(Ordering::Relaxed))
    }
}

/// A check under way.
#[derive(Debug)]
pub struct UnderWay(Arc<ProviderCounts>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts by provider, without a lock: names are soon complete, and then only read.
#[derive(Default)]
pub struct Checks(ArcSwap<HashMap<Arc<str>, Arc<ProviderCounts>>>);

impl Checks {
    /// The counts of a provider.
    #[must_use]
    pub fn of(&self, provider: &str) -> Arc<ProviderCounts> {
        let known = self.0.load();
        if let Some(counts) = known.get(provider) {
            return Arc::clone(counts);
        }
        let name = if known.len() < MAX_PROVIDERS {
            provider
        } else {
            OTHERS
        };
        let new = Arc::new(ProviderCounts::new());
        self.0.rcu(|known| {
            let mut all = HashMap::clone(known);
            all.entry(name.into()).or_insert_with(|| Arc::clone(&new));
            all
        });
        self.0.load().get(name).map_or(new, Arc::clone)
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.load().keys()).finish()
    }
}

impl Collector for Checks {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out::new(encoder);
        let known = self.0.load();
        let help = "Checks of requests by external authorizers, by provider and result";
        let counts = known.iter().flat_map(|(provider, counts)| {
            RESULTS.into_iter().map(move |result| {
                let labels = vec![("provider", &**provider), ("result", result.as_str())];
                (labels, counts.get(result))
            })
        });
        out.counters("karst_waypoint_checks", help, counts)?;
        let of = |provider| vec![("provider", provider)];
        let help = "Checks of requests under way, by provider";
        let all = known.iter();
        let active = all.map(|(provider, counts)| (of(&**provider), counts.active()));
        out.gauges("karst_waypoint_checks_active", help, active)?;
        let help = "Time from the beginning of a check to its end";
        let all = known.iter();
        let took = all.map(|(provider, counts)| (of(&**provider), counts.duration.read()));
        out.histograms("karst_waypoint_check_duration_milliseconds", help, took)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{CheckResult, Checks, MAX_PROVIDERS, OTHERS};

    #[test]
    fn providers_are_counted_up_to_a_limit() {
        let checks = Checks::default();
        for index in 0..MAX_PROVIDERS + 10 {
            let counts = checks.of(&format!("p{index}"));
            counts.ended(CheckResult::Denied, Duration::from_millis(1));
        }
        assert_eq!(checks.of("p1").get(CheckResult::Denied), 1);
        assert_eq!(checks.of("p1").get(CheckResult::Allowed), 0);
        assert_eq!(checks.of(OTHERS).get(CheckResult::Denied), 10);
    }

    #[test]
    fn there_are_only_so_many_at_once() {
        let counts = Checks::default().of("p");
        let first = counts.enter(2);
        let second = counts.enter(2);
        assert!(first.is_some() && second.is_some());
        assert!(counts.enter(2).is_none());
        drop(first);
        assert!(counts.enter(2).is_some(), "one that was too much is none");
        assert_eq!(Arc::strong_count(&counts), 2);
    }
}
