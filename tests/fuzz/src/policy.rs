//! From bytes to authorization policies to verdicts.
//!
//! An input is a sequence of policies as they come by discovery: two bytes for the length, and the encoded message.

use std::net::IpAddr;

use karst_api::security::string_match::MatchType;
use karst_api::security::{
    Action, Address, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch,
};
use karst_bpf_common::policy::model::Policy;
use karst_bpf_common::policy::{Attributes, Hit, Identity, PolicySet, Verdict};
use karst_node_agent::state::authorization::to_policy;
use prost::Message;

/// Decides about some connections by the policies that are valid, which are then compiled a second time to be looked
/// up by an index.
pub fn run(data: &[u8]) {
    let mut policies: Vec<Policy> = Vec::new();
    let mut rest = data;
    while let [high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (value, after) = after.split_at(length);
        rest = after;
        let Ok(wire) = Authorization::decode(value) else {
            continue;
        };
        match to_policy(&wire) {
            Ok(policy) => policies.push(policy),
            Err(error) => assert!(!error.field.is_empty() && !error.problem.is_empty()),
        }
    }
    let set = match PolicySet::compile(&policies) {
        Ok(set) => set,
        // An input is far too short for any other limit.
        Err(error) => {
            assert!(policies.iter().any(|policy| policy.name == error.policy));
            return;
        }
    };
    let repeated = PolicySet::compile(&[&policies[..]; 4].concat()).unwrap();
    for connection in connections() {
        let verdict = set.decide(&connection);
        assert_eq!(verdict, repeated.decide(&connection), "{connection:?}");
        if let Verdict::Allow { by: Some(hit) } | Verdict::Deny { by: Some(hit) } = verdict {
            assert!(exists(&policies, hit), "{hit:?}");
        }
    }
}

fn exists(policies: &[Policy], hit: Hit) -> bool {
    policies
        .get(hit.policy as usize)
        .is_some_and(|policy| (hit.rule as usize) < policy.rules.len())
}

/// Connections that the seeds' conditions are about, and ones at the edges.
fn connections() -> Vec<Attributes<'static>> {
    let named = Identity {
        principal: "cluster.local/ns/shop/sa/web",
        namespace: "shop",
        service_account: "web",
    };
    let empty = Identity {
        principal: "",
        namespace: "",
        service_account: "",
    };
    let mut connections = Vec::new();
    for source in [Some(named), Some(empty), None] {
        for (from, to, port) in [
            ("10.1.2.3", "10.9.9.9", 80),
            ("fd00::1", "fd00::9", 65_535),
            ("0.0.0.0", "::", 0),
        ] {
            let ip = |text: &str| text.parse::<IpAddr>().unwrap().into();
            connections.push(Attributes {
                source,
                source_ip: ip(from),
                destination_ip: ip(to),
                destination_port: port,
            });
        }
    }
    connections
}

/// Policies with conditions of every kind, alone and together.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let strict = Match {
        not_principals: text(MatchType::Presence(())),
        not_destination_ports: vec![8080],
        ..Default::default()
    };
    let clients = Match {
        namespaces: text(MatchType::Exact("shop".to_owned())),
        principals: text(MatchType::Prefix("cluster.local/ns/shop/".to_owned())),
        not_principals: text(MatchType::Suffix("/sa/batch".to_owned())),
        service_accounts: account("shop", "web"),
        not_service_accounts: account("shop", "batch"),
        ..Default::default()
    };
    let addresses = Match {
        source_ips: vec![
            address(&[10, 0, 0, 0], 8),
            address(&[0xfd; 16], 8),
            address(&[0; 16], 0),
        ],
        not_source_ips: vec![address(&[10, 1, 2, 4], 32)],
        destination_ips: vec![address(&[10, 9, 9, 9], 32), address(&[0; 16], 0)],
        not_destination_ips: vec![address(&[0; 4], 32)],
        destination_ports: vec![0, 80, 65_535],
        ..Default::default()
    };
    let not_here = Match {
        not_namespaces: text(MatchType::Suffix("-system".to_owned())),
        ..Default::default()
    };
    let strict = policy(Action::Deny, vec![vec![strict]]);
    let clients = policy(Action::Allow, vec![vec![clients]]);
    let both = policy(Action::Allow, vec![vec![addresses, not_here], vec![]]);
    vec![
        [&strict[..], &clients, &both].concat(),
        strict,
        clients,
        both,
        policy(Action::Allow, vec![]),
        Vec::new(),
    ]
}

fn policy(action: Action, clauses: Vec<Vec<Match>>) -> Vec<u8> {
    let clauses = clauses.into_iter().map(|matches| Clause { matches });
    let wire = Authorization {
        name: "p".to_owned(),
        namespace: "n".to_owned(),
        action: action.into(),
        rules: vec![Rule {
            clauses: clauses.collect(),
        }],
        ..Default::default()
    };
    let value = wire.encode_to_vec();
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&length[..], &value].concat()
}

fn text(kind: MatchType) -> Vec<StringMatch> {
    vec![StringMatch {
        match_type: Some(kind),
    }]
}

fn account(namespace: &str, name: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
    }]
}

fn address(octets: &[u8], length: u32) -> Address {
    Address {
        address: octets.to_vec(),
        length,
    }
}
