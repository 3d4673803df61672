// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The cases of `table.txt`, which says how it is read. The compiled matcher must give the verdicts,
//! and so must the reference: what the random test compares with is itself held to the table.

use std::collections::BTreeSet;
use std::net::IpAddr;

use karst_bpf_common::Ip;
use karst_bpf_common::policy::model::{
    Action, Clause, IpBlock, Match, Policy, Rule, ServiceAccount, StringMatch,
};
use karst_bpf_common::policy::{Attributes, Hit, Identity, PolicySet, Verdict};

use crate::{explained, reference};

const TABLE: &str = include_str!("table.txt");

/// Fewest cases that the table has.
const LEAST_CASES: usize = 120;

#[test]
fn every_case_holds() {
    let lines = TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (mut names, mut wrong) = (BTreeSet::new(), Vec::new());
    for line in lines {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, policies, expectations @ ..] = &columns[..] else {
            panic!("not a case: {line}");
        };
        assert!(names.insert(*name), "a second case is called {name:?}");
        assert_eq!(expectations.len(), 2, "{line}");
        let policies = read_policies(policies);
        let compiled = PolicySet::compile(&policies).unwrap();
        // In a set as small as most of these everything is tried. The same policies over again
        // decide nothing, being later, but are enough to be looked up.
        let repeated = PolicySet::compile(&[&policies[..]; 4].concat()).unwrap();
        for expectation in expectations {
            let (connection, verdict) = expectation.split_once(" => ").unwrap();
            let expected = read_verdict(verdict);
            with_connection(connection, |attributes| {
                for (by, got) in [
                    ("compiled", compiled.decide(attributes)),
                    ("looked up", repeated.decide(attributes)),
                    ("reference", reference::decide(&policies, attributes)),
                    ("explained", explained::verdict(&policies, attributes)),
                ] {
                    if got != expected {
                        wrong.push(format!("{name}: {expectation}: {by} says {got:?}"));
                    }
                }
            });
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(names.len() >= LEAST_CASES, "{} cases", names.len());
}

fn read_policies(text: &str) -> Vec<Policy> {
    if text.is_empty() {
        return Vec::new();
    }
    let policies = text.split(" ; ").map(|text| {
        let (action, rules) = text.split_once(' ').unwrap_or((text, ""));
        Policy {
            name: "n/p".to_owned(),
            action: match action {
                "ALLOW" => Action::Allow,
                "DENY" => Action::Deny,
                other => panic!("no action: {other}"),
            },
            rules: match rules {
                "" => Vec::new(),
                rules => rules.split(" OR ").map(read_rule).collect(),
            },
        }
    });
    policies.collect()
}

fn read_rule(text: &str) -> Rule {
    let clauses = match text {
        "{}" => Vec::new(),
        text => text.split(" AND ").map(read_clause).collect(),
    };
    Rule { clauses }
}

fn read_clause(text: &str) -> Clause {
    let matches = match text {
        "[]" => Vec::new(),
        text => text.split(" or ").map(read_match).collect(),
    };
    Clause { matches }
}

fn read_match(text: &str) -> Match {
    let mut m = Match::default();
    if text == "()" {
        return m;
    }
    for condition in text.split(' ') {
        let (key, values) = condition.split_once('=').unwrap();
        let values = || values.split(',');
        let texts = || values().map(read_text).collect();
        let blocks = || values().map(read_block).collect();
        let ports = || values().map(|value| value.parse().unwrap()).collect();
        let accounts = || values().map(read_account).collect();
        match key {
            "ns" => m.namespaces = texts(),
            "ns!" => m.not_namespaces = texts(),
            "principal" => m.principals = texts(),
            "principal!" => m.not_principals = texts(),
            "account" => m.service_accounts = accounts(),
            "account!" => m.not_service_accounts = accounts(),
            "from" => m.source_ips = blocks(),
            "from!" => m.not_source_ips = blocks(),
            "to" => m.destination_ips = blocks(),
            "to!" => m.not_destination_ips = blocks(),
            "port" => m.destination_ports = ports(),
            "port!" => m.not_destination_ports = ports(),
            other => panic!("no attribute: {other}"),
        }
    }
    m
}

fn read_text(text: &str) -> StringMatch {
    let of = |text: &str| text.replace("''", "");
    if text == "*" {
        StringMatch::Presence
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(of(prefix))
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(of(suffix))
    } else {
        StringMatch::Exact(of(text))
    }
}

fn read_account(text: &str) -> ServiceAccount {
    let (namespace, account) = text.split_once('/').unwrap();
    ServiceAccount {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
    }
}

fn read_ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

fn read_block(text: &str) -> IpBlock {
    let (ip, length) = match text.split_once('/') {
        Some((ip, length)) => (read_ip(ip), Some(length.parse::<u8>().unwrap())),
        None => (read_ip(text), None),
    };
    let length = match length {
        Some(length) if ip.is_v4() => 96 + length,
        Some(length) => length,
        None => 128,
    };
    IpBlock { ip, length }
}

fn with_connection(text: &str, then: impl FnOnce(&Attributes<'_>)) {
    let mut words = text.split(' ');
    let (mut trust_domain, mut client) = ("td", words.next().unwrap());
    if let Some((domain, rest)) = client.split_once(':') {
        (trust_domain, client) = (domain, rest);
    }
    let (namespace, account) = client.split_once('/').unwrap_or_default();
    let principal = format!("{trust_domain}/ns/{namespace}/sa/{account}");
    let identity = Identity {
        principal: &principal,
        namespace,
        service_account: account,
    };
    let mut attributes = Attributes {
        source: (client != "plain").then_some(identity),
        source_ip: read_ip("10.0.0.1"),
        destination_ip: read_ip("10.9.9.9"),
        destination_port: 80,
    };
    while let Some(key) = words.next() {
        let value = words.next().unwrap();
        match key {
            "from" => attributes.source_ip = read_ip(value),
            "to" => attributes.destination_ip = read_ip(value),
            "port" => attributes.destination_port = value.parse().unwrap(),
            other => panic!("not of a connection: {other}"),
        }
    }
    then(&attributes);
}

fn read_verdict(text: &str) -> Verdict {
    let (verdict, hit) = text.split_once(' ').unwrap_or((text, ""));
    let by = hit.split_once('.').map(|(policy, rule)| Hit {
        policy: policy.parse().unwrap(),
        rule: rule.parse().unwrap(),
    });
    match verdict {
        "allow" => Verdict::Allow { by },
        "deny" => Verdict::Deny { by },
        other => panic!("no verdict: {other}"),
    }
}
