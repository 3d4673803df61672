// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What cannot be seen from outside: that equal hashes decide nothing, what rules are looked up by,
//! and that damaged tables refuse. What policies mean is in `tests/policy`.

use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::model::{Clause, Match, Policy, Rule, ServiceAccount, StringMatch};
use super::rows::{Attribute, Form};
use super::{Attributes, Identity, PolicySet, PolicyView, Verdict, hash};
use crate::Ip;

fn policy(condition: Match) -> Policy {
    let matches = vec![condition];
    Policy {
        name: "n/p".to_string(),
        rules: vec![Rule {
            clauses: vec![Clause { matches }],
        }],
        ..Policy::default()
    }
}

fn principal(value: StringMatch) -> Policy {
    policy(Match {
        principals: vec![value],
        ..Match::default()
    })
}

fn is_allowed(set: &PolicySet, source: Identity<'_>) -> bool {
    let attributes = Attributes {
        source: Some(source),
        source_ip: Ip::UNSPECIFIED,
        destination_ip: Ip::UNSPECIFIED,
        destination_port: 80,
    };
    matches!(set.decide(&attributes), Verdict::Allow { .. })
}

/// Two different texts of sixteen letters with the same hash.
fn twins() -> (String, String) {
    let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let after = |first: u64| hash::add(16, first).rotate_left(5);
    let (a, b) = (*b"ns-alpha", *b"/sa/beta");
    for number in 0..1_000_000 {
        // The digits that change come first, where they change the most.
        let c: [u8; 8] = format!("{number:-<8}").into_bytes().try_into().unwrap();
        let d = half(&b) ^ after(half(&a)) ^ after(half(&c));
        let text = |halves: [[u8; 8]; 2]| String::from_utf8(halves.concat());
        if let Ok(other) = text([c, d.to_le_bytes()]) {
            return (text([a, b]).unwrap(), other);
        }
    }
    panic!("no twins");
}

#[test]
fn equal_hashes_are_not_equal_texts() {
    let (name, twin) = twins();
    assert_ne!(name, twin);
    assert_eq!(hash::of(name.as_bytes()), hash::of(twin.as_bytes()));
    let identity = |text| Identity {
        principal: text,
        namespace: text,
        service_account: text,
    };
    let exact = || vec![StringMatch::Exact(name.clone())];
    let account = |namespace: &str, account: &str| ServiceAccount {
        namespace: namespace.to_string(),
        account: account.to_string(),
    };
    let of_principals = Match {
        principals: exact(),
        ..Match::default()
    };
    let of_namespaces = Match {
        namespaces: exact(),
        ..Match::default()
    };
    let of_accounts = Match {
        service_accounts: vec![account(&name, &name)],
        ..Match::default()
    };
    for condition in [of_principals, of_namespaces, of_accounts] {
        // Once tried, and once looked up.
        for times in [1, 4] {
            let set = PolicySet::compile(&vec![policy(condition.clone()); times]).unwrap();
            assert!(is_allowed(&set, identity(&name)), "{condition:?}");
            assert!(!is_allowed(&set, identity(&twin)), "{condition:?}");
        }
    }
    // Half of the pair, in either place.
    let half = Identity {
        namespace: &twin,
        ..identity(&name)
    };
    for (namespace, name_of, allowed) in [(&name, &name, false), (&twin, &name, true)] {
        let condition = Match {
            service_accounts: vec![account(namespace, name_of), account("other", name_of)],
            ..Match::default()
        };
        let set = PolicySet::compile(&[policy(condition)]).unwrap();
        assert_eq!(is_allowed(&set, half), allowed);
    }
    let half = Identity {
        service_account: &twin,
        ..identity(&name)
    };
    let condition = Match {
        service_accounts: vec![account(&name, &name)],
        ..Match::default()
    };
    let set = PolicySet::compile(&[policy(condition)]).unwrap();
    assert!(!is_allowed(&set, half));
}

#[test]
fn rules_are_looked_up_by_what_tells_them_apart() {
    let of = |number: u16| {
        policy(Match {
            namespaces: vec![StringMatch::Exact("shop".to_string())],
            destination_ports: vec![number],
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        })
    };
    let set = PolicySet::compile(&(0..100).map(of).collect::<Vec<_>>()).unwrap();
    let [row] = &set.probes[..] else {
        panic!("{:?}", set.probes);
    };
    assert_eq!(row.probe.attribute, Attribute::DESTINATION_PORT);
    assert_eq!(row.probe.form, Form::EXACT);
    assert_eq!(set.keys.len(), 100);
    assert!(set.residual.is_empty());
}

#[test]
fn negations_and_presence_are_always_tried() {
    let not = policy(Match {
        not_destination_ports: vec![80],
        ..Match::default()
    });
    let policies = vec![vec![principal(StringMatch::Presence), not]; 10].concat();
    let set = PolicySet::compile(&policies).unwrap();
    assert!(set.probes.is_empty() && set.keys.is_empty());
    assert_eq!(set.residual.len(), 20);
}

#[test]
fn prefixes_of_more_lengths_than_there_are_probes_are_still_found() {
    let name = "abcdefghij".repeat(10);
    let of = |length: usize| {
        // The shorter, the more often: those are looked up, the others tried.
        let part = name[..length].to_string();
        let text = move |number| format!("{part}{number}");
        (0..103 - length).map(move |number| principal(StringMatch::Prefix(text(number))))
    };
    let policies: Vec<Policy> = (0..90).flat_map(of).collect();
    let set = PolicySet::compile(&policies).unwrap();
    assert!(set.probes.len() <= 32, "{}", set.probes.len());
    assert!(!set.residual.is_empty() && set.residual.len() < policies.len());
    let allowed = |principal: &str| {
        let source = Identity {
            principal,
            namespace: "",
            service_account: "",
        };
        is_allowed(&set, source)
    };
    for length in 0..90 {
        let part = &name[..length];
        assert!(allowed(&format!("{part}0")), "{length}");
        assert!(allowed(&format!("{part}0 and more")), "{length}");
        assert!(!allowed(&format!("{part}x")), "{length}");
    }
}

#[test]
fn tables_that_do_not_fit_together_refuse() {
    let policies = [
        policy(Match::default()),
        principal(StringMatch::Prefix("td/".to_string())),
        policy(Match {
            destination_ports: vec![80],
            ..Match::default()
        }),
    ];
    let set = PolicySet::compile(&vec![policies; 4].concat()).unwrap();
    let attributes = Attributes {
        source: Some(Identity {
            principal: "td/ns/a/sa/x",
            namespace: "a",
            service_account: "x",
        }),
        source_ip: Ip::UNSPECIFIED,
        destination_ip: Ip::UNSPECIFIED,
        destination_port: 80,
    };
    let whole = set.view();
    assert!(matches!(whole.decide(&attributes), Verdict::Allow { .. }));
    let damaged = [
        PolicyView {
            rules: &[],
            ..whole
        },
        PolicyView {
            clauses: &[],
            ..whole
        },
        PolicyView {
            matches: &[],
            ..whole
        },
        PolicyView {
            tests: &[],
            ..whole
        },
        PolicyView {
            patterns: &[],
            ports: &[],
            ..whole
        },
        PolicyView { text: &[], ..whole },
        PolicyView {
            buckets: &[],
            ..whole
        },
        PolicyView { keys: &[], ..whole },
        PolicyView {
            postings: &[],
            ..whole
        },
        PolicyView {
            bucket_bits: 99,
            ..whole
        },
    ];
    for view in damaged {
        assert_eq!(view.decide(&attributes), Verdict::Deny { by: None });
    }
}
