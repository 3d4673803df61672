//! How many retries a backend gets: a share of its requests, and a few each second in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::limits::InUse;
use super::settings::BudgetSettings;

/// A retry under way; drop it when the retry has its answer.
#[derive(Debug)]
pub struct RetryPermit(Arc<InUse>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retries.sub();
    }
}

/// The allowance that does not depend on the load: a bucket that fills by the settings' rate and holds
/// what one second brings.
///
/// Kept as the time at which the bucket was last empty, in microseconds of the cluster's clock: what it
/// holds now is the time since then times the rate, and taking one moves that time on.
#[derive(Debug, Default)]
pub(super) struct Allowance(AtomicU64);

impl Allowance {
    fn take(&self, now_micros: u64, per_second: u32) -> bool {
        if per_second == 0 {
            return false;
        }
        let price = 1_000_000 / u64::from(per_second);
        let take = |empty_at: u64| {
            // The clock starts at a full second, so that a new bucket is full.
            let since = (now_micros + 1_000_000).saturating_sub(empty_at);
            let start = (now_micros + 1_000_000) - since.min(1_000_000);
            (since >= price).then_some(start + price)
        };
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok()
    }
}

pub(super) fn try_retry(
    in_use: &Arc<InUse>,
    allowance: &Allowance,
    settings: &BudgetSettings,
    now_micros: u64,
) -> Option<RetryPermit> {
    let under_way = u64::from(in_use.requests.get());
    let share = under_way * u64::from(settings.percent) / 100;
    let share = u32::try_from(share).unwrap_or(u32::MAX);
    if !in_use.retries.try_add(share) {
        if !allowance.take(now_micros, settings.min_per_second) {
            return None;
        }
        in_use.retries.try_add(u32::MAX);
    }
    Some(RetryPermit(Arc::clone(in_use)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(percent: u32, min_per_second: u32) -> BudgetSettings {
        BudgetSettings {
            percent,
            min_per_second,
        }
    }

    #[test]
    fn a_share_of_the_requests_may_be_retries() {
        let in_use = Arc::new(InUse::default());
        let allowance = Allowance::default();
        for _ in 0..50 {
            in_use.requests.try_add(u32::MAX);
        }
        let take = || try_retry(&in_use, &allowance, &settings(20, 0), 0);
        let permits: Vec<_> = (0..10).map(|_| take().unwrap()).collect();
        assert!(take().is_none(), "the eleventh of fifty");
        drop(permits);
        assert!(take().is_some(), "given back");
    }

    #[test]
    fn a_few_each_second_are_allowed_without_load() {
        let in_use = Arc::new(InUse::default());
        let allowance = Allowance::default();
        let take = |now| try_retry(&in_use, &allowance, &settings(0, 10), now).is_some();
        assert_eq!((0..30).filter(|_| take(0)).count(), 10);
        assert_eq!((0..30).filter(|_| take(500_000)).count(), 5);
        assert_eq!((0..30).filter(|_| take(60_000_000)).count(), 10);
    }
}
