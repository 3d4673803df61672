//! Choice of one endpoint of a service port, in constant time per connection.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::workload::Workload;

/// First ejection after a failed connect; doubled with each further failure in
/// a row up to `EJECTION_MAX`. Long enough to stop hammering a dead endpoint,
/// short enough that one that came back is used before anyone notices.
const EJECTION_BASE: Duration = Duration::from_secs(2);

/// Longest ejection.
const EJECTION_MAX: Duration = Duration::from_secs(30);

/// Milliseconds since the process began: a clock that fits an atomic.
pub fn now_ms() -> u64 {
    ms_at(Instant::now())
}

/// The same clock for who has read the other one already.
pub fn ms_at(now: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = now.saturating_duration_since(*START.get_or_init(|| now));
    // +1 so that 0 can mean "never".
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// What this agent knows of one workload from its own connections. Lives as
/// long as the workload's uid, across updates of its other fields.
#[derive(Debug, Default)]
pub struct EndpointStats {
    live: AtomicU32,
    failures: AtomicU32,
    ejected_until_ms: AtomicU64,
}

impl EndpointStats {
    /// Live connections of this agent to the workload.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Whether the workload is left out of the choice at `now_ms`.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// Failures to connect in a row.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How long it is left out of the choice from `now_ms` on, milliseconds; 0 when it is not.
    pub fn ejected_for_ms(&self, now_ms: u64) -> u64 {
        self.ejected_until_ms
            .load(Ordering::Relaxed)
            .saturating_sub(now_ms)
    }

    /// Notes a failure to connect at `now_ms`, which ejects the workload for a while.
    pub fn failed(&self, now_ms: u64) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(8);
        let ejection = EJECTION_BASE
            .saturating_mul(1 << failures)
            .min(EJECTION_MAX);
        let ejection = u64::try_from(ejection.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until_ms
            .store(now_ms.saturating_add(ejection), Ordering::Relaxed);
    }

    /// Notes a success, which ends the series of failures.
    pub fn succeeded(&self) {
        // Read first: a store on every connection would bounce the cache line
        // between workers for nothing.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejected_until_ms.store(0, Ordering::Relaxed);
        }
    }
}

/// Counts one live connection to a workload until dropped.
#[derive(Debug)]
pub struct LiveGuard(Arc<EndpointStats>);

impl LiveGuard {
    /// Counts one more connection.
    pub fn new(stats: &Arc<EndpointStats>) -> Self {
        stats.live.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(stats))
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One workload behind a service port.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Port of the application on the workload.
    pub target_port: u16,
}

/// The endpoints of one service port, best locality first. Immutable: built
/// once per change of the service, read by every connection.
#[derive(Debug, Default)]
pub struct EndpointSet {
    endpoints: Vec<Endpoint>,
    /// End index of each tier of equal locality rank, ascending.
    tiers: Vec<usize>,
}

impl EndpointSet {
    /// Groups `ranked` (rank, endpoint) into tiers, highest rank first.
    pub fn new(mut ranked: Vec<(usize, Endpoint)>) -> Self {
        ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        let mut tiers = Vec::new();
        for (index, pair) in ranked.windows(2).enumerate() {
            if let [a, b] = pair
                && a.0 != b.0
            {
                tiers.push(index + 1);
            }
        }
        if !ranked.is_empty() {
            tiers.push(ranked.len());
        }
        Self {
            endpoints: ranked.into_iter().map(|(_, e)| e).collect(),
            tiers,
        }
    }

    /// Number of endpoints of all tiers.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is no endpoint at all.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// All endpoints, best tier first.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter()
    }

    /// All endpoints with the number of their tier: 0 is the best locality.
    pub fn tiered(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        let tier = |index: usize| self.tiers.partition_point(|end| *end <= index);
        let endpoints = self.endpoints.iter().enumerate();
        endpoints.map(move |(index, endpoint)| (tier(index), endpoint))
    }

    /// Chooses an endpoint: the less loaded of two random ones of the best
    /// locality that has any endpoint neither ejected nor in `tried` (uids).
    /// When all are ejected, ejection is ignored: a wrong guess about health
    /// must not turn into an outage of the whole service.
    pub fn choose(&self, tried: &[Arc<str>], now_ms: u64) -> Option<&Endpoint> {
        let usable =
            |e: &Endpoint| !e.workload.stats.is_ejected(now_ms) && !tried.contains(&e.workload.uid);
        let mut start = 0;
        for end in &self.tiers {
            let tier = self.endpoints.get(start..*end).unwrap_or_default();
            start = *end;
            if let Some(found) = choose_in(tier, usable) {
                return Some(found);
            }
        }
        choose_in(&self.endpoints, |e| !tried.contains(&e.workload.uid))
    }
}

/// Two random picks, the less loaded wins; falls back to a scan from a random
/// start when both are unusable.
fn choose_in(tier: &[Endpoint], usable: impl Fn(&Endpoint) -> bool) -> Option<&Endpoint> {
    let len = tier.len();
    let first = random_below(len)?;
    // A second index that differs from the first when there are two or more.
    let second = if len > 1 {
        (first + 1 + random_below(len - 1)?) % len
    } else {
        first
    };
    let (a, b) = (tier.get(first)?, tier.get(second)?);
    match (usable(a), usable(b)) {
        (true, true) if b.workload.stats.live() < a.workload.stats.live() => Some(b),
        (true, _) => Some(a),
        (false, true) => Some(b),
        (false, false) => {
            let (tail, head) = tier.split_at(first);
            head.iter().chain(tail).find(|e| usable(e))
        }
    }
}

/// A random index below `len`; `None` for 0.
fn random_below(len: usize) -> Option<usize> {
    (len > 0).then(|| rand::random_range(0..len))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::{Endpoint, EndpointSet, LiveGuard, now_ms};
    use crate::state::workload::Workload;

    fn endpoint(uid: &str) -> Endpoint {
        let workload = Workload {
            uid: Arc::from(uid),
            ..Workload::default()
        };
        Endpoint {
            workload: Arc::new(workload),
            target_port: 80,
        }
    }

    fn counts(set: &EndpointSet, tried: &[Arc<str>]) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for _ in 0..1000 {
            if let Some(e) = set.choose(tried, now_ms()) {
                *counts.entry(e.workload.uid.to_string()).or_default() += 1;
            }
        }
        counts
    }

    #[test]
    fn empty_set_chooses_nothing() {
        assert!(EndpointSet::new(Vec::new()).choose(&[], now_ms()).is_none());
    }

    #[test]
    fn every_endpoint_of_the_best_tier_is_used_and_no_other() {
        let set = EndpointSet::new(vec![
            (1, endpoint("near-a")),
            (0, endpoint("far")),
            (1, endpoint("near-b")),
        ]);
        let counts = counts(&set, &[]);
        assert!(
            counts["near-a"] > 300 && counts["near-b"] > 300,
            "{counts:?}"
        );
        assert!(!counts.contains_key("far"), "{counts:?}");
    }

    #[test]
    fn tiers_are_numbered_from_the_best() {
        let set = EndpointSet::new(vec![
            (0, endpoint("far")),
            (2, endpoint("near")),
            (1, endpoint("middle")),
            (1, endpoint("middle too")),
        ]);
        let tiers: Vec<_> = set
            .tiered()
            .map(|(tier, e)| (tier, e.workload.uid.to_string()))
            .collect();
        let expected = [(0, "near"), (1, "middle"), (1, "middle too"), (2, "far")];
        assert_eq!(tiers, expected.map(|(tier, uid)| (tier, uid.to_owned())));
    }

    #[test]
    fn ejected_tier_fails_over_to_the_next_and_back() {
        let near = endpoint("near");
        let set = EndpointSet::new(vec![(1, near.clone()), (0, endpoint("far"))]);
        near.workload.stats.failed(now_ms());
        assert_eq!(counts(&set, &[]).keys().collect::<Vec<_>>(), ["far"]);
        near.workload.stats.succeeded();
        assert_eq!(counts(&set, &[]).keys().collect::<Vec<_>>(), ["near"]);
    }

    #[test]
    fn all_ejected_still_chooses_but_never_a_tried_one() {
        let (a, b) = (endpoint("a"), endpoint("b"));
        let set = EndpointSet::new(vec![(0, a.clone()), (0, b.clone())]);
        a.workload.stats.failed(now_ms());
        b.workload.stats.failed(now_ms());
        assert_eq!(
            counts(&set, &[Arc::from("a")]).keys().collect::<Vec<_>>(),
            ["b"]
        );
        assert!(
            set.choose(&[Arc::from("a"), Arc::from("b")], now_ms())
                .is_none()
        );
    }

    #[test]
    fn less_loaded_of_two_wins() {
        let (a, b) = (endpoint("busy"), endpoint("idle"));
        let _load: Vec<_> = (0..10).map(|_| LiveGuard::new(&a.workload.stats)).collect();
        let set = EndpointSet::new(vec![(0, a), (0, b)]);
        assert_eq!(counts(&set, &[]).keys().collect::<Vec<_>>(), ["idle"]);
    }

    #[test]
    fn ejection_grows_and_ends() {
        let e = endpoint("a");
        e.workload.stats.failed(1000);
        assert!(e.workload.stats.is_ejected(2999));
        assert!(!e.workload.stats.is_ejected(3000));
        e.workload.stats.failed(10_000);
        assert!(e.workload.stats.is_ejected(13_999));
        assert!(!e.workload.stats.is_ejected(14_000));
        for _ in 0..100 {
            e.workload.stats.failed(20_000);
        }
        assert!(!e.workload.stats.is_ejected(50_000));
    }

    #[test]
    fn guard_counts_until_dropped() {
        let e = endpoint("a");
        let guard = LiveGuard::new(&e.workload.stats);
        assert_eq!(e.workload.stats.live(), 1);
        drop(guard);
        assert_eq!(e.workload.stats.live(), 0);
    }
}
