//! Latency quantiles of a stream, in little memory.

use std::collections::BTreeMap;

/// Values below this are counted exactly; above, each power of two has this many halves of buckets, so that a
/// quantile is at most one part in sixteen above the true value.
const EXACT: u64 = 32;

/// Numbers of values, by bucket. Sparse: most rows of a table have seen few different latencies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: BTreeMap<u16, u32>,
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        let count = self.buckets.entry(bucket(value)).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts what another has counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, more) in &other.buckets {
            let count = self.buckets.entry(*bucket).or_default();
            *count = count.saturating_add(*more);
        }
    }

    /// The value that `percent` of all are not above, rounded up to the end of its bucket; `None` without values.
    pub fn quantile(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.buckets.values().map(|count| u64::from(*count)).sum();
        let rank = (total * percent).div_ceil(100).max(1);
        let mut passed = 0;
        for (bucket, count) in &self.buckets {
            passed += u64::from(*count);
            if passed >= rank {
                return Some(last(*bucket));
            }
        }
        None
    }
}

/// The bucket of a value: the value itself, or its power of two and the next four bits.
fn bucket(value: u64) -> u16 {
    let bits = 64 - value.leading_zeros();
    let shift = bits.saturating_sub(5);
    // At most 59 and 31.
    let (shift, top) = (shift as u16, (value >> shift) as u16);
    match value {
        0..EXACT => top,
        _ => EXACT as u16 + (shift - 1) * 16 + (top - 16),
    }
}

/// The largest value of a bucket.
fn last(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < EXACT {
        return bucket;
    }
    let (shift, top) = ((bucket - EXACT) / 16 + 1, (bucket - EXACT) % 16 + 16);
    (top << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Histogram, bucket, last};

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        assert_eq!(last(bucket(u64::MAX)), u64::MAX);
        for number in 0..bucket(u64::MAX) {
            let end = last(number);
            assert_eq!(bucket(end), number);
            assert_eq!(bucket(end + 1), number + 1);
        }
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(50), None);
    }

    proptest! {
        #[test]
        fn a_quantile_is_close_above_the_true_one(
            mut values in proptest::collection::vec(prop_oneof![0..100_u64, 0..u64::MAX], 1..300),
            split in 0..300_usize,
            percent in 1..=100_u64,
        ) {
            let (first, second) = values.split_at(split.min(values.len()));
            let [mut one, mut other] = [first, second].map(|part| {
                let mut histogram = Histogram::default();
                part.iter().for_each(|value| histogram.add(*value));
                histogram
            });
            one.merge(&other);
            other.merge(&one);
            values.sort_unstable();
            let rank = (values.len() * percent as usize).div_ceil(100).max(1);
            let truth = values[rank - 1];
            let found = one.quantile(percent).expect("values");
            prop_assert!(found >= truth, "{found} is below {truth}");
            prop_assert!(found - truth <= truth / 16, "{found} is far above {truth}");
        }
    }
}
