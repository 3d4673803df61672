//! What agents have counted, read out of their metrics.

use anyhow::{Context, Result};

use crate::{report::Connections, stage::Stage};

/// Counts of all agents since their start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    pub connections: Connections,
    /// Events of the kernel's programs about same-node connections: every reason that begins with `bypass_`.
    pub bypass_events: Vec<(String, f64)>,
}

impl Counted {
    /// As it is now. Agents work for being asked: ask before and after a measurement, not in it.
    pub fn now(stage: &Stage) -> Result<Self> {
        let mut all = Self::default();
        for node in stage.nodes() {
            all.add(&Self::read(&stage.lab.agent_metrics(node)?)?);
        }
        Ok(all)
    }

    /// Of one agent. Only the client's side of a connection counts, or each would count twice.
    fn read(metrics: &str) -> Result<Self> {
        let mut counted = Self::default();
        for line in metrics.lines() {
            let Some((name, labels, value)) = series(line)? else {
                continue;
            };
            match name {
                "istio_tcp_connections_opened_total"
                    if label(labels, "reporter") == Some("source") =>
                {
                    counted.connections.opened += value;
                    if label(labels, "connection_security_policy") == Some("same_node") {
                        counted.connections.bypassed += value;
                    }
                }
                "karst_bpf_events_total" => {
                    let reason = label(labels, "reason");
                    if let Some(reason) = reason.filter(|r| r.starts_with("bypass_")) {
                        counted.bypass_events.push((reason.to_owned(), value));
                    }
                }
                _ => {}
            }
        }
        Ok(counted)
    }

    fn add(&mut self, other: &Self) {
        self.connections.opened += other.connections.opened;
        self.connections.bypassed += other.connections.bypassed;
        for (reason, value) in &other.bypass_events {
            match self.bypass_events.iter_mut().find(|(its, _)| its == reason) {
                Some((_, sum)) => *sum += value,
                None => self.bypass_events.push((reason.clone(), *value)),
            }
        }
    }

    /// What came since.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |reason: &str| {
            let found = before.bypass_events.iter().find(|(its, _)| its == reason);
            found.map_or(0.0, |(_, value)| *value)
        };
        Self {
            connections: Connections {
                opened: self.connections.opened - before.connections.opened,
                bypassed: self.connections.bypassed - before.connections.bypassed,
            },
            bypass_events: self
                .bypass_events
                .iter()
                .map(|(reason, value)| (reason.clone(), value - earlier(reason)))
                .collect(),
        }
    }
}

/// Name, labels (between the braces) and value of a line; `None` of a line that is no series.
fn series(line: &str) -> Result<Option<(&str, &str, f64)>> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let Some((name, rest)) = line.split_once('{') else {
        return Ok(None);
    };
    let Some((labels, value)) = rest.rsplit_once("} ") else {
        return Ok(None);
    };
    // An exemplar, which has braces too, is of a histogram's series, which nobody looks at here.
    if labels.contains("} ") {
        return Ok(None);
    }
    let value = value.trim();
    let value = value
        .parse()
        .with_context(|| format!("{name}: {value:?} is no number"))?;
    Ok(Some((name, labels, value)))
}

/// A label's value, as it is written: none of the values that are asked for needs escapes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    loop {
        let (this, after) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        if this.trim_start_matches(',') == name {
            return after.get(..end);
        }
        rest = after.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# HELP istio_tcp_connections_opened x
istio_tcp_connections_opened_total{reporter=\"source\",app=\"a\\\",reporter=\\\"x\",connection_security_policy=\"mutual_tls\"} 7
istio_tcp_connections_opened_total{reporter=\"source\",connection_security_policy=\"same_node\"} 5
istio_tcp_connections_opened_total{reporter=\"destination\",connection_security_policy=\"same_node\"} 100
karst_bpf_events_total{reason=\"bypass_chosen\"} 5
karst_bpf_events_total{reason=\"redirected\"} 50
h_bucket{le=\"1\"} 5 # {trace_id=\"a\"} 0.5
plain_total 1
# EOF
";

    #[test]
    fn connections_count_once_and_by_their_way() {
        let counted = Counted::read(METRICS).unwrap();
        assert_eq!(
            counted.connections,
            Connections {
                opened: 12.0,
                bypassed: 5.0
            }
        );
        assert_eq!(counted.bypass_events, [("bypass_chosen".to_owned(), 5.0)]);
    }

    #[test]
    fn an_agent_without_a_bypass_has_bypassed_nothing() {
        let metrics = METRICS
            .replace("bypass_", "other_")
            .replace("same_node", "none");
        let counted = Counted::read(&metrics).unwrap();
        assert_eq!(counted.connections.bypassed, 0.0);
        assert!(counted.bypass_events.is_empty());
        assert!(Counted::read(&METRICS.replace("} 7", "} many")).is_err());
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let before = Counted::read(METRICS).unwrap();
        let after = Counted::read(&METRICS.replace("} 5", "} 8")).unwrap();
        let since = after.since(&before);
        assert_eq!(
            since.connections,
            Connections {
                opened: 3.0,
                bypassed: 3.0
            }
        );
        assert_eq!(since.bypass_events, [("bypass_chosen".to_owned(), 3.0)]);
        let mut two = before.clone();
        two.add(&after);
        assert_eq!(two.bypass_events, [("bypass_chosen".to_owned(), 13.0)]);
    }
}
