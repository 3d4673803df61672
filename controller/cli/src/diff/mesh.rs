//! Intent and agent: workloads, services and policies by their content.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::codes::{Code, POLICY_DIFFERS, SERVICE_DIFFERS, WORKLOAD_DIFFERS};
use super::layers::{Layers, is_same_version};
use super::report::{Found, add};

const BETWEEN: (&str, &str) = ("intent", "agent");

/// Longest value that is shown in whole, in characters.
const SHOWN: usize = 120;

/// Compares.
pub fn compare(layers: &Layers, found: &mut Found) {
    let (Ok(intent), Ok(agent)) = (&layers.intent, &layers.agent) else {
        return;
    };
    let content = is_same_version(agent);
    let (wanted, held) = (&intent.mesh, &agent.mesh);
    for (code, word, wanted, held) in [
        (
            WORKLOAD_DIFFERS,
            "workload",
            &wanted.workloads,
            &held.workloads,
        ),
        (SERVICE_DIFFERS, "service", &wanted.services, &held.services),
        (POLICY_DIFFERS, "policy", &wanted.policies, &held.policies),
    ] {
        all(code, word, (wanted, held), content, found);
    }
}

type Items = BTreeMap<String, Value>;

fn all(
    code: &'static Code,
    word: &str,
    (wanted, held): (&Items, &Items),
    content: bool,
    found: &mut Found,
) {
    let names: BTreeSet<&String> = wanted.keys().chain(held.keys()).collect();
    for name in names {
        let object = format!("{word} {name}");
        match (wanted.get(name), held.get(name)) {
            (Some(_), None) => add(found, code, BETWEEN, object, ("known", "not known")),
            (None, Some(_)) => add(found, code, BETWEEN, object, ("not there", "known")),
            (Some(wanted), Some(held)) if content => {
                for (field, expected, instead) in differing(wanted, held) {
                    let expected = format!("{field} {expected}");
                    add(found, code, BETWEEN, &object, (expected, instead));
                }
            }
            _ => {}
        }
    }
}

/// The fields of what is wanted that are not the same in what is held. What only the agent knows (load, latency)
/// is not looked at.
pub(super) fn differing(wanted: &Value, held: &Value) -> Vec<(String, String, String)> {
    let Some(fields) = wanted.as_object() else {
        return Vec::new();
    };
    let mut differing = Vec::new();
    for (field, expected) in fields {
        let held = held.get(field).cloned().unwrap_or_default();
        let (expected, held) = (normal(field, expected), normal(field, &held));
        if expected != held {
            differing.push((field.clone(), shown(&expected), shown(&held)));
        }
    }
    differing
}

/// Without an order where there is none, and without what only agents know of endpoints.
fn normal(field: &str, value: &Value) -> Value {
    let mut value = value.clone();
    if field == "ports" {
        for port in value.as_array_mut().into_iter().flatten() {
            let endpoints = port.get_mut("endpoints").and_then(Value::as_array_mut);
            let Some(endpoints) = endpoints else { continue };
            for endpoint in endpoints.iter_mut() {
                let of = |key: &str| endpoint.get(key).cloned().unwrap_or_default();
                *endpoint = Value::Array(vec![of("workload"), of("addresses"), of("port")]);
            }
            endpoints.sort_by_key(Value::to_string);
        }
    }
    if matches!(
        field,
        "authorization_policies" | "services" | "addresses" | "vips"
    ) && let Some(list) = value.as_array_mut()
    {
        list.sort_by_key(Value::to_string);
    }
    value
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    let start: String = text.chars().take(SHOWN).collect();
    format!("{start}…")
}
