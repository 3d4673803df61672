//! What AuthorizationPolicies and PeerAuthentications refer to, and what is said of them.

use std::collections::BTreeMap;

use karst_core::{Condition, ConditionStatus, Kind, ObjectKey};
use serde_json::Value;

use super::codes;
use super::context::{Context, Reach};
use super::finding::Finding;
use super::rules::is_dry_run;

/// Looks at all policies.
pub fn all(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for (key, value) in context.of_kind(Kind::AuthorizationPolicy) {
        allows_nothing(key, value, findings);
        selector(context, key, value, findings);
        peers(context, key, value, findings);
        statuses(context, key, value, findings);
    }
    for kind in [
        Kind::PeerAuthentication,
        Kind::RequestAuthentication,
        Kind::Telemetry,
    ] {
        for (key, value) in context.of_kind(kind) {
            selector(context, key, value, findings);
            statuses(context, key, value, findings);
        }
    }
    for (key, _) in context.of_kind(Kind::ServiceEntry) {
        entry(context, key, findings);
    }
}

fn allows_nothing(key: &ObjectKey, value: &Value, findings: &mut Vec<Finding>) {
    let spec = value.get("spec").unwrap_or(&Value::Null);
    let action = spec
        .get("action")
        .and_then(Value::as_str)
        .unwrap_or("ALLOW");
    let rules = spec.get("rules").and_then(Value::as_array);
    if action == "ALLOW" && rules.is_none_or(Vec::is_empty) && !is_dry_run(value) {
        let message = "is empty: the policy allows nothing, and what it is for is refused unless another allows it";
        let advice = "if everything is to be allowed, write `rules: [{}]`";
        findings.push(Finding::on(
            key,
            &codes::ALLOW_NOTHING,
            "spec.rules",
            message,
            advice,
        ));
    }
}

fn selector(context: &Context<'_>, key: &ObjectKey, value: &Value, findings: &mut Vec<Finding>) {
    let labels = value
        .pointer("/spec/selector/matchLabels")
        .and_then(Value::as_object);
    let labels = labels.into_iter().flatten();
    let labels: BTreeMap<&str, &str> = labels
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect();
    if labels.is_empty() {
        return;
    }
    let mesh_wide = key.kind == Kind::AuthorizationPolicy && key.namespace == context.root();
    let mut pods = context
        .pods
        .iter()
        .filter(|pod| mesh_wide || pod.namespace == key.namespace)
        .peekable();
    // Manifests of policies alone say nothing about pods.
    if pods.peek().is_none() && context.reach == Reach::Manifests {
        return;
    }
    let selects = |labels: &BTreeMap<&str, &str>, pod: &BTreeMap<String, String>| {
        labels
            .iter()
            .all(|(key, value)| pod.get(*key).is_some_and(|own| own == value))
    };
    if !pods.any(|pod| selects(&labels, &pod.labels)) {
        let written: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let place = if mesh_wide {
            "any namespace".to_owned()
        } else {
            format!("namespace {}", key.namespace)
        };
        let message = format!("matches no pod of {place}: {}", written.join(","));
        let advice = "correct the labels; a policy selects by labels of pods, not of Deployments or Services";
        findings.push(Finding::on(
            key,
            &codes::SELECTOR_MATCHES_NOTHING,
            "spec.selector.matchLabels",
            message,
            advice,
        ));
    }
}

/// What rules name that does not exist.
fn peers(context: &Context<'_>, key: &ObjectKey, value: &Value, findings: &mut Vec<Finding>) {
    let rules = value.pointer("/spec/rules").and_then(Value::as_array);
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let from = rule.get("from").and_then(Value::as_array);
        for (place, one) in from.into_iter().flatten().enumerate() {
            let source = one.get("source").and_then(Value::as_object);
            for (field, values) in source.into_iter().flatten() {
                let at = format!("spec.rules[{index}].from[{place}].source.{field}");
                let name = field.strip_prefix("not").map_or(field.clone(), |rest| {
                    rest.chars()
                        .enumerate()
                        .map(|(i, c)| if i == 0 { c.to_ascii_lowercase() } else { c })
                        .collect()
                });
                named(context, key, (&at, &name), values, findings);
            }
        }
        let when = rule.get("when").and_then(Value::as_array);
        for (place, one) in when.into_iter().flatten().enumerate() {
            let name = match one.get("key").and_then(Value::as_str) {
                Some("source.principal") => "principals",
                Some("source.namespace") => "namespaces",
                Some("source.serviceAccount") => "serviceAccounts",
                _ => continue,
            };
            for part in ["values", "notValues"] {
                let at = format!("spec.rules[{index}].when[{place}].{part}");
                named(
                    context,
                    key,
                    (&at, name),
                    one.get(part).unwrap_or(&Value::Null),
                    findings,
                );
            }
        }
    }
}

fn named(
    context: &Context<'_>,
    key: &ObjectKey,
    (at, name): (&str, &str),
    values: &Value,
    findings: &mut Vec<Finding>,
) {
    let values = values
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    for (index, value) in values.enumerate().filter(|(_, value)| !value.contains('*')) {
        let account = |namespace: &str, account: &str| {
            let known = context.knows(Kind::ServiceAccount);
            (known
                && !context
                    .accounts
                    .contains(&(namespace.to_owned(), account.to_owned())))
            .then(|| format!("service account {namespace}/{account} does not exist"))
        };
        let missing = match name {
            "namespaces" => (context.knows(Kind::Namespace) && !context.namespaces.contains(value))
                .then(|| format!("namespace {value} does not exist")),
            "serviceAccounts" => match value.split_once('/') {
                Some((namespace, name)) => account(namespace, name),
                None => account(&key.namespace, value),
            },
            "principals" => match value.split('/').collect::<Vec<_>>()[..] {
                [domain, "ns", namespace, "sa", name]
                    if domain == context.input.config.trust_domain =>
                {
                    account(namespace, name)
                }
                // Of another trust domain, or no principal that anybody has.
                _ => None,
            },
            _ => None,
        };
        if let Some(missing) = missing {
            let message = format!("is {value:?}, and {missing}");
            let advice = "correct the name, or create it; until then nobody has that identity";
            findings.push(Finding::on(
                key,
                &codes::UNKNOWN_PEER,
                format!("{at}[{index}]"),
                message,
                advice,
            ));
        }
    }
}

/// What the controller says of a ServiceEntry.
fn entry(context: &Context<'_>, key: &ObjectKey, findings: &mut Vec<Finding>) {
    for condition in context.conditions(key) {
        if condition.status != ConditionStatus::False {
            continue;
        }
        let code = match (condition.kind, condition.reason) {
            (_, "Conflicted") => &codes::ROUTE_CONFLICT,
            ("Accepted", _) => &codes::OBJECT_INVALID,
            _ => &codes::NOT_FULLY_ENFORCED,
        };
        findings.push(of_condition(key, code, "spec", &condition));
    }
}

fn statuses(context: &Context<'_>, key: &ObjectKey, value: &Value, findings: &mut Vec<Finding>) {
    let is_targeted = ["/spec/targetRefs", "/spec/targetRef"]
        .iter()
        .any(|at| value.pointer(at).is_some());
    let field = if is_targeted { "spec.targetRefs" } else { "" };
    for condition in context.conditions(key) {
        if condition.status != ConditionStatus::False {
            continue;
        }
        let code = match (condition.kind, condition.reason) {
            ("Accepted", "Conflicted") if key.kind == Kind::Telemetry => &codes::TELEMETRY_CONFLICT,
            ("Accepted", "Conflicted") => &codes::PEER_AUTHENTICATION_CONFLICT,
            ("Accepted", "TargetNotFound") if knows_targets(context, value) => {
                &codes::TARGET_NOT_FOUND
            }
            ("Accepted", "UnsupportedValue") => &codes::POLICY_UNSUPPORTED,
            ("karst.dev/FullyEnforced", "DryRun") => &codes::DRY_RUN,
            ("karst.dev/WaypointBound", "NoWaypoint") => &codes::L7_WITHOUT_WAYPOINT,
            // Mistakes and what is not supported are told with their fields; waypoints with their Services.
            _ => continue,
        };
        findings.push(of_condition(key, code, field, &condition));
    }
}

/// Whether what a policy is for would be known if it was there.
fn knows_targets(context: &Context<'_>, value: &Value) -> bool {
    let refs = value.pointer("/spec/targetRefs").and_then(Value::as_array);
    let mut kinds = refs
        .into_iter()
        .flatten()
        .chain(value.pointer("/spec/targetRef"));
    kinds.all(|one| match one.get("kind").and_then(Value::as_str) {
        Some("Service") => context.knows(Kind::Service),
        Some("Gateway") => context.knows(Kind::Gateway),
        Some("GatewayClass") => context.knows(Kind::GatewayClass),
        _ => true,
    })
}

/// A condition as a finding: the controller's own words say what to do.
pub fn of_condition(
    key: &ObjectKey,
    code: &'static codes::Code,
    field: &str,
    condition: &Condition,
) -> Finding {
    let (message, advice) = match condition.message.split_once("; ") {
        Some((message, advice)) => (message, advice),
        None => (condition.message.as_str(), ""),
    };
    Finding::on(
        key,
        code,
        field,
        format!(
            "{}={}: {message}",
            condition.kind,
            condition.status.as_str()
        ),
        advice,
    )
}
