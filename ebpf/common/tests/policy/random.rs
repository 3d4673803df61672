// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The compiled matcher against the reference on 1,000,000 pairs of a random set and a random
//! connection. Everything is drawn from few values, so that conditions are often met, nearly met,
//! and shared by many rules.
//!
//! `KARST_POLICY_SEED=7` draws others, `KARST_POLICY_SETS=1000000` more.

use std::net::{IpAddr, Ipv6Addr};

use karst_bpf_common::Ip;
use karst_bpf_common::policy::model::{
    Action, Clause, IpBlock, Match, Policy, Rule, ServiceAccount, StringMatch,
};
use karst_bpf_common::policy::{Attributes, Identity, PolicySet, Verdict};

use crate::{explained, reference};

/// Sets in one run.
const SETS: u64 = 20_000;

/// Connections for each set.
const CONNECTIONS: u64 = 50;

/// Sets whose verdicts are explained, and connections for each.
const EXPLAINED_SETS: u64 = 1_000;
const EXPLAINED_CONNECTIONS: u64 = 10;

const NAMES: [&str; 8] = ["", "a", "b", "ab", "abc", "bc", "team-1", "team-10"];
const PRINCIPALS: [&str; 8] = [
    "",
    "td/ns/a/sa/b",
    "td/ns/a/sa/bc",
    "td/ns/ab/sa/b",
    "td/ns/abc/sa/abc",
    "td2/ns/a/sa/b",
    "td/ns/team-1/sa/team-10",
    "td/ns/team-10/sa/team-1",
];
const ADDRESSES: [&str; 12] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.1.0.1",
    "192.168.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "fd00::1",
    "fd00::2",
    "fd00:1::1",
    "::",
    "::fffe:10.0.0.1",
];
const LENGTHS_V4: [u8; 6] = [0, 8, 16, 24, 31, 32];
const LENGTHS_V6: [u8; 9] = [0, 16, 32, 64, 79, 80, 95, 127, 128];
const PORTS: [u16; 6] = [0, 80, 81, 8080, 65_534, 65_535];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    fn list<T>(&mut self, most: u64, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let length = self.below(most + 1);
        (0..length).map(|_| make(self)).collect()
    }

    /// A list of one attribute, which is mostly not a condition.
    fn sometimes<T>(&mut self, odds: u64, make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        if self.one_in(odds) {
            self.list(3, make)
        } else {
            Vec::new()
        }
    }

    fn text(&mut self, texts: &[&str]) -> StringMatch {
        let text = self.pick(texts);
        let part = self.below(text.len() as u64 + 1) as usize;
        match self.below(8) {
            0..4 => StringMatch::Exact(text.to_owned()),
            4..6 => StringMatch::Prefix(text[..part].to_owned()),
            6 => StringMatch::Suffix(text[part..].to_owned()),
            _ => StringMatch::Presence,
        }
    }

    fn ip(&mut self) -> Ip {
        let ip: IpAddr = self.pick(&ADDRESSES).parse().unwrap();
        let ip = Ip::from(ip);
        if !self.one_in(4) {
            return ip;
        }
        // A neighbour, which may be of the other family.
        let bits = u128::from_be_bytes(ip.octets()) ^ (1 << self.below(128));
        Ipv6Addr::from_bits(bits).into()
    }

    fn block(&mut self) -> IpBlock {
        let ip = self.ip();
        let length = if ip.is_v4() {
            96 + self.pick(&LENGTHS_V4)
        } else {
            self.pick(&LENGTHS_V6)
        };
        IpBlock { ip, length }
    }

    fn account(&mut self) -> ServiceAccount {
        ServiceAccount {
            namespace: self.pick(&NAMES).to_owned(),
            account: self.pick(&NAMES).to_owned(),
        }
    }

    fn condition(&mut self) -> Match {
        // Few conditions make matches likely.
        let odds = 3 + self.below(8);
        Match {
            namespaces: self.sometimes(odds, |r| r.text(&NAMES)),
            not_namespaces: self.sometimes(odds * 2, |r| r.text(&NAMES)),
            principals: self.sometimes(odds, |r| r.text(&PRINCIPALS)),
            not_principals: self.sometimes(odds * 2, |r| r.text(&PRINCIPALS)),
            source_ips: self.sometimes(odds, Self::block),
            not_source_ips: self.sometimes(odds * 2, Self::block),
            destination_ips: self.sometimes(odds, Self::block),
            not_destination_ips: self.sometimes(odds * 2, Self::block),
            destination_ports: self.sometimes(odds, |r| r.pick(&PORTS)),
            not_destination_ports: self.sometimes(odds * 2, |r| r.pick(&PORTS)),
            service_accounts: self.sometimes(odds, Self::account),
            not_service_accounts: self.sometimes(odds * 2, Self::account),
        }
    }

    fn policy(&mut self, deny_odds: u64) -> Policy {
        let action = if self.one_in(deny_odds) {
            Action::Deny
        } else {
            Action::Allow
        };
        let rules = self.list(4, |r| Rule {
            clauses: r.list(3, |r| Clause {
                matches: r.list(3, Self::condition),
            }),
        });
        Policy {
            name: "n/p".to_owned(),
            action,
            rules,
        }
    }

    fn policies(&mut self) -> Vec<Policy> {
        let deny_odds = 1 + self.below(8);
        // Mostly a few, sometimes enough for every index to be used.
        let most = if self.one_in(10) { 60 } else { 6 };
        let mut policies = self.list(most, |r| r.policy(deny_odds));
        // What matches always would hide everything else if there were more of it.
        if !self.one_in(4) {
            for policy in &mut policies {
                policy.rules.retain(|rule| {
                    rule.clauses.iter().any(|clause| {
                        !clause.matches.is_empty()
                            && clause.matches.iter().all(|m| *m != Match::default())
                    })
                });
            }
        }
        policies
    }

    fn connection(&mut self) -> Attributes<'static> {
        let source = (!self.one_in(5)).then(|| Identity {
            principal: self.pick(&PRINCIPALS),
            namespace: self.pick(&NAMES),
            service_account: self.pick(&NAMES),
        });
        Attributes {
            source,
            source_ip: self.ip(),
            destination_ip: self.ip(),
            destination_port: self.pick(&PORTS),
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

#[test]
fn compiled_is_reference() {
    let seed = number("KARST_POLICY_SEED", 1);
    // Allowed and refused, each by a policy and for want of one.
    let mut outcomes = [0_u64; 4];
    for set in 0..number("KARST_POLICY_SETS", SETS) {
        // Each set from a seed of its own, so that one that fails can be had alone.
        let mut random = Random(seed.wrapping_mul(1 << 32).wrapping_add(set));
        let policies = random.policies();
        let compiled = PolicySet::compile(&policies).unwrap();
        assert_eq!(compiled.is_empty(), policies.is_empty());
        for _ in 0..CONNECTIONS {
            let connection = random.connection();
            let expected = reference::decide(&policies, &connection);
            let got = compiled.decide(&connection);
            assert!(
                got == expected,
                "{got:?}, and the reference says {expected:?}\nseed {seed}, set {set}\n\
                 {connection:?}\n{policies:#?}"
            );
            outcomes[match got {
                Verdict::Allow { by: Some(_) } => 0,
                Verdict::Allow { by: None } => 1,
                Verdict::Deny { by: Some(_) } => 2,
                Verdict::Deny { by: None } => 3,
            }] += 1;
        }
    }
    println!("allowed by a policy, by none; denied by a policy, by none: {outcomes:?}");
    let all: u64 = outcomes.iter().sum();
    for outcome in outcomes {
        assert!(outcome * 20 > all, "too rare to be tested: {outcomes:?}");
    }
}

/// What people are told is what happens. Explaining compiles everything many times over, so there is less of it.
#[test]
fn explained_is_compiled() {
    let seed = number("KARST_POLICY_SEED", 1);
    let mut denials = 0_u64;
    for set in 0..EXPLAINED_SETS {
        let mut random = Random(seed.wrapping_mul(1 << 32).wrapping_add(set));
        let policies = random.policies();
        let compiled = PolicySet::compile(&policies).unwrap();
        for _ in 0..EXPLAINED_CONNECTIONS {
            let connection = random.connection();
            let expected = compiled.decide(&connection);
            assert_eq!(
                explained::verdict(&policies, &connection),
                expected,
                "seed {seed}, set {set}\n{connection:?}\n{policies:#?}"
            );
            denials += u64::from(matches!(expected, Verdict::Deny { .. }));
        }
    }
    let all = EXPLAINED_SETS * EXPLAINED_CONNECTIONS;
    assert!(
        (all / 10..all * 9 / 10).contains(&denials),
        "{denials} of {all}"
    );
}

/// Sets as they are in a large mesh: every rule is looked up, by attributes that differ.
#[test]
fn compiled_is_reference_for_large_sets() {
    let seed = number("KARST_POLICY_SEED", 1);
    let mut random = Random(seed);
    for _ in 0..5 {
        let policies: Vec<Policy> = (0..2_000).map(|_| large_policy(&mut random)).collect();
        let compiled = PolicySet::compile(&policies).unwrap();
        for _ in 0..200 {
            let (team, app) = (random.below(60), random.below(60));
            let (namespace, account) = (format!("team-{team}"), format!("app-{app}"));
            let principal = format!("td/ns/{namespace}/sa/{account}");
            let source = Identity {
                principal: &principal,
                namespace: &namespace,
                service_account: &account,
            };
            let [a, b] = [team as u8, app as u8];
            let connection = Attributes {
                source: (!random.one_in(10)).then_some(source),
                source_ip: IpAddr::from([10, a, b, 1]).into(),
                destination_ip: IpAddr::from([10, b, a, 1]).into(),
                destination_port: 8_000 + app as u16,
            };
            let expected = reference::decide(&policies, &connection);
            assert_eq!(
                compiled.decide(&connection),
                expected,
                "seed {seed}, {connection:?}"
            );
        }
    }
}

fn large_policy(random: &mut Random) -> Policy {
    let (team, app) = (random.below(2_000), random.below(2_000));
    let exact = |text: String| vec![StringMatch::Exact(text)];
    let mut m = Match::default();
    match random.below(8) {
        0 => m.namespaces = exact(format!("team-{team}")),
        1 => m.principals = exact(format!("td/ns/team-{team}/sa/app-{app}")),
        2 => m.principals = vec![StringMatch::Prefix(format!("td/ns/team-{team}/"))],
        3 => m.principals = vec![StringMatch::Suffix(format!("/sa/app-{app}"))],
        4 => {
            let (namespace, account) = (format!("team-{team}"), format!("app-{app}"));
            m.service_accounts = vec![ServiceAccount { namespace, account }];
        }
        5 => {
            let ip = IpAddr::from([10, team as u8, app as u8, 0]).into();
            let length = 96 + random.pick(&[16, 24]);
            m.source_ips = vec![IpBlock { ip, length }];
        }
        6 => {
            let ip = IpAddr::from([10, app as u8, team as u8, 1]).into();
            m.destination_ips = vec![IpBlock { ip, length: 128 }];
        }
        _ => m.destination_ports = vec![(8_000 + app) as u16],
    }
    m.not_destination_ports = random.sometimes(3, |r| 8_000 + r.below(60) as u16);
    let clause = Clause { matches: vec![m] };
    let second = random.sometimes(2, |r| Clause {
        matches: vec![Match {
            destination_ports: r.list(9, |r| 8_000 + r.below(90) as u16),
            not_namespaces: exact("team-7".to_owned()),
            ..Match::default()
        }],
    });
    let clauses = second.into_iter().chain([clause]).collect();
    Policy {
        name: String::new(),
        action: if random.one_in(40) {
            Action::Deny
        } else {
            Action::Allow
        },
        rules: vec![Rule { clauses }],
    }
}
