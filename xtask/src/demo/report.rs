//! What the demo found out, for people and for programs.

use std::{collections::BTreeMap, fmt::Display};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::flows::Flow;
use crate::workspace::say;

/// Everything measured. `serde` makes the JSON of `--json` out of it.
#[derive(Default, Serialize)]
pub struct Report {
    /// Pods that the kernel captures after the label.
    pub enrolled_pods: usize,
    /// The first connections of each kind that crossed the mesh, as both agents logged them.
    pub flows: Vec<Flow>,
    /// What was on the wire between the nodes.
    pub wire: Wire,
    /// Packet filter rules in all namespaces, after less before.
    pub netfilter_rules_added: usize,
    /// Requests while the client's agent was dead.
    pub agent_down: AgentDown,
    /// What the applications notice.
    pub app_sees: AppSees,
    /// The namespace without the label, while the other was meshed.
    pub unenrolled: Unenrolled,
    /// A connection made before the label, used after it.
    pub established_connection_survives: bool,
    /// How much `karst inspect` shows on the client's node.
    pub inspect: BTreeMap<String, usize>,
    /// What is left of the lab when it is gone; empty when it was kept on purpose.
    pub left_behind: Vec<String>,
    /// How long things took, in milliseconds.
    pub timings_ms: BTreeMap<String, u128>,
    /// Every expectation, and whether it was met.
    pub checks: Vec<Check>,
    /// What the story is at.
    #[serde(skip)]
    act: String,
}

/// Packets between the nodes, and bytes of the applications' secrets in them.
#[derive(Default, Serialize)]
pub struct Wire {
    /// After the label, while the same requests were made again.
    pub packets: usize,
    /// After the label, of what enrolled pods said to each other. The aim of it all: 0.
    pub plaintext_bytes_seen: usize,
    /// Before the label: shows that the capture finds secrets that are there.
    pub packets_before: usize,
    /// Before the label.
    pub plaintext_bytes_seen_before: usize,
}

/// Whether new connections can be made.
#[derive(Default, Serialize)]
pub struct AgentDown {
    /// By an enrolled pod.
    pub enrolled_connect: String,
    /// By a pod that is not enrolled, on the same node.
    pub unenrolled_connect: String,
    /// Bytes of the enrolled pod's secret on the wire meanwhile.
    pub plaintext_bytes_seen: usize,
}

/// Addresses as the applications see them over the mesh.
#[derive(Default, Serialize)]
pub struct AppSees {
    /// nginx and redis saw the client pod's own address.
    pub client_ip_preserved: bool,
    /// curl's socket says that it is connected to the address it asked for.
    pub destination_preserved: bool,
    /// The client's address in nginx's words.
    pub client_ip: String,
}

/// The namespace without the label.
#[derive(Default, Serialize)]
pub struct Unenrolled {
    /// Its request.
    pub connect: String,
    /// From it into the mesh.
    pub connect_to_enrolled: String,
    /// From the mesh to it.
    pub connect_from_enrolled: String,
    /// How many of its pods are captured.
    pub enrolled_pods: usize,
}

/// One expectation.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Check {
    /// When it was looked at.
    pub act: String,
    /// What was looked at.
    pub what: String,
    /// What it was.
    pub found: String,
    /// Whether that is right.
    pub ok: bool,
}

impl Report {
    /// Begins a part of the story.
    pub fn begin(&mut self, act: &str) {
        say(act);
        act.clone_into(&mut self.act);
    }

    /// Records that `found` should be `expected`.
    pub fn expect<T: PartialEq + Display>(&mut self, what: &str, found: &T, expected: &T) {
        let ok = found == expected;
        let found = if ok {
            found.to_string()
        } else {
            format!("{found}, not {expected}")
        };
        self.note(what, found, ok);
    }

    /// Records that something should hold; `found` says what was seen.
    pub fn expect_that(&mut self, what: &str, found: impl Display, ok: impl FnOnce() -> bool) {
        self.note(what, found.to_string(), ok());
    }

    fn note(&mut self, what: &str, found: String, ok: bool) {
        eprintln!("    {} {what}: {found}", if ok { "ok  " } else { "FAIL" });
        self.checks.push(Check {
            act: self.act.clone(),
            what: what.to_owned(),
            found,
            ok,
        });
    }

    /// The expectations that were not met.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.ok)
    }

    /// The report for people.
    pub fn tables(&self) -> String {
        let mut connections = table(["connection", "client is", "server is", "protected by"]);
        for flow in &self.flows {
            connections.add_row([
                format!(
                    "{} → {}\n{} → {}",
                    flow.src, flow.dst, flow.node_src, flow.node_dst
                ),
                flow.src_identity.clone(),
                flow.dst_identity.clone(),
                format!(
                    "{} {}\n{}",
                    flow.tls_version, flow.cipher, flow.key_exchange
                ),
            ]);
        }
        let mut checks = table(["", "", "found"]);
        let mut act = "";
        for check in &self.checks {
            if check.act != act {
                act = &check.act;
                checks.add_row(["", act, ""]);
            }
            let what = format!("  {}", check.what);
            checks.add_row([if check.ok { "✓" } else { "✗" }, &what, &check.found]);
        }
        format!("{connections}\n{checks}")
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expectation_that_is_not_met_is_a_failure() {
        let mut report = Report::default();
        report.expect("rules", &0, &0);
        report.expect("bytes", &7, &0);
        report.expect_that("packets", 0, || false);
        let failed: Vec<_> = report.failed().map(|check| check.what.as_str()).collect();
        assert_eq!(failed, ["bytes", "packets"]);
        assert!(report.tables().contains("7, not 0"));
    }

    #[test]
    fn the_json_has_the_promised_names() {
        let json = serde_json::to_value(Report::default()).unwrap();
        for path in [
            "/enrolled_pods",
            "/flows",
            "/wire/packets",
            "/wire/plaintext_bytes_seen",
            "/netfilter_rules_added",
            "/agent_down/enrolled_connect",
            "/agent_down/unenrolled_connect",
            "/app_sees/client_ip_preserved",
        ] {
            assert!(json.pointer(path).is_some(), "{path}");
        }
    }
}
