//! Rules of AuthorizationPolicies that never decide anything.

use std::collections::BTreeMap;

use karst_core::{Kind, ObjectKey};
use serde_json::Value;

use super::codes;
use super::context::Context;
use super::cover;
use super::finding::Finding;

/// Rules of one namespace, with those for the whole mesh, that are compared each with each.
const MAX_RULES: usize = 2_000;

/// A policy as it is written.
struct Policy<'a> {
    key: &'a ObjectKey,
    deny: bool,
    selector: BTreeMap<&'a str, &'a str>,
    targets: Vec<String>,
    rules: &'a [Value],
}

/// A rule, with its policy.
#[derive(Clone, Copy)]
struct Rule<'a> {
    policy: &'a Policy<'a>,
    index: usize,
    body: &'a Value,
}

/// Looks at all policies that are enforced and have no mistakes.
pub fn all(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let policies: Vec<Policy<'_>> = context
        .of_kind(Kind::AuthorizationPolicy)
        .filter(|(key, _)| !context.has_faults(key))
        .filter_map(|(key, value)| Policy::read(key, value))
        .collect();
    let root = context.root();
    let mut namespaces: BTreeMap<&str, Vec<Rule<'_>>> = BTreeMap::new();
    for policy in &policies {
        let rules = policy.rules.iter().enumerate().map(|(index, body)| Rule {
            policy,
            index,
            body,
        });
        // What is never matched is found elsewhere, and covers nothing.
        let rules =
            rules.filter(|rule| policy.deny || !policy.targets.is_empty() || !asks_http(rule.body));
        namespaces
            .entry(policy.key.namespace.as_str())
            .or_default()
            .extend(rules);
    }
    let of_mesh: Vec<Rule<'_>> = namespaces.get(root).cloned().unwrap_or_default();
    for (namespace, own) in &namespaces {
        let mut broad: Vec<Rule<'_>> = own.clone();
        if *namespace != root {
            broad.extend(of_mesh.iter().filter(|rule| rule.policy.targets.is_empty()));
        }
        if broad.len() > MAX_RULES {
            if let Some(first) = own.first() {
                let message = format!(
                    "and others of namespace {namespace} have {} rules, which were not compared",
                    broad.len()
                );
                let advice =
                    "rules that never decide are looked for among 2000 of a namespace at most";
                findings.push(Finding::on(
                    first.policy.key,
                    &codes::NOT_COMPARED,
                    "spec.rules",
                    message,
                    advice,
                ));
            }
            continue;
        }
        for narrow in own {
            findings.extend(never_decides(*narrow, &broad, root));
        }
    }
}

/// Why a rule never decides.
fn never_decides(narrow: Rule<'_>, broad: &[Rule<'_>], root: &str) -> Option<Finding> {
    let covers = |wide: &Rule<'_>, slim: &Rule<'_>| {
        wide.policy.covers(slim.policy, root)
            && cover::rule(
                (wide.body, &wide.policy.key.namespace),
                (slim.body, &slim.policy.key.namespace),
            )
    };
    let field = format!("spec.rules[{}]", narrow.index);
    let others = || broad.iter().filter(|wide| wide.place() != narrow.place());
    let same_action = others().filter(|wide| wide.policy.deny == narrow.policy.deny);
    for wide in same_action.filter(|wide| covers(wide, &narrow)) {
        let said = wide.said();
        if covers(&narrow, wide) {
            // Of two that say the same, the later one is one too many.
            if wide.place() > narrow.place() {
                continue;
            }
            let message = format!("says the same as {said}");
            return Some(Finding::on(
                narrow.policy.key,
                &codes::RULE_DUPLICATE,
                field,
                message,
                "remove one of them",
            ));
        }
        let message = format!("never decides: {said} matches whatever it does");
        let advice = "remove it, or make the broader rule narrower";
        return Some(Finding::on(
            narrow.policy.key,
            &codes::RULE_SHADOWED,
            field,
            message,
            advice,
        ));
    }
    let denying = others().filter(|wide| wide.policy.deny && !narrow.policy.deny);
    let wide = denying.into_iter().find(|wide| covers(wide, &narrow))?;
    let message = format!(
        "allows nothing: {} refuses whatever it matches",
        wide.said()
    );
    let advice = "DENY comes before ALLOW: make the DENY rule narrower, or remove this one";
    Some(Finding::on(
        narrow.policy.key,
        &codes::ALLOW_MOOT,
        field,
        message,
        advice,
    ))
}

impl<'a> Policy<'a> {
    /// `None` of what decides nothing.
    fn read(key: &'a ObjectKey, value: &'a Value) -> Option<Self> {
        let spec = value.get("spec").unwrap_or(&Value::Null);
        let action = spec
            .get("action")
            .and_then(Value::as_str)
            .unwrap_or("ALLOW");
        if !matches!(action, "ALLOW" | "DENY") || is_dry_run(value) {
            return None;
        }
        let labels = spec
            .pointer("/selector/matchLabels")
            .and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        let targets = spec
            .get("targetRefs")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let mut targets: Vec<String> = targets
            .chain(spec.get("targetRef"))
            .map(Value::to_string)
            .collect();
        targets.sort();
        Some(Self {
            key,
            deny: action == "DENY",
            selector: labels
                .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
                .collect(),
            targets,
            rules: spec
                .get("rules")
                .and_then(Value::as_array)
                .map_or(&[], Vec::as_slice),
        })
    }

    /// Whether it is for everything that `other` is for.
    fn covers(&self, other: &Self, root: &str) -> bool {
        if self.targets.is_empty() != other.targets.is_empty() {
            return false;
        }
        if !self.targets.is_empty() {
            return self.key.namespace == other.key.namespace
                && other
                    .targets
                    .iter()
                    .all(|target| self.targets.contains(target));
        }
        (self.key.namespace == other.key.namespace || self.key.namespace == root)
            && self
                .selector
                .iter()
                .all(|(key, value)| other.selector.get(key) == Some(value))
    }
}

impl Rule<'_> {
    fn place(&self) -> (&ObjectKey, usize) {
        (self.policy.key, self.index)
    }

    fn said(&self) -> String {
        format!("rules[{}] of {}", self.index, self.policy.key)
    }
}

/// Whether a policy is on trial.
pub fn is_dry_run(value: &Value) -> bool {
    let annotation = value.pointer("/metadata/annotations/istio.io~1dry-run");
    annotation.and_then(Value::as_str) == Some("true")
}

/// Whether a rule has a condition that node agents cannot decide on.
fn asks_http(rule: &Value) -> bool {
    const L4: [&str; 12] = [
        "principals",
        "notPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "ports",
        "notPorts",
        "trustDomains",
        "notTrustDomains",
    ];
    const L4_KEYS: [&str; 6] = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "destination.ip",
        "destination.port",
    ];
    let parts = [("from", "source"), ("to", "operation")];
    let fields = parts.into_iter().flat_map(|(part, inner)| {
        let items = rule
            .get(part)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        items.filter_map(move |item| item.get(inner)?.as_object())
    });
    let mut names = fields.flat_map(|fields| fields.keys());
    // Trust domains are not decided on either, and are no HTTP.
    let unknown = names.any(|name| !L4[..10].contains(&name.as_str()));
    let when = rule
        .get("when")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let mut keys = when.map(|one| one.get("key").and_then(Value::as_str).unwrap_or_default());
    unknown || keys.any(|key| !L4_KEYS.contains(&key))
}
