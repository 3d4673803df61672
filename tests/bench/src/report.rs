//! The result: rows of ratios, memory, latencies; as JSON and as a table.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::load::Latency;

/// What a row measures, and what it is held against.
pub struct Measure {
    /// The row's name in the JSON.
    pub name: &'static str,
    /// Unit of `direct` and `karst`.
    pub unit: &'static str,
    /// What CPU is counted for.
    pub cpu_unit: &'static str,
    /// Ratio and CPU (both proxies) of a stock ztunnel in the same arrangement; README.md says
    /// where the figures come from. CPU for 8 streams was not measured there: that of 1 is used.
    pub ztunnel_ratio: f64,
    pub ztunnel_cpu_us: f64,
}

const fn measure(
    name: &'static str,
    unit: &'static str,
    cpu_unit: &'static str,
    ztunnel_ratio: f64,
    ztunnel_cpu_us: f64,
) -> Measure {
    Measure {
        name,
        unit,
        cpu_unit,
        ztunnel_ratio,
        ztunnel_cpu_us,
    }
}

/// Every row, in the order of the report.
pub const MEASURES: [Measure; 6] = [
    measure("throughput_1", "Gbit/s", "GB", 0.27, 3_225_000.0),
    measure("throughput_8", "Gbit/s", "GB", 0.22, 3_225_000.0),
    measure("http_c1", "requests/s", "request", 0.26, 220.0),
    measure("http_c32", "requests/s", "request", 0.165, 97.0),
    measure(
        "connections_c1",
        "connections/s",
        "connection",
        0.14,
        1_030.0,
    ),
    measure(
        "connections_c16",
        "connections/s",
        "connection",
        0.225,
        470.0,
    ),
];

/// One round of one row.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub direct: f64,
    pub karst: f64,
    /// Microseconds for each unit, of the client's and of the server's agent.
    pub cpu_us: [f64; 2],
}

/// Medians over the rounds.
#[derive(Serialize, Debug)]
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub direct: f64,
    pub karst: f64,
    pub ratio: f64,
    /// Both agents together, for each `cpu_unit`.
    pub agent_cpu_us_per_unit: f64,
    pub cpu_unit: &'static str,
    pub source_agent_cpu_us: f64,
    pub destination_agent_cpu_us: f64,
    pub stock_ztunnel_ratio: f64,
    pub stock_ztunnel_cpu_us_per_unit: f64,
    /// The rounds' ratios, to see the noise by.
    pub ratios: Vec<f64>,
}

/// Anonymous memory of the agent that uses more of it.
#[derive(Serialize, Debug)]
pub struct Memory {
    /// Nothing has passed through it yet.
    pub idle_anon_bytes: u64,
    /// Growth for each 1,000 idle connections.
    pub per_1000_connections_anon_bytes: i64,
}

/// Requests at a fixed rate, far below what either way can carry.
#[derive(Serialize, Debug)]
pub struct FixedRate {
    pub requests_per_second: u32,
    pub connections: u32,
    pub direct: Latency,
    pub karst: Latency,
    pub p50_ratio: f64,
    pub p99_ratio: f64,
}

/// Everything.
#[derive(Serialize, Debug)]
pub struct Report {
    pub rows: Vec<Row>,
    pub memory: Memory,
    pub fixed_rate: FixedRate,
    pub rounds: u32,
    pub seconds: u32,
}

impl Row {
    /// Medians of the rounds; `None` without rounds.
    pub fn new(measure: &Measure, samples: &[Sample]) -> Option<Self> {
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
        let (direct, karst) = (of(|s| s.direct)?, of(|s| s.karst)?);
        Some(Self {
            name: measure.name,
            unit: measure.unit,
            direct,
            karst,
            ratio: karst / direct,
            agent_cpu_us_per_unit: of(|s| s.cpu_us[0] + s.cpu_us[1])?,
            cpu_unit: measure.cpu_unit,
            source_agent_cpu_us: of(|s| s.cpu_us[0])?,
            destination_agent_cpu_us: of(|s| s.cpu_us[1])?,
            stock_ztunnel_ratio: measure.ztunnel_ratio,
            stock_ztunnel_cpu_us_per_unit: measure.ztunnel_cpu_us,
            ratios: samples
                .iter()
                .map(|sample| sample.karst / sample.direct)
                .collect(),
        })
    }
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 {
        upper
    } else {
        (values[values.len() / 2 - 1] + upper) / 2.0
    })
}

impl Report {
    /// For people.
    pub fn tables(&self) -> String {
        let mut rows = Table::new();
        rows.load_style(presets::UTF8_FULL_CONDENSED);
        rows.set_header([
            "",
            "direct",
            "karst",
            "",
            "ratio",
            "stock ztunnel",
            "agents' CPU, us",
            "stock ztunnel",
            "for each",
        ]);
        for row in &self.rows {
            rows.add_row([
                row.name.to_owned(),
                number(row.direct),
                number(row.karst),
                row.unit.to_owned(),
                format!("{:.3}", row.ratio),
                format!("{:.3}", row.stock_ztunnel_ratio),
                number(row.agent_cpu_us_per_unit),
                number(row.stock_ztunnel_cpu_us_per_unit),
                row.cpu_unit.to_owned(),
            ]);
        }
        for column in [1, 2, 4, 5, 6, 7] {
            if let Some(column) = rows.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let rate = &self.fixed_rate;
        format!(
            "{rows}\n{} requests/s over {} connections: p50 {:.0} us direct, {:.0} us meshed (x{:.2}); p99 {:.0} us, {:.0} us (x{:.2})\n\
             agent memory: {:.1} MB idle, {:.1} MB more for each 1,000 idle connections\n\
             medians of {} rounds of {} s; ratios are to the direct connection of the same run",
            rate.requests_per_second,
            rate.connections,
            rate.direct.p50_us,
            rate.karst.p50_us,
            rate.p50_ratio,
            rate.direct.p99_us,
            rate.karst.p99_us,
            rate.p99_ratio,
            self.memory.idle_anon_bytes as f64 / 1e6,
            self.memory.per_1000_connections_anon_bytes as f64 / 1e6,
            self.rounds,
            self.seconds,
        )
    }
}

/// Enough digits to compare by, no more.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn a_row_has_the_promised_names() {
        let samples = [
            Sample {
                direct: 10.0,
                karst: 4.0,
                cpu_us: [1.0, 2.0],
            },
            Sample {
                direct: 20.0,
                karst: 6.0,
                cpu_us: [3.0, 4.0],
            },
            Sample {
                direct: 30.0,
                karst: 5.0,
                cpu_us: [5.0, 6.0],
            },
        ];
        let row = serde_json::to_value(Row::new(&MEASURES[0], &samples).unwrap()).unwrap();
        assert_eq!(row["name"], "throughput_1");
        assert_eq!(row["unit"], "Gbit/s");
        assert_eq!(row["direct"], 20.0);
        assert_eq!(row["karst"], 5.0);
        assert_eq!(row["ratio"], 0.25);
        assert_eq!(row["agent_cpu_us_per_unit"], 7.0);
        assert!(Row::new(&MEASURES[0], &[]).is_none());
    }

    #[test]
    fn rows_have_the_promised_names_in_order() {
        let names = MEASURES.map(|measure| measure.name);
        assert_eq!(
            names,
            [
                "throughput_1",
                "throughput_8",
                "http_c1",
                "http_c32",
                "connections_c1",
                "connections_c16"
            ]
        );
    }
}
