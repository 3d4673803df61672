//! The comparison for all nodes of a cluster, as `karst check` makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use super::codes::{APPLICATION_SILENT, Code, MAP_NEARLY_FULL, WAYPOINT_ABSENT};
use super::layers::{self, Intent, Layers, Reading};
use super::report::Difference;
use super::{Certain, far};
use crate::args::{Kubernetes, Objects};
use crate::check::Finding;
use crate::cluster;
use crate::failure::Failure;
use crate::inspect::remote::Node;
use crate::install::rollout;
use crate::source::{self, Input};

/// Nodes that are asked at once. For each the mesh is worked out as its agent should know it.
const AT_ONCE: usize = 4;

/// Nodes whose layers are held at once, until it is certain what differs there: of each they have what its agent knows
/// of the whole mesh.
const HELD: usize = 32;

/// Nodes that are compared: more take longer than anybody waits for a check.
const MAX_NODES: usize = 1_000;

/// Longest wait for one node, and for one that takes connections and does not answer.
const NODE_LIMIT: Duration = Duration::from_secs(30);

/// Pauses before a node that differs is read again, in all.
const SETTLE: Duration = Duration::from_secs(6);

/// Differences of a node that are named.
const SHOWN: usize = 5;

/// Not well, and not Karst's own fault.
const OF_OTHERS: [&Code; 3] = [APPLICATION_SILENT, MAP_NEARLY_FULL, WAYPOINT_ABSENT];

/// Id of the findings.
const ID: &str = "node.state";

/// Compares each node that has an agent. A node that does not answer is a finding.
pub fn all(kubernetes: &Kubernetes) -> Vec<Finding> {
    let names = cluster::run(async {
        let client = cluster::client(kubernetes).await?;
        rollout::pods(&client, rollout::AGENT).await
    });
    let names = match names {
        Ok(pods) => pods
            .into_iter()
            .filter_map(|pod| pod.spec?.node_name)
            .collect::<BTreeSet<String>>(),
        Err(failure) => return vec![Finding::unknown(ID, &failure)],
    };
    let objects = Objects {
        kubernetes: kubernetes.clone(),
        ..Objects::default()
    };
    let input = || {
        cluster::run(async {
            let client = cluster::client(kubernetes).await?;
            source::cluster(&objects, &client).await
        })
    };
    let read = |name: &str, proxies: &[String]| {
        let node = Node::new(kubernetes.clone(), name.to_owned());
        far::read(&node.within(NODE_LIMIT), proxies)
    };
    of_nodes(names, input, read, SETTLE)
}

/// The same, with what the objects are and how a node is read.
fn of_nodes(
    names: BTreeSet<String>,
    input: impl Fn() -> Result<Input, Failure>,
    read: impl Fn(&str, &[String]) -> Result<Reading, Failure> + Sync,
    settle: Duration,
) -> Vec<Finding> {
    let mut looked = Looked::default();
    if names.len() > MAX_NODES {
        let message = format!("of {} nodes only {MAX_NODES} were looked at", names.len());
        let advice = "look at the others with `karst inspect diff --node NODE`";
        looked.findings.push(Finding::warning(ID, message, advice));
    }
    let names: Vec<String> = names.into_iter().take(MAX_NODES).collect();
    for batch in names.chunks(HELD) {
        if let Err(failure) = looked.at(batch, &input, &read, settle) {
            looked.findings.push(Finding::unknown(ID, &failure));
            break;
        }
    }
    looked.findings()
}

/// What was found so far.
#[derive(Default)]
struct Looked {
    findings: Vec<Finding>,
    /// Nodes where nothing differs.
    well: usize,
    /// Nodes that we may not look at.
    forbidden: Option<(Failure, usize)>,
}

impl Looked {
    /// Looks at some nodes until it is certain what differs there.
    ///
    /// # Errors
    /// The objects cannot be read.
    fn at(
        &mut self,
        names: &[String],
        input: &impl Fn() -> Result<Input, Failure>,
        read: &(impl Fn(&str, &[String]) -> Result<Reading, Failure> + Sync),
        settle: Duration,
    ) -> Result<(), Failure> {
        let certain = |name: &String| (name.clone(), Certain::default());
        let mut pending: BTreeMap<String, Certain> = names.iter().map(certain).collect();
        while !pending.is_empty() {
            let input = input()?;
            let mut pause = Duration::ZERO;
            for (name, layers) in round(pending.keys(), &input, read) {
                let Some(mut certain) = pending.remove(&name) else {
                    continue;
                };
                match layers.map(|layers| certain.add(layers)) {
                    Ok(Some(report)) => self.add(&name, &report.differences),
                    Ok(None) => {
                        pause = certain.pause(settle);
                        pending.insert(name, certain);
                    }
                    Err(failure) => self.unread(&name, failure),
                }
            }
            if !pending.is_empty() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, differences: &[Difference]) {
        if differences.is_empty() {
            self.well += 1;
        } else {
            self.findings.push(differing(name, differences));
        }
    }

    fn unread(&mut self, name: &str, failure: Failure) {
        if failure.reason == "forbidden" {
            let count = self.forbidden.take().map_or(0, |(_, count)| count);
            self.forbidden = Some((failure, count + 1));
        } else {
            self.findings.push(silent(name, &failure));
        }
    }

    fn findings(self) -> Vec<Finding> {
        let mut findings = self.findings;
        if let Some((failure, count)) = self.forbidden {
            let message = format!("{count} nodes could not be looked at: {}", failure.message);
            let advice = "run the check as a user who may create pods/exec in karst-system, or leave it out with --no-nodes";
            findings.push(Finding::warning(ID, message, advice));
        }
        if self.well > 0 {
            let message = format!(
                "on {} nodes objects, agent, kernel and sockets say the same of the mesh",
                self.well
            );
            findings.insert(0, Finding::ok(ID, message));
        }
        findings
    }
}

/// The layers of some nodes.
fn round<'a>(
    names: impl Iterator<Item = &'a String> + Send,
    input: &Input,
    read: &(impl Fn(&str, &[String]) -> Result<Reading, Failure> + Sync),
) -> Vec<(String, Result<Layers, Failure>)> {
    let names = Mutex::new(names);
    let next = || names.lock().ok().and_then(|mut names| names.next());
    let one = |name: &str| {
        let intent = layers::wanted(input, name, "the cluster");
        let proxies = intent.as_ref().map(Intent::proxy_pods).unwrap_or_default();
        let reading = read(name, &proxies)?;
        Ok(Layers::new(name, intent, reading))
    };
    let work = || {
        let mut done = Vec::new();
        while let Some(name) = next() {
            done.push((name.clone(), one(name)));
        }
        done
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().filter_map(|worker| worker.join().ok());
        done.flatten().collect()
    })
}

fn differing(name: &str, differences: &[Difference]) -> Finding {
    let shown = differences.iter().take(SHOWN).map(|one| {
        format!(
            "\n{} {} {}: expected {}; found {}",
            one.code.id, one.code.name, one.object.text, one.expected, one.found
        )
    });
    let mut message = format!("node {name}: {} differences", differences.len());
    message.extend(shown);
    if differences.len() > SHOWN {
        message.push_str("\n...");
    }
    let advice = format!("karst inspect diff --node {name}");
    let of_others = |one: &Difference| OF_OTHERS.contains(&one.code);
    if differences.iter().all(of_others) {
        return Finding::warning(ID, message, advice);
    }
    Finding::failed(ID, message, advice)
}

fn silent(name: &str, failure: &Failure) -> Finding {
    let message = format!("node {name} could not be looked at: {}", failure.message);
    if failure.reason == "version_differs" {
        let advice = "upgrade Karst, or use the command of the version that is installed";
        return Finding::warning(ID, message, advice);
    }
    let advice = "see the node, and the pod of its agent in karst-system";
    Finding::failed(ID, message, advice)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use karst_core::MeshConfig;
    use serde_json::{Value, json};

    use super::*;
    use crate::check::Level;

    fn nothing() -> Result<Input, Failure> {
        Ok(Input {
            documents: Vec::new(),
            config: MeshConfig::default(),
        })
    }

    /// A node without pods and with an agent that is in this state.
    fn reading(not_ready_reason: &Value) -> Reading {
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"), "not_ready_reason": not_ready_reason,
            "controller": {"address": "c:1", "connected": true, "last_reason": null},
        });
        let mesh = json!({"workloads": {}, "services": {}, "policies": {}});
        let agent = json!({
            "status": status, "pods": {}, "mesh": mesh, "certificates": [], "rejected": [], "datapath": null,
        });
        let links: Vec<Value> = karst_datapath::inspect::node_links()
            .iter()
            .map(|(name, hook)| {
                json!({
                    "name": name, "id": 1, "type": "cgroup", "attach_type": hook, "prog_id": 2, "cgroup_id": 70,
                    "netns_ino": null, "pinned": "/x",
                })
            })
            .collect();
        let kernel = json!({"links": links, "maps": [], "pods": [], "addresses": {}, "config": {}});
        serde_json::from_value(json!({
            "version": env!("CARGO_PKG_VERSION"), "agent": {"Ok": agent}, "kernel": {"Ok": kernel}, "sockets": {},
            "proxies": [],
        }))
        .expect("a reading")
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn nodes_are_compared_and_one_that_does_not_answer_is_a_finding() {
        let read = |name: &str, _: &[String]| match name {
            "bad" => Ok(reading(&json!("state_not_ready"))),
            "dead" => Err(Failure::failed("exec_timeout", "it did not end")),
            "old" => Err(Failure::failed("version_differs", "it is old")),
            _ => Ok(reading(&Value::Null)),
        };
        let all = names(&["a", "b", "c", "d", "e", "bad", "dead", "old"]);
        let findings = of_nodes(all, nothing, read, Duration::ZERO);
        let said: BTreeSet<(Level, String)> = findings
            .iter()
            .map(|one| (one.level, one.message.clone()))
            .collect();
        let expected = [
            (
                Level::Ok,
                "on 5 nodes objects, agent, kernel and sockets say the same of the mesh",
            ),
            (Level::Warning, "node old could not be looked at: it is old"),
            (
                Level::Failed,
                "node bad: 1 differences\nKARST1002 AgentNotReady agent of bad: expected ready; found state_not_ready",
            ),
            (
                Level::Failed,
                "node dead could not be looked at: it did not end",
            ),
        ];
        let expected = expected.map(|(level, text)| (level, text.to_owned()));
        assert_eq!(said, BTreeSet::from(expected));
    }

    #[test]
    fn more_nodes_than_are_held_at_once_are_all_looked_at() {
        let all: BTreeSet<String> = (0..3 * HELD + 1).map(|node| format!("n{node}")).collect();
        let (reading_now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let objects = || {
            most.fetch_max(reading_now.swap(0, Ordering::SeqCst), Ordering::SeqCst);
            nothing()
        };
        let read = |name: &str, _: &[String]| {
            reading_now.fetch_add(1, Ordering::SeqCst);
            match name {
                "n7" | "n96" => Ok(reading(&json!("state_not_ready"))),
                _ => Ok(reading(&Value::Null)),
            }
        };
        let findings = of_nodes(all, objects, read, Duration::ZERO);
        let well = format!("on {} nodes", 3 * HELD - 1);
        assert!(findings[0].message.starts_with(&well), "{findings:?}");
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert_eq!(most.into_inner(), HELD);
    }

    #[test]
    fn what_passes_is_no_finding_and_what_may_not_be_read_is_said_once() {
        let readings = AtomicUsize::new(0);
        let read = |_: &str, _: &[String]| match readings.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(reading(&json!("state_not_ready"))),
            _ => Ok(reading(&Value::Null)),
        };
        let findings = of_nodes(names(&["a"]), nothing, read, Duration::ZERO);
        assert_eq!(readings.load(Ordering::SeqCst), 2);
        assert!(
            matches!(&findings[..], [one] if one.level == Level::Ok),
            "{findings:?}"
        );

        let read = |_: &str, _: &[String]| Err(Failure::failed("forbidden", "you may not"));
        let findings = of_nodes(names(&["a", "b"]), nothing, read, Duration::ZERO);
        assert!(
            matches!(&findings[..], [one] if one.level == Level::Warning && one.message.starts_with("2 nodes")),
            "{findings:?}"
        );
        let none = || Err(Failure::failed("forbidden", "you may not list"));
        let read = |_: &str, _: &[String]| Ok(reading(&Value::Null));
        let findings = of_nodes(names(&["a", "b"]), none, read, Duration::ZERO);
        assert!(
            matches!(&findings[..], [one] if one.level == Level::Warning),
            "{findings:?}"
        );
    }
}
