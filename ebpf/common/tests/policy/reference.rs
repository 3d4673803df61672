// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The matcher written as the semantics are said, with no thought of speed. It shares nothing with
//! the compiled one but the types; addresses are compared by the standard library's.

use std::net::IpAddr;

use karst_bpf_common::Ip;
use karst_bpf_common::policy::model::{
    Action, Clause, IpBlock, Match, Policy, Rule, ServiceAccount, StringMatch,
};
use karst_bpf_common::policy::{Attributes, Hit, Verdict};

pub fn decide(policies: &[Policy], a: &Attributes<'_>) -> Verdict {
    let first = |action: Action| {
        let policies = policies.iter().enumerate();
        let mut policies = policies.filter(|(_, policy)| policy.action == action);
        policies.find_map(|(number, policy)| {
            let rule = policy.rules.iter().position(|rule| is_rule(rule, a))?;
            Some(Hit {
                policy: number as u32,
                rule: rule as u32,
            })
        })
    };
    if let Some(hit) = first(Action::Deny) {
        return Verdict::Deny { by: Some(hit) };
    }
    if !policies.iter().any(|policy| policy.action == Action::Allow) {
        return Verdict::Allow { by: None };
    }
    match first(Action::Allow) {
        Some(hit) => Verdict::Allow { by: Some(hit) },
        None => Verdict::Deny { by: None },
    }
}

fn is_rule(rule: &Rule, a: &Attributes<'_>) -> bool {
    rule.clauses.iter().all(|clause| is_clause(clause, a))
}

fn is_clause(clause: &Clause, a: &Attributes<'_>) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|m| is_match(m, a))
}

fn is_match(m: &Match, a: &Attributes<'_>) -> bool {
    if *m == Match::default() {
        return false;
    }
    let namespace = a.source.map(|source| source.namespace);
    let principal = a.source.map(|source| source.principal);
    let account = |value: &ServiceAccount| {
        a.source.is_some_and(|source| {
            source.namespace == value.namespace && source.service_account == value.account
        })
    };
    attribute(&m.namespaces, &m.not_namespaces, |v| is_text(v, namespace))
        && attribute(&m.principals, &m.not_principals, |v| is_text(v, principal))
        && attribute(&m.service_accounts, &m.not_service_accounts, account)
        && attribute(&m.source_ips, &m.not_source_ips, |v| is_in(v, a.source_ip))
        && attribute(&m.destination_ips, &m.not_destination_ips, |v| {
            is_in(v, a.destination_ip)
        })
        && attribute(&m.destination_ports, &m.not_destination_ports, |v| {
            *v == a.destination_port
        })
}

fn attribute<T>(plain: &[T], not: &[T], is: impl Fn(&T) -> bool) -> bool {
    (plain.is_empty() || plain.iter().any(&is)) && !not.iter().any(&is)
}

fn is_text(value: &StringMatch, subject: Option<&str>) -> bool {
    let Some(subject) = subject else {
        return false;
    };
    match value {
        StringMatch::Exact(text) => subject == text,
        StringMatch::Prefix(text) => subject.starts_with(text.as_str()),
        StringMatch::Suffix(text) => subject.ends_with(text.as_str()),
        StringMatch::Presence => !subject.is_empty(),
    }
}

fn is_in(block: &IpBlock, ip: Ip) -> bool {
    match (block.ip.to_ip_addr(), ip.to_ip_addr()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let length = u32::from(block.length) - 96;
            (network.to_bits() ^ address.to_bits()).leading_zeros() >= length
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let length = u32::from(block.length);
            (network.to_bits() ^ address.to_bits()).leading_zeros() >= length
        }
        _ => false,
    }
}
