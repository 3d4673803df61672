//! Waypoints of Services, and routes, gateways and what is attached to them.

use std::collections::BTreeMap;

use karst_core::{ConditionStatus, Kind, ObjectKey};
use serde_json::{Value, json};

use super::codes::{self, Code};
use super::context::{Context, Reach};
use super::finding::Finding;
use super::policies::of_condition;

/// Kinds of routes.
const ROUTES: [Kind; 4] = [
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
];

/// Looks at all of them.
pub fn all(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for (key, _) in context.of_kind(Kind::Service) {
        waypoint(context, key, findings);
    }
    for (key, _) in context.taken() {
        match key.kind {
            kind if ROUTES.contains(&kind) => route(context, key, findings),
            Kind::Gateway | Kind::GatewayClass | Kind::ListenerSet => {
                gateway(context, key, findings)
            }
            Kind::BackendTlsPolicy | Kind::BackendTrafficPolicy => attached(context, key, findings),
            _ => {}
        }
    }
    for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
        duplicates(context, kind, findings);
    }
}

fn waypoint(context: &Context<'_>, key: &ObjectKey, findings: &mut Vec<Finding>) {
    let Some(binding) = context
        .index()
        .service_waypoint_binding(&key.namespace, &key.name)
    else {
        return;
    };
    let (Some(problem), true) = (binding.problem, context.knows(Kind::Gateway)) else {
        return;
    };
    let gateway = &binding.gateway;
    let field = "metadata.labels[\"karst.dev/use-waypoint\"]";
    let message = format!("(its own, or its namespace's) names Gateway {gateway}, which {problem}");
    if !binding.is_usable {
        let advice = "create the Gateway, or correct the label of the Service or its namespace";
        findings.push(Finding::on(
            key,
            &codes::WAYPOINT_MISSING,
            field,
            message,
            advice,
        ));
    } else if context.reach == Reach::Cluster || context.index().object_count(Kind::Pod) > 0 {
        let advice = "see the Gateway's status and the Deployment of the same name";
        findings.push(Finding::on(
            key,
            &codes::WAYPOINT_NOT_READY,
            field,
            message,
            advice,
        ));
    }
}

fn told(
    context: &Context<'_>,
    key: &ObjectKey,
    code: impl Fn(&str, &str) -> Option<(&'static Code, &'static str)>,
    findings: &mut Vec<Finding>,
) {
    for condition in context.conditions(key) {
        let code = code(condition.kind, condition.reason)
            .filter(|_| condition.status == ConditionStatus::False);
        let Some((code, field)) = code else { continue };
        let problems = problems(&condition.message);
        if condition.kind != "ResolvedRefs" || problems.is_empty() {
            findings.push(of_condition(key, code, field, &condition));
        }
        // One condition has all references, by the reason of the first.
        for (at, problem) in problems {
            let code = match code.code {
                _ if problem.contains("ReferenceGrant") => &codes::REFERENCE_NOT_PERMITTED,
                _ if problem.contains("only Services can be backends") => {
                    &codes::REFERENCE_UNUSABLE
                }
                other if other == codes::REFERENCE_NOT_PERMITTED.code => &codes::BACKEND_NOT_FOUND,
                _ => code,
            };
            let advice = "correct the reference, or create what it is for";
            findings.push(Finding::on(
                key,
                code,
                format!("spec.{at}"),
                problem,
                advice,
            ));
        }
    }
}

/// Field and problem of each reference in a message.
fn problems(message: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for part in message.split("; ") {
        match (
            part.split_once(' ')
                .filter(|(at, _)| at.starts_with("rules[")),
            all.last_mut(),
        ) {
            (Some((at, problem)), _) => all.push((at.to_owned(), problem.to_owned())),
            (None, Some((_, problem))) => {
                problem.push_str("; ");
                problem.push_str(part);
            }
            (None, None) => {}
        }
    }
    all
}

fn route(context: &Context<'_>, key: &ObjectKey, findings: &mut Vec<Finding>) {
    let knows_parents = context.knows(Kind::Gateway) || context.knows(Kind::Service);
    let code = |kind: &str, reason: &str| match (kind, reason) {
        ("ResolvedRefs", "BackendNotFound") if context.knows(Kind::Service) => {
            Some((&codes::BACKEND_NOT_FOUND, "spec.rules"))
        }
        ("ResolvedRefs", "BackendNotFound") => None,
        ("ResolvedRefs", "RefNotPermitted") => {
            Some((&codes::REFERENCE_NOT_PERMITTED, "spec.rules"))
        }
        ("ResolvedRefs", _) => Some((&codes::REFERENCE_UNUSABLE, "spec.rules")),
        ("Accepted", "Conflicted") => Some((&codes::ROUTE_CONFLICT, "spec.parentRefs")),
        (
            "Accepted",
            "NoMatchingParent" | "NoMatchingListenerHostname" | "NotAllowedByListeners",
        ) => knows_parents.then_some((&codes::PARENT_NOT_FOUND, "spec.parentRefs")),
        ("Accepted", _) => Some((&codes::NOT_ACCEPTED, "spec")),
        ("karst.dev/WaypointBound", "NoWaypoint") => {
            Some((&codes::NOT_IN_FORCE, "spec.parentRefs"))
        }
        _ => None,
    };
    told(context, key, code, findings);
}

fn gateway(context: &Context<'_>, key: &ObjectKey, findings: &mut Vec<Finding>) {
    let code = |kind: &str, reason: &str| match (kind, reason) {
        ("Accepted", _) => Some((&codes::NOT_ACCEPTED, "spec")),
        ("ResolvedRefs", "RefNotPermitted") => {
            Some((&codes::REFERENCE_NOT_PERMITTED, "spec.listeners"))
        }
        // Certificates are in Secrets, which are not read of a cluster.
        _ => None,
    };
    told(context, key, code, findings);
}

fn attached(context: &Context<'_>, key: &ObjectKey, findings: &mut Vec<Finding>) {
    let code = |kind: &str, reason: &str| match (kind, reason) {
        ("Accepted", "TargetNotFound") => context
            .knows(Kind::Service)
            .then_some((&codes::TARGET_NOT_FOUND, "spec.targetRefs")),
        ("Accepted", "Conflicted") => Some((&codes::ROUTE_CONFLICT, "spec.targetRefs")),
        ("Accepted", _) => Some((&codes::NOT_ACCEPTED, "spec")),
        ("ResolvedRefs", "RefNotPermitted") => Some((&codes::REFERENCE_NOT_PERMITTED, "spec")),
        ("ResolvedRefs", _) if context.knows(Kind::ConfigMap) => {
            Some((&codes::REFERENCE_UNUSABLE, "spec"))
        }
        _ => None,
    };
    told(context, key, code, findings);
}

/// Matches that are there twice for one parent and host. Of two alike the older route's comes first, by name where
/// the age is the same, and within a route the first.
fn duplicates(context: &Context<'_>, kind: Kind, findings: &mut Vec<Finding>) {
    let mut routes: Vec<(&ObjectKey, &Value)> = context
        .of_kind(kind)
        .filter(|(key, _)| !context.has_faults(key))
        .collect();
    let age = |value: &Value| {
        let created = value
            .pointer("/metadata/creationTimestamp")
            .and_then(Value::as_str);
        created.unwrap_or_default().to_owned()
    };
    routes.sort_by_key(|(key, value)| (age(value), &key.namespace, &key.name));
    let mut first: BTreeMap<String, (&ObjectKey, usize)> = BTreeMap::new();
    for (key, value) in routes {
        let list = |pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice)
        };
        let hosts: Vec<String> = list("/spec/hostnames")
            .iter()
            .filter_map(|host| Some(host.as_str()?.to_ascii_lowercase()))
            .collect();
        let everywhere = [String::new()];
        let mut told = std::collections::BTreeSet::new();
        for (at, rule) in list("/spec/rules").iter().enumerate() {
            let matches = rule
                .get("matches")
                .and_then(Value::as_array)
                .filter(|list| !list.is_empty());
            let any = [json!({})];
            for (place, one) in matches.map_or(&any[..], Vec::as_slice).iter().enumerate() {
                for parent in list("/spec/parentRefs") {
                    let of_service = parent.get("kind").and_then(Value::as_str) == Some("Service");
                    // At a Service hosts do not count.
                    let hosts = if of_service || hosts.is_empty() {
                        &everywhere[..]
                    } else {
                        &hosts
                    };
                    for host in hosts {
                        let same = format!("{} {host} {}", parent_name(key, parent), normal(one));
                        let Some((winner, rule)) = first.get(&same) else {
                            first.insert(same, (key, at));
                            continue;
                        };
                        if (*winner, *rule) == (key, at) || !told.insert((at, place)) {
                            continue;
                        }
                        let message = format!(
                            "never decides: rules[{rule}] of {winner} has the same match for the same host, and comes first"
                        );
                        let advice = "remove one of them, or tell them apart by another condition";
                        findings.push(Finding::on(
                            key,
                            &codes::ROUTE_DUPLICATE,
                            format!("spec.rules[{at}].matches[{place}]"),
                            message,
                            advice,
                        ));
                    }
                }
            }
        }
    }
}

/// What tells one parent from another; routes of other namespaces than a Service's are for their own clients only.
fn parent_name(key: &ObjectKey, parent: &Value) -> String {
    let text = |field: &str| parent.get(field).and_then(Value::as_str);
    let namespace = text("namespace").unwrap_or(&key.namespace);
    let kind = text("kind").unwrap_or("Gateway");
    let clients = if kind == "Service" && namespace != key.namespace {
        key.namespace.as_str()
    } else {
        ""
    };
    let port = parent.get("port").map(Value::to_string).unwrap_or_default();
    let (name, section) = (
        text("name").unwrap_or_default(),
        text("sectionName").unwrap_or_default(),
    );
    format!("{kind}/{namespace}/{name}/{section}/{port}/{clients}")
}

/// A match with what is left out written down, and in one order.
fn normal(one: &Value) -> String {
    let mut one = one.clone();
    if let Some(fields) = one.as_object_mut() {
        if let Some(path) = fields.get_mut("path").and_then(Value::as_object_mut) {
            path.entry("type").or_insert(json!("PathPrefix"));
            path.entry("value").or_insert(json!("/"));
        } else if !fields.contains_key("method")
            || fields.get("method").is_some_and(Value::is_string)
        {
            fields.insert(
                "path".to_owned(),
                json!({"type": "PathPrefix", "value": "/"}),
            );
        }
        for list in ["headers", "queryParams"] {
            if let Some(items) = fields.get_mut(list).and_then(Value::as_array_mut) {
                for item in items.iter_mut().filter_map(Value::as_object_mut) {
                    item.entry("type").or_insert(json!("Exact"));
                    if list == "headers"
                        && let Some(Value::String(name)) = item.get_mut("name")
                    {
                        name.make_ascii_lowercase();
                    }
                }
                items.sort_by_key(ToString::to_string);
            }
        }
    }
    one.to_string()
}
