//! Waiting before the next attempt.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(250);

/// The longest wait. Short enough that a cluster whose API server is back is followed again in
/// seconds; a handful of replicas cannot overrun it with that.
const LONGEST: Duration = Duration::from_secs(10);

/// Growing waits with jitter, so that replicas do not come back in step.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    failures: u32,
}

impl Retry {
    /// The next wait.
    pub fn next(&mut self) -> Duration {
        let wait = FIRST
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1).min(16);
        wait.mul_f64(rand::random_range(0.5..1.0))
    }

    /// It worked: the next wait is a short one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_again() {
        let mut retry = Retry::default();
        for expected in [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            let wait = retry.next().as_millis();
            assert!((expected / 2..=expected).contains(&wait), "{wait}");
        }
        for _ in 0..100 {
            assert!(retry.next() <= LONGEST);
        }
        retry.reset();
        assert!(retry.next() <= FIRST);
    }
}
