//! What `observe` says.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    alone::Used,
    interval::Interval,
    settings::{COMPARISONS, CONTROL, Comparison, Setting},
};
use crate::report::median;

/// Share of what a setting has to count, log and tell that it must have: else its cost is that of something else.
pub const DONE: f64 = 0.99;

/// One setting in one round.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Connections or requests.
    pub units: f64,
    /// CPU for all of them.
    pub cpu_us: f64,
    /// Share of what had to be counted, logged and told that was.
    pub done: f64,
}

/// The cost of one setting.
#[derive(Serialize)]
pub struct Cost {
    /// Which.
    pub setting: &'static str,
    /// CPU for 10,000 units in milliseconds, the median of the rounds.
    pub cpu_ms_per_10000: f64,
    /// Units in all rounds.
    pub units: f64,
    /// Share of what had to be counted, logged and told that was, over all rounds.
    pub done: f64,
    /// The rounds.
    pub rounds: Vec<f64>,
}

impl Cost {
    /// Of the rounds; nothing of none.
    pub fn new(setting: &Setting, samples: &[Sample]) -> Option<Self> {
        let cost = |sample: &Sample| sample.cpu_us / sample.units * 10.0;
        let rounds: Vec<f64> = samples.iter().map(cost).collect();
        let units: f64 = samples.iter().map(|sample| sample.units).sum();
        let done: f64 = samples.iter().map(|s| s.done * s.units).sum();
        Some(Self {
            setting: setting.name,
            cpu_ms_per_10000: median(rounds.iter().copied())?,
            units,
            done: done / units,
            rounds,
        })
    }
}

/// What is to be said of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is within it.
    Holds,
    /// The whole interval is beyond it.
    DoesNotHold,
    /// It is within the interval.
    Undecided,
    /// The interval is wider than the goal itself, or what was measured is not the setting.
    NotMeasuredWell,
    /// There is none.
    NoGoal,
}

impl Verdict {
    /// On a share with this interval.
    fn of(share: Interval, goal: Option<f64>) -> (Self, Option<String>) {
        let verdict = match goal {
            None => Self::NoGoal,
            Some(goal) if share.width() > goal => {
                let why = "the interval is wider than the goal".to_owned();
                return (Self::NotMeasuredWell, Some(why));
            }
            Some(goal) if share.high <= goal => Self::Holds,
            Some(goal) if share.low > goal => Self::DoesNotHold,
            Some(_) => Self::Undecided,
        };
        (verdict, None)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "DOES NOT HOLD",
            Self::Undecided => "UNDECIDED: the interval is on both sides of it",
            Self::NotMeasuredWell => "NOT MEASURED WELL",
            Self::NoGoal => "no goal",
        }
    }
}

/// What a setting adds.
#[derive(Serialize)]
pub struct Added {
    /// Which.
    pub setting: &'static str,
    /// To which.
    pub to: &'static str,
    /// The share that it adds: of the rounds' ratios less one, the median and its interval. Between two processes it
    /// is wider by what two processes of the same settings differ by. `None` with too few rounds.
    pub share: Option<Interval>,
    /// What it may add.
    pub goal: Option<f64>,
    /// Whether it does.
    pub verdict: Verdict,
    /// Why it was not measured well.
    pub why: Option<String>,
}

impl Added {
    fn new(comparison: &Comparison, less: &Cost, more: &Cost, doubt: f64) -> Self {
        let ratios = more.rounds.iter().zip(&less.rounds).map(|(a, b)| a / b);
        let shares: Vec<f64> = ratios.map(|ratio| ratio - 1.0).collect();
        let share = Interval::of(&shares).map(|share| share.widened(doubt));
        let goal = comparison.goal;
        let incomplete = [more, less].into_iter().find(|cost| cost.done < DONE);
        let (verdict, why) = match (share, incomplete) {
            (None, _) => {
                let why = "there were too few rounds".to_owned();
                (Verdict::NotMeasuredWell, Some(why))
            }
            (_, Some(cost)) => {
                let (name, done) = (cost.setting, cost.done * 100.0);
                let why = format!("with {name} {done:.1} % was counted, logged and told");
                (Verdict::NotMeasuredWell, Some(why))
            }
            (Some(share), None) => Verdict::of(share, goal),
        };
        Self {
            setting: comparison.more,
            to: comparison.less,
            share,
            goal,
            verdict,
            why,
        }
    }
}

/// What the recorders that a setting turns on use by themselves.
#[derive(Serialize)]
pub struct Recorders {
    /// Which.
    pub setting: &'static str,
    /// CPU for 10,000 units in milliseconds.
    pub cpu_ms_per_10000: Interval,
    /// To which it is added.
    pub to: &'static str,
    /// The share of that.
    pub share: Interval,
    /// What it may add.
    pub goal: Option<f64>,
    /// Whether it does.
    pub verdict: Verdict,
    /// Why it was not measured well.
    pub why: Option<String>,
}

impl Recorders {
    /// `used` is for one record, of which a unit has `ends`.
    fn new(comparison: &Comparison, less: &Cost, used: Interval, ends: f64) -> Option<Self> {
        let cpu = used.scaled(ends * 10.0);
        let share = cpu.over(Interval::of(&less.rounds)?);
        let (verdict, why) = Verdict::of(share, comparison.goal);
        Some(Self {
            setting: comparison.more,
            cpu_ms_per_10000: cpu,
            to: comparison.less,
            share,
            goal: comparison.goal,
            verdict,
            why,
        })
    }
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
    /// What settings add; the first one is the control.
    pub added: Vec<Added>,
    /// What of that the recorders use by themselves; none with too few rounds.
    pub recorders: Vec<Recorders>,
}

impl Row {
    /// With what is added reckoned from the costs.
    pub fn new(
        name: &'static str,
        unit: &'static str,
        costs: Vec<Cost>,
        (used, ends): (&Used, f64),
    ) -> Self {
        let of = |setting: &str| costs.iter().find(|cost| cost.setting == setting);
        let added = |comparison: &Comparison, doubt| {
            let (less, more) = (of(comparison.less)?, of(comparison.more)?);
            Some(Added::new(comparison, less, more, doubt))
        };
        let control = added(&CONTROL, 0.0);
        let between = control.as_ref().and_then(|control| control.share);
        let between = between.map_or(0.0, |share| share.median.abs());
        let processes = |name| {
            let mut settings = super::SETTINGS.iter();
            let setting = settings.find(|setting| setting.name == name);
            setting.map(|setting| setting.process)
        };
        let asked = COMPARISONS.iter().filter_map(|comparison| {
            let one_process = processes(comparison.less) == processes(comparison.more);
            added(comparison, if one_process { 0.0 } else { between })
        });
        let added = control.into_iter().chain(asked).collect();
        let recorders = COMPARISONS.iter().filter_map(|comparison| {
            let used = match comparison.more {
                "metrics" => used.metrics,
                "log" => used.log,
                _ => return None,
            };
            Recorders::new(comparison, of(comparison.less)?, used, ends)
        });
        let recorders = recorders.collect();
        Self {
            name,
            unit,
            costs,
            added,
            recorders,
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
            "CPU for 10,000 connections of an agent (both ends) and 10,000 requests of a waypoint; medians of {} rounds of {} s,\n\
             of what is added with the interval that has the true one with 95 % of certainty\n\n",
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
                let share = added
                    .share
                    .map_or_else(|| "an unknown share".to_owned(), percent);
                let _ = write!(
                    text,
                    "{:9} {} adds {share} to {}; ",
                    row.name, added.setting, added.to
                );
                text.push_str(&verdict(added.goal, added.verdict, added.why.as_deref()));
            }
            for one in &row.recorders {
                let _ = write!(
                    text,
                    "{:9} {}'s recorders use {:.1} ms by themselves, {} of {}; ",
                    row.name,
                    one.setting,
                    one.cpu_ms_per_10000.median,
                    percent(one.share),
                    one.to
                );
                text.push_str(&verdict(one.goal, one.verdict, one.why.as_deref()));
            }
            text.push('\n');
        }
        text.push_str("`again` is another process with the settings of `off`: what it adds is what processes differ by\n");
        text
    }
}

fn percent(share: Interval) -> String {
    let [median, low, high] = [share.median, share.low, share.high].map(|it| it * 100.0);
    format!("{median:+.1} % [{low:+.1}..{high:+.1}]")
}

/// The end of a line.
fn verdict(goal: Option<f64>, verdict: Verdict, why: Option<&str>) -> String {
    let goal = goal.map(|goal| format!("goal: at most {:.0} %: ", goal * 100.0));
    let why = why.map(|why| format!(": {why}"));
    let (goal, why) = (goal.unwrap_or_default(), why.unwrap_or_default());
    format!("{goal}{}{why}\n", verdict.text())
}

#[cfg(test)]
mod tests {
    use super::super::alone::Used;
    use super::super::interval::Interval;
    use super::super::settings::SETTINGS;
    use super::{Cost, Report, Row, Sample, Verdict};

    /// A row of costs in us, each round of which is as much dearer than the one before as a loud machine makes it.
    fn row(noise: f64, us: [f64; 5], done: [f64; 5]) -> Row {
        let costs = SETTINGS.iter().zip(us).zip(done);
        let costs = costs.enumerate().map(|(number, ((setting, us), done))| {
            let samples: Vec<Sample> = (0..20_u32)
                .map(|round| {
                    // The machine's noise is that of a round; a setting's own is within `noise`.
                    let common = 1.0 + f64::from(round % 7);
                    let own = f64::from((round * (number as u32 + 3)) % 11) / 5.0 - 1.0;
                    Sample {
                        units: 1000.0,
                        cpu_us: us * 1000.0 * common * (1.0 + noise * own),
                        done,
                    }
                })
                .collect();
            Cost::new(setting, &samples).unwrap()
        });
        Row::new("agent", "connections", costs.collect(), (&USED, 2.0))
    }

    /// At two ends 2 us and 6 us.
    const USED: Used = Used {
        metrics: Interval {
            median: 1.0,
            low: 0.9,
            high: 1.1,
        },
        log: Interval {
            median: 3.0,
            low: 2.9,
            high: 3.1,
        },
    };

    const ALL: [f64; 5] = [1.0; 5];

    fn verdicts(row: &Row) -> Vec<Verdict> {
        row.added.iter().map(|added| added.verdict).collect()
    }

    #[test]
    fn what_is_added_is_the_ratio_within_rounds() {
        let row = row(0.0, [100.0, 100.0, 102.0, 120.0, 150.0], ALL);
        use Verdict::{DoesNotHold, Holds, NoGoal};
        assert_eq!(verdicts(&row), [NoGoal, Holds, DoesNotHold, NoGoal]);
        let share = |number: usize| row.added[number].share.unwrap();
        assert!((share(1).median - 0.02).abs() < 1e-9 && share(1).width() < 1e-9);
        assert!((share(2).median - 0.176).abs() < 0.001);
        assert!((share(3).median - 0.25).abs() < 1e-9);
        let report = Report {
            rows: vec![row],
            rounds: 20,
            seconds: 1,
        };
        let table = report.table();
        for line in [
            "agent     metrics adds +2.0 % [+2.0..+2.0] to off; goal: at most 3 %: holds\n",
            "agent     log adds +17.6 % [+17.6..+17.6] to metrics; goal: at most 10 %: DOES NOT HOLD\n",
            "agent     tap adds +25.0 % [+25.0..+25.0] to log; no goal\n",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn recorders_are_a_share_of_what_they_are_added_to() {
        let equal = |us: f64| {
            let sample = Sample {
                units: 1000.0,
                cpu_us: us * 1000.0,
                done: 1.0,
            };
            let costs = SETTINGS.iter();
            let costs = costs.map(|it| Cost::new(it, &[sample; 20]).unwrap());
            Row::new("agent", "connections", costs.collect(), (&USED, 2.0))
        };
        let row_ = equal(100.0);
        let [metrics, log] = &row_.recorders[..] else {
            panic!("{} recorders", row_.recorders.len())
        };
        assert!((metrics.share.median - 0.02).abs() < 1e-9, "2 us of 100");
        assert!((log.share.high - 0.062).abs() < 1e-9, "6.2 us of 100");
        assert!((metrics.cpu_ms_per_10000.median - 20.0).abs() < 1e-9);
        assert_eq!(
            (metrics.verdict, log.verdict),
            (Verdict::Holds, Verdict::Holds)
        );
        let table = |row| {
            Report {
                rows: vec![row],
                rounds: 20,
                seconds: 1,
            }
            .table()
        };
        let line = "agent     metrics's recorders use 20.0 ms by themselves, +2.0 % [+1.8..+2.2] of off; goal: at most 3 %: holds\n";
        let table_ = table(row_);
        assert!(table_.contains(line), "{table_}");
        let verdicts = equal(40.0).recorders.into_iter().map(|it| it.verdict);
        assert_eq!(verdicts.collect::<Vec<_>>(), [Verdict::DoesNotHold; 2]);
        // What it is a share of is not known well either.
        let vague = row(0.3, [100.0; 5], ALL).recorders;
        assert!(vague[0].share.width() > metrics_width(&equal(100.0)));
    }

    fn metrics_width(row: &Row) -> f64 {
        row.recorders[0].share.width()
    }

    #[test]
    fn noise_is_not_taken_for_a_result() {
        let row = row(0.2, [100.0, 100.0, 100.0, 100.0, 100.0], ALL);
        assert_eq!(row.added[1].verdict, Verdict::NotMeasuredWell);
        assert!(row.added[1].why.as_ref().unwrap().contains("wider"));
    }

    #[test]
    fn what_processes_differ_by_is_no_settings() {
        // Two equal processes differ by 1 %: 2.5 % may be 3.5 %.
        let row_ = row(0.0, [100.0, 101.0, 102.5, 104.0, 104.0], ALL);
        assert_eq!(row_.added[1].verdict, Verdict::Undecided);
        // The same process with and without a tap does not differ by that.
        assert!(row_.added[3].share.unwrap().width() < 1e-9);
        let far = row(0.0, [100.0, 110.0, 102.5, 104.0, 104.0], ALL);
        assert_eq!(far.added[1].verdict, Verdict::NotMeasuredWell);
    }

    #[test]
    fn what_is_dropped_costs_nothing_and_is_no_result() {
        let row = row(0.0, [100.0; 5], [1.0, 1.0, 1.0, 1.0, 0.5]);
        let tap = &row.added[3];
        assert_eq!(tap.verdict, Verdict::NotMeasuredWell);
        assert_eq!(
            tap.why.as_deref(),
            Some("with tap 50.0 % was counted, logged and told")
        );
        assert!(Cost::new(&SETTINGS[0], &[]).is_none());
    }

    #[test]
    fn two_rounds_are_not_enough() {
        let sample = Sample {
            units: 1.0,
            cpu_us: 1.0,
            done: 1.0,
        };
        let costs = SETTINGS
            .iter()
            .map(|it| Cost::new(it, &[sample; 2]).unwrap());
        let row = Row::new("agent", "connections", costs.collect(), (&USED, 2.0));
        assert!(
            row.added
                .iter()
                .all(|it| it.verdict == Verdict::NotMeasuredWell)
        );
        assert!(row.recorders.is_empty());
    }
}
