//! A histogram over fixed bounds, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds, in the unit that is observed, and how many of it make one of the unit that is shown.
#[derive(Debug)]
pub struct Scale {
    bounds: &'static [u64],
    per: f64,
}

/// Times: observed in microseconds, shown in milliseconds. Bounds as Istio's.
pub static MILLISECONDS: Scale = Scale {
    bounds: &[
        500,
        1_000,
        5_000,
        10_000,
        25_000,
        50_000,
        100_000,
        250_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
        600_000_000,
        1_800_000_000,
        3_600_000_000,
    ],
    per: 1e3,
};

/// Times until something is set up: observed in microseconds, shown in seconds, from a tenth of a millisecond to the
/// longest that any of our limits allows.
pub static SETUP_SECONDS: Scale = Scale {
    bounds: &[
        100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
        1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
    ],
    per: 1e6,
};

/// How long something lasts that may last for days: observed in microseconds, shown in seconds.
pub static LIFETIME_SECONDS: Scale = Scale {
    bounds: &[
        1_000,
        5_000,
        25_000,
        100_000,
        500_000,
        1_000_000,
        5_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
        1_800_000_000,
        3_600_000_000,
        21_600_000_000,
        86_400_000_000,
    ],
    per: 1e6,
};

/// Sizes of bodies, bytes.
pub static BYTES: Scale = Scale {
    bounds: &[
        0,
        100,
        1_000,
        10_000,
        100_000,
        1_000_000,
        10_000_000,
        100_000_000,
        1_000_000_000,
    ],
    per: 1.0,
};

impl Scale {
    /// The bounds in the unit that is shown.
    pub fn shown(&self) -> impl Iterator<Item = f64> + '_ {
        self.bounds.iter().map(|bound| self.show(*bound))
    }

    /// A value in the unit that is shown.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a metric is shown as a floating point number"
    )]
    pub(super) fn show(&self, value: u64) -> f64 {
        value as f64 / self.per
    }

    /// How many buckets there are: one for each bound, and one for what is above all.
    pub(super) fn buckets(&self) -> usize {
        self.bounds.len() + 1
    }

    /// Which of the buckets a value belongs in: a bound is a part of the one below it.
    pub(super) fn bucket_of(&self, value: u64) -> usize {
        self.bounds.partition_point(|bound| *bound < value)
    }
}

/// Counts of observations by bucket.
#[derive(Debug)]
pub struct Histogram {
    scale: &'static Scale,
    sum: AtomicU64,
    /// One for each bound, and one for what is above all.
    buckets: Box<[AtomicU64]>,
}

/// What a histogram says at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Of all that was observed, in the unit that is shown.
    pub sum: f64,
    /// How often.
    pub count: u64,
    /// Upper bound and observations between it and the one before.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new(scale: &'static Scale) -> Self {
        let buckets = (0..scale.buckets()).map(|_| AtomicU64::new(0));
        Self {
            scale,
            sum: AtomicU64::new(0),
            buckets: buckets.collect(),
        }
    }

    pub(super) fn scale(&self) -> &'static Scale {
        self.scale
    }

    /// Counts a value, in the unit that is observed.
    pub fn observe(&self, value: u64) {
        if let Some(bucket) = self.buckets.get(self.scale.bucket_of(value)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts a time, where microseconds are observed.
    pub fn observe_time(&self, time: Duration) {
        self.observe(micros(time));
    }

    /// What has been observed so far.
    #[must_use]
    pub fn read(&self) -> Reading {
        let bounds = self.scale.shown();
        // Without a bucket of that name Prometheus reckons no quantiles.
        let bounds = bounds.chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|b| b.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        Reading {
            sum: self.scale.show(self.sum.load(Ordering::Relaxed)),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

/// Whole microseconds keep a sum exact without a floating point number in it.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Reading {
    /// Adds what another histogram of the same scale says.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.sum += other.sum;
        self.count += other.count;
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            bucket.1 += more.1;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{Histogram, MILLISECONDS, SETUP_SECONDS};

    #[test]
    fn readings_of_workers_add_up() {
        let (one, two) = (
            Histogram::new(&SETUP_SECONDS),
            Histogram::new(&SETUP_SECONDS),
        );
        one.observe(200);
        two.observe(200);
        two.observe(4_000_000_000);
        let sum = one.read().and(&two.read());
        assert_eq!(sum.count, 3);
        assert!((sum.sum - 4000.0004).abs() < 1e-6, "{}", sum.sum);
        assert_eq!(sum.buckets[1], (0.000_25, 2));
        assert_eq!(sum.buckets.last(), Some(&(f64::INFINITY, 1)));
    }

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        let histogram = Histogram::new(&MILLISECONDS);
        for micros in [500, 501, 1_000, u64::MAX / 4] {
            histogram.observe(micros);
        }
        let reading = histogram.read();
        assert_eq!(reading.count, 4);
        assert_eq!(reading.buckets[0], (0.5, 1));
        assert_eq!(reading.buckets[1], (1.0, 2));
        assert_eq!(reading.buckets.last().map(|b| b.1), Some(1));
    }
}
