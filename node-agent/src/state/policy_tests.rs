//! Which policies apply to a workload, and what becomes of what is missing or unusable.

use std::sync::Arc;

use karst_bpf_common::Ip;
use karst_bpf_common::policy::model::{self, Action, Clause, Match, Rule, StringMatch};
use karst_bpf_common::policy::{Attributes, Identity};

use super::{Cache, Denial, Effective, Policies, Policy, PolicyScope, PolicyTable};
use crate::reason::Reason;
use crate::state::workload::{Workload, next_revision};

fn workload(namespace: &str, policies: &[&str]) -> Workload {
    Workload {
        revision: next_revision(),
        namespace: Arc::from(namespace),
        authorization_policies: policies.iter().map(|p| Arc::from(*p)).collect(),
        ..Workload::default()
    }
}

/// A rule for clients of the namespace.
fn from_namespace(namespace: &str) -> Rule {
    Rule {
        clauses: vec![Clause {
            matches: vec![Match {
                namespaces: vec![StringMatch::Exact(namespace.to_owned())],
                ..Match::default()
            }],
        }],
    }
}

fn policy(name: &str, scope: PolicyScope, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        name: Arc::from(name),
        scope,
        dry_run: false,
        rules: Some(model::Policy {
            name: name.to_owned(),
            action,
            rules,
        }),
    }
}

fn namespace(name: &str) -> PolicyScope {
    PolicyScope::Namespace(Arc::from(name))
}

fn published(policies: impl IntoIterator<Item = Policy>) -> Policies {
    let all = Policies::default();
    all.publish(&table(policies));
    all
}

fn table(policies: impl IntoIterator<Item = Policy>) -> PolicyTable {
    policies
        .into_iter()
        .map(|policy| (Arc::clone(&policy.name), Arc::new(policy)))
        .collect()
}

/// A connection of a client in `namespace`; in plain text without one.
fn decide(effective: &Effective, namespace: Option<&str>) -> Result<(), Denial> {
    effective.decide(&connection(namespace))
}

fn connection(namespace: Option<&str>) -> Attributes<'_> {
    let address = std::net::Ipv4Addr::new(10, 0, 0, 1);
    Attributes {
        source: namespace.map(|namespace| Identity {
            principal: "cluster.local/ns/x/sa/y",
            namespace,
            service_account: "y",
        }),
        source_ip: Ip::from(address),
        destination_ip: Ip::from(address),
        destination_port: 80,
    }
}

#[test]
fn a_policy_applies_where_its_scope_says() {
    let deny = |name, scope| policy(name, scope, Action::Deny, vec![from_namespace("bad")]);
    for (scope, listed, own, other) in [
        (PolicyScope::Global, &[][..], false, false),
        (namespace("own"), &[], false, true),
        (PolicyScope::Selector, &[], true, true),
        (PolicyScope::Selector, &["own/p"], false, false),
    ] {
        let policies = published([deny("own/p", scope.clone())]);
        for (in_namespace, passes) in [("own", own), ("other", other)] {
            let effective = policies.effective(&workload(in_namespace, listed));
            let decided = decide(&effective, Some("bad"));
            assert_eq!(decided.is_ok(), passes, "{scope:?} {in_namespace}");
            assert_eq!(decide(&effective, Some("good")), Ok(()));
        }
    }
}

#[test]
fn a_denial_names_policy_and_rule() {
    let rules = vec![from_namespace("a"), from_namespace("bad")];
    let policies = published([
        policy("own/a", namespace("own"), Action::Deny, Vec::new()),
        policy("own/b", namespace("own"), Action::Deny, rules),
    ]);
    let effective = policies.effective(&workload("own", &[]));
    let denial = decide(&effective, Some("bad")).expect_err("denied");
    assert_eq!(denial.reason, Reason::PolicyDenied);
    assert_eq!((denial.policy_name(), denial.rule), ("own/b", Some(1)));
    assert_eq!(denial.to_string(), "own/b, rule 1");
}

#[test]
fn where_allow_policies_are_the_rest_is_refused_and_told_so() {
    let allow = |name: &str| {
        let rules = vec![from_namespace("good")];
        policy(name, namespace("own"), Action::Allow, rules)
    };
    let policies = published(["own/a", "own/b", "own/c", "own/d", "own/e"].map(allow));
    let effective = policies.effective(&workload("own", &[]));
    assert_eq!(decide(&effective, Some("good")), Ok(()));
    for refused in [Some("bad"), None] {
        let denial = decide(&effective, refused).expect_err("denied");
        assert_eq!((denial.policy_name(), denial.rule), ("implicit_deny", None));
        assert_eq!(
            denial.to_string(),
            "no ALLOW policy matches: own/a, own/b, own/c, own/d and 1 more"
        );
    }
    let elsewhere = policies.effective(&workload("other", &[]));
    assert_eq!(decide(&elsewhere, Some("bad")), Ok(()));
}

#[test]
fn a_policy_that_has_not_come_refuses_until_it_does() {
    let policies = Policies::default();
    let workload = workload("own", &["own/p"]);
    let effective = policies.effective(&workload);
    assert!(effective.is_incomplete());
    let denial = decide(&effective, Some("good")).expect_err("denied");
    assert_eq!(denial.reason, Reason::PolicyUnknown);
    assert_eq!(denial.policy_name(), "own/p");
    let deny = policy("own/p", PolicyScope::Selector, Action::Deny, Vec::new());
    policies.publish(&table([deny]));
    let effective = policies.effective(&workload);
    assert!(!effective.is_incomplete());
    assert_eq!(decide(&effective, Some("good")), Ok(()));
}

#[test]
fn a_policy_that_cannot_be_used_refuses_all_that_it_is_for() {
    let broken = Policy {
        rules: None,
        ..policy("own/p", namespace("own"), Action::Allow, Vec::new())
    };
    let policies = published([broken]);
    let effective = policies.effective(&workload("own", &[]));
    let denial = decide(&effective, Some("good")).expect_err("denied");
    assert_eq!(denial.reason, Reason::PolicyUnusable);
    assert_eq!(denial.policy_name(), "own/p");
    let elsewhere = policies.effective(&workload("other", &[]));
    assert_eq!(decide(&elsewhere, Some("good")), Ok(()));
}

#[test]
fn a_dry_run_decides_nothing_and_says_what_it_would_have() {
    let watches = Policy {
        dry_run: true,
        ..policy(
            "own/watch",
            namespace("own"),
            Action::Deny,
            vec![from_namespace("bad")],
        )
    };
    let policies = published([watches]);
    let effective = policies.effective(&workload("own", &[]));
    assert_eq!(decide(&effective, Some("bad")), Ok(()));
    let denial = effective
        .would_deny(&connection(Some("bad")))
        .expect("would");
    assert_eq!((denial.policy_name(), denial.rule), ("own/watch", Some(0)));
    assert_eq!(effective.would_deny(&connection(Some("good"))), None);
}

#[test]
fn a_dry_run_allow_does_not_refuse_the_rest() {
    let watches = Policy {
        dry_run: true,
        ..policy("own/watch", namespace("own"), Action::Allow, Vec::new())
    };
    let policies = published([watches]);
    let effective = policies.effective(&workload("own", &[]));
    assert_eq!(decide(&effective, Some("good")), Ok(()));
    let denial = effective
        .would_deny(&connection(Some("good")))
        .expect("would");
    assert_eq!(denial.policy_name(), "implicit_deny");
}

#[test]
fn what_is_compiled_is_used_until_something_changes() {
    let policies = published([]);
    let own = workload("own", &["own/a"]);
    let mut cache = Cache::default();
    let first = cache.get(&policies, &own);
    assert!(Arc::ptr_eq(&first, &cache.get(&policies, &own)));
    let others = workload("own", &["own/b"]);
    assert!(!Arc::ptr_eq(&first, &cache.get(&policies, &others)));
    assert!(Arc::ptr_eq(&first, &cache.get(&policies, &own)), "shared");
    policies.publish(&PolicyTable::new());
    assert!(!Arc::ptr_eq(&first, &cache.get(&policies, &own)));
}

#[test]
fn workloads_that_list_the_same_share_what_is_compiled() {
    let policies = published([]);
    let of = |namespace, listed: &[&str]| policies.effective(&workload(namespace, listed));
    assert!(Arc::ptr_eq(&of("own", &["own/a"]), &of("own", &["own/a"])));
    assert!(!Arc::ptr_eq(&of("own", &["own/a"]), &of("own", &[])));
    assert!(!Arc::ptr_eq(&of("own", &[]), &of("other", &[])));
}

#[test]
fn what_nobody_uses_any_more_is_forgotten() {
    let policies = published([]);
    let held = policies.effective(&workload("own", &["own/a"]));
    for pod in 0..100 {
        policies.effective(&workload("own", &[&format!("own/{pod}")]));
    }
    let kept = policies
        .published
        .load()
        .compiled
        .lock()
        .expect("lock")
        .len();
    assert_eq!(kept, 2, "what is held, and the newest");
    let again = policies.effective(&workload("own", &["own/a"]));
    assert!(Arc::ptr_eq(&held, &again), "what is used stays");
}

#[test]
fn a_policy_that_is_listed_applies_whatever_its_scope() {
    let deny = policy(
        "other/p",
        namespace("other"),
        Action::Deny,
        vec![from_namespace("bad")],
    );
    let policies = published([deny]);
    let listing = policies.effective(&workload("own", &["other/p"]));
    assert!(decide(&listing, Some("bad")).is_err());
    let elsewhere = policies.effective(&workload("own", &[]));
    assert_eq!(decide(&elsewhere, Some("bad")), Ok(()));
}

#[test]
fn a_denial_names_a_rule_that_there_is() {
    let two = vec![from_namespace("a"), from_namespace("b")];
    let mut unusable = policy("ns/unusable", namespace("ns"), Action::Deny, Vec::new());
    unusable.rules = None;
    let all = published([
        policy("ns/two", namespace("ns"), Action::Deny, two),
        unusable,
    ]);
    for (policy, rule, has) in [
        ("ns/two", Some(1), true),
        ("ns/two", Some(2), false),
        ("ns/two", None, true),
        ("ns/unusable", None, true),
        ("ns/unusable", Some(0), false),
        ("ns/other", None, false),
    ] {
        assert_eq!(all.has_rule(policy, rule), has, "{policy} {rule:?}");
    }
}
