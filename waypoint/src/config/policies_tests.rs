//! Policies between their resources and the frontends that name them.

use karst_api::waypoint::{Attribute, PolicyAction};

use super::*;
use crate::authz::testing::{has, policy, when};
use crate::authz::{Attributes, Destination, ServerName};
use crate::client::Client;

/// Who refuses a connection to the service at 10.0.0.1:80.
fn refused(proxy: &Proxy) -> String {
    let table = proxy.table();
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    let Some(frontend) = table.services.get(&address) else {
        return "no listener".to_owned();
    };
    let client = Client::new("10.9.9.9:1".parse().unwrap(), None);
    let decision = frontend.authorization.decide(&Attributes {
        client: &client,
        destination: Destination::from(address),
        server_name: ServerName::None,
        request: None,
    });
    decision
        .err()
        .map_or(String::new(), |denial| denial.to_string())
}

fn guarded(policies: &[&str]) -> wire::Listener {
    let mut listener = service(&[]);
    if let Some(wire::listener::Frontend::Service(service)) = &mut listener.frontend {
        service.policies = policies.iter().map(ToString::to_string).collect();
    }
    listener
}

fn allow(block: &str) -> wire::AuthorizationPolicy {
    let rule = when(vec![has(Attribute::SourceIp, &[block])]);
    policy("n/p", PolicyAction::ActionAllow, vec![rule])
}

/// It names what this version does not know.
fn newer() -> wire::AuthorizationPolicy {
    let mut policy = allow("10.0.0.0/8");
    policy.rules[0].when[0].attribute = 99;
    policy
}

fn with_backend() -> Proxy {
    let mut proxy = Proxy::new();
    assert_eq!(proxy.backends(&[backend("shop/cart/80", 1)]), []);
    proxy
}

#[test]
fn a_change_of_a_policy_is_a_change_of_its_frontends() {
    let mut proxy = with_backend();
    assert_eq!(proxy.policies(&[allow("10.0.0.0/8")]), []);
    assert_eq!(proxy.listeners(&[guarded(&["n/p"])]), []);
    assert_eq!(refused(&proxy), "");
    assert_eq!(proxy.policies(&[allow("11.0.0.0/8")]), []);
    assert_eq!(refused(&proxy), "implicit_deny");
    assert_eq!(proxy.listeners(&[guarded(&[])]), []);
    assert_eq!(refused(&proxy), "");
}

#[test]
fn a_policy_that_is_not_there_refuses_and_one_that_comes_later_is_waited_for() {
    let mut proxy = with_backend();
    proxy.listeners(&[guarded(&["n/p"])]);
    assert_eq!(refused(&proxy), "policy n/p is not ready");
    proxy.policies(&[allow("10.0.0.0/8")]);
    assert_eq!(refused(&proxy), "");
    // The former version of the frontend serves on until the newer one is complete.
    proxy.listeners(&[guarded(&["n/p", "n/q"])]);
    assert_eq!(refused(&proxy), "");
    let (state, problems) = proxy.state("service/shop/cart/80");
    assert_eq!(state, State::Waiting);
    assert_eq!(problems, ["waits for policy \"n/q\""]);
    let deny = policy("n/q", PolicyAction::ActionDeny, vec![when(vec![])]);
    proxy.policies(&[deny]);
    assert_eq!(refused(&proxy), "policy n/q, rules[0]");
}

#[test]
fn an_invalid_policy_refuses_what_it_is_for_whatever_was_there_before() {
    let mut proxy = with_backend();
    proxy.policies(&[allow("10.0.0.0/8")]);
    proxy.listeners(&[guarded(&["n/p"])]);
    assert_eq!(refused(&proxy), "");
    let rejected = proxy.policies(&[newer()]);
    let (name, error) = &rejected[0];
    assert_eq!(name, "n/p");
    let problem = "is missing, or not known to this version";
    assert_eq!(*error, format!("rules[0].when[0].attribute {problem}"));
    assert_eq!(proxy.state("n/p").0, State::Rejected);
    assert_eq!(refused(&proxy), "policy n/p is not ready");
    assert_eq!(proxy.policies(&[allow("10.0.0.0/8")]), []);
    assert_eq!(refused(&proxy), "");
    // Its frontend is to go, or to lose it, with it; until then its word holds.
    proxy.removed(AUTHORIZATION_POLICY_TYPE, "n/p");
    assert_eq!(refused(&proxy), "");
}

#[test]
fn names_of_policies_are_checked() {
    let mut proxy = with_backend();
    let rejected = proxy.listeners(&[guarded(&["n/p", ""])]);
    assert_eq!(rejected[0].1, "service.policies[1] is empty");
    let rejected = proxy.listeners(&[guarded(&["n/p"; 1025])]);
    assert!(
        rejected[0].1.starts_with("service.policies has 1025"),
        "{rejected:?}"
    );
}
