//! What is said of each rule comes to what is decided: the tables of `tests.rs` are put to this as well.

use std::net::SocketAddr;

use karst_api::waypoint::{self as wire, Attribute, PolicyAction};
use karst_identity::SpiffeId;

use super::super::testing::{has, policy, when};
use super::super::{Attributes, Authorization, Destination, Policy, RequestAttributes, ServerName};
use super::{Rule, explain};
use crate::client::Client;

/// Who refuses, by the explanations of each policy alone; as [`super::super::Denial`] is shown.
pub(in crate::authz) fn refuses(
    policies: &[wire::AuthorizationPolicy],
    attributes: &Attributes<'_>,
) -> String {
    let of = |action: PolicyAction| {
        let policies = policies.iter();
        policies.filter(move |policy| policy.action() == action && !policy.dry_run)
    };
    let matched = |policy: &wire::AuthorizationPolicy| {
        let rules: Vec<Rule> = explain(policy, attributes).unwrap();
        assert_eq!(rules.len(), policy.rules.len());
        for rule in rules.iter().filter_map(|rule| rule.unmet.as_ref()) {
            assert!(!rule.conditions.is_empty(), "{rule:?}");
        }
        let first = rules.iter().find(|rule| rule.unmet.is_none());
        first.map(|rule| rule.index)
    };
    for policy in of(PolicyAction::ActionDeny) {
        if let Some(rule) = matched(policy) {
            return format!("policy {}, rules[{rule}]", policy.name);
        }
    }
    let mut allowing = of(PolicyAction::ActionAllow).peekable();
    if allowing.peek().is_none() || allowing.any(|policy| matched(policy).is_some()) {
        return String::new();
    }
    super::super::IMPLICIT_DENY.to_owned()
}

#[test]
fn the_first_condition_that_does_not_hold_is_named() {
    let address: SocketAddr = "10.0.0.1:9".parse().unwrap();
    let identity = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    let client = Client::new(address, Some(identity));
    let attributes = Attributes {
        client: &client,
        destination: Destination { ip: None, port: 80 },
        server_name: ServerName::None,
        request: Some(RequestAttributes {
            method: "GET",
            host: "a",
            port: None,
            path: "/api",
            headers: None,
            trusted_hops: 0,
            request_principal: None,
            token: None,
        }),
    };
    let mut rule = when(vec![has(Attribute::Host, &["a"])]);
    rule.to = vec![
        wire::AttributeMatches {
            matches: vec![
                has(Attribute::Method, &["GET"]),
                has(Attribute::Path, &["/x"]),
            ],
        },
        wire::AttributeMatches {
            matches: vec![has(Attribute::Method, &["POST"])],
        },
    ];
    let rules = vec![rule, when(vec![has(Attribute::Host, &["b"])]), when(vec![])];
    let policy = policy("n/p", PolicyAction::ActionAllow, rules);
    let explained = explain(&policy, &attributes).unwrap();
    let first = explained[0].unmet.as_ref().unwrap();
    assert_eq!(first.part, "to");
    let named: Vec<Attribute> = first.conditions.iter().map(|one| one.attribute()).collect();
    assert_eq!(named, [Attribute::Path, Attribute::Method]);
    let second = explained[1].unmet.as_ref().unwrap();
    assert_eq!(
        (second.part, second.conditions[0].attribute()),
        ("when", Attribute::Host)
    );
    assert_eq!(explained[2].unmet, None);
    assert_eq!(refuses(std::slice::from_ref(&policy), &attributes), "");
}

#[test]
fn everything_that_is_attached_is_listed() {
    let make = |name, action, dry_run| {
        let mut wire = policy(name, action, Vec::new());
        wire.dry_run = dry_run;
        std::sync::Arc::new(Policy::new(&wire, &crate::balance::Clusters::default()).unwrap())
    };
    let all = Authorization::new([
        make("n/allow", PolicyAction::ActionAllow, false),
        make("n/audit", PolicyAction::ActionAudit, false),
        make("n/trial", PolicyAction::ActionDeny, true),
        make("n/deny", PolicyAction::ActionDeny, false),
    ]);
    let names: Vec<&str> = all.attached().map(|policy| &**policy.name()).collect();
    assert_eq!(names, ["n/deny", "n/allow", "n/audit", "n/trial"]);
}
