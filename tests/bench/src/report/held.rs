//! What `tunnel` and `same-node` are held to. README.md has the same in words.

use super::{Report, Row};
use crate::goals::{Goal, Limit};

/// The goal of a row's ratio; the chart marks it.
pub const RATIO: &str = "ratio to direct";

/// Latencies of a stock ztunnel to those of a direct connection, p50 and p99, of wrk's load as fast as it goes, in the
/// arrangement of `tunnel`; README.md says where the figures come from.
pub const STOCK_LATENCIES: [(&str, [f64; 2]); 2] =
    [("http_c1", [3.6, 2.0]), ("http_c32", [7.0, 3.3])];

/// Anonymous memory of an agent for an idle connection, bytes.
pub const IDLE_CONNECTION: f64 = 4096.0;

/// Between two nodes: better than a stock ztunnel by a margin.
pub fn two_nodes(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    for row in &report.rows {
        let factor = match row.name {
            "throughput_1" | "throughput_8" => 1.3,
            "connections_c1" | "connections_c16" => 1.5,
            _ => 1.0,
        };
        if let Some(stock) = row.stock_ztunnel_ratio {
            let because = format!("{factor} times a stock ztunnel's {stock}");
            let limit = Limit::AtLeast(factor * stock);
            goals.push(Goal::of(
                RATIO,
                row.name,
                limit,
                &row.spread.ratio,
                &because,
            ));
        }
        let cpu = match row.name {
            "throughput_1" | "throughput_8" => Some(0.75),
            "connections_c16" => Some(0.6),
            _ => None,
        };
        if let Some((factor, stock)) = cpu.zip(row.stock_ztunnel_cpu_us_per_unit) {
            goals.push(Goal::of(
                &format!("CPU of both agents for a {}, us", row.cpu_unit),
                row.name,
                Limit::AtMost(factor * stock),
                &row.spread.agent_cpu_us_per_unit,
                &format!("{factor} of a stock ztunnel's {stock:.0}"),
            ));
        }
        goals.extend(added_latency(row));
    }
    goals.extend(idle_connections(report));
    goals
}

/// What is added to a direct connection's latency, as a share of the latter; of `http_c1` and `http_c32`, as a stock
/// ztunnel's is known.
fn added_latency(row: &Row) -> Vec<Goal> {
    let Some((_, stock)) = STOCK_LATENCIES.iter().find(|(name, _)| *name == row.name) else {
        return Vec::new();
    };
    let Some(measured) = row.latency_ratios else {
        return Vec::new();
    };
    ["p50", "p99"]
        .into_iter()
        .zip(measured.iter().zip(stock))
        .map(|(name, (measured, stock))| {
            Goal::new(
                &format!("{name} added, as a share of direct's"),
                row.name,
                Limit::AtMost(0.8 * (stock - 1.0)),
                measured - 1.0,
                &format!("0.8 of what a stock ztunnel adds, {:.1}", stock - 1.0),
            )
        })
        .collect()
}

fn idle_connections(report: &Report) -> Vec<Goal> {
    let each = &report.memory.per_1000_connections_anon_bytes_by_agent;
    each.iter()
        .zip(["client's agent", "server's agent"])
        .map(|(bytes, agent)| {
            Goal::new(
                "anonymous bytes for an idle connection",
                agent,
                Limit::AtMost(IDLE_CONNECTION),
                *bytes as f64 / 1000.0,
                "a stock ztunnel's are 5,400",
            )
        })
        .collect()
}

/// On one node: as good as no mesh.
pub fn one_node(report: &Report) -> Vec<Goal> {
    let because = "as good as a direct connection on the node";
    let mut goals = Vec::new();
    for row in &report.rows {
        let least = if row.name.starts_with("connections") {
            0.9
        } else {
            0.97
        };
        let limit = Limit::AtLeast(least);
        goals.push(Goal::of(RATIO, row.name, limit, &row.spread.ratio, because));
    }
    for rate in &report.fixed_rates {
        goals.push(Goal::of(
            "p99 to direct's",
            &format!(
                "{} requests/s over {}",
                rate.requests_per_second, rate.connections
            ),
            Limit::AtMost(1.05),
            &rate.p99_ratio_spread,
            because,
        ));
    }
    goals.extend(idle_connections(report));
    goals
}
