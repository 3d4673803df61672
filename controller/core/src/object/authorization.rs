//! What the mesh needs of an AuthorizationPolicy (security.istio.io).
//!
//! Two rules hold throughout. What node agents cannot decide on (HTTP attributes), and what cannot be
//! understood, makes the policy stricter: an ALLOW rule with it never matches, a DENY rule is enforced
//! without it. And a policy whose author made a mistake says so by [`AuthorizationPolicy::faults`], so
//! that the last one without a mistake can stay in force.

mod connections;
mod requests;
mod rules;
mod targets;
mod values;

pub(crate) use targets::{Target, read as read_targets};

use karst_api::{security as wire, waypoint};
use serde_json::Value;

use super::{
    Body,
    policy::{PolicyDocument, Reader, listed},
};
use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

/// Rules of one policy. Istio's own limit.
const MAX_RULES: usize = 512;

/// Evaluates a policy without enforcing it.
const DRY_RUN: &str = "istio.io/dry-run";

/// A policy as node agents enforce it, or waypoints and gateways.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AuthorizationPolicy {
    /// Labels of the pods that it is for; none for all.
    pub(crate) selector: Labels,
    /// What node agents do with a match; `None`: they are not told of the policy.
    pub(crate) action: Option<wire::Action>,
    pub(crate) rules: Vec<wire::Rule>,
    pub(crate) dry_run: bool,
    /// What waypoints and gateways enforce, where the policy is for them.
    pub(crate) targeted: Option<Targeted>,
    /// Why the policy as a whole is not what its author wants.
    pub(crate) unsupported: Option<String>,
    /// What was left out, and what follows from it.
    pub(crate) narrowed: Option<String>,
    /// The author's mistakes.
    pub(crate) faults: Vec<String>,
}

/// A policy as waypoints and gateways enforce it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Targeted {
    pub(crate) targets: Vec<Target>,
    pub(crate) action: waypoint::PolicyAction,
    pub(crate) rules: Vec<waypoint::AuthorizationRule>,
    /// Of action CUSTOM: name of the provider, empty where none can be read.
    pub(crate) provider: Option<String>,
}

/// `spec.action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    Audit,
    Custom,
}

/// Who enforces a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Pods,
    Targets,
    /// Waypoints and gateways before they ask a provider, and look at tokens.
    Provider,
}

impl AuthorizationPolicy {
    pub(crate) fn body(
        document: &PolicyDocument,
        namespace: &str,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Body {
        let mut reader = Reader::new(faults, findings);
        let policy = Self::read(document, namespace, &mut reader);
        Body::AuthorizationPolicy(Box::new(policy))
    }

    fn read(document: &PolicyDocument, namespace: &str, reader: &mut Reader<'_>) -> Self {
        let mut whole = reader.metadata(document);
        let dry_run = dry_run(document, reader);
        let null = Value::Null;
        let (mut selector, mut rules, mut action) = (&null, &null, Some(Action::Allow));
        let mut targets = For::Pods;
        let (mut refs, mut refs_field) = (&null, "spec.targetRefs");
        let mut provider = &null;
        let spec = reader.fields(&document.spec, "spec");
        whole &= spec.is_some();
        for (name, value) in spec.unwrap_or_default() {
            match name {
                "selector" => selector = value,
                "rules" => rules = value,
                "action" => action = self::action(value, reader),
                "provider" => provider = value,
                "targetRef" => {
                    targets = For::Targets;
                    (refs, refs_field) = (value, "spec.targetRef");
                }
                "targetRefs" if value.as_array().is_some_and(Vec::is_empty) => {}
                "targetRefs" => {
                    targets = For::Targets;
                    refs = value;
                }
                other => {
                    reader.unknown(&format!("spec.{other}"));
                    whole = false;
                }
            }
        }
        if !selector.is_null() && targets == For::Targets {
            let hint = "use the selector for pods, or targetRefs for what has a waypoint";
            reader.fault("spec.targetRefs", "is there beside spec.selector", hint);
            targets = For::Pods;
            whole = false;
        }
        let (selector, is_readable) = reader.selector(selector);
        whole &= is_readable && action.is_some();
        let provider = self::provider(provider, action, reader);
        // Nobody knows what an unknown action is to do: nothing is allowed by it.
        let known = action.unwrap_or(Action::Allow);
        let leniency = match known {
            Action::Allow | Action::Audit => rules::Unknown::NeverMatches,
            Action::Deny | Action::Custom => rules::Unknown::LeftOut,
        };
        if targets == For::Targets {
            let by = match known {
                Action::Custom => For::Provider,
                Action::Allow | Action::Deny | Action::Audit => For::Targets,
            };
            let requests = rules::read(rules, by, leniency, namespace, reader);
            let targeted = Targeted {
                targets: targets::read(refs, refs_field, reader),
                action: match known {
                    Action::Allow => waypoint::PolicyAction::ActionAllow,
                    Action::Deny => waypoint::PolicyAction::ActionDeny,
                    Action::Custom => waypoint::PolicyAction::ActionCustom,
                    Action::Audit => waypoint::PolicyAction::ActionAudit,
                },
                rules: match (requests, known) {
                    (Some(rules), Action::Deny | Action::Custom) => rules,
                    // What it was to refuse is not known: everything is.
                    (None, Action::Deny | Action::Custom) => {
                        vec![waypoint::AuthorizationRule::default()]
                    }
                    (Some(rules), _) if whole => rules,
                    (_, Action::Allow | Action::Audit) => Vec::new(),
                },
                provider,
            };
            return Self {
                selector,
                action: None,
                rules: Vec::new(),
                dry_run,
                targeted: Some(targeted),
                unsupported: None,
                narrowed: narrowed(by, &reader.unsupported, leniency),
                faults: std::mem::take(&mut reader.problems),
            };
        }
        let read = rules::read(rules, For::Pods, leniency, namespace, reader);
        let read = read.map(|rules| rules.into_iter().map(connections::rule).collect());
        whole &= read.is_some();
        let rules = match (read, known) {
            (Some(rules), Action::Deny | Action::Custom) => rules,
            // What it was to refuse is not known: everything is.
            (None, Action::Deny | Action::Custom) => vec![wire::Rule::default()],
            (Some(rules), _) if whole => rules,
            (_, Action::Allow | Action::Audit) => Vec::new(),
        };
        let unsupported = unsupported(known);
        if let Some(problem) = unsupported {
            let hint = "remove the policy, or rewrite it with what is supported";
            reader.note("spec.action", problem, hint);
        }
        let action = match known {
            Action::Audit => None,
            Action::Allow => Some(wire::Action::Allow),
            Action::Deny | Action::Custom => Some(wire::Action::Deny),
        };
        Self {
            selector,
            action,
            rules,
            dry_run,
            targeted: None,
            unsupported: unsupported.map(str::to_owned),
            narrowed: narrowed(For::Pods, &reader.unsupported, leniency),
            faults: std::mem::take(&mut reader.problems),
        }
    }
}

const CUSTOM: &str = "is action CUSTOM without targetRefs, which is not supported: node agents ask nobody, and what its rules match is \
     refused; use targetRefs for what has a waypoint";

/// The name of the provider of a CUSTOM policy.
fn provider(value: &Value, action: Option<Action>, reader: &mut Reader<'_>) -> Option<String> {
    if action != Some(Action::Custom) {
        if !value.is_null() {
            let hint = "only action CUSTOM asks a provider; remove it";
            reader.fault("spec.provider", "is of no use with this action", hint);
        }
        return None;
    }
    let mut name = String::new();
    for (field, value) in reader.fields(value, "spec.provider").unwrap_or_default() {
        match (field, value.as_str()) {
            ("name", Some(text)) => text.clone_into(&mut name),
            ("name", None) => {}
            (other, _) => {
                let field = format!("spec.provider.{other}");
                reader.fault(&field, "is not known", "a provider is named by its name");
            }
        }
    }
    if name.is_empty() {
        let hint = "name an entry of extensionProviders of the mesh's configuration";
        reader.fault("spec.provider.name", "is missing", hint);
    }
    Some(name)
}

/// Why a policy for pods as a whole is not what its author wants.
fn unsupported(action: Action) -> Option<&'static str> {
    match action {
        Action::Audit => {
            Some("is not enforced: action AUDIT is not supported, and nothing is audited")
        }
        Action::Custom => Some(CUSTOM),
        Action::Allow | Action::Deny => None,
    }
}

fn narrowed(by: For, fields: &[String], leniency: rules::Unknown) -> Option<String> {
    if fields.is_empty() {
        return None;
    }
    let fields = listed(fields, ", ");
    let who = match by {
        For::Pods => "Node agents decide on connections, and cannot know",
        For::Targets => "Waypoints and gateways do not know",
        For::Provider => "Before a provider is asked, waypoints and gateways do not know",
    };
    Some(match leniency {
        rules::Unknown::NeverMatches => format!(
            "{who} {fields}: a rule that allows with one of these never matches, so that less is allowed than \
             written"
        ),
        rules::Unknown::LeftOut => format!(
            "{who} {fields}: rules are enforced without them, so that more is refused than written"
        ),
    })
}

fn action(value: &Value, reader: &mut Reader<'_>) -> Option<Action> {
    match value.as_str() {
        Some("ALLOW") => Some(Action::Allow),
        Some("DENY") => Some(Action::Deny),
        Some("AUDIT") => Some(Action::Audit),
        Some("CUSTOM") => Some(Action::Custom),
        _ => {
            let hint = "use \"ALLOW\" or \"DENY\"";
            reader.fault("spec.action", format!("is {value}"), hint);
            None
        }
    }
}

/// A value that is neither true nor false leaves the policy enforced.
fn dry_run(document: &PolicyDocument, reader: &mut Reader<'_>) -> bool {
    let annotations = document.metadata.annotations.as_ref();
    match annotations
        .and_then(|all| all.get(DRY_RUN))
        .map(String::as_str)
    {
        None | Some("" | "false" | "False" | "FALSE" | "f" | "F" | "0") => false,
        Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
        Some(other) => {
            let field = format!("metadata.annotations[{DRY_RUN:?}]");
            let problem = format!("is {other:?}");
            let hint = "write \"true\" or \"false\"; until then the policy is enforced";
            reader.note(&field, &problem, hint);
            false
        }
    }
}

#[cfg(test)]
mod tests;
