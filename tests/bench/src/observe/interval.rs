//! How well a median is known.

use serde::{Deserialize, Serialize};

use crate::report::median;

/// The chance that the true median is outside, at either end.
const OUTSIDE: f64 = 0.025;

/// A median and an interval that has the true one with 95 % of certainty, whatever the values' distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// The median's interval by order statistics: how many values are below the true median is binomially distributed.
    /// `None` where the values are too few (less than 6).
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outer = ranks_outside(sorted.len())?;
        Some(Self {
            median: median(sorted.iter().copied())?,
            low: *sorted.get(outer)?,
            high: *sorted.get(sorted.len() - 1 - outer)?,
        })
    }

    /// The same with more doubt at both ends.
    pub fn widened(self, by: f64) -> Self {
        Self {
            low: self.low - by,
            high: self.high + by,
            ..self
        }
    }

    /// So many times.
    pub fn scaled(self, by: f64) -> Self {
        Self {
            median: self.median * by,
            low: self.low * by,
            high: self.high * by,
        }
    }

    /// As a share of something positive that is not known exactly either.
    pub fn over(self, whole: Self) -> Self {
        let bounds = [self.low, self.high].map(|it| (it / whole.low, it / whole.high));
        let [(a, b), (c, d)] = bounds;
        Self {
            median: self.median / whole.median,
            low: a.min(b),
            high: c.max(d),
        }
    }

    pub fn width(self) -> f64 {
        self.high - self.low
    }
}

/// How many of the least, and of the greatest, values are outside.
fn ranks_outside(count: usize) -> Option<usize> {
    // The chance of exactly k values below the median, from k = 0.
    let mut chance = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut below = 0.0;
    let mut outside = None;
    for k in 0..count {
        below += chance;
        if below > OUTSIDE {
            break;
        }
        outside = Some(k);
        chance *= (count - k) as f64 / (k + 1) as f64;
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::{Interval, ranks_outside};

    #[test]
    fn ranks_are_those_of_the_tables() {
        // Ranks (from 1) of 95 % intervals in tables of the sign test: 1 of 6, 2 of 10, 6 of 20, 10 of 30, 14 of 40.
        for (count, rank) in [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (40, 14)] {
            assert_eq!(ranks_outside(count), Some(rank - 1), "{count}");
        }
        assert_eq!(ranks_outside(5), None);
        assert_eq!(ranks_outside(0), None);
        assert!(ranks_outside(1000).is_some());
    }

    #[test]
    fn outliers_do_not_move_it() {
        let mut values: Vec<f64> = (1..=10).map(f64::from).collect();
        let before = Interval::of(&values).unwrap();
        assert_eq!((before.low, before.median, before.high), (2.0, 5.5, 9.0));
        values[9] = 1e9;
        assert_eq!(Interval::of(&values), Some(before));
        assert_eq!(Interval::of(&values[..5]), None);
        let wide = before.widened(1.0);
        assert_eq!((wide.median, wide.width()), (5.5, 9.0));
        let interval = |low, median, high| Interval { low, median, high };
        let whole = interval(8.0, 10.0, 16.0);
        assert_eq!(
            interval(1.0, 2.0, 4.0).over(whole),
            interval(0.0625, 0.2, 0.5)
        );
        assert_eq!(
            interval(-1.0, 2.0, 4.0).over(whole),
            interval(-0.125, 0.2, 0.5)
        );
        assert_eq!(whole.scaled(2.0), interval(16.0, 20.0, 32.0));
    }
}
