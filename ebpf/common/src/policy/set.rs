// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Straightforward first form; the compiled one replaces it behind the same interface.

use alloc::string::String;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;

use super::model::{Action, IpBlock, Match, Policy, Rule, ServiceAccount, StringMatch};
use super::{Attributes, Hit, Identity, Verdict};
use crate::Ip;

/// Compiled policies that somebody else owns.
#[derive(Clone, Copy, Debug)]
pub struct PolicyView<'a> {
    policies: &'a [Policy],
}

/// Compiled policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    policies: Vec<Policy>,
}

/// A policy that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// The policy's name.
    pub policy: String,
    /// What is wrong with it; continues the sentence.
    pub problem: &'static str,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {} {}", self.policy, self.problem)
    }
}

impl core::error::Error for CompileError {}

impl PolicySet {
    /// Compiles policies, whose order decides only which is named in a [`Hit`].
    ///
    /// # Errors
    /// When a policy exceeds a limit.
    pub fn compile<P: Borrow<Policy>>(policies: &[P]) -> Result<Self, CompileError> {
        let policies = policies.iter().map(|policy| policy.borrow().clone());
        Ok(Self {
            policies: policies.collect(),
        })
    }

    /// Decides about a connection.
    #[must_use]
    pub fn decide(&self, a: &Attributes<'_>) -> Verdict {
        self.view().decide(a)
    }

    /// Borrows the compiled form.
    #[must_use]
    pub fn view(&self) -> PolicyView<'_> {
        PolicyView {
            policies: &self.policies,
        }
    }

    /// Whether no policy was given, so that everything is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}

impl PolicyView<'_> {
    /// Decides about a connection.
    #[must_use]
    pub fn decide(&self, a: &Attributes<'_>) -> Verdict {
        if let by @ Some(_) = self.first(Action::Deny, a) {
            return Verdict::Deny { by };
        }
        if let by @ Some(_) = self.first(Action::Allow, a) {
            return Verdict::Allow { by };
        }
        match self.policies.iter().any(|p| p.action == Action::Allow) {
            true => Verdict::Deny { by: None },
            false => Verdict::Allow { by: None },
        }
    }

    fn first(&self, action: Action, a: &Attributes<'_>) -> Option<Hit> {
        let policies = self.policies.iter().enumerate();
        policies
            .filter(|(_, policy)| policy.action == action)
            .find_map(|(number, policy)| {
                let rule = policy.rules.iter().position(|rule| rule_matches(rule, a))?;
                Some(Hit {
                    policy: u32::try_from(number).ok()?,
                    rule: u32::try_from(rule).ok()?,
                })
            })
    }
}

fn rule_matches(rule: &Rule, a: &Attributes<'_>) -> bool {
    rule.clauses.iter().all(|clause| {
        clause.matches.is_empty() || clause.matches.iter().any(|m| match_matches(m, a))
    })
}

fn match_matches(m: &Match, a: &Attributes<'_>) -> bool {
    if *m == Match::default() {
        return false;
    }
    let namespace = a.source.map(|source| source.namespace);
    let principal = a.source.map(|source| source.principal);
    holds(&m.namespaces, &m.not_namespaces, |v| text(v, namespace))
        && holds(&m.principals, &m.not_principals, |v| text(v, principal))
        && holds(&m.service_accounts, &m.not_service_accounts, |v| {
            account(v, a.source)
        })
        && holds(&m.source_ips, &m.not_source_ips, |v| block(v, a.source_ip))
        && holds(&m.destination_ips, &m.not_destination_ips, |v| {
            block(v, a.destination_ip)
        })
        && holds(&m.destination_ports, &m.not_destination_ports, |v| {
            *v == a.destination_port
        })
}

fn holds<T>(plain: &[T], not: &[T], test: impl Fn(&T) -> bool) -> bool {
    (plain.is_empty() || plain.iter().any(&test)) && !not.iter().any(&test)
}

fn text(value: &StringMatch, subject: Option<&str>) -> bool {
    subject.is_some_and(|subject| match value {
        StringMatch::Exact(text) => text == subject,
        StringMatch::Prefix(text) => subject.starts_with(text.as_str()),
        StringMatch::Suffix(text) => subject.ends_with(text.as_str()),
        StringMatch::Presence => !subject.is_empty(),
    })
}

fn account(value: &ServiceAccount, source: Option<Identity<'_>>) -> bool {
    source.is_some_and(|source| {
        source.namespace == value.namespace && source.service_account == value.account
    })
}

fn block(value: &IpBlock, ip: Ip) -> bool {
    let is_v4 = value.ip.is_v4() && value.length >= 96;
    let bits = |ip: Ip| u128::from_be_bytes(ip.octets());
    let different = bits(ip) ^ bits(value.ip);
    is_v4 == ip.is_v4() && different.leading_zeros() >= u32::from(value.length)
}
