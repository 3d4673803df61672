//! What a result is held to. A goal that does not hold does not make a run fail: it is a measurement, and says so.

use serde::Serialize;

use crate::spread::Spread;

/// Which way a value must lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Not above this.
    AtMost(f64),
    /// Not below this.
    AtLeast(f64),
}

impl Limit {
    /// The limit itself.
    pub fn value(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    /// What is no number is not within any limit.
    fn allows(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// A goal and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// What is held to it.
    pub name: String,
    /// Whose value it is.
    pub row: String,
    #[serde(flatten)]
    pub limit: Limit,
    /// The median of the rounds; `null` if it could not be measured.
    pub measured: f64,
    /// The least and the greatest of the rounds, where each has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<[f64; 2]>,
    /// Of the median.
    pub holds: bool,
    /// Where the limit is from.
    pub because: String,
}

impl Goal {
    /// A goal for one value.
    pub fn new(name: &str, row: &str, limit: Limit, measured: f64, because: &str) -> Self {
        Self {
            name: name.to_owned(),
            row: row.to_owned(),
            limit,
            measured,
            rounds: None,
            holds: limit.allows(measured),
            because: because.to_owned(),
        }
    }

    /// A goal for the median of rounds.
    pub fn of(name: &str, row: &str, limit: Limit, spread: &Spread, because: &str) -> Self {
        Self {
            rounds: Some([spread.min, spread.max]),
            ..Self::new(name, row, limit, spread.median, because)
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let limit = match self.limit {
            Limit::AtMost(limit) => format!("at most {}", digits(limit)),
            Limit::AtLeast(limit) => format!("at least {}", digits(limit)),
        };
        let rounds = self.rounds.map_or_else(String::new, |[least, most]| {
            format!(" [{}..{}]", digits(least), digits(most))
        });
        format!(
            "- {}: {} {limit}: {} with {}{rounds} ({})",
            self.row,
            self.name,
            if self.holds { "holds" } else { "does NOT hold" },
            digits(self.measured),
            self.because,
        )
    }
}

/// All goals for people, and how many hold.
pub fn lines(goals: &[Goal]) -> String {
    let mut text: Vec<String> = goals.iter().map(Goal::line).collect();
    let broken = goals.iter().filter(|goal| !goal.holds).count();
    text.push(String::new());
    text.push(if broken == 0 {
        format!("All {} goals hold.", goals.len())
    } else {
        format!("{broken} of {} goals do NOT hold.", goals.len())
    });
    text.join("\n")
}

/// Enough digits to compare by, no more.
pub fn digits(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_holds_by_its_median() {
        let spread = Spread::of([0.9, 1.0, 1.2]).unwrap();
        let good = Goal::of("ratio", "x", Limit::AtLeast(1.0), &spread, "why");
        assert!(good.holds && good.line().contains("holds with 1.000 [0.900..1.200]"));
        let bad = Goal::of("ratio", "x", Limit::AtMost(0.99), &spread, "why");
        assert!(!bad.holds && bad.line().contains("does NOT hold"));
        let text = lines(&[good.clone(), bad]);
        assert!(text.ends_with("1 of 2 goals do NOT hold."), "{text}");
        assert!(lines(&[good]).ends_with("All 1 goals hold."));
    }

    #[test]
    fn what_is_no_number_does_not_hold() {
        for limit in [Limit::AtMost(1.0), Limit::AtLeast(1.0)] {
            assert!(!Goal::new("x", "y", limit, f64::NAN, "").holds);
        }
    }

    #[test]
    fn programs_can_read_a_goal() {
        let goal = Goal::new("ratio", "x", Limit::AtLeast(0.5), 0.25, "why");
        let json = serde_json::to_value(&goal).unwrap();
        assert_eq!(json["at_least"], 0.5);
        assert_eq!(json["measured"], 0.25);
        assert_eq!(json["holds"], false);
    }
}
