// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What is refused, and that refusing names the policy.

use std::error::Error;
use std::net::IpAddr;
use std::rc::Rc;

use karst_bpf_common::policy::model::{Clause, IpBlock, Match, Policy, Rule, StringMatch};
use karst_bpf_common::policy::{
    Attributes, CompileError, MAX_POLICIES, MAX_POLICY_ELEMENTS, MAX_SET_ELEMENTS,
    MAX_SET_TEXT_BYTES, MAX_TEXT_BYTES, PolicySet, Problem, Verdict,
};

fn policy(name: &str, condition: Match) -> Policy {
    Policy {
        name: name.to_owned(),
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![condition],
            }],
        }],
        ..Policy::default()
    }
}

fn ports(count: usize) -> Match {
    Match {
        destination_ports: vec![80; count],
        ..Match::default()
    }
}

fn text(text: String) -> Match {
    Match {
        principals: vec![StringMatch::Exact(text)],
        ..Match::default()
    }
}

#[track_caller]
fn refused(policies: &[Rc<Policy>], name: &str, problem: Problem) {
    let error = PolicySet::compile(policies).unwrap_err();
    let expected = CompileError {
        policy: name.to_owned(),
        problem,
    };
    assert_eq!(error, expected);
    assert_eq!(error.reason(), "policy_not_compiled");
    assert!(error.to_string().starts_with(&format!("policy {name} ")));
    assert!(error.source().is_none());
}

#[test]
fn every_limit_is_kept_to_the_last() {
    let rc = |name: &str, condition| Rc::new(policy(name, condition));
    // A rule, a clause and a match come with the values.
    let largest = rc("n/largest", ports(MAX_POLICY_ELEMENTS - 3));
    assert!(PolicySet::compile(&[Rc::clone(&largest)]).is_ok());
    let over = rc("n/over", ports(MAX_POLICY_ELEMENTS - 2));
    refused(&[over], "n/over", Problem::PolicyElements);

    let full = vec![largest; MAX_SET_ELEMENTS / MAX_POLICY_ELEMENTS];
    let with_one = [&full[..], &[rc("n/one", Match::default())]].concat();
    refused(&with_one, "n/one", Problem::SetElements);

    let longest = rc("n/longest", text("x".repeat(MAX_TEXT_BYTES)));
    assert!(PolicySet::compile(&[longest]).is_ok());
    let too_long = rc("n/long", text("x".repeat(MAX_TEXT_BYTES + 1)));
    refused(&[too_long], "n/long", Problem::Text);

    let mut many = vec![rc("n/many", Match::default()); MAX_POLICIES];
    assert!(PolicySet::compile(&many).is_ok());
    many.push(rc("n/last", Match::default()));
    refused(&many, "n/last", Problem::Policies);
}

#[test]
fn text_counts_once() {
    // Equal texts are kept once; this many different ones fill the set.
    let fill = MAX_SET_TEXT_BYTES / MAX_TEXT_BYTES;
    let of = |number: usize| text(format!("{number:0width$}", width = MAX_TEXT_BYTES));
    let rc = |name: &str, number| Rc::new(policy(name, of(number)));
    let same = vec![rc("n/same", 0); fill - 1];
    assert!(PolicySet::compile(&same).is_ok());
    let chunk = |from: usize| Match {
        principals: (from..from + fill / 8)
            .flat_map(|number| of(number).principals)
            .collect(),
        ..Match::default()
    };
    let mut policies: Vec<_> = (0..8)
        .map(|part| Rc::new(policy("n/part", chunk(part * fill / 8))))
        .collect();
    policies.push(rc("n/again", 5));
    assert!(PolicySet::compile(&policies).is_ok());
    policies.push(rc("n/new", fill));
    refused(&policies, "n/new", Problem::SetText);
}

#[test]
fn impossible_blocks_are_refused() {
    let with = |ip: &str, length| {
        let ip = ip.parse::<IpAddr>().unwrap().into();
        let condition = Match {
            not_destination_ips: vec![IpBlock { ip, length }],
            ..Match::default()
        };
        PolicySet::compile(&[policy("n/p", condition)])
    };
    for (ip, length) in [
        ("10.0.0.1", 96),
        ("10.0.0.1", 128),
        ("::", 0),
        ("fd00::", 128),
    ] {
        assert!(with(ip, length).is_ok(), "{ip} {length}");
    }
    for (ip, length) in [
        ("10.0.0.1", 95),
        ("10.0.0.1", 24),
        ("10.0.0.1", 129),
        ("fd00::", 129),
        ("::", 255),
    ] {
        let error = with(ip, length).unwrap_err();
        assert_eq!(error.problem, Problem::BlockLength(length), "{ip} {length}");
    }
}

#[test]
fn no_policy_allows_everything() {
    let plaintext = Attributes {
        source: None,
        source_ip: Default::default(),
        destination_ip: Default::default(),
        destination_port: 0,
    };
    let none: [Policy; 0] = [];
    for set in [PolicySet::default(), PolicySet::compile(&none).unwrap()] {
        assert!(set.is_empty());
        assert_eq!(set.decide(&plaintext), Verdict::Allow { by: None });
        assert_eq!(set.view().decide(&plaintext), Verdict::Allow { by: None });
    }
    assert!(!PolicySet::compile(&[Policy::default()]).unwrap().is_empty());
}
