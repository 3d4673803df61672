//! The result of `connect`.

use comfy_table::Table;
use serde::Serialize;

use super::{Args, each};
use crate::{
    chart::{Bar, Chart, Group},
    goals::{self, Goal, Limit, digits},
    load::Latency,
    report::{Ways, held::IDLE_CONNECTION, markdown, median, medians, with_range},
    spread::Spread,
    stage::Pin,
    usage::Usage,
};

/// What may move of a bystander's latency in a storm, beside what a direct connection's does in the same: no issue of the
/// mesh's own is allowed a quarter more.
const MOVED: f64 = 1.25;
/// The share of what idle connections took that is to be given back: a stock ztunnel's two ends gave 0.61 and 0.74.
const GIVEN_BACK: f64 = 0.75;
/// The share of a storm's rate that is to be reached.
const REACHED: f64 = 0.99;

/// How long a new connection takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// Until connect() returned.
    pub connect: Latency,
    /// Until the answer to its request was there.
    pub answer: Latency,
}

/// One way in one round, as fast as it goes.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub per_second: f64,
    /// For a connection.
    pub cpu: Usage,
    pub times: Times,
}

/// Bystanders' latencies around a storm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Phases {
    pub before: Latency,
    pub during: Latency,
    pub after: Latency,
}

/// One way's storm in one round.
#[derive(Clone, Debug, Default)]
pub struct Storm {
    pub bystanders: Phases,
    /// Answered, and not.
    pub connections: u32,
    pub failed: u32,
    pub first_failure: Option<String>,
    /// Answered a minute, until the last one was.
    pub per_minute: f64,
    pub times: Times,
    /// CPU of each agent for one of its connections; what bystanders cost meanwhile is in it.
    pub agents_us: Vec<f64>,
}

/// Anonymous memory of each agent, the client's first, around idle connections.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Held {
    pub connections: u32,
    /// Seconds after their end at which `after` was looked at.
    pub seconds: u64,
    pub idle_anon_bytes: Vec<u64>,
    pub before_anon_bytes: Vec<u64>,
    pub with_anon_bytes: Vec<u64>,
    pub after_anon_bytes: Vec<u64>,
}

impl Held {
    /// Of each agent, for one connection.
    fn per_connection(&self) -> Vec<f64> {
        self.before_anon_bytes
            .iter()
            .zip(&self.with_anon_bytes)
            .map(|(before, with)| (*with as f64 - *before as f64) / f64::from(self.connections))
            .collect()
    }

    /// Of each agent, the share of what the connections took; all, if they took nothing.
    fn given_back(&self) -> Vec<f64> {
        self.before_anon_bytes
            .iter()
            .zip(&self.with_anon_bytes)
            .zip(&self.after_anon_bytes)
            .map(|((before, with), after)| {
                let taken = *with as f64 - *before as f64;
                if taken <= 0.0 {
                    return 1.0;
                }
                (*with as f64 - *after as f64) / taken
            })
            .collect()
    }
}

/// So many at a time, medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    name: String,
    unit: &'static str,
    at_once: u32,
    direct: f64,
    karst: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<f64>,
    ratio: f64,
    ratios: Vec<f64>,
    agent_cpu_us_per_unit: f64,
    source_agent_cpu_us: f64,
    destination_agent_cpu_us: f64,
    spread: Ways<Spread>,
    ratio_spread: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_ratio_spread: Option<Spread>,
    softirq_us: Ways<f64>,
    client_us: Ways<f64>,
    server_us: Ways<f64>,
    times: Ways<Times>,
}

/// Storms, medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Storms {
    per_minute: u32,
    /// Of the rounds together: answered, and not.
    connections: Ways<u32>,
    failed: Ways<u32>,
    /// What was wrong with the first that was not, through the mesh.
    first_failure: Option<String>,
    reached_per_minute: Ways<f64>,
    agents_cpu_us_per_connection: Vec<f64>,
    times: Ways<Times>,
    bystanders: Ways<Phases>,
    /// What a bystander's p50 and p99 are in the storm to what they are before, by round.
    moved_p50: Ways<Spread>,
    moved_p99: Ways<Spread>,
    /// Anonymous memory of each agent after the round that warms up, and 15 s after the last storm.
    first_anon_bytes: Vec<u64>,
    last_anon_bytes: Vec<u64>,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    rows: Vec<Row>,
    storm: Storms,
    idle: Held,
    per_idle_connection_anon_bytes: Vec<f64>,
    given_back: Vec<f64>,
    goals: Vec<Goal>,
    peer: Vec<String>,
    pin: Pin,
    rounds: u32,
    seconds: u32,
    storm_seconds: u32,
}

/// The rounds of each way; a peer that is missing in one round is missing in all.
fn turned<T: Clone>(rounds: &[Ways<T>]) -> Ways<Vec<T>> {
    let peer: Vec<T> = rounds
        .iter()
        .filter_map(|round| round.peer.clone())
        .collect();
    Ways {
        direct: rounds.iter().map(|round| round.direct.clone()).collect(),
        karst: rounds.iter().map(|round| round.karst.clone()).collect(),
        peer: (!peer.is_empty()).then_some(peer),
    }
}

fn times(all: &[Times]) -> Option<Times> {
    let connect: Vec<Latency> = all.iter().map(|times| times.connect).collect();
    let answer: Vec<Latency> = all.iter().map(|times| times.answer).collect();
    Some(Times {
        connect: medians(&connect)?,
        answer: medians(&answer)?,
    })
}

impl Row {
    fn new(at_once: u32, rounds: &[Ways<Sample>]) -> Option<Self> {
        let ways = turned(rounds);
        let of = |value: fn(&Sample) -> f64| ways.map(|samples| median(samples.iter().map(value)));
        let agent = |number: usize| {
            let values = ways.karst.iter();
            median(values.filter_map(|s| s.cpu.agents_us.get(number).copied()))
        };
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|round| round.karst.per_second / round.direct.per_second)
            .collect();
        let spread = ways.map(|samples| Spread::of(samples.iter().map(|s| s.per_second)))?;
        let peer_ratios = rounds
            .iter()
            .filter_map(|round| Some(round.peer.as_ref()?.per_second / round.direct.per_second));
        Some(Self {
            name: format!("connect_c{at_once}"),
            unit: "connections/s",
            at_once,
            direct: spread.direct.median,
            karst: spread.karst.median,
            peer: spread.peer.map(|peer| peer.median),
            ratio: spread.karst.median / spread.direct.median,
            ratio_spread: Spread::of(ratios.iter().copied())?,
            peer_ratio_spread: Spread::of(peer_ratios),
            ratios,
            agent_cpu_us_per_unit: median(ways.karst.iter().map(|s| s.cpu.agents()))?,
            source_agent_cpu_us: agent(0)?,
            destination_agent_cpu_us: agent(1)?,
            spread,
            softirq_us: of(|s| s.cpu.softirq_us)?,
            client_us: of(|s| s.cpu.client_us)?,
            server_us: of(|s| s.cpu.server_us)?,
            times: ways.map(|samples| {
                let all: Vec<Times> = samples.iter().map(|s| s.times).collect();
                times(&all)
            })?,
        })
    }
}

impl Storms {
    fn new(args: &Args, rounds: &[Ways<Storm>], memory: (Vec<u64>, Vec<u64>)) -> Option<Self> {
        let ways = turned(rounds);
        let phase = |of: fn(&Phases) -> Latency| {
            ways.map(|storms| {
                let all: Vec<Latency> = storms.iter().map(|s| of(&s.bystanders)).collect();
                medians(&all)
            })
        };
        let (before, during, after) = (
            phase(|phases| phases.before)?,
            phase(|phases| phases.during)?,
            phase(|phases| phases.after)?,
        );
        let moved = |of: fn(&Latency) -> f64| {
            ways.map(|storms| {
                Spread::of(storms.iter().map(|storm| {
                    let bystanders = &storm.bystanders;
                    of(&bystanders.during) / of(&bystanders.before)
                }))
            })
        };
        let agents = ways.karst.first()?.agents_us.len();
        Some(Self {
            per_minute: args.per_minute,
            connections: each(&ways, |storms| storms.iter().map(|s| s.connections).sum()),
            failed: each(&ways, |storms| storms.iter().map(|s| s.failed).sum()),
            first_failure: ways.karst.iter().find_map(|s| s.first_failure.clone()),
            reached_per_minute: ways.map(|storms| median(storms.iter().map(|s| s.per_minute)))?,
            agents_cpu_us_per_connection: (0..agents)
                .map(|number| {
                    let values = ways.karst.iter();
                    median(values.filter_map(|s| s.agents_us.get(number).copied()))
                })
                .collect::<Option<_>>()?,
            times: ways.map(|storms| {
                let all: Vec<Times> = storms.iter().map(|s| s.times).collect();
                times(&all)
            })?,
            bystanders: Ways {
                direct: Phases {
                    before: before.direct,
                    during: during.direct,
                    after: after.direct,
                },
                karst: Phases {
                    before: before.karst,
                    during: during.karst,
                    after: after.karst,
                },
                peer: before.peer.zip(during.peer).zip(after.peer).map(
                    |((before, during), after)| Phases {
                        before,
                        during,
                        after,
                    },
                ),
            },
            moved_p50: moved(|latency| latency.p50_us)?,
            moved_p99: moved(|latency| latency.p99_us)?,
            first_anon_bytes: memory.0,
            last_anon_bytes: memory.1,
        })
    }
}

impl Report {
    /// Of all rounds; `None` without any. `memory` is that of the agents after the warm-up and at the end.
    pub fn new(
        at_once: &[u32],
        samples: &[Vec<Ways<Sample>>],
        storms: &[Ways<Storm>],
        idle: Held,
        memory: (Vec<u64>, Vec<u64>),
        args: &Args,
    ) -> Option<Self> {
        let rows = at_once
            .iter()
            .zip(samples)
            .map(|(at_once, rounds)| Row::new(*at_once, rounds));
        let mut report = Self {
            rows: rows.collect::<Option<_>>()?,
            storm: Storms::new(args, storms, memory)?,
            per_idle_connection_anon_bytes: idle.per_connection(),
            given_back: idle.given_back(),
            idle,
            goals: Vec::new(),
            peer: args.peer.clone(),
            pin: args.pin,
            rounds: args.rounds,
            seconds: args.seconds,
            storm_seconds: args.storm_seconds,
        };
        report.goals = report.judged();
        Some(report)
    }

    fn judged(&self) -> Vec<Goal> {
        let storm = &self.storm;
        let row = format!("storm of {} a minute", storm.per_minute);
        let answered = f64::from(storm.connections.karst);
        let mut goals = vec![
            Goal::new(
                "connections a minute",
                &row,
                Limit::AtLeast(REACHED * f64::from(storm.per_minute)),
                storm.reached_per_minute.karst,
                "all that were asked for, without a queue",
            ),
            Goal::new(
                "share that was answered",
                &row,
                Limit::AtLeast(1.0),
                answered / (answered + f64::from(storm.failed.karst)),
                "nobody's connection fails",
            ),
        ];
        for (name, moved) in [("p50", &storm.moved_p50), ("p99", &storm.moved_p99)] {
            let direct = moved.direct.median.max(1.0);
            goals.push(Goal::of(
                &format!("bystanders' {name} in it to before it"),
                &row,
                Limit::AtMost(MOVED * direct),
                &moved.karst,
                &format!("{MOVED} times what a direct connection's moves, {direct:.2}"),
            ));
        }
        for ((bytes, given), agent) in self
            .per_idle_connection_anon_bytes
            .iter()
            .zip(&self.given_back)
            .zip(["client's agent", "server's agent"])
        {
            goals.push(Goal::new(
                "anonymous bytes for an idle connection",
                agent,
                Limit::AtMost(IDLE_CONNECTION),
                *bytes,
                "a stock ztunnel's are 5,400",
            ));
            goals.push(Goal::new(
                "share of idle connections' memory given back",
                agent,
                Limit::AtLeast(GIVEN_BACK),
                *given,
                "a stock ztunnel's two gave 0.61 and 0.74",
            ));
        }
        goals
    }

    /// For people: tables of Markdown.
    pub fn tables(&self) -> String {
        let storm = &self.storm;
        let megabytes = |bytes: &[u64]| {
            let each = bytes
                .iter()
                .map(|bytes| format!("{:.1}", *bytes as f64 / 1e6));
            each.collect::<Vec<_>>().join(" and ")
        };
        let cpu = storm.agents_cpu_us_per_connection.iter();
        let cpu: Vec<String> = cpu.map(|us| digits(*us)).collect();
        format!(
            "{}\n\n{}\n\n\
             Storm of {} connections a minute: through the mesh {} answered and {} not{}, {:.0} a minute; directly {} and {}, {:.0} a minute; agents' CPU {} us for each.\n\n{}\n\n\
             Anonymous memory of the agents, client's and server's: {} MB idle; {} MB before and {} MB with {} idle connections, {} MB {} s after their end; \
             {} MB after the warm-up's storm and {} MB after the last.\n\
             Medians of {} rounds of {} s (storms: {} s before, in and after), one more before them left out, [least..greatest]; {}.\n\n{}",
            self.rates(),
            self.latencies(),
            storm.per_minute,
            storm.connections.karst,
            storm.failed.karst,
            storm
                .first_failure
                .as_ref()
                .map_or_else(String::new, |why| format!(" ({why})")),
            storm.reached_per_minute.karst,
            storm.connections.direct,
            storm.failed.direct,
            storm.reached_per_minute.direct,
            cpu.join(" and "),
            self.bystanders(),
            megabytes(&self.idle.idle_anon_bytes),
            megabytes(&self.idle.before_anon_bytes),
            megabytes(&self.idle.with_anon_bytes),
            self.idle.connections,
            megabytes(&self.idle.after_anon_bytes),
            self.idle.seconds,
            megabytes(&storm.first_anon_bytes),
            megabytes(&storm.last_anon_bytes),
            self.rounds,
            self.seconds,
            self.storm_seconds,
            match self.pin {
                Pin::None => "nothing is pinned to CPUs",
                Pin::Sides => "each side is pinned to half of the CPUs",
            },
            goals::lines(&self.goals),
        )
    }

    fn rates(&self) -> Table {
        let mut table = markdown([
            "connections/s",
            "direct",
            "karst",
            "peer",
            "ratio",
            "peer's",
            "agents' CPU, us",
            "client's",
            "server's",
            "softirq, direct / karst",
        ]);
        let or_none = |spread: Option<&Spread>| spread.map_or_else(|| "-".to_owned(), with_range);
        for row in &self.rows {
            table.add_row([
                row.name.clone(),
                with_range(&row.spread.direct),
                with_range(&row.spread.karst),
                or_none(row.spread.peer.as_ref()),
                with_range(&row.ratio_spread),
                or_none(row.peer_ratio_spread.as_ref()),
                digits(row.agent_cpu_us_per_unit),
                digits(row.source_agent_cpu_us),
                digits(row.destination_agent_cpu_us),
                format!(
                    "{} / {}",
                    digits(row.softirq_us.direct),
                    digits(row.softirq_us.karst)
                ),
            ]);
        }
        table
    }

    fn latencies(&self) -> Table {
        let mut table = markdown([
            "new connections, us",
            "way",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
        ]);
        let rows = self.rows.iter().map(|row| (row.name.as_str(), &row.times));
        for (name, times) in rows.chain([("storm", &self.storm.times)]) {
            let ways = [
                ("direct", Some(&times.direct)),
                ("karst", Some(&times.karst)),
            ];
            for (way, times) in ways.into_iter().chain([("peer", times.peer.as_ref())]) {
                let Some(times) = times else { continue };
                table.add_row(cells(&format!("{name}: connect()"), way, &times.connect));
                table.add_row(cells(&format!("{name}: answered"), way, &times.answer));
            }
        }
        table
    }

    fn bystanders(&self) -> Table {
        let mut table = markdown(["bystanders, us", "way", "p50", "p90", "p99", "p99.9", "max"]);
        let all = &self.storm.bystanders;
        let ways = [("direct", Some(&all.direct)), ("karst", Some(&all.karst))];
        for (way, phases) in ways.into_iter().chain([("peer", all.peer.as_ref())]) {
            let Some(phases) = phases else { continue };
            table.add_row(cells("before the storm", way, &phases.before));
            table.add_row(cells("in it", way, &phases.during));
            table.add_row(cells("after it", way, &phases.after));
        }
        table
    }

    /// Ratios of all rows.
    pub fn chart(&self) -> Chart {
        let subtitle = format!(
            "new connections a second, ratio to direct ones (the line at 1), more is better; medians of {} rounds of {} s",
            self.rounds, self.seconds
        );
        let mut chart = Chart::new("New connections", &subtitle);
        for row in &self.rows {
            let bar = |series: &str, spread: &Spread| Bar {
                series: series.to_owned(),
                value: spread.median,
                range: Some([spread.min, spread.max]),
            };
            let mut bars = vec![bar("karst", &row.ratio_spread)];
            bars.extend(
                row.peer_ratio_spread
                    .as_ref()
                    .map(|spread| bar("peer", spread)),
            );
            chart.add(Group {
                name: row.name.clone(),
                bars,
                goal: None,
            });
        }
        chart
    }
}

fn cells(name: &str, way: &str, latency: &Latency) -> Vec<String> {
    let mut cells = vec![name.to_owned(), way.to_owned()];
    cells.extend(
        [
            latency.p50_us,
            latency.p90_us,
            latency.p99_us,
            latency.p999_us,
            latency.max_us,
        ]
        .map(digits),
    );
    cells
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn latency(us: f64) -> Latency {
        Latency {
            p50_us: us,
            p90_us: us,
            p99_us: 2.0 * us,
            p999_us: 3.0 * us,
            max_us: 4.0 * us,
        }
    }

    fn storm(before: f64, during: f64) -> Storm {
        Storm {
            bystanders: Phases {
                before: latency(before),
                during: latency(during),
                after: latency(before),
            },
            connections: 10_000,
            failed: 0,
            first_failure: None,
            per_minute: 50_000.0,
            times: Times::default(),
            agents_us: vec![100.0, 200.0],
        }
    }

    fn sample(per_second: f64) -> Sample {
        Sample {
            per_second,
            cpu: Usage {
                agents_us: vec![100.0, 150.0],
                ..Usage::default()
            },
            times: Times::default(),
        }
    }

    fn report(karst_in_storm: f64, with: u64, after: u64) -> Report {
        let args = Cli::parse_from(["connect"]).args;
        let rounds = [1000.0, 3000.0, 2000.0].map(|direct| Ways {
            direct: sample(direct),
            karst: sample(direct / 4.0),
            peer: None,
        });
        let storms = [Ways {
            direct: storm(100.0, 120.0),
            karst: storm(200.0, karst_in_storm),
            peer: None,
        }];
        let held = Held {
            connections: 1000,
            seconds: 15,
            idle_anon_bytes: vec![500_000, 500_000],
            before_anon_bytes: vec![1_000_000, 1_000_000],
            with_anon_bytes: vec![with, 1_000_000],
            after_anon_bytes: vec![after, 1_000_000],
        };
        let memory = (vec![1, 2], vec![3, 4]);
        Report::new(&[16], &[rounds.to_vec()], &storms, held, memory, &args).unwrap()
    }

    fn broken(report: &Report) -> Vec<String> {
        let broken = report.goals.iter().filter(|goal| !goal.holds);
        broken.map(|goal| goal.name.clone()).collect()
    }

    #[test]
    fn goals_are_measured_against_a_direct_connection_in_the_same_storm() {
        // 1.2 times as much directly, so up to 1.5 times through the mesh.
        assert_eq!(broken(&report(299.0, 5_000_000, 1_500_000)), [""; 0]);
        let moved = broken(&report(310.0, 5_000_000, 1_500_000));
        assert_eq!(moved.len(), 2, "{moved:?}");
        let much = broken(&report(200.0, 6_000_000, 1_500_000));
        assert_eq!(much, ["anonymous bytes for an idle connection"]);
        let kept = broken(&report(200.0, 5_000_000, 3_000_000));
        assert_eq!(kept, ["share of idle connections' memory given back"]);
    }

    #[test]
    fn a_report_has_all_that_was_measured() {
        let report = report(250.0, 5_000_000, 1_500_000);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["name"], "connect_c16");
        assert_eq!(json["rows"][0]["ratio"], 0.25);
        assert_eq!(json["rows"][0]["agent_cpu_us_per_unit"], 250.0);
        assert_eq!(json["per_idle_connection_anon_bytes"][0], 4000.0);
        assert_eq!(json["storm"]["moved_p50"]["karst"]["median"], 1.25);
        let text = report.tables();
        assert!(
            text.contains("through the mesh 10000 answered and 0 not, 50000 a minute"),
            "{text}"
        );
        assert!(report.chart().svg().contains("connect_c16"));
    }
}
