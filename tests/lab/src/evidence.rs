//! What an agent says of itself: access log, metrics, memory, files, maps.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, until};
use serde_json::Value;

/// A refused connection's record and metric may take a moment.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// The access log of a node's agent, one object a connection.
pub fn access_records(lab: &Lab, node: &str) -> Result<Vec<Value>> {
    let log = lab.agent_log(node)?;
    let records = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(records
        .filter(|record| record["target"] == "access")
        .collect())
}

/// How often a node's agent refused, by reason and direction (`inbound`, `outbound`).
pub fn refusals(lab: &Lab, node: &str) -> Result<BTreeMap<(String, String), u64>> {
    let mut found = BTreeMap::new();
    for line in lab.agent_metrics(node)?.lines() {
        let Some(rest) = line.strip_prefix("karst_refusals_total{") else {
            continue;
        };
        let (labels, value) = rest.split_once("} ").context("a metric without value")?;
        let label = |name: &str| {
            let value = labels
                .split(',')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"').to_owned()
        };
        let count = value.split(' ').next().unwrap_or_default().parse::<f64>()?;
        found.insert((label("reason"), label("direction")), count as u64);
    }
    Ok(found)
}

/// Counts what an agent refuses from its making on.
pub struct Refusal<'a> {
    lab: &'a Lab,
    node: String,
    records: usize,
    counts: BTreeMap<(String, String), u64>,
}

impl<'a> Refusal<'a> {
    /// Starts to watch a node's agent.
    pub fn watch(lab: &'a Lab, node: &str) -> Result<Self> {
        Ok(Self {
            lab,
            node: node.to_owned(),
            records: access_records(lab, node)?.len(),
            counts: refusals(lab, node)?,
        })
    }

    /// Waits until a refusal with this reason stands in the log and in the metric, and gives
    /// the log's record.
    pub fn expect(&self, reason: &str, direction: &str) -> Result<Value> {
        let key = (reason.to_owned(), direction.to_owned());
        let before = self.counts.get(&key).copied().unwrap_or(0);
        until(&format!("refusal {reason}"), SHOWN_WITHIN, || {
            let records = access_records(self.lab, &self.node)?;
            let new = records.get(self.records..).unwrap_or_default();
            let record = new
                .iter()
                .find(|r| r["reason"] == reason && r["direction"] == direction);
            let seen: Vec<String> = new
                .iter()
                .map(|r| format!("{}/{}: {}", r["direction"], r["reason"], r["error"]))
                .collect();
            let record = record.with_context(|| format!("no access record; there are {seen:?}"))?;
            let counts = refusals(self.lab, &self.node)?;
            let now = counts.get(&key).copied().unwrap_or(0);
            ensure!(
                now > before,
                "karst_refusals is {now}, it was {before}; all: {counts:?}"
            );
            Ok(record.clone())
        })
    }
}

/// [`Refusal::watch`], `attempt`, [`Refusal::expect`].
pub fn wait_refused(
    lab: &Lab,
    node: &str,
    direction: &str,
    reason: &str,
    attempt: impl FnOnce() -> Result<()>,
) -> Result<Value> {
    let refusal = Refusal::watch(lab, node)?;
    attempt()?;
    refusal.expect(reason, direction)
}

/// What an agent holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Open files.
    pub files: usize,
    /// Anonymous memory in bytes: what the agent itself allocated.
    pub memory: u64,
    /// Entries of the node's pinned maps, by name, of those that can be counted.
    pub map_entries: BTreeMap<String, u64>,
}

/// Measures a node's agent.
pub fn footprint(lab: &Lab, node: &str) -> Result<Footprint> {
    let pid = lab.agent_pid(node)?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let anonymous = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes: u64 = anonymous
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .context("no Anonymous in smaps_rollup")?
        .trim()
        .parse()?;
    let output = lab.inspect(node, &["map", "show", "-j"])?;
    ensure!(
        output.status.success(),
        "karst inspect map show: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let maps: Value = serde_json::from_slice(&output.stdout)?;
    let maps = maps
        .as_array()
        .context("karst inspect map show -j gives no list")?;
    let map_entries = maps
        .iter()
        .filter_map(|map| Some((map["name"].as_str()?.to_owned(), map["entries"].as_u64()?)))
        .collect();
    Ok(Footprint {
        files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        memory: 1024 * kilobytes,
        map_entries,
    })
}
