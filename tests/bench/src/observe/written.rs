//! What an agent or a waypoint has counted, logged and told: whether a setting did what it says.

use anyhow::{Context, Result, ensure};

use super::{
    settings::{Setting, Tap},
    stage::{Stage, Way},
};

/// Units that what is off may have: requests that wait for something to begin are none of the load.
const STRAY: f64 = 100.0;

/// Totals since the start of the process, and lines since the log began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Written {
    counted: f64,
    lines: f64,
    told: f64,
    untold: f64,
}

impl Written {
    /// As it is now.
    pub fn read(stage: &Stage, way: &Way) -> Result<Self> {
        let metrics = stage.metrics(way)?;
        let sum = |name: &str| sum(&metrics, name);
        Ok(Self {
            counted: sum("istio_requests_total")? + sum("istio_tcp_connections_opened_total")?,
            lines: way.log_lines()?,
            told: sum("karst_tap_events_total")?,
            untold: sum("karst_tap_events_dropped_total")?,
        })
    }

    /// What came since.
    pub fn since(self, before: &Self) -> Self {
        Self {
            counted: self.counted - before.counted,
            lines: self.lines - before.lines,
            told: self.told - before.told,
            untold: self.untold - before.untold,
        }
    }

    /// The share of what a setting had to write that it has written, the least of all kinds; an error if it has
    /// written what it must not. `wanted` is how often the load had to be counted.
    pub fn done(&self, setting: &Setting, wanted: f64) -> Result<f64> {
        let mut least = 1.0_f64;
        for (what, is_on, written) in [
            ("counted", setting.metrics, self.counted),
            ("logged", setting.log, self.lines),
        ] {
            if is_on {
                least = least.min(written / wanted);
            } else {
                ensure!(written < STRAY, "{what} {written} times, but it is off");
            }
        }
        match setting.tap {
            Tap::Off => ensure!(self.told < STRAY, "told {} times to nobody", self.told),
            Tap::ReadAll => {
                ensure!(self.told > 0.0, "the tap was told nothing");
                // What is dropped is counted by the process; that all is one of both, by the load.
                let all = self.told / (self.told + self.untold);
                least = least.min(all).min(self.told / wanted);
            }
        }
        Ok(least)
    }
}

/// The sum of a metric over all sets of labels; none is 0.
pub fn sum(metrics: &str, name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let value = match rest.split_at_checked(1) {
            Some((" ", value)) => value,
            Some(("{", labels)) => {
                labels
                    .rsplit_once("} ")
                    .context("a metric without value")?
                    .1
            }
            _ => continue,
        };
        let value: f64 = value.trim().parse().context("the value is no number")?;
        sum += value;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::super::settings::SETTINGS;
    use super::{Written, sum};

    #[test]
    fn sums_all_sets_of_labels_of_one_name() {
        let metrics = "# HELP x_total x\nx_total 3\nx_total{a=\"} 9\"} 4\nx_total_more 100\ny 1\n";
        assert_eq!(sum(metrics, "x_total").unwrap(), 7.0);
        assert_eq!(sum(metrics, "z").unwrap(), 0.0);
        assert!(sum("x{a=\"b\"} no", "x").is_err());
    }

    #[test]
    fn a_setting_that_does_another_thing_is_no_measurement() {
        let of = |name: &str| SETTINGS.iter().find(|it| it.name == name).unwrap();
        let off = Written::default();
        let metrics = Written {
            counted: 1000.0,
            ..off
        };
        let log = Written {
            lines: 900.0,
            ..metrics
        };
        let tap = Written {
            told: 2000.0,
            untold: 2000.0,
            lines: 1000.0,
            ..metrics
        };
        assert_eq!(off.done(of("off"), 1000.0).unwrap(), 1.0);
        assert!(metrics.done(of("off"), 1000.0).is_err());
        assert_eq!(metrics.done(of("metrics"), 1000.0).unwrap(), 1.0);
        assert_eq!(off.done(of("metrics"), 1000.0).unwrap(), 0.0);
        assert!(log.done(of("metrics"), 1000.0).is_err());
        assert_eq!(log.done(of("log"), 1000.0).unwrap(), 0.9);
        assert!(tap.done(of("log"), 1000.0).is_err());
        assert_eq!(tap.done(of("tap"), 1000.0).unwrap(), 0.5);
        assert!(log.done(of("tap"), 1000.0).is_err());
    }
}
