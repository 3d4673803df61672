//! Intent and agent: the agent itself, its pods, certificates, and what it rejects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::codes::{
    AGENT_NOT_READY, AGENT_UNREACHABLE, AUTHORITY_FAILING, CERTIFICATE_EXPIRED,
    CERTIFICATE_MISSING, CONTROLLER_UNREACHABLE, POD_DIFFERS, POD_NOT_SERVED, POD_UNWANTED,
    RESOURCE_REJECTED, WAYPOINT_ABSENT,
};
use super::layers::{Agent, Intent, Layers};
use super::report::{Found, add};

const BETWEEN: (&str, &str) = ("intent", "agent");

/// Compares.
pub fn compare(layers: &Layers, found: &mut Found) {
    if let Ok(intent) = &layers.intent {
        for (gateway, (problem, service)) in &intent.waypoints {
            let expected = format!("it takes connections for Service {service}");
            let object = format!("waypoint {gateway}");
            add(found, WAYPOINT_ABSENT, BETWEEN, object, (expected, problem));
        }
    }
    let agent = match &layers.agent {
        Ok(agent) => agent,
        Err(why) => {
            let object = format!("agent of {}", layers.node);
            return add(
                found,
                AGENT_UNREACHABLE,
                BETWEEN,
                object,
                ("an answer", why),
            );
        }
    };
    own_state(layers, agent, found);
    certificates(agent, found);
    for one in &agent.rejected {
        let object = format!("{} {}", short(text(one, "type_url")), text(one, "name"));
        add(
            found,
            RESOURCE_REJECTED,
            BETWEEN,
            object,
            ("its newest version in force", text(one, "error")),
        );
    }
    if let Ok(intent) = &layers.intent {
        pods(layers, intent, agent, found);
    }
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The last part of a type's URL.
fn short(type_url: &str) -> &str {
    type_url.rsplit(['.', '/']).next().unwrap_or(type_url)
}

fn own_state(layers: &Layers, agent: &Agent, found: &mut Found) {
    let object = format!("agent of {}", layers.node);
    let controller = agent.status.get("controller").cloned().unwrap_or_default();
    if controller.get("connected") == Some(&Value::Bool(false)) {
        let address = text(&controller, "address");
        let instead = match text(&controller, "last_reason") {
            "" => "none".to_owned(),
            reason => format!("none: {reason}"),
        };
        let expected = format!("a stream to the controller at {address}");
        add(
            found,
            CONTROLLER_UNREACHABLE,
            BETWEEN,
            &object,
            (expected, instead),
        );
    }
    let reason = text(&agent.status, "not_ready_reason");
    if !reason.is_empty() {
        add(found, AGENT_NOT_READY, BETWEEN, &object, ("ready", reason));
    }
}

fn is_enrolled(pod: &Value) -> bool {
    pod.get("enrolled") == Some(&Value::Bool(true))
}

fn certificates(agent: &Agent, found: &mut Found) {
    let by_id: BTreeMap<&str, &Value> = agent
        .certificates
        .iter()
        .map(|one| (text(one, "id"), one))
        .collect();
    for pod in agent.pods.values().filter(|pod| is_enrolled(pod)) {
        let id = text(pod, "identity");
        let object = format!("certificate {id}");
        let Some(certificate) = by_id.get(id) else {
            let instead = "the agent keeps none of this identity";
            add(
                found,
                CERTIFICATE_MISSING,
                BETWEEN,
                object,
                ("a valid certificate", instead),
            );
            continue;
        };
        let error = match text(certificate, "reason") {
            "" => String::new(),
            reason => format!(" (last error: {reason}: {})", text(certificate, "message")),
        };
        let not_after = text(certificate, "not_after");
        let ends = not_after.parse::<Timestamp>().ok().map(SystemTime::from);
        if ends.is_some_and(|ends| ends <= SystemTime::now()) {
            let instead = format!("it expired at {not_after}{error}");
            add(
                found,
                CERTIFICATE_EXPIRED,
                BETWEEN,
                object,
                ("a valid certificate", instead),
            );
        } else if text(certificate, "state") != "available" {
            let instead = format!("{}{error}", text(certificate, "state"));
            add(
                found,
                CERTIFICATE_MISSING,
                BETWEEN,
                object,
                ("a valid certificate", instead),
            );
        }
    }
    let controller = agent.status.get("controller").cloned().unwrap_or_default();
    let authority = format!("certificate authority {}", text(&controller, "address"));
    // One line for each reason: the authority's fault is the same for all identities.
    let mut reasons: BTreeMap<&str, &Value> = BTreeMap::new();
    for one in by_id.into_values() {
        // That ours expired is no answer of the authority's.
        let reason = text(one, "reason");
        if !reason.is_empty() && reason != "certificate_expired" {
            reasons.entry(reason).or_insert(one);
        }
    }
    for (reason, one) in reasons {
        let expected = format!("a new certificate for {}", text(one, "id"));
        let instead = format!("{reason}: {}", text(one, "message"));
        add(
            found,
            AUTHORITY_FAILING,
            BETWEEN,
            &authority,
            (expected, instead),
        );
    }
}

fn pods(layers: &Layers, intent: &Intent, agent: &Agent, found: &mut Found) {
    for (uid, wanted) in &intent.pods {
        let object = layers.pod(uid);
        let known = agent.pods.get(uid);
        let enrolled = known.is_some_and(is_enrolled);
        if wanted.in_mesh && !enrolled {
            let problem = known.and_then(|pod| pod.get("problem"));
            let problem = problem.filter(|problem| !problem.is_null());
            let instead = match (known, problem) {
                (None, _) => "the agent does not know its sandbox".to_owned(),
                (Some(_), None) => "not enrolled".to_owned(),
                (Some(_), Some(problem)) => format!(
                    "not enrolled: {}: {}",
                    text(problem, "reason"),
                    text(problem, "message")
                ),
            };
            add(
                found,
                POD_NOT_SERVED,
                BETWEEN,
                object,
                ("enrolled", instead),
            );
        } else if !wanted.in_mesh && enrolled {
            add(
                found,
                POD_UNWANTED,
                BETWEEN,
                object,
                ("not in the mesh", "enrolled"),
            );
        } else if let (Some(pod), true) = (known, enrolled) {
            let mut differs = |what: &str, expected: String, instead: String| {
                if expected != instead {
                    let expected = format!("{what} {expected}");
                    add(
                        found,
                        POD_DIFFERS,
                        BETWEEN,
                        layers.pod(uid),
                        (expected, instead),
                    );
                }
            };
            differs(
                "identity",
                wanted.identity.clone(),
                text(pod, "identity").to_owned(),
            );
            differs("addresses", list(&wanted.addresses), list(&addresses(pod)));
            let shown = |key: &str| pod.get(key).cloned().unwrap_or_default().to_string();
            differs(
                "waypoints",
                wanted.waypoints.to_string(),
                shown("waypoints"),
            );
            differs("egress", wanted.egress.to_string(), shown("egress"));
        }
    }
    for (uid, pod) in &agent.pods {
        if is_enrolled(pod) && !intent.pods.contains_key(uid) {
            let expected = "no such pod of this node";
            add(
                found,
                POD_UNWANTED,
                BETWEEN,
                layers.pod(uid),
                (expected, "enrolled"),
            );
        }
    }
}

/// A pod's addresses as the agent has them.
pub(super) fn addresses(pod: &Value) -> Vec<IpAddr> {
    let list = pod.get("addresses").and_then(Value::as_array);
    let list = list.into_iter().flatten().filter_map(Value::as_str);
    list.filter_map(|text| text.parse().ok()).collect()
}

/// Addresses in one order.
pub(super) fn list(addresses: &[IpAddr]) -> String {
    let mut sorted = addresses.to_vec();
    sorted.sort();
    let texts: Vec<String> = sorted.iter().map(ToString::to_string).collect();
    texts.join(" and ")
}
