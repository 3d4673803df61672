//! What several rounds say together: the middle, and how far they lie apart.

use serde::Serialize;

/// A value's median over the rounds, with its least and its greatest, and the quartiles between them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle value.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// A quarter of the values are not above it.
    pub q1: f64,
    /// A quarter of the values are not below it.
    pub q3: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of the rounds' values; `None` without rounds.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&values, 0.5)?,
            min: *values.first()?,
            q1: quantile(&values, 0.25)?,
            q3: quantile(&values, 0.75)?,
            max: *values.last()?,
        })
    }
}

/// A quantile of sorted values; between two of them it is on the line that joins them.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let (below_is, above_is) = (sorted.get(below)?, sorted.get(above)?);
    Some(below_is + (above_is - below_is) * (place - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_middle_and_ends() {
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (spread.min, spread.q1, spread.median, spread.q3, spread.max),
            (1.0, 2.0, 3.0, 4.0, 5.0)
        );
        assert_eq!(Spread::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Spread::of([]), None);
    }
}
