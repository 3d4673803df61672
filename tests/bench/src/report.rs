//! The result of `tunnel` and `same-node`: rows of ratios, memory, latencies, and what they are held to; as JSON and as
//! a table.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    chart::{Bar, Chart, Group},
    goals::{self, Goal},
    load::Latency,
    spread::Spread,
    stage::{Pin, Place},
    usage::Usage,
};

pub mod held;

/// What a row measures, and what it is held against.
pub struct Measure {
    /// The row's name in the JSON.
    pub name: &'static str,
    /// Unit of `direct` and `karst`.
    pub unit: &'static str,
    /// What CPU is counted for.
    pub cpu_unit: &'static str,
    /// Ratio and CPU (both proxies) of a stock ztunnel in the arrangement of `tunnel`; README.md says
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

/// What one way achieved in one round of one row.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub per_second: f64,
    /// CPU for each unit.
    pub cpu: Usage,
    /// As fast as it goes, so those of a full queue.
    pub latency: Option<Latency>,
}

/// Connections of the client's pods, as its agent counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Connections {
    /// All that were opened.
    pub opened: f64,
    /// Those of them that went past the agent (`connection_security_policy` is `same_node`).
    pub bypassed: f64,
}

/// One round of one row.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub direct: Run,
    pub karst: Run,
    pub peer: Option<Run>,
    pub connections: Connections,
}

/// A value for each way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ways<T> {
    pub direct: T,
    pub karst: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<T>,
}

impl<T> Ways<T> {
    /// The same of each.
    pub fn map<U>(&self, of: impl Fn(&T) -> Option<U>) -> Option<Ways<U>> {
        Some(Ways {
            direct: of(&self.direct)?,
            karst: of(&self.karst)?,
            peer: match &self.peer {
                Some(peer) => Some(of(peer)?),
                None => None,
            },
        })
    }
}

/// CPU for a unit, medians over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OtherCpu {
    /// The client's pod.
    pub client_us: f64,
    /// The server's.
    pub server_us: f64,
    /// The kernel's.
    pub softirq_us: f64,
}

/// Medians over the rounds.
#[derive(Serialize, Debug)]
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub direct: f64,
    pub karst: f64,
    pub ratio: f64,
    /// All agents together, for each `cpu_unit`.
    pub agent_cpu_us_per_unit: f64,
    pub cpu_unit: &'static str,
    /// Of the client's node's agent.
    pub source_agent_cpu_us: f64,
    /// Of the server's node's, if that is another one.
    pub destination_agent_cpu_us: Option<f64>,
    pub stock_ztunnel_ratio: Option<f64>,
    pub stock_ztunnel_cpu_us_per_unit: Option<f64>,
    /// The rounds' ratios, to see the noise by.
    pub ratios: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_cpu_us_per_unit: Option<f64>,
    pub spread: Spreads,
    /// Applications and softirq of each way.
    pub other_cpu: Ways<OtherCpu>,
    /// Of all measured rounds together.
    pub connections: Connections,
    /// p50, p90 and p99 of a load that sends as fast as it is answered.
    pub latency: Option<Ways<Latency>>,
    /// Of that, meshed to direct: p50 and p99.
    pub latency_ratios: Option<[f64; 2]>,
}

/// Medians with least, greatest and quartiles over the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Spreads {
    pub direct: Spread,
    pub karst: Spread,
    pub ratio: Spread,
    pub agent_cpu_us_per_unit: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_ratio: Option<Spread>,
}

/// Memory of the agents, of that which uses more where one number is said.
#[derive(Serialize, Debug, Default)]
pub struct Memory {
    /// Anonymous, when nothing has passed through it yet.
    pub idle_anon_bytes: u64,
    /// Growth for each 1,000 idle connections.
    pub per_1000_connections_anon_bytes: i64,
    /// The same by agent, the client's first.
    pub idle_anon_bytes_by_agent: Vec<u64>,
    pub per_1000_connections_anon_bytes_by_agent: Vec<i64>,
    /// All that is in RAM, before any load and after all of it.
    pub idle_rss_bytes_by_agent: Vec<u64>,
    pub after_load_rss_bytes_by_agent: Vec<u64>,
    pub after_load_anon_bytes_by_agent: Vec<u64>,
}

/// Requests at a fixed rate, far below what either way can carry; medians over the rounds.
#[derive(Clone, Serialize, Debug)]
pub struct FixedRate {
    pub requests_per_second: u32,
    pub connections: u32,
    pub direct: Latency,
    pub karst: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Latency>,
    pub p50_ratio: f64,
    pub p99_ratio: f64,
    pub p50_ratio_spread: Spread,
    pub p99_ratio_spread: Spread,
    pub p50_us_spread: Ways<Spread>,
    pub p99_us_spread: Ways<Spread>,
    pub p999_us_spread: Ways<Spread>,
}

/// Everything.
#[derive(Serialize, Debug)]
pub struct Report {
    pub rows: Vec<Row>,
    pub memory: Memory,
    /// The last of `fixed_rates`.
    pub fixed_rate: FixedRate,
    pub fixed_rates: Vec<FixedRate>,
    /// Events of the kernel's programs about same-node connections, over everything that was measured, of all agents.
    pub bypass_events: Vec<(String, f64)>,
    pub goals: Vec<Goal>,
    pub peer: Vec<String>,
    pub pin: Pin,
    pub rounds: u32,
    pub seconds: u32,
    #[serde(skip)]
    pub place: Option<Place>,
}

impl Row {
    /// Medians of the rounds; `None` without rounds.
    pub fn new(measure: &Measure, samples: &[Sample], place: Place) -> Option<Self> {
        let of = |value: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
        // A peer that is missing in one round is missing in all.
        let of_peer = |value: &dyn Fn(&Run, &Run) -> f64| {
            let values = samples
                .iter()
                .filter_map(|s| Some(value(s.peer.as_ref()?, &s.direct)));
            Spread::of(values)
        };
        let spread = Spreads {
            direct: of(&|s| s.direct.per_second)?,
            karst: of(&|s| s.karst.per_second)?,
            ratio: of(&|s| s.karst.per_second / s.direct.per_second)?,
            agent_cpu_us_per_unit: of(&|s| s.karst.cpu.agents())?,
            peer: of_peer(&|peer, _| peer.per_second),
            peer_ratio: of_peer(&|peer, direct| peer.per_second / direct.per_second),
        };
        let (direct, karst) = (spread.direct.median, spread.karst.median);
        let agent = |number: usize| {
            let values = samples
                .iter()
                .filter_map(|s| s.karst.cpu.agents_us.get(number).copied());
            median(values)
        };
        let runs = runs(samples)?;
        let latency = runs.map(|runs| latency(runs.iter().map(|run| run.latency)));
        let apart = place == Place::TwoNodes;
        Some(Self {
            name: measure.name,
            unit: measure.unit,
            direct,
            karst,
            ratio: karst / direct,
            agent_cpu_us_per_unit: spread.agent_cpu_us_per_unit.median,
            cpu_unit: measure.cpu_unit,
            source_agent_cpu_us: agent(0)?,
            destination_agent_cpu_us: agent(1),
            stock_ztunnel_ratio: apart.then_some(measure.ztunnel_ratio),
            stock_ztunnel_cpu_us_per_unit: apart.then_some(measure.ztunnel_cpu_us),
            ratios: samples
                .iter()
                .map(|sample| sample.karst.per_second / sample.direct.per_second)
                .collect(),
            peer: spread.peer.map(|peer| peer.median),
            peer_ratio: spread.peer.map(|peer| peer.median / direct),
            peer_cpu_us_per_unit: of_peer(&|peer, _| peer.cpu.peer_us).map(|cpu| cpu.median),
            other_cpu: runs.map(|runs| {
                Some(OtherCpu {
                    client_us: median(runs.iter().map(|run| run.cpu.client_us))?,
                    server_us: median(runs.iter().map(|run| run.cpu.server_us))?,
                    softirq_us: median(runs.iter().map(|run| run.cpu.softirq_us))?,
                })
            })?,
            connections: Connections {
                opened: samples.iter().map(|s| s.connections.opened).sum(),
                bypassed: samples.iter().map(|s| s.connections.bypassed).sum(),
            },
            latency_ratios: latency.as_ref().map(|of| {
                [
                    of.karst.p50_us / of.direct.p50_us,
                    of.karst.p99_us / of.direct.p99_us,
                ]
            }),
            latency,
            spread,
        })
    }
}

/// The rounds of each way; `None` without rounds.
fn runs(samples: &[Sample]) -> Option<Ways<Vec<&Run>>> {
    let peer: Vec<&Run> = samples.iter().filter_map(|s| s.peer.as_ref()).collect();
    (!samples.is_empty()).then(|| Ways {
        direct: samples.iter().map(|s| &s.direct).collect(),
        karst: samples.iter().map(|s| &s.karst).collect(),
        peer: (!peer.is_empty()).then_some(peer),
    })
}

/// Medians of latencies; `None` if a round has none.
fn latency(rounds: impl Iterator<Item = Option<Latency>>) -> Option<Latency> {
    let rounds: Vec<Latency> = rounds.collect::<Option<_>>()?;
    medians(&rounds)
}

/// Medians of each of the quantiles; `None` without rounds.
pub fn medians(rounds: &[Latency]) -> Option<Latency> {
    let of = |value: fn(&Latency) -> f64| median(rounds.iter().map(value));
    Some(Latency {
        p50_us: of(|l| l.p50_us)?,
        p90_us: of(|l| l.p90_us)?,
        p99_us: of(|l| l.p99_us)?,
        p999_us: of(|l| l.p999_us)?,
        max_us: of(|l| l.max_us)?,
    })
}

impl FixedRate {
    /// Of the rounds' latencies; `None` without rounds.
    pub fn new(rate: u32, connections: u32, rounds: &[Ways<Latency>]) -> Option<Self> {
        let peer: Vec<Latency> = rounds.iter().filter_map(|round| round.peer).collect();
        let all = Ways {
            direct: rounds.iter().map(|round| round.direct).collect::<Vec<_>>(),
            karst: rounds.iter().map(|round| round.karst).collect(),
            peer: (!peer.is_empty()).then_some(peer),
        };
        let spread = |value: fn(&Latency) -> f64| {
            all.map(|latencies| Spread::of(latencies.iter().map(value)))
        };
        let ratio = |value: fn(&Latency) -> f64| {
            Spread::of(rounds.iter().map(|r| value(&r.karst) / value(&r.direct)))
        };
        let (direct, karst) = (medians(&all.direct)?, medians(&all.karst)?);
        Some(Self {
            requests_per_second: rate,
            connections,
            direct,
            karst,
            peer: all.peer.as_deref().and_then(medians),
            p50_ratio: karst.p50_us / direct.p50_us,
            p99_ratio: karst.p99_us / direct.p99_us,
            p50_ratio_spread: ratio(|l| l.p50_us)?,
            p99_ratio_spread: ratio(|l| l.p99_us)?,
            p50_us_spread: spread(|l| l.p50_us)?,
            p99_us_spread: spread(|l| l.p99_us)?,
            p999_us_spread: spread(|l| l.p999_us)?,
        })
    }
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// An empty table of Markdown, which is also fit to be read as it is.
pub fn markdown<const N: usize>(header: [&str; N]) -> Table {
    markdown_of(&header)
}

/// The same with as many columns as there are.
pub fn markdown_of(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().copied());
    for column in 1..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A value with its least and greatest.
pub fn with_range(spread: &Spread) -> String {
    format!(
        "{} [{}..{}]",
        goals::digits(spread.median),
        goals::digits(spread.min),
        goals::digits(spread.max)
    )
}

/// Megabytes.
fn megabytes(bytes: &[u64]) -> String {
    let each: Vec<String> = bytes
        .iter()
        .map(|bytes| format!("{:.1}", *bytes as f64 / 1e6))
        .collect();
    each.join(" and ")
}

impl Report {
    /// For people: tables of Markdown.
    pub fn tables(&self) -> String {
        let mut text = format!("{}\n\n{}\n\n", self.rates(), self.cpu());
        let latencies = self.closed_latencies();
        if latencies.row_count() > 0 {
            text += &format!("{latencies}\n\n");
        }
        text += &format!("{}\n\n", self.fixed());
        let memory = &self.memory;
        text += &format!(
            "Agent memory (anonymous): {:.1} MB idle, {:.1} MB more for each 1,000 idle connections; RSS {} MB idle, {} MB after all load.\n",
            memory.idle_anon_bytes as f64 / 1e6,
            memory.per_1000_connections_anon_bytes as f64 / 1e6,
            megabytes(&memory.idle_rss_bytes_by_agent),
            megabytes(&memory.after_load_rss_bytes_by_agent),
        );
        let (opened, bypassed) = self
            .rows
            .iter()
            .fold((0.0, 0.0), |(opened, bypassed), row| {
                (
                    opened + row.connections.opened,
                    bypassed + row.connections.bypassed,
                )
            });
        text += &format!(
            "Of {opened:.0} connections of the meshed client {bypassed:.0} bypassed its agent.\n"
        );
        if !self.bypass_events.is_empty() {
            let events = self.bypass_events.iter();
            let events: Vec<String> = events.map(|(name, n)| format!("{name} {n:.0}")).collect();
            text += &format!("Kernel events: {}.\n", events.join(", "));
        }
        text += &format!(
            "Medians of {} rounds of {} s, one more before them left out, [least..greatest]; ratios are to the direct connection of the same run; {}.\n\n{}",
            self.rounds,
            self.seconds,
            match self.pin {
                Pin::None => "nothing is pinned to CPUs",
                Pin::Sides => "each side is pinned to half of the CPUs",
            },
            goals::lines(&self.goals),
        );
        text
    }

    fn rates(&self) -> Table {
        let mut table = markdown([
            "",
            "direct",
            "karst",
            "peer",
            "unit",
            "ratio",
            "peer's",
            "stock ztunnel",
            "bypassed",
        ]);
        for row in &self.rows {
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let share = row.connections.bypassed / row.connections.opened;
            table.add_row([
                row.name.to_owned(),
                with_range(&row.spread.direct),
                with_range(&row.spread.karst),
                or_none(row.spread.peer.as_ref().map(with_range)),
                row.unit.to_owned(),
                with_range(&row.spread.ratio),
                or_none(row.spread.peer_ratio.as_ref().map(with_range)),
                or_none(row.stock_ztunnel_ratio.map(|ratio| format!("{ratio:.3}"))),
                if share.is_finite() {
                    format!("{:.0} %", share * 100.0)
                } else {
                    "-".to_owned()
                },
            ]);
        }
        table
    }

    fn cpu(&self) -> Table {
        let mut table = markdown([
            "CPU, us",
            "agents",
            "client's agent",
            "server's agent",
            "peer",
            "stock ztunnel",
            "client, direct / karst",
            "server, direct / karst",
            "softirq, direct / karst",
            "for each",
        ]);
        for row in &self.rows {
            let or_none = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), goals::digits);
            let (direct, karst) = (&row.other_cpu.direct, &row.other_cpu.karst);
            let two = |direct: f64, karst: f64| {
                format!("{} / {}", goals::digits(direct), goals::digits(karst))
            };
            table.add_row([
                row.name.to_owned(),
                with_range(&row.spread.agent_cpu_us_per_unit),
                goals::digits(row.source_agent_cpu_us),
                or_none(row.destination_agent_cpu_us),
                or_none(row.peer_cpu_us_per_unit),
                or_none(row.stock_ztunnel_cpu_us_per_unit),
                two(direct.client_us, karst.client_us),
                two(direct.server_us, karst.server_us),
                two(direct.softirq_us, karst.softirq_us),
                row.cpu_unit.to_owned(),
            ]);
        }
        table
    }

    /// Latencies of rows that have them.
    fn closed_latencies(&self) -> Table {
        let mut table = markdown(["as fast as it goes, us", "way", "p50", "p90", "p99"]);
        for row in &self.rows {
            let Some(latency) = &row.latency else {
                continue;
            };
            for (way, latency) in ways(latency) {
                table.add_row([
                    row.name.to_owned(),
                    way.to_owned(),
                    goals::digits(latency.p50_us),
                    goals::digits(latency.p90_us),
                    goals::digits(latency.p99_us),
                ]);
            }
        }
        table
    }

    fn fixed(&self) -> Table {
        let mut table = markdown([
            "at a fixed rate, us",
            "way",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "p50 ratio",
            "p99 ratio",
        ]);
        for rate in &self.fixed_rates {
            let name = format!("{}/s over {}", rate.requests_per_second, rate.connections);
            let latencies = Ways {
                direct: rate.direct,
                karst: rate.karst,
                peer: rate.peer,
            };
            for (way, latency) in ways(&latencies) {
                let mut cells = vec![name.clone(), way.to_owned()];
                cells.extend(
                    [
                        latency.p50_us,
                        latency.p90_us,
                        latency.p99_us,
                        latency.p999_us,
                        latency.max_us,
                    ]
                    .map(goals::digits),
                );
                if way == "karst" {
                    cells.push(with_range(&rate.p50_ratio_spread));
                    cells.push(with_range(&rate.p99_ratio_spread));
                }
                table.add_row(cells);
            }
        }
        table
    }

    /// Ratios of all rows, with what they are held to.
    pub fn chart(&self, title: &str) -> Chart {
        let subtitle = format!(
            "ratio to a direct connection (the line at 1), more is better; medians of {} rounds of {} s with least and greatest",
            self.rounds, self.seconds
        );
        let mut chart = Chart::new(title, &subtitle);
        for row in &self.rows {
            let bar = |series: &str, spread: &Spread| Bar {
                series: series.to_owned(),
                value: spread.median,
                range: Some([spread.min, spread.max]),
            };
            let mut bars = vec![bar("karst", &row.spread.ratio)];
            bars.extend(
                row.spread
                    .peer_ratio
                    .as_ref()
                    .map(|ratio| bar("peer", ratio)),
            );
            bars.extend(row.stock_ztunnel_ratio.map(|value| Bar {
                series: "stock ztunnel, measured once".to_owned(),
                value,
                range: None,
            }));
            let goal = self
                .goals
                .iter()
                .find(|goal| goal.row == row.name && goal.name == held::RATIO);
            chart.add(Group {
                name: row.name.to_owned(),
                bars,
                goal: goal.map(|goal| goal.limit.value()),
            });
        }
        chart
    }

    /// What the result is held to.
    pub fn judge(&mut self) {
        self.goals = match self.place {
            Some(Place::TwoNodes) => held::two_nodes(self),
            Some(Place::OneNode) => held::one_node(self),
            None => Vec::new(),
        };
    }
}

/// The ways that there are, by name.
fn ways<T>(of: &Ways<T>) -> impl Iterator<Item = (&'static str, &T)> {
    [("direct", &of.direct), ("karst", &of.karst)]
        .into_iter()
        .chain(of.peer.as_ref().map(|peer| ("peer", peer)))
}

#[cfg(test)]
mod tests;
