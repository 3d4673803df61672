// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Policies and connections, always the same ones.

use std::net::IpAddr;

use karst_bpf_common::Ip;
use karst_bpf_common::policy::model::{
    Action, Clause, IpBlock, Match, Policy, Rule, ServiceAccount, StringMatch,
};
use karst_bpf_common::policy::{Attributes, Identity};

/// How many different connections are decided in turn.
const CONNECTIONS: usize = 1_000;

/// Teams, each a namespace; a policy of a team concerns one connection in ten.
const TEAMS: usize = 10;

/// Port that all connections go to.
const DESTINATION: u16 = 8_080;

pub struct Case {
    pub name: &'static str,
    pub policies: Vec<Policy>,
    pub connections: Vec<Connection>,
}

/// A connection that owns its names.
pub struct Connection {
    principal: String,
    namespace: String,
    account: String,
    source_ip: Ip,
}

impl Connection {
    fn new(team: usize, app: usize) -> Self {
        let (namespace, account) = (namespace(team), format!("app-{app}"));
        Self {
            principal: format!("cluster.local/ns/{namespace}/sa/{account}"),
            namespace,
            account,
            source_ip: IpAddr::from([10, team as u8, (app / 256) as u8, app as u8]).into(),
        }
    }

    pub fn attributes(&self) -> Attributes<'_> {
        Attributes {
            source: Some(Identity {
                principal: &self.principal,
                namespace: &self.namespace,
                service_account: &self.account,
            }),
            source_ip: self.source_ip,
            destination_ip: IpAddr::from([10, 200, 0, 1]).into(),
            destination_port: DESTINATION,
        }
    }
}

fn namespace(team: usize) -> String {
    format!("team-{team:03}")
}

/// Every case at every size.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [1, 100, 10_000];
    for policies in sizes {
        cases.push(case("matching", policies, matching, team_connection));
    }
    for policies in sizes {
        let connection = move |number| distinct_connection(number, policies);
        cases.push(case("distinct", policies, distinct, connection));
    }
    for policies in sizes {
        cases.push(case("none", policies, none, team_connection));
    }
    for policies in sizes {
        cases.push(case("residual", policies, residual, team_connection));
    }
    for policies in sizes {
        cases.push(case("shared", policies, shared, team_connection));
    }
    cases
}

fn case(
    name: &'static str,
    policies: usize,
    policy: fn(usize) -> Policy,
    connection: impl Fn(usize) -> Connection,
) -> Case {
    Case {
        name,
        policies: (0..policies).map(policy).collect(),
        connections: (0..CONNECTIONS).map(connection).collect(),
    }
}

fn team_connection(number: usize) -> Connection {
    Connection::new(number % TEAMS, number / TEAMS)
}

/// One in ten comes from an app that there is a policy for.
fn distinct_connection(number: usize, policies: usize) -> Connection {
    let app = number.wrapping_mul(7_919) % policies;
    if number.is_multiple_of(10) {
        Connection::new(app % 100, app)
    } else {
        Connection::new(200, number)
    }
}

fn allow(condition: Match) -> Policy {
    let clause = |condition| Clause {
        matches: vec![condition],
    };
    let port = Match {
        destination_ports: vec![DESTINATION, 9_090],
        ..Match::default()
    };
    Policy {
        name: "default/policy".to_owned(),
        action: Action::Allow,
        rules: vec![Rule {
            clauses: vec![clause(condition), clause(port)],
        }],
    }
}

fn exact(text: String) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text)]
}

/// Concerns the connections of one team, a tenth; all kinds of conditions take turns.
fn matching(number: usize) -> Policy {
    by_kind(number, number % TEAMS)
}

/// The same for teams that no connection comes from.
fn none(number: usize) -> Policy {
    by_kind(number, 100 + number % 100)
}

fn by_kind(number: usize, team: usize) -> Policy {
    let apps = || (0..CONNECTIONS / TEAMS).map(|app| format!("app-{app}"));
    let namespace = namespace(team);
    let mut m = Match::default();
    match number / TEAMS % 6 {
        0 => m.namespaces = exact(namespace),
        1 => {
            let principal = |app| format!("cluster.local/ns/{namespace}/sa/{app}");
            m.principals = apps().map(principal).map(StringMatch::Exact).collect();
        }
        2 => {
            let account = |account| ServiceAccount {
                namespace: namespace.clone(),
                account,
            };
            m.service_accounts = apps().map(account).collect();
        }
        3 => {
            m.principals = vec![StringMatch::Prefix(format!(
                "cluster.local/ns/{namespace}/"
            ))];
        }
        4 => {
            m.source_ips = vec![IpBlock {
                ip: IpAddr::from([10, team as u8, 0, 0]).into(),
                length: 96 + 16,
            }];
        }
        _ => m.namespaces = vec![StringMatch::Prefix(namespace)],
    }
    allow(m)
}

/// One client each, by its principal.
fn distinct(number: usize) -> Policy {
    let principal = Connection::new(number % 100, number).principal;
    allow(Match {
        principals: exact(principal),
        ..Match::default()
    })
}

/// The worst case: negations alone, which nothing can be looked up by, and none holds.
fn residual(number: usize) -> Policy {
    let mut not_namespaces: Vec<_> = (0..TEAMS).map(namespace).map(StringMatch::Exact).collect();
    not_namespaces.push(StringMatch::Exact(format!("other-{number}")));
    let m = Match {
        not_namespaces,
        not_destination_ports: vec![1, 2, 3],
        ..Match::default()
    };
    Policy {
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![m] }],
        }],
        ..Policy::default()
    }
}

/// The worst case for looking up: every rule is found for every connection and none matches.
fn shared(number: usize) -> Policy {
    let m = Match {
        destination_ports: vec![DESTINATION],
        not_namespaces: residual(number).rules[0].clauses[0].matches[0]
            .not_namespaces
            .clone(),
        ..Match::default()
    };
    allow(m)
}
