//! The result, as JSON and as a table, beside what it is held to.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::times::Histogram;

const MIB: f64 = 1024.0 * 1024.0;

/// Everything.
#[derive(Serialize, Debug)]
pub struct Report {
    pub nodes: u32,
    pub pods: u32,
    pub services: u32,
    pub subscribers: u32,
    /// Pods that were replaced each second.
    pub churn_pods_per_second: f64,
    pub seconds: u32,
    /// From the moment that the API server wrote an event until a subscriber's acknowledgement of it was handed to its
    /// connection, for all subscribers.
    pub change_to_ack: Latencies,
    /// The same as the controller counts it, from when it has read the first event of a batch until it has read the
    /// acknowledgement.
    pub change_to_ack_by_controller: Bounds,
    /// From the start of its process until it serves.
    pub controller_start_seconds: f64,
    /// With all objects, before anybody came.
    pub controller_resident_bytes_alone: u64,
    /// The most at any time.
    pub controller_resident_bytes_max: u64,
    /// With all subscribers, nothing happening.
    pub idle: Spent,
    pub churn: Spent,
    /// A subscriber's first state; alone, and keeping nothing.
    pub snapshot: Bytes,
    /// Until all subscribers had theirs.
    pub all_snapshots_seconds: f64,
    /// A real agent's first state, applied; alone.
    pub new_agent_seconds: f64,
    /// The same while pods are replaced and all subscribers are there.
    pub new_agent_seconds_under_churn: f64,
    pub agent: AgentMemory,
    pub agent_after_churn: AgentMemory,
}

/// Latencies in milliseconds.
#[derive(Serialize, Debug)]
pub struct Latencies {
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Changes of pods in the measured time.
    pub changes: u64,
    /// Changes times subscribers.
    pub deliveries_expected: u64,
    pub deliveries: u64,
}

/// Quantiles as the bounds of a histogram's buckets.
#[derive(Serialize, Debug)]
pub struct Bounds {
    pub p50_at_most_ms: Option<f64>,
    pub p99_at_most_ms: Option<f64>,
    pub samples: f64,
}

/// What is spent and sent in a second.
#[derive(Serialize, Debug)]
pub struct Spent {
    /// CPU time of the controller's process for each second.
    pub controller_cores: f64,
    /// CPU time of this process: API server and subscribers.
    pub bench_cores: f64,
    pub bytes_per_second: f64,
    pub responses_per_second: f64,
    pub resources_per_second: f64,
}

/// How long, and how much.
#[derive(Serialize, Debug)]
pub struct Bytes {
    pub seconds: f64,
    pub bytes: u64,
}

/// Memory of a process with an agent's state and client.
#[derive(Serialize, Debug)]
pub struct AgentMemory {
    pub workloads: usize,
    pub resident_bytes: u64,
    pub anonymous_bytes: u64,
}

impl Latencies {
    /// Those of a histogram.
    pub fn new(all: &Histogram, changes: u64, expected: u64) -> Self {
        Self {
            p50_ms: all.quantile_ms(0.5),
            p90_ms: all.quantile_ms(0.9),
            p99_ms: all.quantile_ms(0.99),
            p999_ms: all.quantile_ms(0.999),
            max_ms: all.max_ms(),
            changes,
            deliveries_expected: expected,
            deliveries: all.count(),
        }
    }
}

impl Report {
    /// For people.
    pub fn tables(&self) -> String {
        let mut rows = Table::new();
        rows.load_style(presets::UTF8_FULL_CONDENSED);
        rows.set_header(["", "measured", "held to"]);
        let change = &self.change_to_ack;
        let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / MIB);
        for [name, measured, goal] in [
            [
                "change to ACK, p50",
                &format!("{:.0} ms", change.p50_ms),
                "",
            ],
            [
                "change to ACK, p99",
                &format!("{:.0} ms", change.p99_ms),
                "500 ms",
            ],
            [
                "change to ACK, worst",
                &format!("{:.0} ms", change.max_ms),
                "",
            ],
            [
                "controller's CPU under churn",
                &format!("{:.2} cores", self.churn.controller_cores),
                "1 core",
            ],
            [
                "controller's CPU idle",
                &format!("{:.2} cores", self.idle.controller_cores),
                "",
            ],
            [
                "controller's memory, most",
                &mib(self.controller_resident_bytes_max),
                "1536 MiB",
            ],
            [
                "controller's memory, alone",
                &mib(self.controller_resident_bytes_alone),
                "",
            ],
            [
                "controller's start",
                &format!("{:.1} s", self.controller_start_seconds),
                "",
            ],
            [
                "pushed under churn",
                &format!("{:.1} MB/s", self.churn.bytes_per_second / 1e6),
                "",
            ],
            [
                "responses under churn",
                &format!("{:.0} /s", self.churn.responses_per_second),
                "",
            ],
            [
                "full snapshot",
                &format!("{:.1} MB", self.snapshot.bytes as f64 / 1e6),
                "",
            ],
            [
                "full snapshot, all subscribers",
                &format!("{:.1} s", self.all_snapshots_seconds),
                "",
            ],
            [
                "full snapshot of a new agent",
                &format!("{:.2} s", self.new_agent_seconds),
                "2 s",
            ],
            [
                "the same under churn",
                &format!("{:.2} s", self.new_agent_seconds_under_churn),
                "",
            ],
            [
                "agent's memory, whole mesh",
                &mib(self.agent.resident_bytes),
                "150 MiB",
            ],
        ] {
            rows.add_row([name, measured, goal]);
        }
        for column in [1, 2] {
            if let Some(column) = rows.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!(
            "{rows}\n{} nodes, {} pods, {} services, {} subscribers; {} pods replaced a second for {} s: {} changes, \
             {} of {} deliveries\nthe API server and the subscribers used {:.2} cores meanwhile",
            self.nodes,
            self.pods,
            self.services,
            self.subscribers,
            self.churn_pods_per_second,
            self.seconds,
            change.changes,
            change.deliveries,
            change.deliveries_expected,
            self.churn.bench_cores,
        )
    }
}
