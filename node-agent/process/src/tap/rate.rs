//! How many events a second a subscriber gets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counts events of the current second. Workers share it without a lock: the second since the beginning is in the
/// upper half of one word, the count in the lower.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    since: Instant,
    window: AtomicU64,
}

impl Rate {
    pub(super) fn new(per_second: u32, since: Instant) -> Self {
        Self {
            per_second,
            since,
            window: AtomicU64::new(0),
        }
    }

    /// Whether one more is within the rate.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.since).as_secs();
        let next = |window: u64| {
            let count = if window >> 32 == second & u64::from(u32::MAX) {
                window & u64::from(u32::MAX)
            } else {
                0
            };
            (count < u64::from(self.per_second)).then_some(second << 32 | (count + 1))
        };
        self.window
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::Rate;

    proptest! {
        #[test]
        fn no_second_has_more_than_the_rate(
            per_second in 1..50_u32,
            steps in proptest::collection::vec(0..400_u64, 1..400),
        ) {
            let start = Instant::now();
            let rate = Rate::new(per_second, start);
            let mut passed = std::collections::BTreeMap::<u64, (u32, u32)>::new();
            let mut millis = 0;
            for step in steps {
                millis += step;
                let entry = passed.entry(millis / 1000).or_default();
                entry.0 += 1;
                entry.1 += u32::from(rate.admits(start + Duration::from_millis(millis)));
            }
            for (second, (asked, passed)) in passed {
                prop_assert_eq!(passed, asked.min(per_second), "second {}", second);
            }
        }
    }
}
