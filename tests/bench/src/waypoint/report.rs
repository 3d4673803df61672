//! The result: rows of ratios to Envoy and the floors that they are held to; as JSON and as a table.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use super::{measure::Measure, stage::Way};
use crate::{load::Latency, report::median};

/// What is promised beside Envoy: CPU for a request, p99, memory without and with idle connections.
const CPU_FLOOR: f64 = 0.5;
const P99_FLOOR: f64 = 1.0;
const RSS_IDLE_FLOOR: f64 = 1.0 / 3.0;
const RSS_CONNECTIONS_FLOOR: f64 = 0.5;

/// What CPU is aimed at, with mTLS on both sides.
const CPU_TARGET: f64 = 0.35;

/// A value for each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Three<T> {
    /// Without the mesh.
    pub direct: T,
    /// Through our waypoint.
    pub karst: T,
    /// Through Envoy.
    pub envoy: T,
}

impl<T> Three<T> {
    /// The value of a way.
    pub fn at(&mut self, way: Way) -> &mut T {
        match way {
            Way::Direct => &mut self.direct,
            Way::Karst => &mut self.karst,
            Way::Envoy => &mut self.envoy,
        }
    }
}

/// A value for each proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Two {
    /// Ours.
    pub karst: f64,
    /// Envoy.
    pub envoy: f64,
}

impl Two {
    /// The value of a proxy's way.
    pub fn at(&mut self, way: Way) -> Result<&mut f64> {
        match way {
            Way::Karst => Ok(&mut self.karst),
            Way::Envoy => Ok(&mut self.envoy),
            Way::Direct => bail!("there is no proxy on the direct way"),
        }
    }

    /// Ours to Envoy's.
    fn ratio(self) -> f64 {
        self.karst / self.envoy
    }
}

/// One round of one row.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests a second, as fast as it goes.
    pub per_second: Three<f64>,
    /// Latencies at the fixed rate.
    pub latency: Three<Latency>,
    /// CPU of the proxy for a request, microseconds.
    pub cpu_us: Two,
    /// Its memory after the load.
    pub rss_bytes: Two,
}

/// Medians over the rounds.
#[derive(Debug)]
pub struct Row {
    name: String,
    /// Requests a second of the latencies.
    rate: u32,
    per_second: Three<f64>,
    p50_us: Three<f64>,
    p99_us: Three<f64>,
    cpu_us: Two,
    rss_bytes: Two,
    /// The rounds' ratios, to see the noise by.
    cpu_ratios: Vec<f64>,
    p99_ratios: Vec<f64>,
}

/// A row of memory alone.
#[derive(Debug)]
pub struct Idle {
    name: &'static str,
    rss_bytes: Two,
}

impl Idle {
    /// Of both proxies.
    pub fn new(name: &'static str, rss_bytes: Two) -> Self {
        Self { name, rss_bytes }
    }
}

/// A promise, and how it is kept.
#[derive(Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Which ratio.
    name: &'static str,
    /// The most it may be.
    at_most: f64,
    /// The row that is worst in it.
    worst_row: String,
    /// Its ratio.
    worst: f64,
    /// Rows that hold, of all rows.
    rows_that_hold: usize,
    rows: usize,
    /// Whether all hold.
    holds: bool,
}

/// Everything.
#[derive(Debug)]
pub struct Report {
    /// Rows.
    pub rows: Vec<Row>,
    /// Rows of memory alone.
    pub idle: Vec<Idle>,
    /// What they are held to.
    pub floors: Vec<Floor>,
    /// The version beside which it was measured.
    pub envoy_version: String,
    /// Threads of either proxy.
    pub workers: u32,
    /// Whether the proxies logged requests.
    pub access_log: bool,
    /// Rounds.
    pub rounds: u32,
    /// Seconds of each measurement.
    pub seconds: u32,
}

impl Row {
    /// Medians of the rounds; `None` without rounds.
    pub fn new(measure: &Measure, samples: &[Sample]) -> Option<Self> {
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
        Some(Self {
            name: measure.name(),
            rate: measure.rate(),
            per_second: Three {
                direct: of(|s| s.per_second.direct)?,
                karst: of(|s| s.per_second.karst)?,
                envoy: of(|s| s.per_second.envoy)?,
            },
            p50_us: Three {
                direct: of(|s| s.latency.direct.p50_us)?,
                karst: of(|s| s.latency.karst.p50_us)?,
                envoy: of(|s| s.latency.envoy.p50_us)?,
            },
            p99_us: Three {
                direct: of(|s| s.latency.direct.p99_us)?,
                karst: of(|s| s.latency.karst.p99_us)?,
                envoy: of(|s| s.latency.envoy.p99_us)?,
            },
            cpu_us: Two {
                karst: of(|s| s.cpu_us.karst)?,
                envoy: of(|s| s.cpu_us.envoy)?,
            },
            rss_bytes: Two {
                karst: of(|s| s.rss_bytes.karst)?,
                envoy: of(|s| s.rss_bytes.envoy)?,
            },
            cpu_ratios: samples.iter().map(|s| s.cpu_us.ratio()).collect(),
            p99_ratios: samples
                .iter()
                .map(|s| s.latency.karst.p99_us / s.latency.envoy.p99_us)
                .collect(),
        })
    }

    fn p99_ratio(&self) -> f64 {
        self.p99_us.karst / self.p99_us.envoy
    }

    fn json(&self) -> Value {
        // Microseconds for a request are tenths of seconds for 100,000.
        let cpu = |us: f64| us / 10.0;
        json!({
            "name": self.name,
            "unit": "requests/s",
            "direct": self.per_second.direct,
            "karst": self.per_second.karst,
            "envoy": self.per_second.envoy,
            "fixed_rate_per_second": self.rate,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "cpu_s_per_100k_requests": Two {
                karst: cpu(self.cpu_us.karst),
                envoy: cpu(self.cpu_us.envoy),
            },
            "rss_bytes": self.rss_bytes,
            "cpu_ratio_to_envoy": self.cpu_us.ratio(),
            "p99_ratio_to_envoy": self.p99_ratio(),
            "rss_ratio_to_envoy": self.rss_bytes.ratio(),
            "cpu_ratios": self.cpu_ratios,
            "p99_ratios": self.p99_ratios,
        })
    }
}

/// Holds the rows to what is promised.
pub fn floors(rows: &[Row], idle: &[Idle]) -> Vec<Floor> {
    let of_idle = |name: &str| -> Vec<(String, f64)> {
        idle.iter()
            .filter(|row| row.name == name)
            .map(|row| (row.name.to_owned(), row.rss_bytes.ratio()))
            .collect()
    };
    let cpu = rows
        .iter()
        .map(|row| (row.name.clone(), row.cpu_us.ratio()));
    let p99 = rows.iter().map(|row| (row.name.clone(), row.p99_ratio()));
    [
        floor("CPU for a request", CPU_FLOOR, &cpu.collect::<Vec<_>>()),
        floor("p99", P99_FLOOR, &p99.collect::<Vec<_>>()),
        floor("idle RSS", RSS_IDLE_FLOOR, &of_idle("idle")),
        floor(
            "RSS with 1,000 idle connections",
            RSS_CONNECTIONS_FLOOR,
            &of_idle("idle_c1000"),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn floor(name: &'static str, at_most: f64, ratios: &[(String, f64)]) -> Option<Floor> {
    let worst = ratios.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let rows_that_hold = ratios.iter().filter(|(_, ratio)| *ratio <= at_most).count();
    Some(Floor {
        name,
        at_most,
        worst_row: worst.0.clone(),
        worst: worst.1,
        rows_that_hold,
        rows: ratios.len(),
        holds: rows_that_hold == ratios.len(),
    })
}

impl Report {
    /// For programs: one object.
    pub fn json(&self) -> Value {
        let idle = self.idle.iter().map(|row| {
            json!({
                "name": row.name,
                "unit": "bytes",
                "direct": null,
                "karst": row.rss_bytes.karst,
                "envoy": row.rss_bytes.envoy,
                "cpu_ratio_to_envoy": null,
                "p99_ratio_to_envoy": null,
                "rss_ratio_to_envoy": row.rss_bytes.ratio(),
            })
        });
        let rows: Vec<Value> = self.rows.iter().map(Row::json).chain(idle).collect();
        json!({
            "rows": rows,
            "floors": self.floors,
            "envoy_version": self.envoy_version,
            "workers": self.workers,
            "access_log": self.access_log,
            "rounds": self.rounds,
            "seconds": self.seconds,
        })
    }

    /// For people.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        if !self.rows.is_empty() {
            let _ = writeln!(text, "{}\n", self.table());
        }
        for row in &self.idle {
            let _ = writeln!(
                text,
                "- {}: RSS {:.1} MB karst, {:.1} MB envoy (x{:.2})",
                row.name,
                row.rss_bytes.karst / 1e6,
                row.rss_bytes.envoy / 1e6,
                row.rss_bytes.ratio()
            );
        }
        let _ = writeln!(
            text,
            "\ndirect / karst / envoy {}; {} threads each, access log {}; p50 and p99 at a fixed rate; medians of {} rounds of {} s\n",
            self.envoy_version,
            self.workers,
            if self.access_log { "on" } else { "off" },
            self.rounds,
            self.seconds,
        );
        for floor in &self.floors {
            let _ = writeln!(text, "{}", floor.line());
        }
        let broken = self.floors.iter().filter(|floor| !floor.holds).count();
        text.push('\n');
        text += &if broken == 0 {
            "every floor that was measured holds".to_owned()
        } else {
            format!("{broken} of {} floors do NOT hold", self.floors.len())
        };
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "",
            "requests/s",
            "p50, us",
            "p99, us",
            "ratio",
            "CPU s/100k",
            "ratio",
            "RSS, MB",
            "ratio",
        ]);
        let three =
            |all: Three<f64>| format!("{:.0} / {:.0} / {:.0}", all.direct, all.karst, all.envoy);
        for row in &self.rows {
            table.add_row([
                row.name.clone(),
                three(row.per_second),
                three(row.p50_us),
                three(row.p99_us),
                format!("{:.2}", row.p99_ratio()),
                format!(
                    "{:.1} / {:.1}",
                    row.cpu_us.karst / 10.0,
                    row.cpu_us.envoy / 10.0
                ),
                format!("{:.2}", row.cpu_us.ratio()),
                format!(
                    "{:.0} / {:.0}",
                    row.rss_bytes.karst / 1e6,
                    row.rss_bytes.envoy / 1e6
                ),
                format!("{:.2}", row.rss_bytes.ratio()),
            ]);
        }
        for column in 1..=8 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

impl Floor {
    fn line(&self) -> String {
        let target = if self.at_most == CPU_FLOOR && self.name.starts_with("CPU") {
            format!(" (target {CPU_TARGET})")
        } else {
            String::new()
        };
        format!(
            "- {}: at most {:.2} of Envoy's{target}: {}, {} of {} rows; the worst is {} with {:.2}",
            self.name,
            self.at_most,
            if self.holds { "holds" } else { "does NOT hold" },
            self.rows_that_hold,
            self.rows,
            self.worst_row,
            self.worst,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(factor: f64) -> Sample {
        let latency = |us: f64| Latency {
            p50_us: us * factor,
            p99_us: 2.0 * us * factor,
            ..Latency::default()
        };
        Sample {
            per_second: Three {
                direct: 100.0 * factor,
                karst: 40.0 * factor,
                envoy: 20.0 * factor,
            },
            latency: Three {
                direct: latency(10.0),
                karst: latency(30.0),
                envoy: latency(40.0),
            },
            cpu_us: Two {
                karst: 30.0 * factor,
                envoy: 100.0 * factor,
            },
            rss_bytes: Two {
                karst: 1e7,
                envoy: 4e7,
            },
        }
    }

    fn row() -> Row {
        Row::new(&Measure::FIRST, &[sample(1.0), sample(9.0), sample(2.0)]).unwrap()
    }

    #[test]
    fn a_row_has_the_promised_names_and_medians() {
        let row = row().json();
        assert_eq!(row["name"], "http1_1k_r1_c1");
        assert_eq!(row["direct"], 200.0);
        assert_eq!(row["karst"], 80.0);
        assert_eq!(row["envoy"], 40.0);
        assert_eq!(row["p50_us"]["karst"], 60.0);
        assert_eq!(row["p99_us"]["envoy"], 160.0);
        assert_eq!(row["cpu_s_per_100k_requests"]["karst"], 6.0);
        assert_eq!(row["cpu_ratio_to_envoy"], 0.3);
        assert_eq!(row["p99_ratio_to_envoy"], 0.75);
        assert_eq!(row["rss_ratio_to_envoy"], 0.25);
        assert_eq!(row["cpu_ratios"].as_array().unwrap().len(), 3);
        assert!(Row::new(&Measure::FIRST, &[]).is_none());
    }

    #[test]
    fn a_floor_is_broken_by_its_worst_row() {
        let ratios = [("a".to_owned(), 0.4), ("b".to_owned(), 0.6)];
        let broken = floor("CPU for a request", 0.5, &ratios).unwrap();
        assert!(!broken.holds);
        assert_eq!((broken.worst_row.as_str(), broken.worst), ("b", 0.6));
        assert_eq!((broken.rows_that_hold, broken.rows), (1, 2));
        assert!(floor("x", 0.6, &ratios).unwrap().holds);
        assert!(floor("x", 0.6, &[]).is_none());
    }

    #[test]
    fn every_promise_has_its_floor() {
        let idle = |karst| {
            let rss = Two {
                karst,
                envoy: 100.0,
            };
            [Idle::new("idle", rss), Idle::new("idle_c1000", rss)]
        };
        let holds = |karst| -> Vec<bool> {
            let floors = floors(&[row()], &idle(karst));
            floors.iter().map(|floor| floor.holds).collect()
        };
        assert_eq!(holds(33.0), [true, true, true, true]);
        assert_eq!(holds(34.0), [true, true, false, true]);
        assert_eq!(holds(51.0), [true, true, false, false]);
    }

    #[test]
    fn the_words_say_whether_the_floors_hold() {
        let rows = vec![row()];
        let idle = vec![Idle::new(
            "idle",
            Two {
                karst: 50.0,
                envoy: 100.0,
            },
        )];
        let report = Report {
            floors: floors(&rows, &idle),
            rows,
            idle,
            envoy_version: "1.2.3".to_owned(),
            workers: 2,
            access_log: true,
            rounds: 3,
            seconds: 2,
        };
        let text = report.tables();
        assert!(text.ends_with("1 of 3 floors do NOT hold"), "{text}");
        assert!(
            text.contains("idle RSS: at most 0.33 of Envoy's: does NOT hold"),
            "{text}"
        );
        let json = report.json();
        assert_eq!(json["rows"][1]["name"], "idle");
        assert_eq!(json["rows"][1]["rss_ratio_to_envoy"], 0.5);
        assert_eq!(json["floors"][0]["holds"], true);
    }
}
