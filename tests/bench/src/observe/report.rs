//! What `observe` says.

use std::fmt::Write as _;

use serde::Serialize;

use crate::report::median;

/// What metrics may add to the cost without them, and what the access log may add to that.
const GOALS: &[(&str, &str, f64)] = &[("metrics", "off", 0.03), ("log", "metrics", 0.10)];

/// The cost of one setting.
#[derive(Serialize)]
pub struct Cost {
    /// Which.
    pub setting: &'static str,
    /// CPU for 10,000 units in milliseconds, the median of the rounds.
    pub cpu_ms_per_10000: f64,
    /// The rounds.
    pub rounds: Vec<f64>,
}

impl Cost {
    /// Of microseconds for each unit, by round; nothing of nothing.
    pub fn new(setting: &'static str, us: Vec<f64>) -> Option<Self> {
        let rounds: Vec<f64> = us.iter().map(|us| us * 10.0).collect();
        Some(Self {
            setting,
            cpu_ms_per_10000: median(rounds.iter().copied())?,
            rounds,
        })
    }
}

/// What a setting adds, held to its goal.
#[derive(Serialize)]
pub struct Added {
    /// Which.
    pub setting: &'static str,
    /// To which.
    pub to: &'static str,
    /// The share that it adds: the median over the rounds of the ratio within the round, less one.
    pub share: f64,
    /// What it may add.
    pub goal: f64,
    /// Whether it holds.
    pub holds: bool,
}

/// An agent or a waypoint.
#[derive(Serialize)]
pub struct Row {
    /// Which.
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// By setting.
    pub costs: Vec<Cost>,
    /// What settings add.
    pub added: Vec<Added>,
}

impl Row {
    /// With what is added reckoned from the costs.
    pub fn new(name: &'static str, unit: &'static str, costs: Vec<Cost>) -> Self {
        let of = |setting: &str| costs.iter().find(|cost| cost.setting == setting);
        let added = GOALS.iter().filter_map(|(setting, to, goal)| {
            let (more, less) = (of(setting)?, of(to)?);
            let ratios = more.rounds.iter().zip(&less.rounds).map(|(a, b)| a / b);
            let share = median(ratios)? - 1.0;
            Some(Added {
                setting,
                to,
                share,
                goal: *goal,
                holds: share <= *goal,
            })
        });
        let added = added.collect();
        Self {
            name,
            unit,
            costs,
            added,
        }
    }
}

/// The whole result.
#[derive(Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    pub rounds: u32,
    pub seconds: u32,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "CPU for 10,000 connections of an agent (both ends) and 10,000 requests of a waypoint; medians of {} rounds of {} s\n\n",
            self.rounds, self.seconds
        );
        // A String takes all that is written to it.
        for row in &self.rows {
            for cost in &row.costs {
                let (least, most) = cost
                    .rounds
                    .iter()
                    .fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
                let _ = writeln!(
                    text,
                    "{:9} {:8} {:9.1} ms per 10,000 {} [{least:.1}..{most:.1}]",
                    row.name, cost.setting, cost.cpu_ms_per_10000, row.unit
                );
            }
            for added in &row.added {
                let verdict = if added.holds {
                    "holds"
                } else {
                    "DOES NOT HOLD"
                };
                let _ = writeln!(
                    text,
                    "{:9} {} adds {:+.1} % to {}; goal: at most {:.0} %: {verdict}",
                    row.name,
                    added.setting,
                    added.share * 100.0,
                    added.to,
                    added.goal * 100.0
                );
            }
            text.push('\n');
        }
        text.push_str("tap is not measured: it is not part of these binaries\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Cost, Report, Row};

    #[test]
    fn what_is_added_is_the_ratio_within_rounds() {
        let cost = |setting, rounds: &[f64]| Cost::new(setting, rounds.to_vec()).expect("rounds");
        let row = Row::new(
            "agent",
            "connections",
            vec![
                cost("off", &[100.0, 200.0, 100.0]),
                cost("metrics", &[102.0, 204.0, 102.0]),
                cost("log", &[120.0, 240.0, 120.0]),
            ],
        );
        assert!((row.added[0].share - 0.02).abs() < 1e-9 && row.added[0].holds);
        assert!((row.added[1].share - 0.176).abs() < 0.001 && !row.added[1].holds);
        let report = Report {
            rows: vec![row],
            rounds: 3,
            seconds: 1,
        };
        let table = report.table();
        assert!(
            table.contains("metrics adds +2.0 % to off; goal: at most 3 %: holds"),
            "{table}"
        );
        assert!(table.contains("DOES NOT HOLD"), "{table}");
        assert!(Cost::new("off", Vec::new()).is_none());
    }
}
