//! Attribute by attribute: what a policy becomes on the wire, and what is said of it.

use karst_api::security::{self as wire, string_match::MatchType};
use serde_json::{Value, json};

use crate::object::{Body, Object, authorization::AuthorizationPolicy};

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn read_object(value: Value) -> (AuthorizationPolicy, Vec<String>) {
    let object = Object::from_value(value).unwrap().unwrap();
    let fields = object.findings.iter().map(|finding| {
        assert!(!finding.problem.is_empty() && !finding.hint.is_empty());
        assert_eq!(finding.object, "AuthorizationPolicy shop/p");
        finding.field.clone()
    });
    let fields = fields.collect();
    let Body::AuthorizationPolicy(policy) = object.body else {
        panic!("another kind");
    };
    (*policy, fields)
}

fn read(spec: Value) -> (AuthorizationPolicy, Vec<String>) {
    read_object(policy(spec))
}

fn string(match_: &wire::StringMatch) -> String {
    match match_.match_type.as_ref().unwrap() {
        MatchType::Exact(text) => text.clone(),
        MatchType::Prefix(text) => format!("{text}|"),
        MatchType::Suffix(text) => format!("|{text}"),
        MatchType::Presence(()) => "any".to_owned(),
    }
}

fn address(address: &wire::Address) -> String {
    let ip = karst_api::convert::ip_address("a", &address.address).unwrap();
    format!("{ip}/{}", address.length)
}

fn account(account: &wire::ServiceAccountMatch) -> String {
    format!("{}/{}", account.namespace, account.service_account)
}

fn field<T>(name: &str, values: &[T], shown: impl Fn(&T) -> String) -> Option<String> {
    let values: Vec<String> = values.iter().map(shown).collect();
    (!values.is_empty()).then(|| format!("{name}={}", values.join(",")))
}

/// A match in one line.
fn short(one: &wire::Match) -> String {
    let all = [
        field("ns", &one.namespaces, string),
        field("!ns", &one.not_namespaces, string),
        field("id", &one.principals, string),
        field("!id", &one.not_principals, string),
        field("sa", &one.service_accounts, account),
        field("!sa", &one.not_service_accounts, account),
        field("src", &one.source_ips, address),
        field("!src", &one.not_source_ips, address),
        field("dst", &one.destination_ips, address),
        field("!dst", &one.not_destination_ips, address),
        field("port", &one.destination_ports, u32::to_string),
        field("!port", &one.not_destination_ports, u32::to_string),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Rules in one line: `;` between rules, `&` between clauses, `|` between matches; `*` matches everything.
fn shown(rules: &[wire::Rule]) -> String {
    let clause = |clause: &wire::Clause| {
        assert!(!clause.matches.is_empty(), "a clause without matches");
        let matches = clause.matches.iter().map(|one| {
            assert_ne!(one, &wire::Match::default(), "node agents pass it over");
            short(one)
        });
        matches.collect::<Vec<_>>().join(" | ")
    };
    let rule = |rule: &wire::Rule| match rule.clauses.is_empty() {
        true => "*".to_owned(),
        false => rule
            .clauses
            .iter()
            .map(clause)
            .collect::<Vec<_>>()
            .join(" & "),
    };
    rules.iter().map(rule).collect::<Vec<_>>().join("; ")
}

/// What a rule becomes in a policy that allows, without a word of complaint.
fn check(rule: Value, expected: &str) {
    let (policy, findings) = read(json!({"rules": [rule.clone()]}));
    assert_eq!(shown(&policy.rules), expected, "{rule}");
    assert_eq!(findings, Vec::<String>::new(), "{rule}");
    assert_eq!(policy.faults, Vec::<String>::new(), "{rule}");
    assert_eq!((policy.narrowed, policy.unsupported), (None, None));
}

fn source(source: Value) -> Value {
    json!({"from": [{"source": source}]})
}

fn operation(operation: Value) -> Value {
    json!({"to": [{"operation": operation}]})
}

fn when(key: &str, values: Value) -> Value {
    let mut condition = values;
    condition["key"] = json!(key);
    json!({"when": [condition]})
}

#[test]
fn every_attribute_of_a_source_is_taken_over() {
    for (given, expected) in [
        (json!({"principals": ["td/ns/a/sa/b"]}), "id=td/ns/a/sa/b"),
        (json!({"principals": ["*"]}), "id=any"),
        (json!({"principals": ["td/ns/a/*"]}), "id=td/ns/a/|"),
        (json!({"principals": ["*/sa/b"]}), "id=|/sa/b"),
        (json!({"notPrincipals": ["*"]}), "!id=any"),
        (json!({"notPrincipals": ["x", "y*"]}), "!id=x,y|"),
        (
            json!({"namespaces": ["a", "b*", "*c", "*"]}),
            "ns=a,b|,|c,any",
        ),
        (json!({"notNamespaces": ["a"]}), "!ns=a"),
        (
            json!({"serviceAccounts": ["other/sa", "own"]}),
            "sa=other/sa,shop/own",
        ),
        (json!({"notServiceAccounts": ["own"]}), "!sa=shop/own"),
        (json!({"ipBlocks": ["10.0.0.1"]}), "src=10.0.0.1/32"),
        (json!({"ipBlocks": ["10.1.2.3/16"]}), "src=10.1.0.0/16"),
        (
            json!({"ipBlocks": ["0.0.0.0/0", "::/0"]}),
            "src=0.0.0.0/0,::/0",
        ),
        (
            json!({"ipBlocks": ["fd00::1", "fd00::ff/64"]}),
            "src=fd00::1/128,fd00::/64",
        ),
        (
            json!({"ipBlocks": ["::ffff:10.0.0.1/112"]}),
            "src=10.0.0.0/16",
        ),
        (json!({"notIpBlocks": ["10.0.0.0/8"]}), "!src=10.0.0.0/8"),
        (
            json!({"principals": ["x"], "namespaces": ["a"], "notIpBlocks": ["1.2.3.4"]}),
            "ns=a id=x !src=1.2.3.4/32",
        ),
        // Lists without values say nothing, and neither does what is empty of HTTP.
        (json!({"principals": [], "namespaces": ["a"]}), "ns=a"),
        (
            json!({"principals": null, "requestPrincipals": [], "namespaces": ["a"]}),
            "ns=a",
        ),
    ] {
        check(source(given), expected);
    }
}

#[test]
fn every_attribute_of_an_operation_is_taken_over() {
    for (given, expected) in [
        (json!({"ports": ["80", "443"]}), "port=80,443"),
        (json!({"notPorts": ["65535"]}), "!port=65535"),
        (
            json!({"ports": ["80"], "notPorts": ["81"], "paths": []}),
            "port=80 !port=81",
        ),
    ] {
        check(operation(given), expected);
    }
}

#[test]
fn every_attribute_of_a_condition_is_taken_over() {
    let both = |yes: &str, no: &str| json!({"values": [yes], "notValues": [no]});
    for (key, given, expected) in [
        (
            "source.ip",
            both("10.0.0.0/8", "10.0.0.1"),
            "src=10.0.0.0/8 !src=10.0.0.1/32",
        ),
        ("source.namespace", both("a*", "ab"), "ns=a| !ns=ab"),
        (
            "source.principal",
            both("*", "td/ns/a/sa/b"),
            "id=any !id=td/ns/a/sa/b",
        ),
        (
            "source.serviceAccount",
            both("a/b", "c"),
            "sa=a/b !sa=shop/c",
        ),
        (
            "destination.ip",
            both("10.0.0.0/8", "10.0.0.1"),
            "dst=10.0.0.0/8 !dst=10.0.0.1/32",
        ),
        ("destination.port", both("80", "81"), "port=80 !port=81"),
        ("source.namespace", json!({"notValues": ["a"]}), "!ns=a"),
    ] {
        check(when(key, given), expected);
    }
}

#[test]
fn clauses_are_anded_and_what_is_in_them_ored() {
    check(json!({}), "*");
    check(json!({"from": null, "when": []}), "*");
    check(
        json!({
            "from": [{"source": {"principals": ["x"]}}, {"source": {"namespaces": ["a"]}}],
            "to": [{"operation": {"ports": ["80"]}}, {"operation": {"notPorts": ["81"]}}],
            "when": [
                {"key": "source.ip", "values": ["1.2.3.4"]},
                {"key": "destination.port", "values": ["80"]},
            ],
        }),
        "id=x | ns=a & port=80 | !port=81 & src=1.2.3.4/32 & port=80",
    );
    let (policy, _) = read(json!({"rules": [source(json!({"namespaces": ["a"]})), {}]}));
    assert_eq!(shown(&policy.rules), "ns=a; *");
}

#[test]
fn actions_scopes_and_nothing_at_all() {
    let action = |spec: Value| {
        let (policy, findings) = read(spec);
        (
            policy.action,
            policy.rules.len(),
            policy.selector.len(),
            findings.len(),
        )
    };
    use wire::Action::{Allow, Deny};
    assert_eq!(action(json!(null)), (Some(Allow), 0, 0, 0));
    assert_eq!(action(json!({})), (Some(Allow), 0, 0, 0));
    assert_eq!(action(json!({"rules": [{}]})), (Some(Allow), 1, 0, 0));
    assert_eq!(action(json!({"action": "ALLOW"})), (Some(Allow), 0, 0, 0));
    assert_eq!(
        action(json!({"action": "DENY", "rules": []})),
        (Some(Deny), 0, 0, 0)
    );
    let selector = json!({"selector": {"matchLabels": {"app": "web", "v": "1"}}});
    assert_eq!(action(selector), (Some(Allow), 0, 2, 0));
    assert_eq!(action(json!({"selector": {}})), (Some(Allow), 0, 0, 0));
    assert_eq!(action(json!({"targetRefs": []})), (Some(Allow), 0, 0, 0));
}

#[test]
fn what_is_not_supported_says_so() {
    for (spec, action, rules, field, words) in [
        (
            json!({"action": "AUDIT", "rules": [{}]}),
            None,
            "*",
            "spec.action",
            "AUDIT is not supported",
        ),
        (
            json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [operation(json!({"ports": ["80"], "paths": ["/a"]}))]}),
            Some(wire::Action::Deny),
            "port=80",
            "spec.action",
            "what its rules match is refused",
        ),
    ] {
        let (policy, findings) = read(spec.clone());
        assert_eq!(
            (policy.action, shown(&policy.rules).as_str()),
            (action, rules),
            "{spec}"
        );
        assert!(policy.unsupported.unwrap().contains(words), "{spec}");
        assert_eq!(findings.last().unwrap(), field, "{spec}");
        assert_eq!(policy.faults, Vec::<String>::new());
    }
}

/// What a rule becomes that has something to it that no node agent knows: the policy when it allows, the
/// policy when it refuses, and the field that is named.
fn check_http(rule: Value, denied: &str, named: &str) {
    let (allow, findings) = read(json!({"rules": [rule.clone()]}));
    assert_eq!(shown(&allow.rules), "", "{rule}");
    assert_eq!(findings, [named], "{rule}");
    let said = allow.narrowed.unwrap();
    assert!(
        said.contains(named) && said.contains("never matches"),
        "{said}"
    );
    let (deny, findings) = read(json!({"action": "DENY", "rules": [rule.clone()]}));
    assert_eq!(shown(&deny.rules), denied, "{rule}");
    assert_eq!(findings, [named], "{rule}");
    let said = deny.narrowed.unwrap();
    assert!(
        said.contains(named) && said.contains("without them"),
        "{said}"
    );
    assert_eq!(
        (allow.faults.len(), deny.faults.len()),
        (0, 0),
        "no mistake of the author's"
    );
}

#[test]
fn http_makes_an_allow_rule_match_nothing_and_a_deny_rule_match_more() {
    let at = "spec.rules[0]";
    for name in [
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ] {
        let field = format!("{at}.to[0].operation.{name}");
        check_http(
            operation(json!({name: ["x"], "ports": ["80"]})),
            "port=80",
            &field,
        );
        check_http(operation(json!({name: ["x"]})), "*", &field);
    }
    for name in [
        "requestPrincipals",
        "notRequestPrincipals",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "trustDomains",
        "notTrustDomains",
    ] {
        let field = format!("{at}.from[0].source.{name}");
        check_http(
            source(json!({name: ["x"], "namespaces": ["a"]})),
            "ns=a",
            &field,
        );
    }
    for key in [
        "request.headers[X]",
        "request.auth.claims[iss]",
        "remote.ip",
        "connection.sni",
        "experimental.envoy.filters.a[b]",
    ] {
        let mut rule = when(key, json!({"values": ["x"]}));
        rule["from"] = json!([{"source": {"namespaces": ["a"]}}]);
        check_http(rule, "ns=a", &format!("{at}.when[0] (key {key:?})"));
    }
    // One of several sources that may be anybody leaves nothing of the others.
    check_http(
        json!({"from": [{"source": {"namespaces": ["a"]}}, {"source": {"requestPrincipals": ["x"]}}],
            "to": [{"operation": {"ports": ["80"]}}]}),
        "port=80",
        "spec.rules[0].from[1].source.requestPrincipals",
    );
}

#[test]
fn http_in_one_rule_leaves_the_others_alone() {
    let (policy, _) = read(json!({"rules": [
        operation(json!({"methods": ["GET"]})), operation(json!({"ports": ["80"]}))]}));
    assert_eq!(shown(&policy.rules), "port=80");
}

/// A mistake: the rule when it allows is nothing, when it refuses it is this; the field is named.
fn check_fault(rule: Value, denied: &str, named: &str) {
    let (allow, findings) = read(json!({"rules": [rule.clone()]}));
    assert_eq!(shown(&allow.rules), "", "{rule}");
    assert_eq!(findings, [named], "{rule}");
    assert!(allow.faults[0].contains(named), "{:?}", allow.faults);
    let (deny, _) = read(json!({"action": "DENY", "rules": [rule.clone()]}));
    assert_eq!(shown(&deny.rules), denied, "{rule}");
}

#[test]
fn a_mistake_in_a_rule_never_opens_anything() {
    let at = |rest: &str| format!("spec.rules[0]{rest}");
    let from = |rest: &str| at(&format!(".from[0].source{rest}"));
    for (given, denied, named) in [
        (json!({"principals": [5]}), "*", from(".principals[0]")),
        (json!({"principals": "x"}), "*", from(".principals")),
        (json!({"principals": [""]}), "*", from(".principals[0]")),
        (json!({"principals": ["a*b"]}), "*", from(".principals[0]")),
        (json!({"principals": ["*a*"]}), "*", from(".principals[0]")),
        (
            json!({"principals": ["spiffe://td/ns/a/sa/b"]}),
            "*",
            from(".principals[0]"),
        ),
        (
            json!({"namespaces": ["a", "**"]}),
            "*",
            from(".namespaces[1]"),
        ),
        (
            json!({"serviceAccounts": ["a/b/c"]}),
            "*",
            from(".serviceAccounts[0]"),
        ),
        (
            json!({"serviceAccounts": ["a/*"]}),
            "*",
            from(".serviceAccounts[0]"),
        ),
        (
            json!({"serviceAccounts": ["/a"]}),
            "*",
            from(".serviceAccounts[0]"),
        ),
        (
            json!({"serviceAccounts": ["a"], "namespaces": ["b"]}),
            "ns=b",
            from(""),
        ),
        // The value beside the wrong one does not stand for the whole list.
        (
            json!({"ipBlocks": ["1.2.3.4", "nowhere"], "namespaces": ["a"]}),
            "ns=a",
            from(".ipBlocks[1]"),
        ),
        (
            json!({"ipBlocks": ["10.0.0.0/33"]}),
            "*",
            from(".ipBlocks[0]"),
        ),
        (
            json!({"ipBlocks": ["10.0.0.0/+8"]}),
            "*",
            from(".ipBlocks[0]"),
        ),
        (
            json!({"notIpBlocks": ["10.0.0.0/"]}),
            "*",
            from(".notIpBlocks[0]"),
        ),
        (
            json!({"principal": ["x"], "namespaces": ["a"]}),
            "ns=a",
            from(".principal"),
        ),
        (json!(5), "*", from("")),
        (json!({}), "*", at(".from[0]")),
    ] {
        check_fault(source(given), denied, &named);
    }
    for (given, named) in [
        (json!({"ports": [80]}), ".to[0].operation.ports[0]"),
        (json!({"ports": ["0"]}), ".to[0].operation.ports[0]"),
        (json!({"ports": ["65536"]}), ".to[0].operation.ports[0]"),
        (
            json!({"notPorts": ["http"]}),
            ".to[0].operation.notPorts[0]",
        ),
        (json!({"port": ["80"]}), ".to[0].operation.port"),
    ] {
        check_fault(operation(given), "*", &at(named));
    }
    for (given, named) in [
        (
            json!({"when": [{"key": "source.ips", "values": ["x"]}]}),
            ".when[0].key",
        ),
        (json!({"when": [{"values": ["x"]}]}), ".when[0].key"),
        (json!({"when": [{"key": "source.ip"}]}), ".when[0]"),
        (
            json!({"when": [{"key": "source.ip", "values": []}]}),
            ".when[0]",
        ),
        (
            json!({"when": [{"key": "source.ip", "values": ["x"]}]}),
            ".when[0].values[0]",
        ),
        (json!({"when": {}}), ".when"),
        (json!({"from": []}), ".from"),
        (
            json!({"from": [{"sources": {"namespaces": ["a"]}, "source": {"namespaces": ["b"]}}]}),
            ".from[0].sources",
        ),
        (json!({"to": "x"}), ".to"),
        (json!({"until": []}), ".until"),
        (json!(null), ""),
        (json!("x"), ""),
    ] {
        let denied = if named == ".from[0].sources" {
            "ns=b"
        } else {
            "*"
        };
        check_fault(given, denied, &at(named));
    }
}

#[test]
fn a_policy_that_is_not_understood_allows_nothing() {
    for (spec, named) in [
        (json!({"action": "deny", "rules": [{}]}), "spec.action"),
        (json!({"action": 5, "rules": [{}]}), "spec.action"),
        (json!({"someday": true, "rules": [{}]}), "spec.someday"),
        (json!({"rules": {}}), "spec.rules"),
        (json!("x"), "spec"),
        (json!({"selector": 5, "rules": [{}]}), "spec.selector"),
        (
            json!({"selector": {"matchLabels": 5}, "rules": [{}]}),
            "spec.selector.matchLabels",
        ),
        (
            json!({"selector": {"matchLabels": {"app": "*"}}, "rules": [{}]}),
            "spec.selector.matchLabels[\"app\"]",
        ),
        (
            json!({"selector": {"matchExpressions": []}, "rules": [{}]}),
            "spec.selector.matchExpressions",
        ),
        (
            json!({"selector": {}, "targetRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]}),
            "spec.targetRefs",
        ),
    ] {
        let (policy, findings) = read(spec.clone());
        assert_eq!(
            (policy.action, policy.rules.len()),
            (Some(wire::Action::Allow), 0),
            "{spec}"
        );
        assert_eq!(findings, [named], "{spec}");
        assert_eq!(policy.faults.len(), 1);
    }
    let (policy, _) = read(json!({"action": "DENY", "rules": "x"}));
    assert_eq!(
        shown(&policy.rules),
        "*",
        "what it was to refuse is not known"
    );
    let many: Vec<Value> = (0..513)
        .map(|_| json!({"to": [{"operation": {"ports": ["1"]}}]}))
        .collect();
    let (policy, findings) = read(json!({"action": "DENY", "rules": many}));
    assert_eq!(
        (shown(&policy.rules).as_str(), findings),
        ("*", vec!["spec.rules".to_owned()])
    );
}

#[test]
fn a_selector_with_a_mistake_selects_more() {
    let (policy, _) =
        read(json!({"selector": {"matchLabels": {"app": "web", "x": 5}}, "rules": [{}]}));
    assert_eq!(policy.selector.len(), 1);
    assert!(policy.rules.is_empty());
}

#[test]
fn a_dry_run_is_asked_for_by_annotation() {
    let annotated = |value: Value| {
        let mut object = policy(json!({"rules": [{}]}));
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": value});
        let (policy, findings) = read_object(object);
        (
            policy.dry_run,
            policy.rules.len(),
            findings.len(),
            policy.faults.len(),
        )
    };
    assert_eq!(annotated(json!("true")), (true, 1, 0, 0));
    assert_eq!(annotated(json!("false")), (false, 1, 0, 0));
    assert_eq!(annotated(json!("yes")), (false, 1, 1, 0));
    // Without quotes it is no text, and nothing of the metadata can be trusted.
    assert_eq!(annotated(json!(true)), (false, 0, 1, 1));
}
