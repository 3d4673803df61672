//! Clients that connect in plain text, by what node agents count.

use std::collections::{BTreeMap, BTreeSet};

use karst_core::{Kind, ObjectKey};
use kube::Client;

use super::codes;
use super::context::Context;
use super::finding::Finding;
use crate::cluster::{SYSTEM_NAMESPACE, scrape};
use crate::explain::World;
use crate::failure::Failure;
use crate::install::rollout;

/// Where an agent tells its metrics.
const METRICS_PORT: u16 = 15_020;

/// Connections that came about, and that did not.
const COUNTED: [&str; 2] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_failed_total",
];

/// Clients that are named.
const MAX_CLIENTS: usize = 5;

/// Longest line of metrics that is read, bytes.
const MAX_LINE: usize = 16 * 1024;

/// What agents count, or why that is not known of some.
#[derive(Default)]
pub struct Metrics {
    /// As scraped.
    pub scrapes: Vec<String>,
    /// Pods of agents that do not say, with the reasons.
    pub unread: Vec<(String, String)>,
}

/// Asks all agents of a cluster, through the API server.
///
/// # Errors
/// The agents cannot be listed.
pub async fn of_cluster(client: &Client) -> Result<Metrics, Failure> {
    let mut metrics = Metrics::default();
    for (pod, told) in scrape::metrics(client, rollout::AGENT, METRICS_PORT).await? {
        match told {
            Ok(text) => metrics.scrapes.push(text),
            Err(why) => metrics.unread.push((pod, why)),
        }
    }
    Ok(metrics)
}

/// A workload that took, or refused, connections in plain text.
#[derive(Default)]
struct Seen {
    connections: f64,
    clients: BTreeSet<String>,
}

/// Looks at what was counted.
pub fn all(context: &Context<'_>, world: &World, metrics: &Metrics, findings: &mut Vec<Finding>) {
    for (pod, why) in &metrics.unread {
        let key = ObjectKey {
            kind: Kind::Pod,
            namespace: SYSTEM_NAMESPACE.to_owned(),
            name: pod.clone(),
        };
        let advice = "where the API server does not reach pods, scrape port 15020 and give it with --metrics";
        findings.push(Finding::on(
            &key,
            &codes::METRICS_UNREAD,
            "",
            format!("its metrics could not be read: {why}"),
            advice,
        ));
    }
    let mut seen: BTreeMap<(String, String), Seen> = BTreeMap::new();
    for line in metrics.scrapes.iter().flat_map(|text| text.lines()) {
        note(line, &mut seen);
    }
    let workloads = world.state.all_workloads();
    let mut pods: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for pod in &workloads {
        let of = pods
            .entry((&pod.namespace, &pod.workload_name))
            .or_default();
        of.push(&pod.name);
    }
    for ((namespace, workload), seen) in &seen {
        // What is gone since needs no word.
        let Some(pods) = pods.get(&(namespace.as_str(), workload.as_str())) else {
            continue;
        };
        findings.push(finding(context, (namespace, workload), pods, seen));
    }
}

fn note(line: &str, all: &mut BTreeMap<(String, String), Seen>) {
    let Some((series, value)) = line.rsplit_once(' ').filter(|_| line.len() <= MAX_LINE) else {
        return;
    };
    let Some((name, labels)) = series
        .trim()
        .strip_suffix('}')
        .and_then(|series| series.split_once('{'))
    else {
        return;
    };
    let Ok(value) = value.parse::<f64>() else {
        return;
    };
    if !COUNTED.contains(&name) || value <= 0.0 || !value.is_finite() {
        return;
    }
    let labels = labels_of(labels);
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    // Of one connection both ends tell; the destination's agent knows what came in plain text. What went past it,
    // between two pods of its node, had an identity that the kernel knows.
    let proven = ["mutual_tls", "same_node"].contains(&label("connection_security_policy"));
    if label("reporter") != "destination" || proven {
        return;
    }
    let place = (
        label("destination_workload_namespace").to_owned(),
        label("destination_workload").to_owned(),
    );
    let seen = all.entry(place).or_default();
    seen.connections += value;
    let (client, namespace) = (label("source_workload"), label("source_workload_namespace"));
    seen.clients.insert(match client {
        "" | "unknown" => "clients that the mesh does not know".to_owned(),
        _ => format!("{namespace}/{client}"),
    });
}

/// `a="b",c="d"`, with the escapes of the text format.
fn labels_of(text: &str) -> BTreeMap<&str, String> {
    let (mut labels, mut rest) = (BTreeMap::new(), text);
    while let Some((name, after)) = rest.split_once("=\"") {
        let (mut value, mut end) = (String::new(), None);
        let mut chars = after.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                '\\' => value.extend(chars.next().map(|(_, c)| if c == 'n' { '\n' } else { c })),
                c => value.push(c),
            }
        }
        labels.insert(name.trim_start_matches(',').trim(), value);
        let Some(end) = end else { break };
        rest = after.get(end..).unwrap_or_default();
    }
    labels
}

fn finding(
    context: &Context<'_>,
    (namespace, name): (&str, &str),
    pods: &[&str],
    seen: &Seen,
) -> Finding {
    let strict = |pod: &&str| {
        let mode = context.index().peer_mode(namespace, pod, 0);
        mode.is_some_and(|mode| mode.strict)
    };
    let is_strict = pods.iter().any(strict);
    let key = ObjectKey {
        kind: Kind::Pod,
        namespace: namespace.to_owned(),
        name: pods.first().copied().unwrap_or_default().to_owned(),
    };
    let mut clients = seen
        .clients
        .iter()
        .take(MAX_CLIENTS)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if seen.clients.len() > MAX_CLIENTS {
        clients.push_str(&format!(" and {} more", seen.clients.len() - MAX_CLIENTS));
    }
    let count = seen.connections;
    let workload = format!("workload {namespace}/{name}");
    if is_strict {
        let message = format!(
            "{workload} has mode STRICT, and {count} connections in plain text were seen, from {clients}"
        );
        let advice = "put the clients into the mesh, or except the port by portLevelMtls";
        Finding::on(&key, &codes::STRICT_PLAINTEXT, "", message, advice)
    } else {
        let message = format!("{workload} took {count} connections in plain text, from {clients}");
        let advice = "with mode STRICT they would be refused: put the clients into the mesh first";
        Finding::on(&key, &codes::PERMISSIVE_PLAINTEXT, "", message, advice)
    }
}
