// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Why a policy matches a connection or does not, for people.
//!
//! Nothing here knows what a condition means: each rule, and where a rule does not match each of its conditions, is
//! compiled alone and put to the matcher itself, so that what is said cannot differ from what is done. That is far
//! too slow for a connection, and nobody asks for one.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use super::model::{Action, Clause, IpBlock, Match, Policy, Rule, StringMatch};
use super::{Attributes, CompileError, PolicySet, Verdict};

/// Why a rule does not match: one clause of which no alternative holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// Index of the clause in the rule.
    pub clause: usize,
    /// Of each alternative of the clause the first condition that does not hold; `None` for an alternative without
    /// conditions, which never matches.
    pub alternatives: Vec<Option<Condition>>,
}

/// A condition as an object has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The field of an AuthorizationPolicy, as in `principals` and `notPorts`.
    pub field: &'static str,
    /// Its values, as they are written in an object.
    pub values: Vec<String>,
}

/// For each rule of a policy, why it does not match; `None` for one that does.
///
/// # Errors
/// The policy cannot be compiled; then the set that it is part of cannot either, and refuses everything.
pub fn explain(policy: &Policy, a: &Attributes<'_>) -> Result<Vec<Option<Unmet>>, CompileError> {
    policy.rules.iter().map(|rule| unmet(rule, a)).collect()
}

fn unmet(rule: &Rule, a: &Attributes<'_>) -> Result<Option<Unmet>, CompileError> {
    if matches(rule.clone(), a)? {
        return Ok(None);
    }
    for (index, clause) in rule.clauses.iter().enumerate() {
        if matches(of_clause(clause.clone()), a)? {
            continue;
        }
        let alternatives = clause.matches.iter().map(|one| first_unmet(one, a));
        return Ok(Some(Unmet {
            clause: index,
            alternatives: alternatives.collect::<Result<_, _>>()?,
        }));
    }
    // Clauses are independent: a rule whose clauses all match does. Were it otherwise, this says less and nothing wrong.
    Ok(Some(Unmet {
        clause: 0,
        alternatives: Vec::new(),
    }))
}

fn first_unmet(one: &Match, a: &Attributes<'_>) -> Result<Option<Condition>, CompileError> {
    for (condition, alone) in conditions(one) {
        if !matches(
            of_clause(Clause {
                matches: vec![alone],
            }),
            a,
        )? {
            return Ok(Some(condition));
        }
    }
    Ok(None)
}

fn of_clause(clause: Clause) -> Rule {
    Rule {
        clauses: vec![clause],
    }
}

/// What the matcher says of a rule alone.
fn matches(rule: Rule, a: &Attributes<'_>) -> Result<bool, CompileError> {
    let alone = Policy {
        name: String::new(),
        action: Action::Deny,
        rules: vec![rule],
    };
    let verdict = PolicySet::compile(&[alone])?.decide(a);
    Ok(matches!(verdict, Verdict::Deny { by: Some(_) }))
}

/// The conditions of a match that are there, each with a match that has it alone.
fn conditions(one: &Match) -> Vec<(Condition, Match)> {
    let mut all = Vec::new();
    macro_rules! condition {
        ($field:ident, $name:literal, $text:expr) => {
            if !one.$field.is_empty() {
                let condition = Condition {
                    field: $name,
                    values: one.$field.iter().map($text).collect(),
                };
                let alone = Match {
                    $field: one.$field.clone(),
                    ..Match::default()
                };
                all.push((condition, alone));
            }
        };
    }
    let account =
        |each: &super::model::ServiceAccount| format!("{}/{}", each.namespace, each.account);
    condition!(principals, "principals", text);
    condition!(not_principals, "notPrincipals", text);
    condition!(namespaces, "namespaces", text);
    condition!(not_namespaces, "notNamespaces", text);
    condition!(service_accounts, "serviceAccounts", account);
    condition!(not_service_accounts, "notServiceAccounts", account);
    condition!(source_ips, "ipBlocks", block);
    condition!(not_source_ips, "notIpBlocks", block);
    condition!(destination_ips, "destination.ip", block);
    condition!(not_destination_ips, "destination.ip (notValues)", block);
    condition!(destination_ports, "ports", ToString::to_string);
    condition!(not_destination_ports, "notPorts", ToString::to_string);
    all
}

fn text(value: &StringMatch) -> String {
    match value {
        StringMatch::Exact(text) => text.clone(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => String::from("*"),
    }
}

fn block(value: &IpBlock) -> String {
    let ip = value.ip.to_ip_addr();
    let before = if ip.is_ipv4() { 96 } else { 0 };
    format!("{ip}/{}", value.length.saturating_sub(before))
}
