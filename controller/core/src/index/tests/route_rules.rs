//! Rules of routes: what the waypoint gets, and what is said of those that cannot be used.

use karst_api::waypoint::{
    self as wire, filter::Kind as FilterKind, path_match, path_modifier, session_persistence,
    value_match,
};
use serde_json::{Value, json};

use super::{
    support::{Mesh, object},
    support_l7::{http_route, key, route},
};
use crate::Kind;

fn mesh(rules: Value) -> Mesh {
    Mesh::bound([http_route(rules)])
}

fn only_rule(rules: Value) -> wire::HttpRule {
    let route = mesh(rules).wire_route();
    let [rule] = <[_; 1]>::try_from(route.http_rules).unwrap();
    rule
}

fn filters(filters: Value) -> Vec<FilterKind> {
    let rule = only_rule(json!([{"filters": filters}]));
    rule.filters
        .into_iter()
        .map(|filter| filter.kind.unwrap())
        .collect()
}

fn backend() -> Value {
    json!([{"name": "web", "port": 80}])
}

/// Checks that the only rule is dropped, and that the condition names the field.
fn check_dropped(rule: Value, field: &str) {
    let mesh = mesh(json!([rule]));
    let accepted = mesh.condition("Accepted");
    assert_eq!(
        super::support_l7::short(&accepted),
        "Accepted=False/UnsupportedValue",
        "{rule}"
    );
    let expected = format!("spec.rules[0]{field} ");
    assert!(accepted.message.contains(&expected), "{}", accepted.message);
    // As good as absent: traffic goes on as without it.
    assert_eq!(mesh.sets(), [], "{rule}");
}

/// Checks that requests of the only rule fail, for that reason.
fn check_failing(rule: Value, reason: &str, field: &str) {
    let mesh = mesh(json!([rule]));
    let accepted = mesh.condition("Accepted");
    assert_eq!(
        super::support_l7::short(&accepted),
        format!("Accepted=False/{reason}"),
        "{rule}"
    );
    assert!(accepted.message.contains(field), "{}", accepted.message);
    let rule = &mesh.wire_route().http_rules[0];
    assert_eq!(rule.backends.len(), 1);
    assert_eq!(rule.backends[0].invalid, reason);
    assert_eq!(mesh.sets().len(), 1);
}

#[test]
fn every_match_is_taken_over() {
    let rule = only_rule(
        json!([{"name": "canary", "backendRefs": backend(), "matches": [{
        "path": {"type": "Exact", "value": "/a"}, "method": "GET",
        "headers": [{"name": "X-A", "value": "1"},
            {"type": "RegularExpression", "name": "x-b", "value": "v[0-9]+"}],
        "queryParams": [{"name": "q", "value": "1"}, {"type": "RegularExpression", "name": "p", "value": ".*"}],
    }, {"path": {"value": "/b"}}, {"path": {"type": "RegularExpression", "value": "/c/[a-z]+"}}, {}]}]),
    );
    assert_eq!(rule.name, "canary");
    let path = |index: usize| rule.matches[index].path.clone().and_then(|path| path.kind);
    assert_eq!(path(0), Some(path_match::Kind::Exact("/a".into())));
    assert_eq!(path(1), Some(path_match::Kind::Prefix("/b".into())));
    assert_eq!(path(2), Some(path_match::Kind::Regex("/c/[a-z]+".into())));
    assert_eq!(path(3), None);
    let first = &rule.matches[0];
    assert_eq!(first.method, "GET");
    assert_eq!(
        first.headers[0].kind,
        Some(value_match::Kind::Exact("1".into()))
    );
    assert_eq!(
        first.headers[1].kind,
        Some(value_match::Kind::Regex("v[0-9]+".into()))
    );
    assert_eq!(first.query[0].name, "q");
    assert_eq!(
        first.query[1].kind,
        Some(value_match::Kind::Regex(".*".into()))
    );
}

#[test]
fn a_match_that_cannot_be_used_drops_its_rule() {
    let one = |condition: Value| json!({"matches": [condition], "backendRefs": backend()});
    let regex = |value: &str| one(json!({"path": {"type": "RegularExpression", "value": value}}));
    for bad in [
        "(",
        "(?=a)",
        "a)|(b",
        "[a-z]{1000}{1000}",
        &"a".repeat(5000),
    ] {
        check_dropped(regex(bad), ".matches[0].path.value");
    }
    for bad in [
        "a", "/a//b", "/a/../b", "/a/..", "/a%2fb", "/a#b", "/a?b", "/a b",
    ] {
        check_dropped(
            one(json!({"path": {"type": "Exact", "value": bad}})),
            ".matches[0].path.value",
        );
    }
    check_dropped(
        one(json!({"path": {"type": "Glob", "value": "/"}})),
        ".matches[0].path.type",
    );
    check_dropped(one(json!({"method": "GE T"})), ".matches[0].method");
    check_dropped(
        one(json!({"headers": [{"name": "a b", "value": "x"}]})),
        ".matches[0].headers[0].name",
    );
    check_dropped(
        one(json!({"headers": [{"type": "Glob", "name": "a", "value": "x"}]})),
        ".matches[0].headers[0].type",
    );
    check_dropped(
        one(json!({"queryParams": [{"type": "RegularExpression", "name": "a", "value": "("}]})),
        ".matches[0].queryParams[0].value",
    );
    check_dropped(one(json!({"cookies": []})), ".matches[0].cookies");
    check_dropped(
        json!({"backendRefs": [{"name": "web", "port": 80, "weight": 2_000_000}]}),
        ".backendRefs[0].weight",
    );
}

#[test]
fn other_rules_live_on() {
    let mesh = mesh(json!([
        {"matches": [{"path": {"type": "RegularExpression", "value": "("}}], "backendRefs": backend()},
        {"name": "sound", "backendRefs": backend()},
    ]));
    assert_eq!(
        mesh.said(&key(Kind::HttpRoute, "r")),
        [
            "Accepted=True/Accepted",
            "ResolvedRefs=True/ResolvedRefs",
            "PartiallyInvalid=True/UnsupportedValue",
            "karst.dev/WaypointBound=True/WaypointBound",
        ]
    );
    let message = mesh.condition("PartiallyInvalid").message;
    assert!(message.starts_with("Dropped Rule #1: "), "{message}");
    let rules = mesh.wire_route().http_rules;
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].name, "sound");
}

#[test]
fn faults_are_findings_of_the_object() {
    let faulty = object(http_route(json!([{"matches": [{"method": "("}]}])));
    assert_eq!(faulty.findings.len(), 1);
    assert_eq!(faulty.findings[0].field, "spec.rules[0].matches[0].method");
    assert!(faulty.findings[0].object.contains("HTTPRoute shop/r"));
}

#[test]
fn headers_are_changed() {
    let headers = json!({"set": [{"name": "a", "value": "1"}], "add": [{"name": "b", "value": "2"}], "remove": ["c"]});
    let expected = wire::HeaderModifier {
        set: vec![wire::Header {
            name: "a".into(),
            value: "1".into(),
        }],
        add: vec![wire::Header {
            name: "b".into(),
            value: "2".into(),
        }],
        remove: vec!["c".into()],
    };
    let found = filters(json!([
        {"type": "RequestHeaderModifier", "requestHeaderModifier": headers},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": headers},
    ]));
    assert_eq!(
        found,
        [
            FilterKind::RequestHeaders(expected.clone()),
            FilterKind::ResponseHeaders(expected)
        ]
    );
}

#[test]
fn redirects_and_rewrites_are_taken_over() {
    let found = filters(
        json!([{"type": "RequestRedirect", "requestRedirect": {"scheme": "https",
        "hostname": "a.example", "port": 8443, "statusCode": 308,
        "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}}]),
    );
    let FilterKind::Redirect(redirect) = &found[0] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (redirect.scheme.as_str(), redirect.port, redirect.status),
        ("https", 8443, 308)
    );
    let full = path_modifier::Kind::Full("/x".into());
    assert_eq!(redirect.path.as_ref().unwrap().kind, Some(full));
    let plain = filters(json!([{"type": "RequestRedirect", "requestRedirect": {}}]));
    let FilterKind::Redirect(redirect) = &plain[0] else {
        panic!("{plain:?}")
    };
    assert_eq!((redirect.status, redirect.port), (302, 0));

    let rule = only_rule(
        json!([{"backendRefs": backend(), "matches": [{"path": {"value": "/a"}}],
        "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "b.example",
            "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}}}]}]),
    );
    let Some(FilterKind::Rewrite(rewrite)) = &rule.filters[0].kind else {
        panic!("{rule:?}")
    };
    assert_eq!(rewrite.hostname, "b.example");
    let prefix = path_modifier::Kind::Prefix(String::new());
    assert_eq!(rewrite.path.as_ref().unwrap().kind, Some(prefix));
}

#[test]
fn mirrors_have_their_share() {
    let mirror = |over: Value| {
        super::support::merged(json!({"backendRef": {"name": "web", "port": 80}}), over)
    };
    let filter = |over| json!({"type": "RequestMirror", "requestMirror": mirror(over)});
    let found = filters(json!([
        filter(json!({})),
        filter(json!({"percent": 5})),
        filter(json!({"fraction": {"numerator": 1, "denominator": 1000}})),
        filter(json!({"fraction": {"numerator": 3}})),
        filter(json!({"backendRef": {"name": "gone"}})),
    ]));
    let shares = found.iter().map(|filter| match filter {
        FilterKind::Mirror(mirror) => (
            mirror.numerator,
            mirror.denominator,
            !mirror.backend.is_empty(),
        ),
        other => panic!("{other:?}"),
    });
    let expected = [
        (1, 1, true),
        (5, 100, true),
        (1, 1000, true),
        (3, 100, true),
        (1, 1, false),
    ];
    assert_eq!(shares.collect::<Vec<_>>(), expected);
}

#[test]
fn cors_is_taken_over() {
    let found = filters(
        json!([{"type": "CORS", "cors": {"allowOrigins": ["https://*.example", "http://a:81"],
        "allowMethods": ["GET", "*"], "allowHeaders": ["x-a"], "exposeHeaders": ["*"],
        "allowCredentials": true, "maxAge": 60}}]),
    );
    let FilterKind::Cors(cors) = &found[0] else {
        panic!("{found:?}")
    };
    assert_eq!(cors.allow_origins, ["https://*.example", "http://a:81"]);
    assert!(cors.allow_credentials);
    assert_eq!(cors.max_age_seconds, 60);
    let plain = filters(json!([{"type": "CORS", "cors": {"allowOrigins": ["*"]}}]));
    let FilterKind::Cors(cors) = &plain[0] else {
        panic!("{plain:?}")
    };
    assert_eq!((cors.max_age_seconds, cors.allow_credentials), (5, false));
}

#[test]
fn a_filter_that_cannot_be_applied_fails_the_requests_of_its_rule() {
    let rule = |filters: Value| json!({"backendRefs": backend(), "filters": filters});
    let unsupported = "UnsupportedValue";
    for (filter, field) in [
        (
            json!({"type": "ExtensionRef", "extensionRef": {"name": "x"}}),
            "filters[0].type",
        ),
        (json!({"type": "ExternalAuth"}), "filters[0].type"),
        (json!({"type": "RequestMirror"}), "filters[0].requestMirror"),
        (
            json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "TE", "value": "x"}]}}),
            "set[0].name",
        ),
        (
            json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["Host"]}}),
            "requestHeaderModifier",
        ),
        (
            json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "a", "value": "x\ny"}]}}),
            "add[0].value",
        ),
        (
            json!({"type": "CORS", "cors": {"allowOrigins": ["ftp://x"]}}),
            "allowOrigins[0]",
        ),
        (
            json!({"type": "RequestMirror", "requestMirror": {"percent": 101}}),
            "requestMirror",
        ),
        (
            json!({"type": "URLRewrite", "urlRewrite": {"hostname": "a b"}}),
            "urlRewrite.hostname",
        ),
    ] {
        check_failing(rule(json!([filter])), unsupported, field);
    }
    check_failing(
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 299}}]}),
        unsupported,
        "statusCode",
    );
    let rewrite = json!({"type": "URLRewrite", "urlRewrite": {}});
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {}});
    let incompatible = "IncompatibleFilters";
    check_failing(rule(json!([rewrite, rewrite])), incompatible, "filters[1]");
    check_failing(rule(json!([rewrite, redirect])), incompatible, ".filters");
    let prefix = json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch",
        "replacePrefixMatch": "/"}}});
    let exact = json!({"backendRefs": backend(), "filters": [prefix],
        "matches": [{"path": {"type": "Exact", "value": "/a"}}]});
    check_failing(exact, incompatible, "urlRewrite.path.type");
}

#[test]
fn a_backends_filter_that_cannot_be_applied_fails_its_share() {
    let mesh = mesh(json!([{"backendRefs": [
        {"name": "web", "port": 80, "weight": 9},
        {"name": "web", "port": 80, "filters": [{"type": "ExtensionRef"}]},
    ]}, {"backendRefs": backend()}]));
    let backends = &mesh.wire_route().http_rules[0].backends;
    assert_eq!(backends[0].invalid, "");
    assert_eq!(
        (backends[1].invalid.as_str(), backends[1].weight),
        ("UnsupportedValue", 1)
    );
    assert!(
        mesh.condition("PartiallyInvalid")
            .message
            .contains("backendRefs[1].filters[0].type")
    );
}

#[test]
fn timeouts_retries_and_sessions_are_taken_over() {
    let rule = only_rule(json!([{"backendRefs": backend(),
        "timeouts": {"request": "1m30s", "backendRequest": "500ms"},
        "retry": {"codes": [503, 500], "attempts": 4, "backoff": "100ms"},
        "sessionPersistence": {"sessionName": "s", "absoluteTimeout": "1h", "type": "Cookie",
            "cookieConfig": {"lifetimeType": "Permanent"}}}]));
    assert_eq!(
        (rule.request_timeout_ms, rule.backend_timeout_ms),
        (Some(90_000), Some(500))
    );
    let retry = rule.retry.unwrap();
    assert_eq!(
        (retry.attempts, retry.codes, retry.backoff_ms),
        (4, vec![503, 500], 100)
    );
    let session = rule.session_persistence.unwrap();
    assert_eq!(
        session.kind,
        Some(session_persistence::Kind::Cookie("s".into()))
    );
    assert_eq!((session.absolute_seconds, session.permanent), (3600, true));

    let rule = only_rule(json!([{"timeouts": {"request": "0s"}, "retry": {},
        "sessionPersistence": {"type": "Header"}}]));
    assert_eq!(rule.request_timeout_ms, None);
    assert_eq!(rule.retry.unwrap().attempts, 2);
    let session = rule.session_persistence.unwrap();
    assert!(matches!(
        session.kind,
        Some(session_persistence::Kind::Header(_))
    ));
}

#[test]
fn settings_that_cannot_be_kept_drop_their_rule() {
    for (rule, field) in [
        (
            json!({"timeouts": {"request": "1.5s"}}),
            ".timeouts.request",
        ),
        (
            json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}),
            ".timeouts.backendRequest",
        ),
        (json!({"retry": {"codes": [200]}}), ".retry.codes"),
        (json!({"retry": {"attempts": 100}}), ".retry.attempts"),
        (json!({"retry": {"attempts": -1}}), ".retry.attempts"),
        (
            json!({"sessionPersistence": {"type": "IP"}}),
            ".sessionPersistence.type",
        ),
        (
            json!({"sessionPersistence": {"cookieConfig": {"lifetimeType": "Permanent"}}}),
            ".sessionPersistence.cookieConfig",
        ),
        (
            json!({"sessionPersistence": {"sessionName": "a b"}}),
            ".sessionPersistence.sessionName",
        ),
    ] {
        check_dropped(rule, field);
    }
}

#[test]
fn methods_of_grpc_are_paths() {
    let grpc = |method: Value| {
        let over = json!({"spec": {"rules": [{"matches": [{"method": method}], "backendRefs": backend()}]}});
        let mesh = Mesh::bound([route("GRPCRoute", "g", over)]);
        let route: Option<wire::Route> = mesh.resource(crate::ProxyKind::Route, "GRPCRoute/shop/g");
        let route = route?;
        assert_eq!(route.kind(), wire::RouteKind::RouteGrpc);
        route.http_rules[0].matches[0].path.clone()?.kind
    };
    let exact = path_match::Kind::Exact;
    let regex = path_match::Kind::Regex;
    assert_eq!(
        grpc(json!({"service": "a.B", "method": "Get"})),
        Some(exact("/a.B/Get".into()))
    );
    assert_eq!(
        grpc(json!({"service": "a.B"})),
        Some(path_match::Kind::Prefix("/a.B/".into()))
    );
    assert_eq!(
        grpc(json!({"method": "Get"})),
        Some(regex("/[^/]+/Get".into()))
    );
    assert_eq!(
        grpc(json!({"type": "RegularExpression", "service": "a|b", "method": "G.*"})),
        Some(regex("/(?:a|b)/(?:G.*)".into()))
    );
    assert_eq!(grpc(json!({})), None);
    assert_eq!(grpc(json!({"service": "a/b"})), None);
    assert_eq!(
        grpc(json!({"type": "RegularExpression", "service": "("})),
        None
    );
}

#[test]
fn a_route_has_its_limits() {
    let many = |count: usize, matches: usize| {
        let condition = json!({"path": {"value": "/a"}});
        let rule = json!({"matches": vec![condition; matches], "backendRefs": backend()});
        mesh(Value::from(vec![rule; count]))
    };
    let accepted = |mesh: &Mesh| super::support_l7::short(&mesh.condition("Accepted"));
    assert_eq!(accepted(&many(16, 8)), "Accepted=True/Accepted");
    assert_eq!(accepted(&many(17, 1)), "Accepted=False/UnsupportedValue");
    assert_eq!(accepted(&many(1, 64)), "Accepted=True/Accepted");
    assert_eq!(accepted(&many(1, 65)), "Accepted=False/UnsupportedValue");
    let too_many = many(3, 43);
    assert_eq!(accepted(&too_many), "Accepted=False/UnsupportedValue");
    assert!(
        too_many
            .condition("Accepted")
            .message
            .contains("129 matches")
    );
    assert_eq!(too_many.sets(), []);
}

#[test]
fn references_that_cannot_be_followed_answer_their_share() {
    let mesh = mesh(json!([{"backendRefs": [
        {"name": "web", "port": 80, "weight": 0},
        {"name": "gone", "port": 80, "weight": 2},
        {"name": "web", "port": 81},
        {"name": "web"},
        {"kind": "Bucket", "group": "x", "name": "web", "port": 80},
        {"name": "web", "namespace": "other", "port": 80},
    ]}]));
    let rules = mesh.wire_route().http_rules;
    let backends = rules[0].backends.iter();
    let shares: Vec<_> = backends
        .map(|each| (each.weight, each.invalid.as_str()))
        .collect();
    assert_eq!(
        shares,
        [
            (0, ""),
            (2, "BackendNotFound"),
            (1, "BackendNotFound"),
            (1, "BackendNotFound"),
            (1, "InvalidKind"),
            (1, "RefNotPermitted"),
        ]
    );
    let resolved = mesh.condition("ResolvedRefs");
    assert_eq!(
        super::support_l7::short(&resolved),
        "ResolvedRefs=False/BackendNotFound"
    );
    for part in [
        "gone",
        "port 81",
        "names no port",
        "Bucket",
        "ReferenceGrant",
    ] {
        assert!(resolved.message.contains(part), "{}", resolved.message);
    }
    assert_eq!(
        super::support_l7::short(&mesh.condition("Accepted")),
        "Accepted=True/Accepted"
    );
}
