//! What to write so that a status says what it should, and keeps what others say in it.

use karst_core::{Condition, ObjectStatus, ProxyClass, StatusContent};
use serde_json::{Map, Value, json};

/// Entries of `status.parents`, by the schema of the Gateway API.
const MAX_PARENTS: usize = 32;

/// Entries of `status.ancestors`, likewise.
const MAX_ANCESTORS: usize = 16;

/// Longest message, in characters; the schema's limit is in bytes of up to four for each.
const MAX_MESSAGE_CHARS: usize = 8_000;

/// The merge patch (RFC 7396) that brings `former` to what is wanted; `None` if there is nothing to change.
/// Conditions that begin to hold, or cease to, do so at `now` (RFC 3339).
pub fn patch(former: &Value, wanted: &ObjectStatus, now: &str) -> Option<Value> {
    let patch = match &wanted.content {
        StatusContent::Object { conditions, fields } => {
            let mut patch = match fields {
                Value::Object(fields) => fields.clone(),
                _ => Map::new(),
            };
            patch.insert("conditions".to_owned(), listed(conditions));
            let mut patch = Value::Object(patch);
            complete(&mut patch, former, wanted.generation, now);
            patch
        }
        StatusContent::Conditions(conditions) => {
            let mut ours = json!({"conditions": listed(conditions)});
            complete(&mut ours, former, wanted.generation, now);
            let there = former["conditions"].as_array().into_iter().flatten();
            let others = there.filter(|condition| !is_our_type(condition)).cloned();
            let ours = ours["conditions"].as_array().into_iter().flatten().cloned();
            json!({"conditions": others.chain(ours).collect::<Vec<_>>()})
        }
        StatusContent::Parents(parents) => {
            let ours = parents.iter().map(|parent| {
                json!({
                    "parentRef": parent.parent_ref,
                    "controllerName": parent.controller,
                    "conditions": listed(&parent.conditions),
                })
            });
            let entries = entries(former, "parents", ours.collect());
            json!({"parents": dated(entries, former, "parents", "parentRef", MAX_PARENTS, wanted, now)})
        }
        StatusContent::Ancestors(ancestors) => {
            let ours = ancestors.iter().map(|ancestor| {
                json!({
                    "ancestorRef": ancestor.ancestor_ref,
                    "controllerName": ancestor.controller,
                    "conditions": listed(&ancestor.conditions),
                })
            });
            let entries = entries(former, "ancestors", ours.collect());
            json!({"ancestors":
                dated(entries, former, "ancestors", "ancestorRef", MAX_ANCESTORS, wanted, now)})
        }
    };
    // An object without a status needs none to say nothing.
    if former.is_null() && is_empty(&patch) {
        return None;
    }
    let mut after = former.clone();
    apply(&mut after, &patch);
    (after != *former).then_some(patch)
}

fn is_empty(patch: &Value) -> bool {
    let lists = patch.as_object().into_iter().flat_map(Map::values);
    lists.into_iter().all(|list| list == &json!([]))
}

fn is_ours(entry: &Value) -> bool {
    [ProxyClass::Waypoint, ProxyClass::Gateway]
        .iter()
        .any(|class| entry["controllerName"] == class.controller())
}

/// Whether a condition of a security policy is one that we write; others are of Istio itself.
fn is_our_type(condition: &Value) -> bool {
    let kind = condition["type"].as_str().unwrap_or_default();
    kind == "Accepted" || kind.starts_with("karst.dev/")
}

/// Entries of others in their order, then ours; each with whether it is ours.
fn entries(former: &Value, list: &str, ours: Vec<Value>) -> Vec<(Value, bool)> {
    let there = former[list].as_array().into_iter().flatten();
    let others = there.filter(|entry| !is_ours(entry)).cloned();
    others
        .map(|entry| (entry, false))
        .chain(ours.into_iter().map(|entry| (entry, true)))
        .collect()
}

/// The entries with generations and times, no more than the schema allows.
fn dated(
    entries: Vec<(Value, bool)>,
    former: &Value,
    list: &str,
    reference: &str,
    limit: usize,
    wanted: &ObjectStatus,
    now: &str,
) -> Vec<Value> {
    let before = |entry: &Value| {
        let there = former[list].as_array().into_iter().flatten();
        let same = |key: &str, other: &Value| entry[key] == other[key];
        there
            .into_iter()
            .find(|other| same(reference, other) && same("controllerName", other))
            .cloned()
            .unwrap_or_default()
    };
    let dated = entries.into_iter().take(limit).map(|(mut entry, is_ours)| {
        if is_ours {
            let before = before(&entry);
            complete(&mut entry, &before, wanted.generation, now);
        }
        entry
    });
    dated.collect()
}

fn listed(conditions: &[Condition]) -> Value {
    let conditions = conditions.iter().map(|condition| {
        let message: String = condition.message.chars().take(MAX_MESSAGE_CHARS).collect();
        json!({
            "type": condition.kind,
            "status": condition.status.as_str(),
            "reason": condition.reason,
            "message": message,
        })
    });
    Value::Array(conditions.collect())
}

/// Gives every condition in `value`, however deep, a generation and a time: that of the same condition in
/// `former` if its status is the same. Entries of lists are the same if they have the same name.
fn complete(value: &mut Value, former: &Value, generation: i64, now: &str) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("conditions", Value::Array(conditions)) => {
                        for condition in conditions {
                            date(condition, &former[key.as_str()], generation, now);
                        }
                    }
                    (key, value) => complete(value, &former[key], generation, now),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                let name = &item["name"];
                let there = former.as_array().into_iter().flatten();
                let same = there
                    .into_iter()
                    .find(|other| !name.is_null() && other["name"] == *name);
                let same = same.cloned().unwrap_or_default();
                complete(item, &same, generation, now);
            }
        }
        _ => {}
    }
}

fn date(condition: &mut Value, former: &Value, generation: i64, now: &str) {
    let there = former.as_array().into_iter().flatten();
    let same = there
        .into_iter()
        .find(|other| other["type"] == condition["type"] && other["status"] == condition["status"]);
    let since = same.and_then(|other| other["lastTransitionTime"].as_str());
    let since = Value::from(since.unwrap_or(now));
    if let Value::Object(fields) = condition {
        fields.insert("lastTransitionTime".to_owned(), since);
        if generation > 0 {
            let observed = fields.entry("observedGeneration");
            observed.or_insert_with(|| Value::from(generation));
        }
    }
}

/// Applies a merge patch, as the API server does.
fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Value::Object(fields) = target {
        for (key, value) in patch {
            if value.is_null() {
                fields.remove(key);
            } else {
                apply(fields.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_core::{AncestorStatus, ParentStatus};

    const NOW: &str = "2026-11-22T09:00:00Z";
    const BEFORE: &str = "2026-11-22T08:00:00Z";

    fn object(conditions: Vec<Condition>, fields: Value) -> ObjectStatus {
        ObjectStatus {
            generation: 3,
            content: StatusContent::Object { conditions, fields },
        }
    }

    fn condition(kind: &str, status: &str, since: &str) -> Value {
        json!({"type": kind, "status": status, "reason": "R", "message": "m",
               "observedGeneration": 3, "lastTransitionTime": since})
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_is_the_same() {
        let wanted = object(
            vec![
                Condition::yes("Accepted", "R", "m"),
                Condition::no("Programmed", "R", "m"),
            ],
            Value::Null,
        );
        let former = json!({
            "conditions": [condition("Accepted", "True", BEFORE), condition("Programmed", "Unknown", BEFORE)],
        });
        let patch = patch(&former, &wanted, NOW).unwrap();
        assert_eq!(
            patch,
            json!({"conditions": [condition("Accepted", "True", BEFORE), condition("Programmed", "False", NOW)]})
        );
    }

    #[test]
    fn what_says_what_it_should_is_not_written() {
        let wanted = object(
            vec![Condition::yes("Accepted", "R", "m")],
            json!({"addresses": []}),
        );
        let former = json!({
            "conditions": [condition("Accepted", "True", BEFORE)],
            "addresses": [], "others": {"field": 1},
        });
        assert_eq!(patch(&former, &wanted, NOW), None);
        let newer = ObjectStatus {
            generation: 4,
            ..wanted
        };
        let patch = patch(&former, &newer, NOW).unwrap();
        assert_eq!(patch["conditions"][0]["observedGeneration"], 4);
        assert_eq!(patch["conditions"][0]["lastTransitionTime"], BEFORE);
    }

    #[test]
    fn listeners_have_conditions_with_times_of_their_own() {
        let listener = |name: &str, status: &str| {
            json!({"name": name, "attachedRoutes": 1, "conditions": [
                {"type": "Accepted", "status": status, "reason": "R", "message": "m"}]})
        };
        let former = json!({"listeners": [
            {"name": "b", "conditions": [condition("Accepted", "True", BEFORE)]},
            {"name": "a", "conditions": [condition("Accepted", "False", BEFORE)]},
        ]});
        let fields = json!({"listeners": [listener("a", "True"), listener("b", "True")]});
        let patch = patch(&former, &object(Vec::new(), fields), NOW).unwrap();
        let since =
            |at: usize| patch["listeners"][at]["conditions"][0]["lastTransitionTime"].clone();
        assert_eq!((since(0), since(1)), (json!(NOW), json!(BEFORE)));
        assert_eq!(
            patch["listeners"][0]["conditions"][0]["observedGeneration"],
            3
        );
    }

    #[test]
    fn a_field_that_is_null_goes() {
        let former = json!({"conditions": [], "addresses": [{"value": "10.0.0.1"}]});
        let wanted = object(Vec::new(), json!({"addresses": null}));
        let patch = patch(&former, &wanted, NOW).unwrap();
        let mut after = former;
        apply(&mut after, &patch);
        assert_eq!(after, json!({"conditions": []}));
    }

    #[test]
    fn conditions_of_others_stay_beside_those_of_a_security_policy() {
        let wanted = |conditions| ObjectStatus {
            generation: 3,
            content: StatusContent::Conditions(conditions),
        };
        let former = json!({"conditions": [
            condition("ZtunnelAccepted", "True", BEFORE), condition("Accepted", "True", BEFORE),
            condition("karst.dev/FullyEnforced", "False", BEFORE),
        ]});
        let whole = wanted(vec![Condition::yes("Accepted", "R", "m")]);
        assert_eq!(
            patch(&former, &whole, NOW).unwrap(),
            json!({"conditions": [
                condition("ZtunnelAccepted", "True", BEFORE), condition("Accepted", "True", BEFORE),
            ]})
        );
        let nothing = wanted(Vec::new());
        assert_eq!(
            patch(&former, &nothing, NOW).unwrap(),
            json!({"conditions": [condition("ZtunnelAccepted", "True", BEFORE)]})
        );
        assert_eq!(patch(&Value::Null, &nothing, NOW), None);
    }

    fn parents(names: &[&str]) -> ObjectStatus {
        let parent = |name: &&str| ParentStatus {
            parent_ref: json!({"name": name}),
            controller: ProxyClass::Waypoint.controller(),
            conditions: vec![Condition::yes("Accepted", "R", "m")],
        };
        ObjectStatus {
            generation: 3,
            content: StatusContent::Parents(names.iter().map(parent).collect()),
        }
    }

    fn entry(name: &str, controller: &str, since: &str) -> Value {
        json!({"parentRef": {"name": name}, "controllerName": controller,
               "conditions": [condition("Accepted", "True", since)]})
    }

    #[test]
    fn other_controllers_parents_are_left_alone() {
        let ours = ProxyClass::Waypoint.controller();
        let former = json!({"parents": [
            entry("gone", ours, BEFORE), entry("a", "example.org/other", BEFORE), entry("a", ours, BEFORE),
        ]});
        let patch = patch(&former, &parents(&["a", "b"]), NOW).unwrap();
        assert_eq!(
            patch,
            json!({"parents": [
                entry("a", "example.org/other", BEFORE), entry("a", ours, BEFORE), entry("b", ours, NOW),
            ]})
        );
    }

    #[test]
    fn what_is_no_more_ours_to_say_goes() {
        let ours = ProxyClass::Gateway.controller();
        let nothing = parents(&[]);
        let former = json!({"parents": [entry("a", ours, BEFORE)]});
        assert_eq!(
            patch(&former, &nothing, NOW).unwrap(),
            json!({"parents": []})
        );
        let others = json!({"parents": [entry("a", "example.org/other", BEFORE)]});
        assert_eq!(patch(&others, &nothing, NOW), None);
        assert_eq!(
            patch(&Value::Null, &nothing, NOW),
            None,
            "no status for nothing"
        );
    }

    #[test]
    fn no_more_is_said_than_the_schema_allows() {
        let ancestor = |number: usize| AncestorStatus {
            ancestor_ref: json!({"name": number.to_string()}),
            controller: ProxyClass::Gateway.controller(),
            conditions: vec![Condition::yes(
                "Accepted",
                "R",
                "x".repeat(MAX_MESSAGE_CHARS + 1),
            )],
        };
        let wanted = ObjectStatus {
            generation: 1,
            content: StatusContent::Ancestors((0..20).map(ancestor).collect()),
        };
        let patch = patch(&Value::Null, &wanted, NOW).unwrap();
        let all = patch["ancestors"].as_array().unwrap();
        assert_eq!(all.len(), MAX_ANCESTORS);
        let message = all[0]["conditions"][0]["message"].as_str().unwrap();
        assert_eq!(message.len(), MAX_MESSAGE_CHARS);
    }
}
