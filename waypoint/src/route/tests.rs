//! The tables of the specification, case by case.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use karst_api::waypoint as wire;
use wire::{RouteKind, path_match, value_match};

use super::*;
use crate::balance::Clusters;
use crate::config::ConfigError;

#[path = "reference_tests.rs"]
mod reference;

fn compile(route: &wire::Route) -> Result<CompiledRoute, ConfigError> {
    let clusters = Clusters::default();
    CompiledRoute::new(route, &|name| clusters.get(name))
}

/// A route whose rules are named `0`, `1` and so on.
fn route(name: &str, created: i64, rules: Vec<Vec<wire::HttpMatch>>) -> wire::Route {
    let rule = |matches| wire::HttpRule {
        matches,
        ..Default::default()
    };
    wire::Route {
        name: format!("HTTPRoute/{name}"),
        created,
        kind: RouteKind::RouteHttp.into(),
        http_rules: rules.into_iter().map(rule).collect(),
        ..Default::default()
    }
}

fn path(kind: path_match::Kind) -> wire::HttpMatch {
    wire::HttpMatch {
        path: Some(wire::PathMatch { kind: Some(kind) }),
        ..Default::default()
    }
}

fn exact(text: &str) -> wire::HttpMatch {
    path(path_match::Kind::Exact(text.to_owned()))
}

fn prefix(text: &str) -> wire::HttpMatch {
    path(path_match::Kind::Prefix(text.to_owned()))
}

fn regex(text: &str) -> wire::HttpMatch {
    path(path_match::Kind::Regex(text.to_owned()))
}

fn value(name: &str, text: &str) -> wire::ValueMatch {
    let kind = match text.strip_prefix("re:") {
        Some(pattern) => value_match::Kind::Regex(pattern.to_owned()),
        None => value_match::Kind::Exact(text.to_owned()),
    };
    wire::ValueMatch {
        name: name.to_owned(),
        kind: Some(kind),
    }
}

/// Adds conditions to a match: `method=GET`, `h:NAME=VALUE`, `q:NAME=VALUE`; a value `re:...` is an expression.
fn with(mut base: wire::HttpMatch, conditions: &[&str]) -> wire::HttpMatch {
    for condition in conditions {
        let (name, text) = condition.split_once('=').unwrap();
        match name.split_once(':') {
            Some(("h", name)) => base.headers.push(value(name, text)),
            Some(("q", name)) => base.query.push(value(name, text)),
            _ => base.method = text.to_owned(),
        }
    }
    base
}

/// A router over routes that are attached for these host names.
fn router(routes: &[(&[&str], wire::Route)]) -> HttpRouter {
    let routes: Vec<(Vec<Hostname>, CompiledRoute)> = routes
        .iter()
        .map(|(names, route)| (hostnames(names), compile(route).unwrap()))
        .collect();
    HttpRouter::new(routes.iter().map(|(hostnames, route)| Attached {
        hostnames,
        route: Some(route),
    }))
}

fn hostnames(names: &[&str]) -> Vec<Hostname> {
    names
        .iter()
        .map(|name| Hostname::parse(name).unwrap())
        .collect()
}

/// Asks with `METHOD HOST/PATH?QUERY` and headers `NAME: VALUE`; tells the route's name and the rule's.
fn ask(router: &HttpRouter, line: &str, headers: &[&str]) -> Result<String, NoRoute> {
    let (method, target) = line.split_once(' ').unwrap();
    let (host, target) = target.split_at(target.find('/').unwrap());
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut map = HeaderMap::new();
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    let head = RequestHead {
        method: &Method::from_bytes(method.as_bytes()).unwrap(),
        host: &host_of(host),
        path,
        query,
        headers: &map,
    };
    let matched = router.route(&head)?;
    let (_, name) = matched.rule.route.rsplit_once('/').unwrap();
    Ok(format!("{name}.{}", matched.rule.name))
}

fn check(router: &HttpRouter, cases: &[(&str, &[&str], &str)]) {
    for (line, headers, expected) in cases {
        let answer = ask(router, line, headers).unwrap_or_else(|error| error.reason().to_owned());
        assert_eq!(answer, *expected, "{line} {headers:?}");
    }
}

const NONE: &str = "no_route";

#[test]
fn a_prefix_is_whole_path_elements() {
    for written in ["/foo", "/foo/"] {
        let router = router(&[(&[], route("n/r", 0, vec![vec![prefix(written)]]))]);
        check(
            &router,
            &[
                ("GET h/foo", &[], "r.0"),
                ("GET h/foo/", &[], "r.0"),
                ("GET h/foo/x", &[], "r.0"),
                ("GET h/foo//x", &[], "r.0"),
                ("GET h/foobar", &[], NONE),
                ("GET h/Foo", &[], NONE),
                ("GET h/fo", &[], NONE),
                ("GET h/", &[], NONE),
                ("GET h/x/foo", &[], NONE),
            ],
        );
    }
}

#[test]
fn an_exact_path_is_itself_alone() {
    let router = router(&[(&[], route("n/r", 0, vec![vec![exact("/abc")]]))]);
    check(
        &router,
        &[
            ("GET h/abc", &[], "r.0"),
            ("GET h/abc?x=1", &[], "r.0"),
            ("GET h/abc/", &[], NONE),
            ("GET h/Abc", &[], NONE),
            ("GET h/abcd", &[], NONE),
        ],
    );
}

#[test]
fn no_match_and_no_path_match_everything() {
    let router = router(&[
        (&["a.example"], route("n/none", 0, vec![vec![]])),
        (
            &["b.example"],
            route("n/empty", 0, vec![vec![wire::HttpMatch::default()]]),
        ),
    ]);
    check(
        &router,
        &[
            ("GET a.example/", &[], "none.0"),
            ("DELETE a.example/x/y?z", &["k: v"], "none.0"),
            ("GET b.example/x", &[], "empty.0"),
            ("GET c.example/x", &[], NONE),
        ],
    );
}

#[test]
fn paths_decide_first_then_method_then_headers_then_query() {
    let everything = ["method=GET", "h:a=1", "h:b=2", "q:x=1", "q:y=2"];
    let rules = vec![
        vec![prefix("/")],
        vec![with(prefix("/"), &everything)],
        vec![regex("/re/.*")],
        vec![regex("/re/[a-z]+/long")],
        vec![with(prefix("/a"), &everything)],
        vec![prefix("/a/b")],
        vec![exact("/a/b/c")],
        vec![with(prefix("/m"), &["h:a=1", "h:b=2", "q:x=1"])],
        vec![with(prefix("/m"), &["method=GET"])],
        vec![with(prefix("/m"), &["h:a=1", "q:x=1", "q:y=2"])],
        vec![with(prefix("/m"), &["h:a=1"])],
        vec![with(prefix("/m"), &["q:x=1", "q:y=2"])],
        vec![with(prefix("/m"), &["q:x=1"])],
        vec![prefix("/re/first")],
    ];
    let router = router(&[(&[], route("n/r", 0, rules))]);
    let all: &[&str] = &["a: 1", "b: 2"];
    check(
        &router,
        &[
            ("GET h/a/b/c?x=1&y=2", all, "r.6"),
            ("GET h/a/b/d?x=1&y=2", all, "r.5"),
            ("GET h/a/x?x=1&y=2", all, "r.4"),
            ("GET h/a/x?x=1", all, "r.0"),
            ("GET h/z?x=1&y=2", all, "r.1"),
            // Behind prefixes, before the default; the longer expression first.
            ("GET h/re/first/one", &[], "r.13"),
            ("GET h/re/x/long?x=1&y=2", all, "r.3"),
            ("GET h/re/x/longer?x=1&y=2", all, "r.2"),
            ("GET h/m?x=1&y=2", all, "r.8"),
            ("PUT h/m?x=1&y=2", all, "r.7"),
            ("PUT h/m?x=1&y=2", &["a: 1"], "r.9"),
            ("PUT h/m?x=1", &["a: 1"], "r.10"),
            ("PUT h/m?x=1&y=2", &[], "r.11"),
            ("PUT h/m?x=1", &[], "r.12"),
            ("PUT h/m", &[], "r.0"),
        ],
    );
}

#[test]
fn ties_go_to_the_older_route_then_by_name_then_by_place() {
    let same = || vec![vec![prefix("/p")], vec![prefix("/p")]];
    let router = router(&[
        (&["age.example"], route("a/young", 20, same())),
        (&["age.example"], route("z/old", 10, same())),
        (&["name.example"], route("b/a", 10, same())),
        (&["name.example"], route("a/z", 10, same())),
        // By "NAMESPACE/NAME" as one text, so that the dash comes before the slash.
        (&["text.example"], route("ns/x", 10, same())),
        (&["text.example"], route("ns-1/y", 10, same())),
    ]);
    check(
        &router,
        &[
            ("GET age.example/p", &[], "old.0"),
            ("GET name.example/p", &[], "z.0"),
            ("GET text.example/p", &[], "y.0"),
        ],
    );
}

#[test]
fn a_rule_applies_if_any_of_its_matches_does() {
    let rules = vec![
        vec![exact("/one"), with(prefix("/two"), &["h:version=2"])],
        vec![prefix("/two")],
    ];
    let router = router(&[(&[], route("n/r", 0, rules))]);
    check(
        &router,
        &[
            ("GET h/one", &[], "r.0"),
            ("GET h/two/x", &["version: 2"], "r.0"),
            ("GET h/two/x", &["version: 1"], "r.1"),
        ],
    );
}

#[test]
fn host_names_decide_before_paths() {
    let all = |name: &str| route(name, 0, vec![vec![prefix("/")]]);
    let router = router(&[
        (&[], all("n/any")),
        (&["*.com"], all("n/com")),
        (&["*.example.com"], all("n/wild")),
        (
            &["*.sub.example.com"],
            route("n/sub", 0, vec![vec![exact("/only")]]),
        ),
        (
            &["a.example.com", "example.com"],
            route("n/exact", 0, vec![vec![prefix("/here")]]),
        ),
    ]);
    check(
        &router,
        &[
            ("GET a.example.com/here", &[], "exact.0"),
            ("GET A.Example.COM./here", &[], "exact.0"),
            ("GET a.example.com:8080/here", &[], "exact.0"),
            ("GET example.com/here", &[], "exact.0"),
            // What the most specific name has no rule for is looked up under the next one.
            ("GET a.example.com/there", &[], "wild.0"),
            ("GET example.com/there", &[], "com.0"),
            ("GET b.example.com/here", &[], "wild.0"),
            ("GET x.sub.example.com/only", &[], "sub.0"),
            ("GET x.y.sub.example.com/only", &[], "sub.0"),
            ("GET x.sub.example.com/other", &[], "wild.0"),
            // A wildcard stands for one label at least.
            ("GET sub.example.com/only", &[], "wild.0"),
            ("GET .example.com/", &[], "com.0"),
            ("GET example.org/", &[], "any.0"),
            ("GET /", &[], "any.0"),
            ("GET [::1]:80/", &[], "any.0"),
        ],
    );
}

#[test]
fn an_overlong_host_finds_no_wildcard() {
    let all = route("n/r", 0, vec![vec![prefix("/")]]);
    let router = router(&[(&["*.com"], all)]);
    let long = format!("GET {}.com/", "a.".repeat(200));
    check(&router, &[("GET a.com/", &[], "r.0"), (&long, &[], NONE)]);
}

#[test]
fn hosts_have_one_form() {
    for (authority, host) in [
        ("example.com", "example.com"),
        ("Example.COM:443", "example.com"),
        ("example.com.", "example.com"),
        ("example.com.:80", "example.com"),
        ("[FD00::1]:80", "[fd00::1]"),
        ("[fd00::1]", "[fd00::1]"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("", ""),
        (":80", ""),
        ("host:", "host"),
    ] {
        assert_eq!(host_of(authority), host, "{authority}");
    }
}

#[test]
fn host_names_are_dns_names() {
    for good in ["a", "a.b", "*.a", "*.a.b", "A-1.b_c", "example.com."] {
        assert!(Hostname::parse(good).is_ok(), "{good}");
    }
    let long = format!("{}com", "a.".repeat(130));
    for bad in [
        "", "*", "*a.com", "a.*.com", "*.", "a..b", ".a", "a b", "a/b", "a:1", "[::1]", &long,
    ] {
        assert!(Hostname::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(Hostname::parse("*.A.b").unwrap().to_string(), "*.a.b");
}

#[test]
fn headers_match_as_one_value() {
    let rules = vec![
        vec![with(prefix("/exact"), &["h:Version=one"])],
        vec![with(prefix("/both"), &["h:a=1", "h:b=2"])],
        vec![with(prefix("/joined"), &["h:list=a,b,c"])],
        vec![with(prefix("/cookie"), &["h:cookie=a=1; b=2"])],
        vec![with(prefix("/regex"), &["h:version=re:v[0-9]+|latest"])],
        vec![with(prefix("/first"), &["h:version=one", "h:VERSION=two"])],
        vec![with(prefix("/host"), &["h:host=re:.*\\.example"])],
        vec![with(prefix("/empty"), &["h:x=re:.*"])],
    ];
    let router = router(&[(&[], route("n/r", 0, rules))]);
    check(
        &router,
        &[
            ("GET h/exact", &["version: one"], "r.0"),
            ("GET h/exact", &["VERSION: one"], "r.0"),
            ("GET h/exact", &["version: One"], NONE),
            ("GET h/exact", &["version: one", "version: two"], NONE),
            ("GET h/exact", &[], NONE),
            ("GET h/both", &["a: 1"], NONE),
            ("GET h/both", &["a: 1", "b: 2", "c: 3"], "r.1"),
            ("GET h/joined", &["list: a", "list: b,c"], "r.2"),
            ("GET h/cookie", &["cookie: a=1", "cookie: b=2"], "r.3"),
            ("GET h/regex", &["version: v12"], "r.4"),
            ("GET h/regex", &["version: latest"], "r.4"),
            ("GET h/regex", &["version: v12x"], NONE),
            ("GET h/regex", &["version: xlatest"], NONE),
            ("GET h/regex", &["version: v1", "version: v2"], NONE),
            ("GET h/first", &["version: one"], "r.5"),
            ("GET h/first", &["version: two"], NONE),
            ("GET a.example/host", &[], "r.6"),
            ("GET a.example/host", &["host: b.other"], NONE),
            ("GET /host", &[], NONE),
            ("GET h/empty", &["x: "], "r.7"),
            ("GET h/empty", &[], NONE),
        ],
    );
}

#[test]
fn query_parameters_match_by_their_first_value() {
    let rules = vec![
        vec![with(prefix("/"), &["q:animal=whale"])],
        vec![with(prefix("/"), &["q:animal=dolphin"])],
        vec![with(prefix("/"), &["q:animal=dolphin", "q:color=blue"])],
        vec![with(prefix("/"), &["q:ANIMAL=Whale"])],
        vec![with(prefix("/decoded"), &["q:a b=c&d"])],
        vec![with(prefix("/regex"), &["q:id=re:[0-9]+"])],
        vec![with(prefix("/empty"), &["q:flag=re:"])],
    ];
    let router = router(&[(&[], route("n/r", 0, rules))]);
    check(
        &router,
        &[
            ("GET h/?animal=whale", &[], "r.0"),
            ("GET h/?animal=dolphin", &[], "r.1"),
            ("GET h/?animal=dolphin&color=blue", &[], "r.2"),
            ("GET h/?color=blue&animal=dolphin", &[], "r.2"),
            ("GET h/?animal=dolphin&color=yellow", &[], "r.1"),
            ("GET h/?ANIMAL=Whale", &[], "r.3"),
            ("GET h/?animal=whale&otherparam=irrelevant", &[], "r.0"),
            ("GET h/?animal=whale&animal=dolphin", &[], "r.0"),
            ("GET h/?animal=wh%61le", &[], "r.0"),
            ("GET h/?anim%61l=whale", &[], "r.0"),
            ("GET h/?color=blue", &[], NONE),
            ("GET h/?animal=dog", &[], NONE),
            ("GET h/?animal=whaledolphin", &[], NONE),
            ("GET h/?animal", &[], NONE),
            ("GET h/", &[], NONE),
            ("GET h/decoded?a+b=c%26d", &[], "r.4"),
            ("GET h/decoded?a%20b=c%26d", &[], "r.4"),
            ("GET h/regex?id=17", &[], "r.5"),
            ("GET h/regex?id=17a", &[], NONE),
            ("GET h/empty?flag", &[], "r.6"),
            ("GET h/empty?flag=", &[], "r.6"),
            ("GET h/empty?flag=1", &[], NONE),
        ],
    );
}

#[test]
fn rules_of_several_routes_are_one_list() {
    // "HTTPRouteMatchingAcrossRoutes" of the conformance tests.
    let first = route(
        "infra/part1",
        10,
        vec![vec![
            prefix("/"),
            with(wire::HttpMatch::default(), &["h:version=one"]),
        ]],
    );
    let second = route(
        "infra/part2",
        20,
        vec![vec![
            prefix("/v2"),
            with(wire::HttpMatch::default(), &["h:version=two"]),
        ]],
    );
    let router = router(&[
        (&["example.com", "example.net"], first),
        (&["example.com"], second),
    ]);
    check(
        &router,
        &[
            ("GET example.com/", &[], "part1.0"),
            ("GET example.com/example", &[], "part1.0"),
            ("GET example.net/example", &[], "part1.0"),
            ("GET example.com/example", &["version: one"], "part1.0"),
            ("GET example.com/v2", &[], "part2.0"),
            ("GET example.net/v2", &[], "part1.0"),
            ("GET example.com/v2/example", &[], "part2.0"),
            ("GET example.com/", &["version: two"], "part2.0"),
        ],
    );
}

#[test]
fn the_prefix_that_matched_is_told() {
    let rules = vec![
        vec![prefix("/foo/"), exact("/exact"), regex("/r.*")],
        vec![prefix("/")],
    ];
    let router = router(&[(&[], route("n/r", 0, rules))]);
    for (path, expected) in [
        ("/foo/bar", Some("/foo")),
        ("/exact", None),
        ("/regex", None),
        ("/other", Some("/")),
    ] {
        let head = RequestHead {
            method: &Method::GET,
            host: "",
            path,
            query: None,
            headers: &HeaderMap::new(),
        };
        assert_eq!(router.route(&head).unwrap().prefix, expected, "{path}");
    }
}

#[test]
fn expressions_match_the_whole_path_and_have_limits() {
    let matches = vec![vec![regex("/a|/b")], vec![regex("(?i)/case")]];
    let router = router(&[(&[], route("n/r", 0, matches))]);
    check(
        &router,
        &[
            ("GET h/a", &[], "r.0"),
            ("GET h/b", &[], "r.0"),
            ("GET h/ab", &[], NONE),
            ("GET h/a\n", &[], NONE),
            ("GET h/CASE", &[], "r.1"),
        ],
    );
    let long = "a".repeat(5000);
    let deep = format!("{}a{}", "(".repeat(100), ")".repeat(100));
    for bad in [
        "a)|(b",
        "(",
        "[",
        "*",
        "(?x)a#",
        r"\w{1000}{1000}",
        r"(?<n>a",
        "(?=a)",
        &long,
        &deep,
    ] {
        let error = compile(&route("n/r", 0, vec![vec![], vec![exact("/"), regex(bad)]]));
        let error = error.err().unwrap_or_else(|| panic!("{bad} is taken"));
        assert_eq!(error.field, "http_rules[1].matches[1].path.regex");
        assert_eq!(error.reason(), "config_invalid_field");
    }
}

#[test]
fn errors_name_the_field() {
    let unknown_path = wire::HttpMatch {
        path: Some(wire::PathMatch { kind: None }),
        ..Default::default()
    };
    let unknown_value = wire::HttpMatch {
        headers: vec![wire::ValueMatch {
            name: "a".to_owned(),
            kind: None,
        }],
        ..Default::default()
    };
    let many = vec!["h:a=1"; 100];
    for (bad, field) in [
        (exact("abc"), "path.exact"),
        (prefix(""), "path.prefix"),
        (prefix("abc"), "path.prefix"),
        (unknown_path, "path.kind"),
        (unknown_value, "headers[0].kind"),
        (with(prefix("/"), &["method=G T"]), "method"),
        (with(prefix("/"), &["h:a=1", "h:b c=1"]), "headers[1].name"),
        (with(prefix("/"), &["h::path=1"]), "headers[0].name"),
        (with(prefix("/"), &["h:a=re:("]), "headers[0].regex"),
        (with(prefix("/"), &["q:=1"]), "query[0].name"),
        (with(prefix("/"), &["q:a=re:("]), "query[0].regex"),
        (with(prefix("/"), &many), "headers"),
    ] {
        let error = compile(&route("n/r", 0, vec![vec![bad]])).err().unwrap();
        assert_eq!(error.field, format!("http_rules[0].matches[0].{field}"));
    }
}

#[test]
fn fields_of_rules_are_checked() {
    let refused = |rule: wire::HttpRule| {
        let mut route = route("n/r", 0, vec![]);
        route.http_rules = vec![rule];
        compile(&route).err().unwrap().field
    };
    let retry = |code| wire::HttpRule {
        retry: Some(wire::Retry {
            codes: vec![500, code],
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(refused(retry(200)), "http_rules[0].retry.codes");
    assert_eq!(refused(retry(100_000)), "http_rules[0].retry.codes");
    let session = |kind| wire::HttpRule {
        session_persistence: Some(wire::SessionPersistence {
            kind,
            ..Default::default()
        }),
        ..Default::default()
    };
    use wire::session_persistence::Kind::{Cookie, Header};
    for (kind, field) in [
        (None, "kind"),
        (Some(Cookie("a b".to_owned())), "cookie"),
        (Some(Cookie(String::new())), "cookie"),
        (Some(Header("a:b".to_owned())), "header"),
    ] {
        let field = format!("http_rules[0].session_persistence.{field}");
        assert_eq!(refused(session(kind)), field);
    }
    let nameless = wire::HttpRule {
        backends: vec![wire::WeightedBackend {
            weight: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(refused(nameless), "http_rules[0].backends[0].backend");
    let kindless = wire::Route {
        kind: 0,
        ..route("n/r", 0, vec![])
    };
    assert_eq!(compile(&kindless).err().unwrap().field, "kind");
}

#[test]
fn backends_have_their_shares() {
    let backend = |backend: &str, weight, invalid: &str| wire::WeightedBackend {
        backend: backend.to_owned(),
        weight,
        invalid: invalid.to_owned(),
        ..Default::default()
    };
    let mut route = route("n/r", 0, vec![vec![]]);
    route.http_rules[0].backends = vec![
        backend("n/a/80", 95, ""),
        backend("n/none/80", 0, ""),
        backend("n/b/80", 4, ""),
        backend("", 1, "BackendNotFound"),
    ];
    route.http_rules[0].request_timeout_ms = Some(0);
    route.http_rules[0].backend_timeout_ms = Some(1500);
    let router = router(&[(&[], route)]);
    let head = RequestHead {
        method: &Method::GET,
        host: "",
        path: "/",
        query: None,
        headers: &HeaderMap::new(),
    };
    let rule = router.route(&head).unwrap().rule;
    assert_eq!(rule.request_timeout, None);
    assert_eq!(
        rule.backend_timeout,
        Some(std::time::Duration::from_millis(1500))
    );
    let mut shares = [0_u32; 3];
    for point in 0..1000_u64 {
        match &rule
            .backends
            .choose(point * (u64::MAX / 1000))
            .unwrap()
            .target
        {
            crate::table::BackendTarget::Cluster(cluster) if **cluster.name() == *"n/a/80" => {
                shares[0] += 1;
            }
            crate::table::BackendTarget::Cluster(_) => shares[1] += 1,
            crate::table::BackendTarget::Invalid(reason) => {
                assert_eq!(reason, "BackendNotFound");
                shares[2] += 1;
            }
        }
    }
    assert!(
        shares
            .iter()
            .zip([950, 40, 10])
            .all(|(a, b)| a.abs_diff(b) <= 1),
        "{shares:?}"
    );
}

#[test]
fn a_missing_route_refuses_what_it_may_have_matched() {
    let held = compile(&route("n/r", 0, vec![vec![prefix("/")]])).unwrap();
    let (specific, wild) = (hostnames(&["a.example"]), hostnames(&["*.example"]));
    let router = HttpRouter::new([
        Attached {
            hostnames: &specific,
            route: Some(&held),
        },
        Attached {
            hostnames: &wild,
            route: None,
        },
        Attached {
            hostnames: &[],
            route: Some(&held),
        },
    ]);
    check(
        &router,
        &[
            ("GET a.example/", &[], "r.0"),
            ("GET b.example/", &[], "route_not_ready"),
            ("GET b.other/", &[], "r.0"),
        ],
    );
    assert_eq!(NoRoute::NotReady.status(), 503);
    assert_eq!(NoRoute::NotFound.status(), 404);
}

fn l4(name: &str, created: i64) -> CompiledRoute {
    let route = wire::Route {
        name: format!("TLSRoute/{name}"),
        created,
        kind: RouteKind::RouteTls.into(),
        l4_rules: vec![wire::L4Rule::default()],
        ..Default::default()
    };
    compile(&route).unwrap()
}

#[test]
fn connections_go_by_the_most_specific_server_name() {
    let routes = [
        l4("n/any", 5),
        l4("n/wild", 5),
        l4("n/longer", 5),
        l4("n/exact", 9),
        l4("n/older", 1),
    ];
    let names: Vec<_> = [
        &[][..],
        &["*.example.com"],
        &["*.b.example.com"],
        &["a.example.com"],
        &["*.example.com"],
    ]
    .map(hostnames)
    .into();
    let gone = hostnames(&["gone.example.com"]);
    let held = names
        .iter()
        .zip(&routes)
        .map(|(hostnames, route)| Attached {
            hostnames,
            route: Some(route),
        });
    let missing = Attached {
        hostnames: &gone,
        route: None,
    };
    let router = L4Router::new(held.chain([missing]));
    assert!(router.needs_server_name());
    for (name, expected) in [
        (Some("a.example.com"), "TLSRoute/n/exact"),
        (Some("x.b.example.com"), "TLSRoute/n/longer"),
        (Some("x.example.com"), "TLSRoute/n/older"),
        (Some("example.com"), "TLSRoute/n/any"),
        (None, "TLSRoute/n/any"),
    ] {
        assert_eq!(*router.route(name).unwrap().route, *expected, "{name:?}");
    }
    assert_eq!(
        router.route(Some("gone.example.com")).err(),
        Some(NoRoute::NotReady)
    );
    let empty = L4Router::default();
    assert_eq!(empty.route(Some("a")).err(), Some(NoRoute::NotFound));
}
