//! A histogram over fixed bounds, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bounds, in the unit that is observed, and what a unit is in the unit that is shown.
#[derive(Debug)]
pub(super) struct Scale {
    bounds: &'static [u64],
    unit: f64,
}

/// Times: observed in microseconds, shown in milliseconds. Bounds as Istio's.
pub(super) static MILLISECONDS: Scale = Scale {
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
    unit: 0.001,
};

/// Sizes of bodies, bytes.
pub(super) static BYTES: Scale = Scale {
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
    unit: 1.0,
};

/// Counts of observations by bucket.
#[derive(Debug)]
pub(super) struct Histogram {
    scale: &'static Scale,
    sum: AtomicU64,
    /// One for each bound, and one for what is above all.
    buckets: Box<[AtomicU64]>,
}

/// What a histogram says at one moment.
pub(super) struct Reading {
    pub(super) sum: f64,
    pub(super) count: u64,
    /// Upper bound and observations between it and the one before.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    pub(super) fn new(scale: &'static Scale) -> Self {
        let buckets = (0..=scale.bounds.len()).map(|_| AtomicU64::new(0));
        Self {
            scale,
            sum: AtomicU64::new(0),
            buckets: buckets.collect(),
        }
    }

    pub(super) fn observe(&self, value: u64) {
        let index = self.scale.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a metric is shown as a floating point number"
    )]
    pub(super) fn read(&self) -> Reading {
        let bounds = self
            .scale
            .bounds
            .iter()
            .map(|bound| *bound as f64 * self.scale.unit);
        // The library turns the largest number into `+Inf`.
        let bounds = bounds.chain([f64::MAX]);
        let counts = self.buckets.iter().map(|b| b.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        Reading {
            sum: self.sum.load(Ordering::Relaxed) as f64 * self.scale.unit,
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Histogram, MILLISECONDS};

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
