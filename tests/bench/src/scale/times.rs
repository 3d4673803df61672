//! When what happened to each pod, on one clock for all.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// Microseconds since the clock began; 0: it has not happened.
type Micros = AtomicU64;

/// The times of all pods.
pub struct Times {
    begun: Instant,
    pods: Vec<PodTimes>,
}

#[derive(Default)]
struct PodTimes {
    ready: Micros,
    drained: Micros,
    deleted: Micros,
}

impl Times {
    /// A clock, and room for so many pods.
    pub fn new(pods: u32) -> Self {
        Self {
            begun: Instant::now(),
            pods: (0..pods).map(|_| PodTimes::default()).collect(),
        }
    }

    /// Now. Never 0.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX) + 1
    }

    /// A pod became ready.
    pub fn ready(&self, pod: u32, at: u64) {
        self.set(pod, at, |times| &times.ready);
    }

    /// A pod began to end.
    pub fn drained(&self, pod: u32, at: u64) {
        self.set(pod, at, |times| &times.drained);
    }

    /// A pod is gone.
    pub fn deleted(&self, pod: u32, at: u64) {
        self.set(pod, at, |times| &times.deleted);
    }

    /// When the change was that a resource of a pod tells of: its end if it has begun, else that it is ready.
    pub fn changed(&self, pod: u32) -> Option<u64> {
        let times = self.pods.get(pod as usize)?;
        let drained = times.drained.load(Ordering::Relaxed);
        let at = match drained {
            0 => times.ready.load(Ordering::Relaxed),
            drained => drained,
        };
        (at != 0).then_some(at)
    }

    /// When a pod was deleted.
    pub fn gone(&self, pod: u32) -> Option<u64> {
        let at = self.pods.get(pod as usize)?.deleted.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }

    /// Number of changes from a time on, until another.
    pub fn changes(&self, from: u64, until: u64) -> u64 {
        let is_in = |at: &Micros| {
            let at = at.load(Ordering::Relaxed);
            u64::from(at >= from && at < until)
        };
        let of = |pod: &PodTimes| is_in(&pod.ready) + is_in(&pod.drained) + is_in(&pod.deleted);
        self.pods.iter().map(of).sum()
    }

    fn set(&self, pod: u32, at: u64, which: fn(&PodTimes) -> &Micros) {
        if let Some(times) = self.pods.get(pod as usize) {
            which(times).store(at, Ordering::Relaxed);
        }
    }
}

/// Latencies in buckets that are 3 % wide: any number of samples takes the same memory.
#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets of each power of two.
const PER_OCTAVE: f64 = 24.0;

/// Up to an hour in microseconds.
const BUCKETS: usize = 32 * 24;

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// One more sample, in microseconds.
    pub fn add(&mut self, micros: u64) {
        let at = (micros.max(1) as f64).log2() * PER_OCTAVE;
        let at = (at as usize).min(BUCKETS - 1);
        self.buckets[at] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// Takes those of another.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest, in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.max as f64 / 1e3
    }

    /// So much of the samples was not above this, in milliseconds; the upper end of the bucket.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let wanted = (self.count as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let upper = ((at + 1) as f64 / PER_OCTAVE).exp2();
                return upper.min(self.max as f64) / 1e3;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_width_of_a_bucket() {
        let mut a = Histogram::default();
        let mut b = Histogram::default();
        for micros in 1..=500 {
            a.add(micros * 100);
            b.add((micros + 500) * 100);
        }
        a.merge(&b);
        assert_eq!(a.count(), 1000);
        for (quantile, exact) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = a.quantile_ms(quantile);
            assert!((found / exact - 1.0).abs() < 0.04, "{quantile}: {found}");
        }
        assert!((a.max_ms() - 100.0).abs() < 1e-9);
        assert!(Histogram::default().quantile_ms(0.5) < 1e-9);
    }

    #[test]
    fn a_resource_tells_of_the_latest_change() {
        let times = Times::new(2);
        assert_eq!(times.changed(0), None);
        times.ready(0, 5);
        assert_eq!((times.changed(0), times.gone(0)), (Some(5), None));
        times.drained(0, 7);
        times.deleted(0, 9);
        assert_eq!((times.changed(0), times.gone(0)), (Some(7), Some(9)));
        assert_eq!(times.changed(5), None);
        assert_eq!((times.changes(5, 9), times.changes(1, 10)), (2, 3));
    }
}
