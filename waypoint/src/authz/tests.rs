//! What policies say about requests and connections, by tables.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use karst_api::waypoint as wire;
use karst_api::waypoint::attribute_value::Kind;
use karst_api::waypoint::{Attribute, PolicyAction};
use karst_identity::SpiffeId;

use super::testing::{has, header, on_trial, policy, when};
use super::*;
use crate::balance::Clusters;
use crate::client::Client;

const ALLOW: PolicyAction = PolicyAction::ActionAllow;
const DENY: PolicyAction = PolicyAction::ActionDeny;
const AUDIT: PolicyAction = PolicyAction::ActionAudit;

/// A request, or below HTTP a connection, that tests make others of.
struct Sample {
    identity: Option<&'static str>,
    client: &'static str,
    destination: Option<&'static str>,
    port: u16,
    sni: ServerName<'static>,
    http: bool,
    method: &'static str,
    host: &'static str,
    host_port: Option<&'static str>,
    path: &'static str,
    headers: Option<&'static [(&'static str, &'static str)]>,
    hops: usize,
    principal: Option<&'static str>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            identity: Some("spiffe://cluster.local/ns/shop/sa/cart"),
            client: "10.1.2.3:4567",
            destination: Some("10.96.0.1:80"),
            port: 80,
            sni: ServerName::None,
            http: true,
            method: "GET",
            host: "shop.example.com",
            host_port: None,
            path: "/api/items",
            headers: Some(&[("x-team", "red"), ("x-forwarded-for", "1.1.1.1, 2.2.2.2")]),
            hops: 0,
            principal: None,
        }
    }
}

impl Sample {
    /// Bytes, of which nothing of HTTP is known.
    fn tcp() -> Self {
        Self {
            http: false,
            sni: ServerName::Unread,
            ..Self::default()
        }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Attributes<'_>) -> T) -> T {
        let mut client = Client::new(self.client.parse().unwrap(), None);
        client.identity = self.identity.map(|text| SpiffeId::parse(text).unwrap());
        let destination: Option<SocketAddr> = self.destination.map(|text| text.parse().unwrap());
        let headers = self.headers.map(|lines| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            headers
        });
        let request = RequestAttributes {
            method: self.method,
            host: self.host,
            port: self.host_port,
            path: self.path,
            headers: headers.as_ref(),
            trusted_hops: self.hops,
            request_principal: self.principal,
            token: None,
        };
        ask(&Attributes {
            client: &client,
            destination: Destination {
                ip: destination.map(|address| address.ip()),
                port: self.port,
            },
            server_name: self.sni,
            request: self.http.then_some(request),
        })
    }
}

fn compiled(wire: &[wire::AuthorizationPolicy]) -> Authorization {
    Authorization::new(
        wire.iter()
            .map(|wire| Arc::new(Policy::new(wire, &Clusters::default()).unwrap())),
    )
}

/// Who refuses; empty if nobody does.
fn refuses(policies: &[wire::AuthorizationPolicy], sample: &Sample) -> String {
    let decision = sample.ask(|attributes| compiled(policies).decide(attributes));
    let refuses = decision
        .err()
        .map_or(String::new(), |denial| denial.to_string());
    let explained = sample.ask(|attributes| explain::tests::refuses(policies, attributes));
    assert_eq!(explained, refuses, "what people are told");
    refuses
}

/// Whether a condition matches where a match opens, and where it closes.
fn matches(condition: &wire::AttributeMatch, sample: &Sample) -> (bool, bool) {
    let rules = || vec![when(vec![condition.clone()])];
    let opens = refuses(&[policy("n/p", ALLOW, rules())], sample).is_empty();
    let closes = !refuses(&[policy("n/p", DENY, rules())], sample).is_empty();
    (opens, closes)
}

#[track_caller]
fn check(sample: &Sample, cases: &[(Attribute, &[&str], bool)]) {
    for (attribute, values, expected) in cases {
        let found = matches(&has(*attribute, values), sample);
        let expected = (*expected, *expected);
        assert_eq!(found, expected, "{attribute:?} {values:?}");
    }
}

#[test]
fn a_source_is_what_it_has_proven() {
    use Attribute::{SourceNamespace, SourcePrincipal, SourceServiceAccount};
    let cart = "cluster.local/ns/shop/sa/cart";
    check(
        &Sample::default(),
        &[
            (SourcePrincipal, &[cart], true),
            (SourcePrincipal, &["cluster.local/ns/shop/sa/car"], false),
            (
                SourcePrincipal,
                &["spiffe://cluster.local/ns/shop/sa/cart"],
                false,
            ),
            (SourcePrincipal, &["cluster.local/ns/shop/*"], true),
            (SourcePrincipal, &["cluster.local/ns/bank/*"], false),
            (SourcePrincipal, &["*/sa/cart"], true),
            (SourcePrincipal, &["*/sa/art"], false),
            (SourcePrincipal, &["*"], true),
            (SourcePrincipal, &["!*"], false),
            (SourcePrincipal, &["!cluster.local/ns/bank/*"], true),
            (SourcePrincipal, &["*", "!*/sa/cart"], false),
            (SourcePrincipal, &["a", "b", cart, "z"], true),
            (SourceNamespace, &["shop"], true),
            (SourceNamespace, &["sho"], false),
            (SourceNamespace, &["sh*"], true),
            (SourceNamespace, &["!shop"], false),
            (SourceNamespace, &["!bank"], true),
            (SourceServiceAccount, &["shop/cart"], true),
            (SourceServiceAccount, &["shop/carts"], false),
            (SourceServiceAccount, &["bank/cart"], false),
            (SourceServiceAccount, &["!shop/cart"], false),
        ],
    );
}

#[test]
fn who_has_proven_nothing_is_nobody() {
    use Attribute::{SourceNamespace, SourcePrincipal, SourceServiceAccount};
    let outside = Sample {
        identity: None,
        // What a client says of itself is no proof.
        headers: Some(&[(
            "x-forwarded-client-cert",
            "By=x;URI=spiffe://cluster.local/ns/shop/sa/cart",
        )]),
        ..Sample::default()
    };
    check(
        &outside,
        &[
            (SourcePrincipal, &["*"], false),
            (SourcePrincipal, &["cluster.local/ns/shop/sa/cart"], false),
            (SourcePrincipal, &["!*"], true),
            (SourcePrincipal, &["!cluster.local/ns/shop/sa/cart"], true),
            (SourceNamespace, &["shop"], false),
            (SourceNamespace, &["!shop"], true),
            (SourceServiceAccount, &["shop/cart"], false),
            (SourceServiceAccount, &["!shop/cart"], true),
        ],
    );
}

#[test]
fn addresses_are_in_blocks() {
    use Attribute::{DestinationIp, DestinationPort, RemoteIp, SourceIp};
    check(
        &Sample::default(),
        &[
            (SourceIp, &["10.1.0.0/16"], true),
            (SourceIp, &["10.2.0.0/16"], false),
            (SourceIp, &["10.1.2.3"], true),
            (SourceIp, &["!10.1.2.3"], false),
            (SourceIp, &["fd00::/8", "!10.2.0.0/16"], false),
            (RemoteIp, &["10.1.2.3"], true),
            (RemoteIp, &["2.2.2.2"], false),
            (RemoteIp, &["!2.2.2.2"], true),
            (DestinationIp, &["10.96.0.1"], true),
            (DestinationIp, &["10.96.0.2"], false),
            (DestinationIp, &["!10.96.0.0/12"], false),
            (DestinationPort, &["80"], true),
            (DestinationPort, &["8080", "80", "443"], true),
            (DestinationPort, &["8080"], false),
            (DestinationPort, &["!80"], false),
            (DestinationPort, &["!8080"], true),
        ],
    );
}

#[test]
fn the_remote_address_is_that_beyond_trusted_proxies() {
    use Attribute::{RemoteIp, SourceIp};
    let one = Sample {
        hops: 1,
        ..Sample::default()
    };
    check(
        &one,
        &[
            (RemoteIp, &["2.2.2.2"], true),
            (RemoteIp, &["10.1.2.3"], false),
            (SourceIp, &["10.1.2.3"], true),
        ],
    );
    let past = Sample {
        hops: 3,
        ..Sample::default()
    };
    check(
        &past,
        &[
            (RemoteIp, &["10.1.2.3"], true),
            (RemoteIp, &["1.1.1.1"], false),
        ],
    );
    // In doubt a match that opens fails, and one that closes holds, whatever is asked for.
    let unreadable = Sample {
        hops: 1,
        headers: Some(&[("x-forwarded-for", "unknown")]),
        ..Sample::default()
    };
    for values in [&["10.1.2.3"][..], &["!10.1.2.3"], &["9.9.9.9"]] {
        let found = matches(&has(RemoteIp, values), &unreadable);
        assert_eq!(found, (false, true), "{values:?}");
    }
}

#[test]
fn an_address_that_was_not_asked_for_is_in_doubt() {
    let named = Sample {
        destination: None,
        ..Sample::default()
    };
    let found = matches(&has(Attribute::DestinationIp, &["10.96.0.1"]), &named);
    assert_eq!(found, (false, true));
}

#[test]
fn a_host_is_asked_for_with_its_port_and_without() {
    use Attribute::Host;
    check(
        &Sample::default(),
        &[
            (Host, &["shop.example.com"], true),
            (Host, &["SHOP.Example.com"], true),
            (Host, &["shop.example.com:80"], false),
            (Host, &["*.example.com"], true),
            (Host, &["example.com"], false),
            (Host, &["shop.*"], true),
            (Host, &["*"], true),
            (Host, &["!shop.example.com"], false),
            (Host, &["!bank.example.com"], true),
        ],
    );
    let with_port = Sample {
        host_port: Some("8080"),
        ..Sample::default()
    };
    check(
        &with_port,
        &[
            (Host, &["shop.example.com"], true),
            (Host, &["shop.example.com:8080"], true),
            (Host, &["shop.example.com:*"], true),
            (Host, &["shop.example.com:80"], false),
            (Host, &["*.com"], true),
            (Host, &["*:8080"], true),
            (Host, &["!shop.example.com"], false),
        ],
    );
    let without = Sample {
        host: "",
        ..Sample::default()
    };
    check(
        &without,
        &[(Host, &["*"], false), (Host, &["!shop.example.com"], true)],
    );
}

#[test]
fn methods_and_paths() {
    use Attribute::{Method, Path};
    check(
        &Sample::default(),
        &[
            (Method, &["GET"], true),
            (Method, &["get"], false),
            (Method, &["POST", "PUT"], false),
            (Method, &["!GET"], false),
            (Method, &["!POST"], true),
            (Path, &["/api/items"], true),
            (Path, &["/api/item"], false),
            (Path, &["/api/items/"], false),
            (Path, &["/api/*"], true),
            (Path, &["/ap*"], true),
            (Path, &["/admin*"], false),
            (Path, &["*/items"], true),
            (Path, &["*/item"], false),
            (Path, &["*"], true),
            (Path, &["!/api/*"], false),
            (Path, &["!/admin"], true),
            (Path, &["/api/{*}"], true),
            (Path, &["/{*}"], false),
            (Path, &["/{*}/items"], true),
            (Path, &["/{**}"], true),
            (Path, &["/api/{**}"], true),
            (Path, &["!/api/{*}"], false),
        ],
    );
}

#[test]
fn paths_of_policies_are_in_the_form_of_requests() {
    use Attribute::Path;
    let sample = |path| Sample {
        path,
        ..Sample::default()
    };
    check(
        &sample("/admin/a%2Fb"),
        &[
            (Path, &["/%61dmin/a%2fb"], true),
            (Path, &["/x/../admin/a%2fb"], true),
            (Path, &["/%61dmin*"], true),
            (Path, &["*a%2fb"], true),
            (Path, &["/%61dmin/{*}"], true),
            // Such a path is never taken.
            (Path, &["/%zz"], false),
        ],
    );
}

#[test]
fn headers_are_compared_by_line() {
    let cases: [(&[&str], bool); 6] = [
        (&["red"], true),
        (&["re*"], true),
        (&["*"], true),
        (&["blue"], false),
        (&["!red"], false),
        (&["!blue"], true),
    ];
    for (values, expected) in cases {
        let found = matches(&header("X-Team", values), &Sample::default());
        assert_eq!(found, (expected, expected), "{values:?}");
    }
    let none = Sample {
        headers: Some(&[]),
        ..Sample::default()
    };
    assert_eq!(matches(&header("x-team", &["*"]), &none), (false, false));
    assert_eq!(matches(&header("x-team", &["!red"]), &none), (true, true));
    let both = Sample {
        headers: Some(&[("x-team", "red"), ("x-team", "blue")]),
        ..Sample::default()
    };
    assert_eq!(matches(&header("x-team", &["red"]), &both), (false, true));
    assert_eq!(
        matches(&header("x-team", &["red,blue"]), &both),
        (false, true)
    );
    assert_eq!(
        matches(&header("x-team", &["red", "blue"]), &both),
        (true, true)
    );
    assert_eq!(matches(&header("x-team", &["!red"]), &both), (false, true));
    let empty = Sample {
        headers: Some(&[("x-team", "")]),
        ..Sample::default()
    };
    assert_eq!(matches(&header("x-team", &["*"]), &empty), (false, true));
    let gone = Sample {
        headers: None,
        ..Sample::default()
    };
    assert_eq!(matches(&header("x-team", &["red"]), &gone), (false, true));
    assert_eq!(matches(&header("x-team", &["!red"]), &gone), (false, true));
}

#[test]
fn server_names() {
    use Attribute::Sni;
    let tls = Sample {
        sni: ServerName::Is("shop.example.com"),
        ..Sample::default()
    };
    check(
        &tls,
        &[
            (Sni, &["shop.example.com"], true),
            (Sni, &["SHOP.example.com"], true),
            (Sni, &["*.example.com"], true),
            (Sni, &["bank.example.com"], false),
            (Sni, &["!shop.example.com"], false),
        ],
    );
    check(
        &Sample::default(),
        &[(Sni, &["*"], false), (Sni, &["!a.b"], true)],
    );
    let unread = Sample::tcp();
    assert_eq!(matches(&has(Sni, &["a.b"]), &unread), (false, true));
}

#[test]
fn no_request_has_a_principal_yet() {
    use Attribute::{RequestAudiences, RequestPresenter, RequestPrincipal};
    check(
        &Sample::default(),
        &[
            (RequestPrincipal, &["*"], false),
            (RequestPrincipal, &["issuer/subject"], false),
            (RequestPrincipal, &["!*"], true),
            (RequestPrincipal, &["!issuer/subject"], true),
            (RequestAudiences, &["a"], false),
            (RequestAudiences, &["!a"], true),
            (RequestPresenter, &["a"], false),
        ],
    );
    let claim = wire::AttributeMatch {
        key: "iss".to_owned(),
        ..has(Attribute::RequestClaim, &["*"])
    };
    assert_eq!(matches(&claim, &Sample::default()), (false, false));
    let known = Sample {
        principal: Some("issuer/subject"),
        ..Sample::default()
    };
    check(
        &known,
        &[
            (RequestPrincipal, &["issuer/*"], true),
            (RequestPrincipal, &["!*"], false),
        ],
    );
}

#[test]
fn below_http_nothing_of_http_opens() {
    use Attribute::{Host, Method, Path, RemoteIp, RequestAudiences, RequestPrincipal};
    let tcp = Sample::tcp();
    for attribute in [Host, Method, Path, RequestPrincipal, RequestAudiences] {
        for values in [&["x"][..], &["*"], &["!x"]] {
            let found = matches(&has(attribute, values), &tcp);
            assert_eq!(found, (false, true), "{attribute:?} {values:?}");
        }
    }
    assert_eq!(matches(&header("x", &["y"]), &tcp), (false, true));
    check(
        &tcp,
        &[
            (Attribute::SourceNamespace, &["shop"], true),
            (Attribute::DestinationPort, &["80"], true),
            (Attribute::DestinationPort, &["81"], false),
            (RemoteIp, &["10.1.2.3"], true),
        ],
    );
    // What refuses a method on one port refuses everything there, and nothing elsewhere.
    let rule = |port| {
        when(vec![
            has(Method, &["POST"]),
            has(Attribute::DestinationPort, &[port]),
        ])
    };
    assert_ne!(refuses(&[policy("n/p", DENY, vec![rule("80")])], &tcp), "");
    assert_eq!(refuses(&[policy("n/p", DENY, vec![rule("81")])], &tcp), "");
}

#[test]
fn refusing_comes_before_allowing() {
    let any = || vec![when(Vec::new())];
    let other = || vec![when(vec![has(Attribute::Method, &["POST"])])];
    let allow = |rules| policy("n/allow", ALLOW, rules);
    let deny = |rules| policy("n/deny", DENY, rules);
    let denied = "policy n/deny, rules[0]";
    for (policies, expected) in [
        (vec![], ""),
        (vec![allow(any())], ""),
        (vec![allow(other())], IMPLICIT_DENY),
        (vec![allow(vec![])], IMPLICIT_DENY),
        (vec![allow(other()), policy("n/more", ALLOW, any())], ""),
        (vec![deny(any())], denied),
        (vec![deny(other())], ""),
        (vec![deny(vec![])], ""),
        (vec![allow(any()), deny(any())], denied),
        (vec![deny(any()), allow(any())], denied),
        (vec![deny(other()), allow(any())], ""),
        (vec![deny(other()), allow(other())], IMPLICIT_DENY),
        (vec![policy("n/audit", AUDIT, any())], ""),
        (vec![policy("n/audit", AUDIT, other())], ""),
        (vec![on_trial(deny(any()))], ""),
        (vec![on_trial(allow(other()))], ""),
        (vec![on_trial(allow(any())), allow(other())], IMPLICIT_DENY),
    ] {
        assert_eq!(
            refuses(&policies, &Sample::default()),
            expected,
            "{policies:?}"
        );
    }
}

#[test]
fn a_rule_wants_one_source_one_operation_and_all_conditions() {
    let set = |matches| wire::AttributeMatches { matches };
    let namespace = |name: &str| has(Attribute::SourceNamespace, &[name]);
    let method = |name: &str| has(Attribute::Method, &[name]);
    let rule = |from: Vec<_>, to: Vec<_>, when: Vec<_>| wire::AuthorizationRule {
        index: 7,
        from: from.into_iter().map(set).collect(),
        to: to.into_iter().map(set).collect(),
        when,
    };
    let port = |number: &str| has(Attribute::DestinationPort, &[number]);
    for (rule, expected) in [
        (rule(vec![], vec![], vec![]), true),
        (rule(vec![vec![namespace("shop")]], vec![], vec![]), true),
        (
            rule(
                vec![vec![namespace("a")], vec![namespace("shop")]],
                vec![],
                vec![],
            ),
            true,
        ),
        (
            rule(
                vec![vec![namespace("a")], vec![namespace("b")]],
                vec![],
                vec![],
            ),
            false,
        ),
        (
            rule(vec![vec![namespace("shop"), port("81")]], vec![], vec![]),
            false,
        ),
        (rule(vec![vec![]], vec![vec![]], vec![]), true),
        (rule(vec![], vec![vec![method("GET")]], vec![]), true),
        (
            rule(
                vec![],
                vec![vec![method("PUT")], vec![method("GET")]],
                vec![],
            ),
            true,
        ),
        (
            rule(
                vec![vec![namespace("shop")]],
                vec![vec![method("PUT")]],
                vec![],
            ),
            false,
        ),
        (rule(vec![], vec![], vec![port("80"), method("GET")]), true),
        (rule(vec![], vec![], vec![port("80"), method("PUT")]), false),
    ] {
        let mut policy = policy("n/p", DENY, vec![]);
        policy.rules = vec![rule];
        let expected = if expected { "policy n/p, rules[7]" } else { "" };
        assert_eq!(
            refuses(&[policy.clone()], &Sample::default()),
            expected,
            "{policy:?}"
        );
    }
}

#[test]
fn policies_that_decide_nothing_are_told() {
    let any = || vec![when(Vec::new())];
    let other = || vec![when(vec![has(Attribute::Method, &["POST"])])];
    let told = |policies: &[wire::AuthorizationPolicy]| {
        let mut told = Vec::new();
        Sample::default().ask(|attributes| {
            compiled(policies).observe(attributes, |observed| {
                told.push(format!("{} {}", observed.outcome.as_str(), observed.policy));
            });
        });
        told
    };
    let allow = |rules| policy("n/allow", ALLOW, rules);
    let trial = |action, rules| on_trial(policy("n/trial", action, rules));
    assert_eq!(told(&[policy("n/a", AUDIT, any())]), ["audited n/a"]);
    assert!(told(&[policy("n/a", AUDIT, other())]).is_empty());
    assert_eq!(told(&[trial(AUDIT, any())]), ["audited n/trial"]);
    assert_eq!(told(&[trial(DENY, any())]), ["dry_run_denied n/trial"]);
    assert!(told(&[trial(DENY, other())]).is_empty());
    assert_eq!(told(&[trial(ALLOW, any())]), ["dry_run_allowed n/trial"]);
    assert_eq!(
        told(&[trial(ALLOW, other())]),
        ["dry_run_denied implicit_deny"]
    );
    assert!(told(&[trial(ALLOW, other()), allow(any())]).is_empty());
    assert!(told(&[allow(any()), policy("n/deny", DENY, any())]).is_empty());
}

#[test]
fn a_policy_that_cannot_be_used_refuses_everything() {
    let mut all = compiled(&[policy("n/allow", ALLOW, vec![when(Vec::new())])]);
    all.add_unusable("n/broken");
    let denial = Sample::default().ask(|attributes| all.decide(attributes));
    let denial = denial.unwrap_err();
    assert_eq!(denial.reason(), "policy_not_ready");
    assert_eq!(denial.to_string(), "policy n/broken is not ready");
}

#[test]
fn what_is_unknown_makes_a_policy_invalid() {
    let error = |policy: &wire::AuthorizationPolicy| {
        Policy::new(policy, &Clusters::default())
            .unwrap_err()
            .to_string()
    };
    let with = |condition| policy("n/p", ALLOW, vec![when(vec![condition])]);
    let namespace = || has(Attribute::SourceNamespace, &["a"]);
    let kind = |kind| wire::AttributeMatch {
        values: vec![wire::AttributeValue { kind }],
        ..namespace()
    };
    for (policy, field) in [
        (policy("np", ALLOW, vec![]), "name"),
        (policy("n/p\n", ALLOW, vec![]), "name"),
        (policy("n/p/q", ALLOW, vec![]), "name"),
        (
            policy("n/p", PolicyAction::ActionUnspecified, vec![]),
            "action",
        ),
        (
            wire::AuthorizationPolicy {
                action: 99,
                ..policy("n/p", ALLOW, vec![])
            },
            "action",
        ),
        (
            with(wire::AttributeMatch {
                attribute: 99,
                ..namespace()
            }),
            "rules[0].when[0].attribute",
        ),
        (with(has(Attribute::Path, &[])), "rules[0].when[0].values"),
        (with(kind(None)), "rules[0].when[0].values[0]"),
        (
            with(kind(Some(Kind::Present(false)))),
            "rules[0].when[0].values[0]",
        ),
        (
            with(kind(Some(Kind::Exact(String::new())))),
            "rules[0].when[0].values[0]",
        ),
        (
            with(kind(Some(Kind::Port(80)))),
            "rules[0].when[0].values[0]",
        ),
        (
            with(kind(Some(Kind::PathTemplate("/{*}".to_owned())))),
            "rules[0].when[0].values[0]",
        ),
        (
            with(wire::AttributeMatch {
                attribute: Attribute::SourceIp.into(),
                ..namespace()
            }),
            "rules[0].when[0].values[0]",
        ),
        (
            with(wire::AttributeMatch {
                attribute: Attribute::DestinationPort.into(),
                ..namespace()
            }),
            "rules[0].when[0].values[0]",
        ),
        (
            with(has(Attribute::DestinationPort, &["0"])),
            "rules[0].when[0].values[0].port",
        ),
        (
            with(has(Attribute::Path, &["/{*}.txt"])),
            "rules[0].when[0].values[0]",
        ),
        (with(header("", &["a"])), "rules[0].when[0].key"),
        (with(header("a b", &["a"])), "rules[0].when[0].key"),
        (
            with(wire::AttributeMatch {
                key: "x".to_owned(),
                ..namespace()
            }),
            "rules[0].when[0].key",
        ),
        (policy("n/p", ALLOW, vec![when(vec![]); 513]), "rules"),
        (
            policy("n/p", ALLOW, vec![when(vec![namespace(); 257])]),
            "rules[0].when",
        ),
    ] {
        let error = error(&policy);
        assert_eq!(error.split_once(' ').unwrap().0, field, "{error}");
    }
}
