//! What policies have done, by policy.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;

use crate::authz::{IMPLICIT_DENY, Outcome};

/// Policies that have counts of their own. Names come and go with the configuration, and a count stays.
const MAX_POLICIES: usize = 1000;

/// Where those beyond the limit are counted.
const OTHERS: &str = "others";

type Series = [AtomicU64; OUTCOMES.len()];

const OUTCOMES: [Outcome; 5] = [
    Outcome::Denied,
    Outcome::Audited,
    Outcome::TrialDenied,
    Outcome::TrialAllowed,
    Outcome::TrialAsked,
];

/// Counts without a lock: names are soon complete, and then only read.
#[derive(Default)]
pub struct PolicyCounts(ArcSwap<HashMap<Arc<str>, Arc<Series>>>);

impl PolicyCounts {
    /// Counts one.
    pub fn count(&self, policy: &str, outcome: Outcome) {
        let series = self.series(policy);
        let index = OUTCOMES.iter().position(|other| *other == outcome);
        if let Some(count) = index.and_then(|index| series.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn series(&self, policy: &str) -> Arc<Series> {
        let known = self.0.load();
        if let Some(series) = known.get(policy) {
            return Arc::clone(series);
        }
        // The implicit refusal is always told apart.
        let policy = if known.len() < MAX_POLICIES || policy == IMPLICIT_DENY {
            policy
        } else {
            OTHERS
        };
        let new = Arc::<Series>::default();
        self.0.rcu(|known| {
            let mut all = HashMap::clone(known);
            all.entry(policy.into()).or_insert_with(|| Arc::clone(&new));
            all
        });
        self.0.load().get(policy).map_or(new, Arc::clone)
    }

    /// All that is not zero, by policy.
    #[must_use]
    pub fn read(&self) -> Vec<(Arc<str>, Outcome, u64)> {
        let known = self.0.load();
        let counts = known.iter().flat_map(|(policy, series)| {
            let counts = OUTCOMES.iter().zip(series.iter());
            counts.map(|(outcome, count)| {
                (Arc::clone(policy), *outcome, count.load(Ordering::Relaxed))
            })
        });
        let mut counts: Vec<_> = counts.filter(|(_, _, count)| *count > 0).collect();
        counts.sort_unstable();
        counts
    }
}

impl fmt::Debug for PolicyCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_POLICIES, OTHERS, PolicyCounts};
    use crate::authz::{IMPLICIT_DENY, Outcome};

    #[test]
    fn policies_are_counted_up_to_a_limit() {
        let counts = PolicyCounts::default();
        for index in 0..MAX_POLICIES + 10 {
            counts.count(&format!("a/{index}"), Outcome::Denied);
        }
        counts.count(IMPLICIT_DENY, Outcome::Denied);
        counts.count("a/1", Outcome::Denied);
        counts.count("a/1", Outcome::Audited);
        let read = counts.read();
        let of = |policy: &str, outcome| {
            let found = read
                .iter()
                .find(|each| &*each.0 == policy && each.1 == outcome);
            found.map_or(0, |each| each.2)
        };
        assert_eq!(of("a/1", Outcome::Denied), 2);
        assert_eq!(of("a/1", Outcome::Audited), 1);
        assert_eq!(of(OTHERS, Outcome::Denied), 10);
        assert_eq!(of(IMPLICIT_DENY, Outcome::Denied), 1);
        assert!(read.len() <= MAX_POLICIES + 3);
    }
}
