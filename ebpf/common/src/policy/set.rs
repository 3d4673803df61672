// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The owner of the compiled form, and what may be compiled.

use alloc::string::String;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;

use super::lower::Lowering;
use super::model::{Action, Match, Policy, StringMatch};
use super::rows::{ExactRow, KeyRow, PatternRow, ProbeRow, RangeRow, RuleRow, Span, TestRow};
use super::{Attributes, PolicyView, Verdict, index};
use crate::Ip;

/// Most policies in one set.
pub const MAX_POLICIES: usize = 65_536;

/// Most rules, clauses, matches and values, added up, in one policy. It bounds what a decision can
/// cost because of one policy. Istio's own limits (512 rules) are far below.
pub const MAX_POLICY_ELEMENTS: usize = 262_144;

/// Most rules, clauses, matches and values, added up, in one set.
pub const MAX_SET_ELEMENTS: usize = 4_194_304;

/// Longest text of a condition, bytes: more than the 2,048 of the longest SPIFFE ID.
pub const MAX_TEXT_BYTES: usize = 4_096;

/// Most text in one set, bytes; equal texts count once.
pub const MAX_SET_TEXT_BYTES: usize = 32 * 1024 * 1024;

/// Bits of an address.
const ADDRESS_BITS: u8 = 128;

/// Bits before the address in a mapped IPv4 address.
const MAPPED_BITS: u8 = 96;

/// Compiled policies: immutable, and a few flat allocations whatever the number of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    pub(super) policies: usize,
    pub(super) deny_rules: u32,
    pub(super) has_allow: bool,
    pub(super) bucket_bits: u32,
    pub(super) rules: Vec<RuleRow>,
    pub(super) clauses: Vec<Span>,
    pub(super) matches: Vec<Span>,
    pub(super) tests: Vec<TestRow>,
    pub(super) exact: Vec<ExactRow>,
    pub(super) patterns: Vec<PatternRow>,
    pub(super) ranges: Vec<RangeRow>,
    pub(super) ports: Vec<u16>,
    pub(super) text: Vec<u8>,
    pub(super) probes: Vec<ProbeRow>,
    pub(super) buckets: Vec<u32>,
    pub(super) keys: Vec<KeyRow>,
    pub(super) postings: Vec<u32>,
    pub(super) residual: Vec<u32>,
}

/// A policy that cannot be compiled. Whoever wrote it is at fault; a retry does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// The policy's name.
    pub policy: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a policy, or with the set that it would be part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is one too many: [`MAX_POLICIES`].
    Policies,
    /// It is too large: [`MAX_POLICY_ELEMENTS`].
    PolicyElements,
    /// With it the set is too large: [`MAX_SET_ELEMENTS`].
    SetElements,
    /// One of its texts is too long: [`MAX_TEXT_BYTES`].
    Text,
    /// With it the set has too much text: [`MAX_SET_TEXT_BYTES`].
    SetText,
    /// A block of addresses has a length above 128, or one below 96 with an IPv4 address.
    BlockLength(u8),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policies => write!(f, "comes after {MAX_POLICIES} others, which is the most"),
            Self::PolicyElements => write!(
                f,
                "has more than {MAX_POLICY_ELEMENTS} rules, clauses, matches and values"
            ),
            Self::SetElements => write!(
                f,
                "and those before it have more than {MAX_SET_ELEMENTS} rules, clauses, matches \
                 and values"
            ),
            Self::Text => write!(f, "has a text of more than {MAX_TEXT_BYTES} bytes"),
            Self::SetText => write!(
                f,
                "and those before it have more than {MAX_SET_TEXT_BYTES} bytes of text"
            ),
            Self::BlockLength(length) => write!(
                f,
                "has a block of {length} bits, which is 0 to 128, from 96 for IPv4"
            ),
        }
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {} {}", self.policy, self.problem)
    }
}

impl core::error::Error for CompileError {}

impl CompileError {
    /// Stable label for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "policy_not_compiled"
    }
}

impl PolicySet {
    /// Compiles policies, whose order decides only which is named in a [`Hit`](super::Hit).
    ///
    /// # Errors
    /// When a policy exceeds a limit or has an impossible block of addresses. Nothing is compiled
    /// then: with a policy left out, what it denies would be allowed.
    pub fn compile<P: Borrow<Policy>>(policies: &[P]) -> Result<Self, CompileError> {
        let mut elements = 0;
        for (number, policy) in policies.iter().enumerate() {
            let policy = policy.borrow();
            let checked = if number < MAX_POLICIES {
                check(policy, &mut elements)
            } else {
                Err(Problem::Policies)
            };
            checked.map_err(|problem| failed(policy, problem))?;
        }
        let mut lowering = Lowering::default();
        for action in [Action::Deny, Action::Allow] {
            for (number, policy) in policies.iter().enumerate() {
                let policy = policy.borrow();
                if policy.action == action {
                    lowering
                        .policy(number, policy)
                        .map_err(|problem| failed(policy, problem))?;
                }
            }
        }
        let (mut set, keys) = lowering.done();
        set.policies = policies.len();
        index::build(&mut set, &keys);
        Ok(set)
    }

    /// Decides about a connection; see [`PolicyView::decide`].
    #[must_use]
    pub fn decide(&self, a: &Attributes<'_>) -> Verdict {
        self.view().decide(a)
    }

    /// Borrows the compiled form.
    #[must_use]
    pub fn view(&self) -> PolicyView<'_> {
        PolicyView {
            deny_rules: self.deny_rules,
            has_allow: self.has_allow,
            bucket_bits: self.bucket_bits,
            rules: &self.rules,
            clauses: &self.clauses,
            matches: &self.matches,
            tests: &self.tests,
            exact: &self.exact,
            patterns: &self.patterns,
            ranges: &self.ranges,
            ports: &self.ports,
            text: &self.text,
            probes: &self.probes,
            buckets: &self.buckets,
            keys: &self.keys,
            postings: &self.postings,
            residual: &self.residual,
        }
    }

    /// Whether no policy was given, so that everything is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies == 0
    }
}

fn failed(policy: &Policy, problem: Problem) -> CompileError {
    CompileError {
        policy: policy.name.clone(),
        problem,
    }
}

/// Whether a policy keeps the limits; adds its elements to those of the set.
fn check(policy: &Policy, set_elements: &mut usize) -> Result<(), Problem> {
    let mut elements = policy.rules.len();
    for rule in &policy.rules {
        elements += rule.clauses.len();
        for clause in &rule.clauses {
            elements += clause.matches.len();
            for condition in &clause.matches {
                elements += check_match(condition)?;
            }
        }
    }
    if elements > MAX_POLICY_ELEMENTS {
        return Err(Problem::PolicyElements);
    }
    *set_elements += elements;
    if *set_elements > MAX_SET_ELEMENTS {
        return Err(Problem::SetElements);
    }
    Ok(())
}

/// How many values a match has, all of which are within the limits.
fn check_match(condition: &Match) -> Result<usize, Problem> {
    let mut values = condition.destination_ports.len() + condition.not_destination_ports.len();
    for texts in [
        &condition.namespaces,
        &condition.not_namespaces,
        &condition.principals,
        &condition.not_principals,
    ] {
        values += texts.len();
        for text in texts {
            match text {
                StringMatch::Exact(text)
                | StringMatch::Prefix(text)
                | StringMatch::Suffix(text) => check_text(text)?,
                StringMatch::Presence => {}
            }
        }
    }
    for accounts in [&condition.service_accounts, &condition.not_service_accounts] {
        values += accounts.len();
        for account in accounts {
            check_text(&account.namespace)?;
            check_text(&account.account)?;
        }
    }
    for blocks in [
        &condition.source_ips,
        &condition.not_source_ips,
        &condition.destination_ips,
        &condition.not_destination_ips,
    ] {
        values += blocks.len();
        for block in blocks {
            check_block(block.ip, block.length)?;
        }
    }
    Ok(values)
}

fn check_text(text: &str) -> Result<(), Problem> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Problem::Text);
    }
    Ok(())
}

fn check_block(ip: Ip, length: u8) -> Result<(), Problem> {
    if length > ADDRESS_BITS || (ip.is_v4() && length < MAPPED_BITS) {
        return Err(Problem::BlockLength(length));
    }
    Ok(())
}
