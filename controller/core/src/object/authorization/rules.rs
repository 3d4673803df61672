//! Rules: what a connection must be for a policy to match it.
//!
//! On the wire a rule without clauses matches everything, as does a clause without matches, while a
//! match without conditions is one that node agents pass over. So none of those is ever written:
//! a clause of which nothing is left is left out itself.

use karst_api::security as wire;
use serde_json::Value;

use super::{
    MAX_RULES,
    values::{self, Wrong},
};
use crate::object::policy::Reader;

/// What becomes of a rule with a condition that cannot be decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// For rules that allow.
    NeverMatches,
    /// For rules that refuse: they refuse more.
    LeftOut,
}

/// What there is to say of `fields`, for reports.
const NOT_L4: &str = "is nothing that a node agent knows of a connection";
const NOT_L4_HINT: &str = "a rule that allows never matches with it, one that refuses is enforced without it; HTTP \
                           is for waypoints";
pub(super) const UNKNOWN: &str = "is not known";
pub(super) const UNKNOWN_HINT: &str = "see `kubectl explain` for the fields";

/// The conditions of one source, operation or `when`, as far as they can be decided on.
#[derive(Debug, Default)]
struct Part {
    conditions: wire::Match,
    /// Something was left out.
    lacks: bool,
}

/// Reads one rule.
struct RuleReader<'a, 'r> {
    reader: &'r mut Reader<'a>,
    namespace: &'r str,
}

/// Reads `spec.rules`; `None` if there is no telling what they are.
pub(super) fn read(
    value: &Value,
    unknown: Unknown,
    namespace: &str,
    reader: &mut Reader<'_>,
) -> Option<Vec<wire::Rule>> {
    let items = reader.items(value, "spec.rules")?;
    if items.len() > MAX_RULES {
        let problem = format!("has {} rules", items.len());
        let hint = "use at most 512, in several policies if need be";
        reader.fault("spec.rules", problem, hint);
    }
    let mut rules = Vec::new();
    for (index, item) in items.iter().take(MAX_RULES).enumerate() {
        let mut rule = RuleReader { reader, namespace };
        let (clauses, lacks) = rule.rule(item, &format!("spec.rules[{index}]"));
        if !lacks || unknown == Unknown::LeftOut {
            rules.push(wire::Rule { clauses });
        }
    }
    if items.len() > MAX_RULES && unknown == Unknown::LeftOut {
        // What the others would have refused is not known: everything is.
        rules = vec![wire::Rule::default()];
    }
    Some(rules)
}

impl RuleReader<'_, '_> {
    /// The clauses of a rule, and whether something was left out.
    fn rule(&mut self, value: &Value, field: &str) -> (Vec<wire::Clause>, bool) {
        if value.is_null() {
            let hint = "write {} for a rule that matches everything";
            self.reader.fault(field, "is null", hint);
            return (Vec::new(), true);
        }
        let Some(fields) = self.reader.fields(value, field) else {
            return (Vec::new(), true);
        };
        let (mut clauses, mut lacks) = (Vec::new(), false);
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            match name {
                "from" => {
                    let parts = self.parts(value, &field, "source", Self::source);
                    lacks |= any_of(parts, &mut clauses);
                }
                "to" => {
                    let parts = self.parts(value, &field, "operation", Self::operation);
                    lacks |= any_of(parts, &mut clauses);
                }
                "when" => lacks |= self.when(value, &field, &mut clauses),
                _ => {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    lacks = true;
                }
            }
        }
        (clauses, lacks)
    }

    /// The elements of `from` or `to`, each of which has its conditions in the field `inner`; `None` if
    /// there is no telling what they are.
    fn parts(
        &mut self,
        value: &Value,
        field: &str,
        inner: &str,
        read: fn(&mut Self, &Value, &str) -> Part,
    ) -> Option<Vec<Part>> {
        let items = self.reader.items(value, field)?;
        if items.is_empty() {
            let hint = "leave it out for any, or write one";
            self.reader.fault(field, "is an empty list", hint);
            return None;
        }
        let mut parts = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let mut part = None;
            let mut lacks = false;
            for (name, value) in self.reader.fields(item, &field).unwrap_or_default() {
                let field = format!("{field}.{name}");
                if name == inner {
                    part = Some(read(self, value, &field));
                } else {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    lacks = true;
                }
            }
            let mut part = part.unwrap_or_default();
            if part.conditions == wire::Match::default() && !part.lacks {
                let hint = "write a condition, or leave the list out for any";
                self.reader.fault(&field, "has no condition", hint);
                lacks = true;
            }
            part.lacks |= lacks;
            parts.push(part);
        }
        Some(parts)
    }

    fn source(&mut self, value: &Value, field: &str) -> Part {
        let mut part = Part::default();
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return part;
        };
        let namespace = self.namespace;
        let account = |text: &str| values::service_account(text, namespace);
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            let its = &mut part.conditions;
            let is_read = match name {
                "principals" => self.list(value, &field, values::principal, &mut its.principals),
                "notPrincipals" => {
                    self.list(value, &field, values::principal, &mut its.not_principals)
                }
                "namespaces" => self.list(value, &field, values::string, &mut its.namespaces),
                "notNamespaces" => {
                    self.list(value, &field, values::string, &mut its.not_namespaces)
                }
                "serviceAccounts" => self.list(value, &field, account, &mut its.service_accounts),
                "notServiceAccounts" => {
                    self.list(value, &field, account, &mut its.not_service_accounts)
                }
                "ipBlocks" => self.list(value, &field, values::address, &mut its.source_ips),
                "notIpBlocks" => self.list(value, &field, values::address, &mut its.not_source_ips),
                "requestPrincipals"
                | "notRequestPrincipals"
                | "remoteIpBlocks"
                | "notRemoteIpBlocks"
                | "trustDomains"
                | "notTrustDomains" => self.not_l4(value, &field),
                _ => {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    false
                }
            };
            part.lacks |= !is_read;
        }
        let its = &mut part.conditions;
        let by_account = !its.service_accounts.is_empty() || !its.not_service_accounts.is_empty();
        let by_others = !its.principals.is_empty()
            || !its.not_principals.is_empty()
            || !its.namespaces.is_empty()
            || !its.not_namespaces.is_empty();
        if by_account && by_others {
            its.service_accounts.clear();
            its.not_service_accounts.clear();
            part.lacks = true;
            let hint = "a service account says the namespace too; use one or the other";
            let problem = "has service accounts beside principals or namespaces";
            self.reader.fault(field, problem, hint);
        }
        part
    }

    fn operation(&mut self, value: &Value, field: &str) -> Part {
        let mut part = Part::default();
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return part;
        };
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            let its = &mut part.conditions;
            let is_read = match name {
                "ports" => self.list(value, &field, values::port, &mut its.destination_ports),
                "notPorts" => {
                    self.list(value, &field, values::port, &mut its.not_destination_ports)
                }
                "hosts" | "notHosts" | "methods" | "notMethods" | "paths" | "notPaths" => {
                    self.not_l4(value, &field)
                }
                _ => {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    false
                }
            };
            part.lacks |= !is_read;
        }
        part
    }

    /// Adds a clause for each condition. Whether something was left out.
    fn when(&mut self, value: &Value, field: &str, clauses: &mut Vec<wire::Clause>) -> bool {
        let Some(items) = self.reader.items(value, field) else {
            return true;
        };
        let mut lacks = false;
        for (index, item) in items.iter().enumerate() {
            let part = self.condition(item, &format!("{field}[{index}]"));
            lacks |= any_of(Some(vec![part]), clauses);
        }
        lacks
    }

    fn condition(&mut self, value: &Value, field: &str) -> Part {
        let mut part = Part::default();
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return part;
        };
        let null = Value::Null;
        let (mut key, mut values, mut not_values) = ("", &null, &null);
        for (name, value) in fields {
            match name {
                "key" => key = value.as_str().unwrap_or_default(),
                "values" => values = value,
                "notValues" => not_values = value,
                _ => {
                    self.reader
                        .fault(&format!("{field}.{name}"), UNKNOWN, UNKNOWN_HINT);
                    part.lacks = true;
                }
            }
        }
        let lists = [
            (values, format!("{field}.values")),
            (not_values, format!("{field}.notValues")),
        ];
        let is_empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
        if lists.iter().all(|(value, _)| is_empty(value)) {
            let hint = "write values or notValues";
            self.reader.fault(field, "has no values", hint);
            part.lacks = true;
            return part;
        }
        let [(yes, yes_field), (no, no_field)] = lists;
        let its = &mut part.conditions;
        let namespace = self.namespace;
        let account = |text: &str| values::service_account(text, namespace);
        let is_read = match key {
            "source.ip" => {
                self.list(yes, &yes_field, values::address, &mut its.source_ips)
                    & self.list(no, &no_field, values::address, &mut its.not_source_ips)
            }
            "source.namespace" => {
                self.list(yes, &yes_field, values::string, &mut its.namespaces)
                    & self.list(no, &no_field, values::string, &mut its.not_namespaces)
            }
            "source.principal" => {
                self.list(yes, &yes_field, values::principal, &mut its.principals)
                    & self.list(no, &no_field, values::principal, &mut its.not_principals)
            }
            "source.serviceAccount" => {
                self.list(yes, &yes_field, account, &mut its.service_accounts)
                    & self.list(no, &no_field, account, &mut its.not_service_accounts)
            }
            "destination.ip" => {
                self.list(yes, &yes_field, values::address, &mut its.destination_ips)
                    & self.list(no, &no_field, values::address, &mut its.not_destination_ips)
            }
            "destination.port" => {
                self.list(yes, &yes_field, values::port, &mut its.destination_ports)
                    & self.list(no, &no_field, values::port, &mut its.not_destination_ports)
            }
            key if is_other_attribute(key) => {
                let field = format!("{field} (key {key:?})");
                self.reader.unsupported(&field, NOT_L4, NOT_L4_HINT);
                false
            }
            other => {
                let hint = "use source.ip, source.namespace, source.principal, source.serviceAccount, \
                            destination.ip or destination.port";
                let problem = format!("is {other:?}, which is no attribute");
                self.reader.fault(&format!("{field}.key"), problem, hint);
                false
            }
        };
        part.lacks |= !is_read;
        part
    }

    /// Reads a list's values into `into`; none of them if one is wrong. Whether all are right.
    fn list<T>(
        &mut self,
        value: &Value,
        field: &str,
        read: impl Fn(&str) -> Result<T, Wrong>,
        into: &mut Vec<T>,
    ) -> bool {
        let Some(items) = self.reader.items(value, field) else {
            return false;
        };
        let mut found = Vec::with_capacity(items.len());
        let mut is_right = true;
        for (index, item) in items.iter().enumerate() {
            let text = item.as_str();
            let value = text.map_or_else(
                || Err((format!("is {item}, not text"), "put it in quotes")),
                &read,
            );
            match value {
                Ok(value) => found.push(value),
                Err((problem, hint)) => {
                    self.reader
                        .fault(&format!("{field}[{index}]"), problem, hint);
                    is_right = false;
                }
            }
        }
        if is_right {
            *into = found;
        }
        is_right
    }

    /// An attribute that is not one of connections. An empty list of them says nothing.
    fn not_l4(&mut self, value: &Value, field: &str) -> bool {
        if value.as_array().is_some_and(Vec::is_empty) {
            return true;
        }
        self.reader.unsupported(field, NOT_L4, NOT_L4_HINT);
        false
    }
}

/// Attributes that Istio has besides those of connections.
fn is_other_attribute(key: &str) -> bool {
    matches!(key, "remote.ip" | "connection.sni" | "source.trustDomain")
        || key.starts_with("request.")
        || key.starts_with("experimental.")
}

/// Adds the clause that holds when one of the parts does, and none if one of them always does.
/// Whether something was left out.
fn any_of(parts: Option<Vec<Part>>, clauses: &mut Vec<wire::Clause>) -> bool {
    let Some(parts) = parts else { return true };
    let lacks = parts.iter().any(|part| part.lacks);
    let always = |part: &Part| part.conditions == wire::Match::default();
    if !parts.iter().any(always) {
        let matches = parts.into_iter().map(|part| part.conditions);
        clauses.push(wire::Clause {
            matches: matches.collect(),
        });
    }
    lacks
}
