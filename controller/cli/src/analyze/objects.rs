//! What the controller says of objects that it cannot take as they are written, and labels of ours.

use std::collections::BTreeSet;

use karst_core::{Kind, ObjectKey};
use serde_json::Value;

use super::codes;
use super::context::Context;
use super::finding::Finding;
use super::schema::nearest;
use crate::source::Effect;

/// Labels of Karst that people write, with the values that they may have; none for a name.
const LABELS: [(&str, &[&str]); 6] = [
    ("karst.dev/dataplane-mode", &["ambient", "none"]),
    ("karst.dev/egress", &["ALLOW_ANY", "REGISTRY_ONLY"]),
    ("karst.dev/use-waypoint", &[]),
    ("karst.dev/use-waypoint-namespace", &[]),
    ("karst.dev/waypoint-enforcement", &["enabled", "disabled"]),
    (
        "karst.dev/waypoint-for",
        &["service", "workload", "all", "none"],
    ),
];

/// Fields of an AuthorizationPolicy that are about HTTP.
const HTTP: [&str; 9] = [
    ".hosts",
    ".notHosts",
    ".methods",
    ".notMethods",
    ".paths",
    ".notPaths",
    "equestPrincipals",
    "emoteIpBlocks",
    ".key",
];

/// Looks at everything that was read; `unknown` are fields that are reported already.
pub fn all(
    context: &Context<'_>,
    unknown: &BTreeSet<(String, String)>,
    findings: &mut Vec<Finding>,
) {
    for (at, effect, error) in &context.read.faults {
        let document = context.input.documents.get(*at);
        let value = document.map(|one| &one.value).unwrap_or(&Value::Null);
        if unknown.contains(&(error.object.clone(), error.field.clone())) {
            continue;
        }
        // The condition of such a policy says it of the whole.
        if error.field == "spec.action" && error.problem.starts_with("is not enforced") {
            continue;
        }
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        findings.push(Finding {
            code: code(
                context,
                *effect,
                &error.object,
                &error.field,
                &error.problem,
                value,
            ),
            object: error.object.clone(),
            namespace: namespace.unwrap_or_default().to_owned(),
            field: error.field.clone(),
            message: error.problem.clone(),
            advice: error.hint.clone(),
            place: document.and_then(|one| one.place.clone()),
        });
    }
    for (key, value) in context.taken() {
        labels(key, value, findings);
    }
}

fn code(
    context: &Context<'_>,
    effect: Effect,
    object: &str,
    field: &str,
    problem: &str,
    value: &Value,
) -> &'static codes::Code {
    if effect == Effect::Refused {
        return &codes::OBJECT_INVALID;
    }
    if field.starts_with("metadata.labels") {
        return &codes::LABEL_UNKNOWN;
    }
    let key = context
        .read
        .taken
        .iter()
        .map(|(key, _)| key)
        .find(|key| key.to_string() == object);
    let policies = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
    let Some(key) = key.filter(|key| policies.contains(&key.kind)) else {
        return &codes::FIELD_LEFT_OUT;
    };
    // A mistake is in the condition; what is right and not supported is not.
    let said = format!("{field} {problem}");
    let is_mistake =
        |one: &karst_core::Condition| one.reason == "Invalid" && one.message.contains(&said);
    if context.conditions(key).iter().any(is_mistake) {
        return &codes::OBJECT_INVALID;
    }
    let is_targeted = ["/spec/targetRefs", "/spec/targetRef"]
        .iter()
        .any(|at| value.pointer(at).is_some());
    if key.kind == Kind::AuthorizationPolicy
        && !is_targeted
        && HTTP.iter().any(|name| field.contains(name))
    {
        return &codes::L7_WITHOUT_WAYPOINT;
    }
    &codes::NOT_FULLY_ENFORCED
}

/// Labels that begin with our name are ours.
fn labels(key: &ObjectKey, value: &Value, findings: &mut Vec<Finding>) {
    if !matches!(
        key.kind,
        Kind::Namespace | Kind::Pod | Kind::Service | Kind::Gateway
    ) {
        return;
    }
    let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
    for (label, value) in labels.into_iter().flatten() {
        if !label.starts_with("karst.dev/") {
            continue;
        }
        let field = format!("metadata.labels[{label:?}]");
        let Some((_, values)) = LABELS.iter().find(|(known, _)| known == label) else {
            let known: Vec<String> = LABELS
                .iter()
                .map(|(known, _)| (*known).to_owned())
                .collect();
            let advice = match nearest(label, known.iter()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", known.join(", ")),
            };
            findings.push(Finding::on(
                key,
                &codes::LABEL_UNKNOWN,
                field,
                "is no label of Karst, and has no effect",
                advice,
            ));
            continue;
        };
        let value = value.as_str().unwrap_or_default();
        // The controller itself says so of the others.
        if label == "karst.dev/waypoint-for" && !values.contains(&value) {
            let message = format!("is {value:?}, which counts as service");
            let advice = format!("set it to one of {}", values.join(", "));
            findings.push(Finding::on(
                key,
                &codes::LABEL_UNKNOWN,
                field,
                message,
                advice,
            ));
        }
    }
}
