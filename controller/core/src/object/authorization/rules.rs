//! Rules: what a connection or request must be for a policy to match it.
//!
//! What those who enforce a policy do not know, and what cannot be understood, follows two rules: a rule
//! that allows is left out with it, one that refuses stays without it.

use karst_api::waypoint::{self as wire, Attribute};
use serde_json::Value;

use super::{
    For, MAX_RULES, connections,
    requests::{self, Named},
};
use crate::object::policy::Reader;

/// Entries of `from`, `to` or `when`, for proxies. They take no more of either.
const MAX_ITEMS: usize = 256;

/// Values of one list, for proxies. They take no more.
const MAX_VALUES: usize = 4096;

/// What becomes of a rule with a condition that cannot be decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// For rules that allow.
    NeverMatches,
    /// For rules that refuse: they refuse more.
    LeftOut,
}

/// Conditions that hold together, as far as they can be decided on.
#[derive(Default)]
struct Part {
    matches: Vec<wire::AttributeMatch>,
    /// Something was left out.
    lacks: bool,
}

/// Reads one rule.
struct RuleReader<'a, 'r> {
    reader: &'r mut Reader<'a>,
    namespace: &'r str,
    by: For,
}

/// Reads `spec.rules` for those who enforce the policy; `None` if there is no telling what they are.
pub(super) fn read(
    value: &Value,
    by: For,
    unknown: Unknown,
    namespace: &str,
    reader: &mut Reader<'_>,
) -> Option<Vec<wire::AuthorizationRule>> {
    let items = reader.items(value, "spec.rules")?;
    let too_many = items.len() > MAX_RULES;
    if too_many {
        let problem = format!("has {} rules", items.len());
        let hint = "use at most 512, in several policies if need be";
        reader.fault("spec.rules", problem, hint);
    }
    let mut rules = Vec::new();
    for (index, item) in (0_u32..).zip(items.iter().take(MAX_RULES)) {
        let mut rule_reader = RuleReader {
            reader,
            namespace,
            by,
        };
        let (mut rule, lacks) = rule_reader.rule(item, &format!("spec.rules[{index}]"));
        rule.index = index;
        if !lacks || unknown == Unknown::LeftOut {
            rules.push(rule);
        }
    }
    if too_many && unknown == Unknown::LeftOut {
        // What the others would have refused is not known: everything is.
        rules = vec![wire::AuthorizationRule::default()];
    }
    Some(rules)
}

impl RuleReader<'_, '_> {
    /// A rule, and whether something was left out.
    fn rule(&mut self, value: &Value, field: &str) -> (wire::AuthorizationRule, bool) {
        let mut rule = wire::AuthorizationRule::default();
        if value.is_null() {
            let hint = "write {} for a rule that matches everything";
            self.reader.fault(field, "is null", hint);
            return (rule, true);
        }
        let Some(fields) = self.reader.fields(value, field) else {
            return (rule, true);
        };
        let mut lacks = false;
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            let (inner, attribute, into): (_, fn(&str) -> Named, _) = match name {
                "from" => ("source", requests::source, &mut rule.from),
                "to" => ("operation", requests::operation, &mut rule.to),
                "when" => {
                    lacks |= self.when(value, &field, &mut rule.when);
                    continue;
                }
                _ => {
                    self.reader.unknown(&field);
                    lacks = true;
                    continue;
                }
            };
            lacks |= self.any_of(value, &field, inner, attribute, into);
        }
        (rule, lacks)
    }

    /// Reads `from` or `to`, whose entries have their conditions in the field `inner`; nothing is added if
    /// one of them always holds. Whether something was left out.
    fn any_of(
        &mut self,
        value: &Value,
        field: &str,
        inner: &str,
        attribute: fn(&str) -> Named,
        into: &mut Vec<wire::AttributeMatches>,
    ) -> bool {
        let Some(items) = self.reader.items(value, field) else {
            return true;
        };
        if items.is_empty() {
            let hint = "leave it out for any, or write one";
            self.reader.fault(field, "is an empty list", hint);
            return true;
        }
        if self.is_too_long(items, MAX_ITEMS, field, "entries") {
            return true;
        }
        let (mut sets, mut lacks) = (Vec::new(), false);
        for (index, item) in items.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let mut part = None;
            for (name, value) in self.reader.fields(item, &field).unwrap_or_default() {
                let field = format!("{field}.{name}");
                if name == inner {
                    part = Some(self.part(value, &field, attribute));
                } else {
                    self.reader.unknown(&field);
                    lacks = true;
                }
            }
            let part = part.unwrap_or_default();
            if part.matches.is_empty() && !part.lacks {
                let hint = "write a condition, or leave the list out for any";
                self.reader.fault(&field, "has no condition", hint);
                lacks = true;
            }
            lacks |= part.lacks;
            sets.push(wire::AttributeMatches {
                matches: part.matches,
            });
        }
        if sets.iter().all(|set| !set.matches.is_empty()) {
            *into = sets;
        }
        lacks
    }

    /// The conditions of a source or operation.
    fn part(&mut self, value: &Value, field: &str, attribute: fn(&str) -> Named) -> Part {
        let mut part = Part::default();
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return part;
        };
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            let named = match attribute(name) {
                Named::Is(attribute) | Named::IsNot(attribute) if !self.is_known(attribute) => {
                    Named::NotKnown
                }
                named => named,
            };
            match named {
                Named::Is(attribute) => {
                    let values = self.list(value, &field, attribute);
                    part.add(attribute, "", values, Some(Vec::new()));
                }
                Named::IsNot(attribute) => {
                    let values = self.list(value, &field, attribute);
                    part.add(attribute, "", Some(Vec::new()), values);
                }
                // An empty list of what is not known says nothing.
                Named::NotKnown if value.as_array().is_some_and(Vec::is_empty) => {}
                Named::NotKnown => {
                    self.unsupported(&field);
                    part.lacks = true;
                }
                Named::Unheard => {
                    self.reader.unknown(&field);
                    part.lacks = true;
                }
            }
        }
        self.check_accounts(&mut part, field);
        part
    }

    /// A service account says its namespace: beside principals or namespaces it is a mistake.
    fn check_accounts(&mut self, part: &mut Part, field: &str) {
        let is_account =
            |it: &wire::AttributeMatch| it.attribute() == Attribute::SourceServiceAccount;
        let is_other = |it: &wire::AttributeMatch| {
            matches!(
                it.attribute(),
                Attribute::SourcePrincipal | Attribute::SourceNamespace
            )
        };
        if part.matches.iter().any(is_account) && part.matches.iter().any(is_other) {
            part.matches.retain(|it| !is_account(it));
            part.lacks = true;
            let hint = "a service account says the namespace too; use one or the other";
            let problem = "has service accounts beside principals or namespaces";
            self.reader.fault(field, problem, hint);
        }
    }

    /// Reads `when`. Whether something was left out.
    fn when(&mut self, value: &Value, field: &str, into: &mut Vec<wire::AttributeMatch>) -> bool {
        let Some(items) = self.reader.items(value, field) else {
            return true;
        };
        if self.is_too_long(items, MAX_ITEMS, field, "entries") {
            return true;
        }
        let mut part = Part::default();
        for (index, item) in items.iter().enumerate() {
            self.condition(item, &format!("{field}[{index}]"), &mut part);
        }
        *into = part.matches;
        part.lacks
    }

    fn condition(&mut self, value: &Value, field: &str, part: &mut Part) {
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return;
        };
        let null = Value::Null;
        let (mut key, mut values, mut not_values) = ("", &null, &null);
        for (name, value) in fields {
            match name {
                "key" => key = value.as_str().unwrap_or_default(),
                "values" => values = value,
                "notValues" => not_values = value,
                _ => {
                    let field = format!("{field}.{name}");
                    self.reader.unknown(&field);
                    part.lacks = true;
                }
            }
        }
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        let says_nothing = |value: &Value| value.is_null() || is_empty(value);
        if says_nothing(values) && says_nothing(not_values) {
            let hint = "write values or notValues";
            self.reader.fault(field, "has no values", hint);
            part.lacks = true;
            return;
        }
        match requests::keyed(key) {
            Some((attribute, key)) if self.is_known(attribute) => {
                let yes = self.list(values, &format!("{field}.values"), attribute);
                let no = self.list(not_values, &format!("{field}.notValues"), attribute);
                part.add(attribute, &key, yes, no);
            }
            None if !requests::is_other(key) => {
                let problem = format!("is {key:?}, which is no attribute");
                let hint = "see Istio's list of authorization policy conditions";
                self.reader.fault(&format!("{field}.key"), problem, hint);
                part.lacks = true;
            }
            _ => {
                self.unsupported(&format!("{field} (key {key:?})"));
                part.lacks = true;
            }
        }
    }

    /// The values of a list; `None` if one of them is wrong.
    fn list(
        &mut self,
        value: &Value,
        field: &str,
        attribute: Attribute,
    ) -> Option<Vec<wire::AttributeValue>> {
        let items = self.reader.items(value, field)?;
        if self.is_too_long(items, MAX_VALUES, field, "values") {
            return None;
        }
        let (mut found, mut is_right) = (Vec::with_capacity(items.len()), true);
        for (index, item) in items.iter().enumerate() {
            let value = match item.as_str() {
                Some(text) => requests::read_value(attribute, text, self.namespace),
                None => Err((format!("is {item}, not text"), "put it in quotes")),
            };
            match value {
                Ok(kind) => found.push(wire::AttributeValue { kind: Some(kind) }),
                Err((problem, hint)) => {
                    let field = format!("{field}[{index}]");
                    self.reader.fault(&field, problem, hint);
                    is_right = false;
                }
            }
        }
        is_right.then_some(found)
    }

    /// Whether those who enforce the policy can decide on an attribute.
    fn is_known(&self, attribute: Attribute) -> bool {
        match self.by {
            For::Pods => connections::has(attribute),
            For::Targets => true,
            For::Provider => !requests::is_of_token(attribute),
        }
    }

    /// Notes what they cannot decide on.
    fn unsupported(&mut self, field: &str) {
        let problem = match self.by {
            For::Pods => "is nothing that a node agent knows of a connection",
            For::Targets => "is nothing that a waypoint or gateway knows",
            For::Provider => {
                "is nothing that a waypoint or gateway knows before it asks a provider"
            }
        };
        let hint = match self.by {
            For::Pods => {
                "a rule that allows never matches with it, one that refuses is enforced without it; HTTP is for \
                 waypoints"
            }
            For::Targets | For::Provider => {
                "a rule that allows never matches with it, one that refuses is enforced without it"
            }
        };
        self.reader.unsupported(field, problem, hint);
    }

    /// Whether a list is longer than proxies take. Node agents count what all of a policy comes to.
    fn is_too_long(&mut self, items: &[Value], most: usize, field: &str, of: &str) -> bool {
        let is_too_long = self.by != For::Pods && items.len() > most;
        if is_too_long {
            let problem = format!("has {} {of}, and {most} are the most", items.len());
            let hint = "use several rules or policies";
            self.reader.fault(field, problem, hint);
        }
        is_too_long
    }
}

impl Part {
    /// Adds a condition. A list of which there is no telling leaves the other, and something out.
    fn add(
        &mut self,
        attribute: Attribute,
        key: &str,
        values: Option<Vec<wire::AttributeValue>>,
        not_values: Option<Vec<wire::AttributeValue>>,
    ) {
        self.lacks |= values.is_none() || not_values.is_none();
        let (values, not_values) = (values.unwrap_or_default(), not_values.unwrap_or_default());
        if values.is_empty() && not_values.is_empty() {
            return;
        }
        self.matches.push(wire::AttributeMatch {
            attribute: attribute.into(),
            key: key.to_owned(),
            values,
            not_values,
        });
    }
}
