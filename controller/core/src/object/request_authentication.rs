//! What the mesh needs of a RequestAuthentication (security.istio.io).
//!
//! What cannot be understood makes it stricter. A rule with a mistake takes no token, and requests with one of its
//! issuer are refused; where it is not even known what rules there are, requests with any token are. As with all
//! security policies the last version without a mistake stays in force.

mod rule;

use karst_api::waypoint as wire;
use serde_json::Value;

use super::{
    Body,
    authorization::{Target, read_targets},
    policy::{PolicyDocument, Reader},
};
use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

/// Rules of one object: each is tried for each token. Proxies take no more.
const MAX_RULES: usize = 32;

/// Tokens that waypoints and gateways take.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RequestAuthentication {
    /// Nothing of ours can use one; kept for what there is to say.
    pub(crate) selector: Labels,
    pub(crate) targets: Vec<Target>,
    pub(crate) rules: Vec<wire::TokenRule>,
    /// Not all of it could be understood.
    pub(crate) unusable: bool,
    /// Why nobody enforces it.
    pub(crate) unsupported: Option<&'static str>,
    /// The author's mistakes.
    pub(crate) faults: Vec<String>,
}

const WITH_SELECTOR: &str = "is not enforced: spec.selector chooses pods, whose node agents see no HTTP. Name a Service \
                             with a waypoint, or a Gateway, in spec.targetRefs";
const WITHOUT_TARGETS: &str = "is not enforced: it names nothing in spec.targetRefs, and node agents see no HTTP. Name \
                               Services with a waypoint, Gateways, or in the root namespace the GatewayClass of \
                               waypoints";

impl RequestAuthentication {
    pub(crate) fn body(
        document: &PolicyDocument,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Body {
        let mut reader = Reader::new(faults, findings);
        Body::RequestAuthentication(Box::new(Self::read(document, &mut reader)))
    }

    fn read(document: &PolicyDocument, reader: &mut Reader<'_>) -> Self {
        reader.metadata(document);
        let null = Value::Null;
        let (mut selector, mut rules) = (&null, &null);
        let (mut refs, mut refs_field) = (&null, "spec.targetRefs");
        let fields = reader.fields(&document.spec, "spec");
        let mut whole = fields.is_some();
        for (name, value) in fields.unwrap_or_default() {
            match name {
                "selector" => selector = value,
                "jwtRules" => rules = value,
                "targetRef" => (refs, refs_field) = (value, "spec.targetRef"),
                "targetRefs" if value.as_array().is_some_and(Vec::is_empty) => {}
                "targetRefs" => refs = value,
                other => {
                    reader.unknown(&format!("spec.{other}"));
                    whole = false;
                }
            }
        }
        let (has_selector, has_targets) = (!selector.is_null(), !refs.is_null());
        if has_selector && has_targets {
            let hint = "leave the selector out: only what targetRefs name can enforce it";
            reader.fault("spec.targetRefs", "is there beside spec.selector", hint);
        }
        let (selector, _) = reader.selector(selector);
        let targets = if has_targets {
            read_targets(refs, refs_field, reader)
        } else {
            Vec::new()
        };
        let (rules, is_whole) = self::rules(rules, reader);
        whole &= is_whole;
        let unsupported = match (has_targets, has_selector) {
            (true, _) => None,
            (false, true) => Some(WITH_SELECTOR),
            (false, false) => Some(WITHOUT_TARGETS),
        };
        if let Some(problem) = unsupported {
            let hint = "use spec.targetRefs";
            reader.note("spec.targetRefs", problem, hint);
        }
        Self {
            selector,
            targets,
            rules,
            unusable: !whole,
            unsupported,
            faults: std::mem::take(&mut reader.problems),
        }
    }
}

/// The rules, and whether those are all.
fn rules(value: &Value, reader: &mut Reader<'_>) -> (Vec<wire::TokenRule>, bool) {
    let Some(items) = reader.items(value, "spec.jwtRules") else {
        return (Vec::new(), false);
    };
    let is_whole = items.len() <= MAX_RULES;
    if !is_whole {
        let problem = format!("has {} rules", items.len());
        let hint = "use at most 32, in several objects if need be";
        reader.fault("spec.jwtRules", problem, hint);
    }
    let items = (0_u32..).zip(items.iter().take(MAX_RULES));
    let rules = items.map(|(index, item)| {
        let field = format!("spec.jwtRules[{index}]");
        rule::read(item, &field, index, reader)
    });
    (rules.collect(), is_whole)
}

#[cfg(test)]
mod tests;
