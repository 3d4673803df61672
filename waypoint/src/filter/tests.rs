//! The tables of the specification, case by case.

use http::header::{HOST, HeaderMap, HeaderName, LOCATION, ORIGIN};
use http::{Method, Request, Version};
use wire::filter::Kind;
use wire::path_modifier;

use super::*;
use crate::balance::Clusters;

#[path = "cors_tests.rs"]
mod cors;

fn filters(kinds: Vec<Kind>) -> Result<Vec<Filter>, ConfigError> {
    let clusters = Clusters::default();
    let wire: Vec<_> = kinds
        .into_iter()
        .map(|kind| wire::Filter { kind: Some(kind) })
        .collect();
    Filter::list(&wire, &|name| clusters.get(name))
}

fn refused(kind: Kind) -> String {
    filters(vec![kind]).err().unwrap().field
}

/// `GET TARGET` with headers `NAME: VALUE`.
fn request(target: &str, headers: &[&str]) -> request::Parts {
    let mut request = Request::new(());
    *request.uri_mut() = target.parse().unwrap();
    *request.headers_mut() = map(headers);
    request.into_parts().0
}

fn map(headers: &[&str]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_str(value).unwrap());
    }
    map
}

fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort_unstable();
    lines
}

const CONTEXT: FilterContext<'static> = FilterContext {
    scheme: RequestScheme::Http,
    host: "example.org",
    port: 80,
    path: "/",
    prefix: None,
    origin: None,
};

fn changes(set: &[&str], add: &[&str], remove: &[&str]) -> wire::HeaderModifier {
    let headers = |list: &[&str]| {
        let header = |text: &&str| {
            let (name, value) = text.split_once(": ").unwrap();
            wire::Header {
                name: name.to_owned(),
                value: value.to_owned(),
            }
        };
        list.iter().map(header).collect()
    };
    wire::HeaderModifier {
        set: headers(set),
        add: headers(add),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[test]
fn headers_are_removed_set_and_added() {
    let change = changes(
        &["X-Set-1: new", "X-Set-2: new"],
        &["X-Add-1: more", "X-Add-2: more", "x-removed: again"],
        &["X-Removed", "x-absent"],
    );
    let headers = &[
        "x-set-2: old",
        "x-set-2: older",
        "x-add-2: old",
        "x-removed: 1",
        "other: 1",
    ];
    let expected = [
        "other: 1",
        "x-add-1: more",
        "x-add-2: more",
        "x-add-2: old",
        "x-removed: again",
        "x-set-1: new",
        "x-set-2: new",
    ];
    let list = filters(vec![Kind::RequestHeaders(change.clone())]).unwrap();
    let mut parts = request("/", headers);
    assert!(apply_request(&list, &mut parts, &CONTEXT).is_none());
    assert_eq!(lines(&parts.headers), expected);
    let added: Vec<_> = parts.headers.get_all("x-add-2").iter().collect();
    assert_eq!(added, ["old", "more"]);

    let list = filters(vec![Kind::ResponseHeaders(change)]).unwrap();
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.headers = map(headers);
    apply_response(&list, &mut parts, &CONTEXT);
    assert_eq!(lines(&parts.headers), expected);
    let mut untouched = request("/", headers);
    assert!(apply_request(&list, &mut untouched, &CONTEXT).is_none());
    assert_eq!(untouched.headers, map(headers));
}

#[test]
fn the_host_is_set_wherever_a_request_has_it() {
    let list = filters(vec![Kind::RequestHeaders(changes(
        &["HOST: new.example:8080"],
        &[],
        &[],
    ))]);
    let list = list.unwrap();
    let mut http1 = request("/path?q", &["host: old"]);
    assert!(apply_request(&list, &mut http1, &CONTEXT).is_none());
    assert_eq!(lines(&http1.headers), ["host: new.example:8080"]);
    assert_eq!(http1.uri, "/path?q");
    let mut http2 = request("http://old/path?q", &[]);
    http2.version = Version::HTTP_2;
    assert!(apply_request(&list, &mut http2, &CONTEXT).is_none());
    assert_eq!(http2.uri, "http://new.example:8080/path?q");
    assert_eq!(http2.headers[HOST], "new.example:8080");
}

#[test]
fn headers_that_cannot_be_changed_are_refused() {
    for name in [
        "Connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "TE",
        "trailer",
        "Transfer-Encoding",
        "upgrade",
        ":path",
        "",
        "a b",
        "a:b",
    ] {
        let header = wire::Header {
            name: name.to_owned(),
            value: "x".to_owned(),
        };
        let set = wire::HeaderModifier {
            set: vec![header.clone()],
            ..Default::default()
        };
        let add = wire::HeaderModifier {
            add: vec![header],
            ..Default::default()
        };
        let remove = changes(&[], &[], &[name]);
        assert_eq!(
            refused(Kind::RequestHeaders(set)),
            "filters[0].request_headers.set[0].name"
        );
        assert_eq!(
            refused(Kind::ResponseHeaders(add)),
            "filters[0].response_headers.add[0].name"
        );
        let field = refused(Kind::RequestHeaders(remove));
        assert_eq!(field, "filters[0].request_headers.remove[0].name");
    }
    let bad_value = changes(&[], &["ok: 1", "x: a\r\nb: c"], &[]);
    assert_eq!(
        refused(Kind::RequestHeaders(bad_value)),
        "filters[0].request_headers.add[1].value"
    );
    let field = |change| refused(Kind::RequestHeaders(change));
    assert_eq!(
        field(changes(&[], &["Host: a"], &[])),
        "filters[0].request_headers.add"
    );
    assert_eq!(
        field(changes(&[], &[], &["Host"])),
        "filters[0].request_headers.remove"
    );
    assert_eq!(
        field(changes(&["Host: a b"], &[], &[])),
        "filters[0].request_headers.set"
    );
    assert_eq!(
        field(changes(&["Host: u@a"], &[], &[])),
        "filters[0].request_headers.set"
    );
    let many = vec!["x"; 100];
    assert_eq!(
        field(changes(&[], &[], &many)),
        "filters[0].request_headers.remove"
    );
}

fn full(path: &str) -> Option<wire::PathModifier> {
    Some(wire::PathModifier {
        kind: Some(path_modifier::Kind::Full(path.to_owned())),
    })
}

fn replace(prefix: &str) -> Option<wire::PathModifier> {
    Some(wire::PathModifier {
        kind: Some(path_modifier::Kind::Prefix(prefix.to_owned())),
    })
}

fn rewritten(path: Option<wire::PathModifier>, target: &str, prefix: Option<&str>) -> String {
    let rewrite = wire::UrlRewrite {
        path,
        ..Default::default()
    };
    let list = filters(vec![Kind::Rewrite(rewrite)]).unwrap();
    let mut parts = request(target, &[]);
    let path = parts.uri.path().to_owned();
    let context = FilterContext {
        path: &path,
        prefix,
        ..CONTEXT
    };
    assert!(apply_request(&list, &mut parts, &context).is_none());
    parts.uri.to_string()
}

#[test]
fn prefixes_are_replaced_as_the_specification_says() {
    // The router tells prefixes without their final slash; the table has both.
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        // Beyond the table.
        ("/foo", "/foo/", "/xyz/", "/xyz"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/", "/", "", "/"),
        ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ("/foo//bar", "/foo", "", "//bar"),
        ("/foo/foo", "/foo", "/a/b", "/a/b/foo"),
        ("/foo/b%20c", "/foo", "/x", "/x/b%20c"),
    ] {
        let answer = rewritten(replace(replacement), path, Some(matched));
        assert_eq!(answer, expected, "{path} {matched} {replacement}");
    }
    // Where no prefix matched it is the whole path.
    assert_eq!(rewritten(replace("/x"), "/exact/path", None), "/x");
}

#[test]
fn queries_stay_and_full_paths_are_replaced() {
    assert_eq!(
        rewritten(full("/one"), "/full/one/two?a=1&b", Some("/full")),
        "/one?a=1&b"
    );
    assert_eq!(rewritten(full(""), "/a", None), "/");
    assert_eq!(rewritten(full("one"), "/a", None), "/one");
    assert_eq!(
        rewritten(replace("/x"), "/foo/a?q=/foo", Some("/foo")),
        "/x/a?q=/foo"
    );
    // What would end the path, or break the request, is escaped.
    assert_eq!(
        rewritten(full("/a b?c#d\r\n\"é"), "/", None),
        "/a%20b%3Fc%23d%0D%0A%22%C3%A9"
    );
    assert_eq!(rewritten(full("/100%25/%7e"), "/", None), "/100%25/%7e");
}

#[test]
fn hosts_are_rewritten() {
    let rewrite = wire::UrlRewrite {
        hostname: "one.example".to_owned(),
        path: full("/p"),
    };
    let list = filters(vec![Kind::Rewrite(rewrite)]).unwrap();
    let mut parts = request("http://old:81/x?q", &["host: old:81"]);
    assert!(apply_request(&list, &mut parts, &CONTEXT).is_none());
    assert_eq!(parts.uri, "http://one.example/p?q");
    assert_eq!(lines(&parts.headers), ["host: one.example"]);
    for bad in ["a b", "a/b", "u@h"] {
        let rewrite = wire::UrlRewrite {
            hostname: bad.to_owned(),
            path: None,
        };
        assert_eq!(
            refused(Kind::Rewrite(rewrite)),
            "filters[0].rewrite.hostname"
        );
    }
    let unknown = wire::UrlRewrite {
        hostname: String::new(),
        path: Some(wire::PathModifier { kind: None }),
    };
    assert_eq!(
        refused(Kind::Rewrite(unknown)),
        "filters[0].rewrite.path.kind"
    );
}

#[test]
fn the_last_rewrite_starts_from_the_request_as_it_came() {
    let rewrite = |prefix: &str| {
        Kind::Rewrite(wire::UrlRewrite {
            path: replace(prefix),
            ..Default::default()
        })
    };
    let (rule, backend) = (
        filters(vec![rewrite("/rule")]).unwrap(),
        filters(vec![rewrite("/backend")]).unwrap(),
    );
    let mut parts = request("/foo/x?q", &[]);
    let context = FilterContext {
        path: "/foo/x",
        prefix: Some("/foo"),
        ..CONTEXT
    };
    assert!(apply_request(&rule, &mut parts, &context).is_none());
    assert!(apply_request(&backend, &mut parts, &context).is_none());
    assert_eq!(parts.uri, "/backend/x?q");
}

fn redirect(
    scheme: &str,
    hostname: &str,
    port: u32,
    path: Option<wire::PathModifier>,
) -> wire::Redirect {
    wire::Redirect {
        scheme: scheme.to_owned(),
        hostname: hostname.to_owned(),
        port,
        path,
        status: 302,
    }
}

fn location(redirect: wire::Redirect, target: &str, context: &FilterContext<'_>) -> String {
    let list = filters(vec![Kind::Redirect(redirect)]).unwrap();
    let mut parts = request(target, &[]);
    let answer = apply_request(&list, &mut parts, context).unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.extensions().get(), Some(&AnsweredBy::Redirect));
    answer.headers()[LOCATION].to_str().unwrap().to_owned()
}

#[test]
fn redirects_name_a_port_only_where_they_must() {
    // "HTTPRouteRedirectPortAndScheme" of the conformance tests: listener, scheme and port of the filter.
    use RequestScheme::{Http, Https};
    for (scheme, listener, wanted, port, expected) in [
        (Http, 80, "", 0, "http://example.org"),
        (Http, 80, "", 80, "http://example.org"),
        (Http, 80, "", 8080, "http://example.org:8080"),
        (Http, 80, "https", 0, "https://example.org"),
        (Http, 80, "https", 443, "https://example.org"),
        (Http, 80, "https", 8443, "https://example.org:8443"),
        (Http, 8080, "", 0, "http://example.org:8080"),
        (Http, 8080, "", 80, "http://example.org"),
        (Http, 8080, "https", 0, "https://example.org"),
        (Https, 443, "", 0, "https://example.org"),
        (Https, 443, "", 443, "https://example.org"),
        (Https, 443, "", 8443, "https://example.org:8443"),
        (Https, 443, "http", 0, "http://example.org"),
        (Https, 443, "http", 80, "http://example.org"),
        (Https, 443, "http", 8080, "http://example.org:8080"),
        // The port of the other scheme is named.
        (Https, 443, "", 80, "https://example.org:80"),
        (Http, 80, "", 443, "http://example.org:443"),
        (Https, 8443, "", 0, "https://example.org:8443"),
    ] {
        let context = FilterContext {
            scheme,
            port: listener,
            host: "request.example",
            path: "/p",
            ..CONTEXT
        };
        let answer = location(redirect(wanted, "example.org", port, None), "/p", &context);
        assert_eq!(
            answer,
            format!("{expected}/p"),
            "{scheme:?} {listener} {wanted} {port}"
        );
    }
}

#[test]
fn redirects_change_host_and_path() {
    let context = FilterContext {
        path: "/foo/bar",
        prefix: Some("/foo"),
        ..CONTEXT
    };
    for (filter, expected) in [
        (redirect("", "", 0, None), "http://example.org/foo/bar?q=1"),
        (
            redirect("", "new.example", 0, None),
            "http://new.example/foo/bar?q=1",
        ),
        (
            redirect("", "", 0, replace("/xyz")),
            "http://example.org/xyz/bar?q=1",
        ),
        (
            redirect("", "", 0, replace("")),
            "http://example.org/bar?q=1",
        ),
        (
            redirect("", "", 0, full("/all")),
            "http://example.org/all?q=1",
        ),
        (
            redirect("", "n.example", 81, replace("/x/")),
            "http://n.example:81/x/bar?q=1",
        ),
    ] {
        assert_eq!(location(filter, "/foo/bar?q=1", &context), expected);
    }
    // Without a host the client resolves the path, and two slashes must not become one.
    let context = FilterContext {
        host: "",
        path: "/foo//evil.example",
        prefix: Some("/foo"),
        ..CONTEXT
    };
    assert_eq!(
        location(
            redirect("", "", 0, replace("")),
            "/foo//evil.example",
            &context
        ),
        "/evil.example"
    );
}

#[test]
fn redirects_have_their_status() {
    for status in [301, 302, 303, 307, 308] {
        let filter = wire::Redirect {
            status,
            ..redirect("", "", 0, None)
        };
        let list = filters(vec![Kind::Redirect(filter)]).unwrap();
        let answer = apply_request(&list, &mut request("/", &[]), &CONTEXT).unwrap();
        assert_eq!(u32::from(answer.status().as_u16()), status);
    }
    let with_status = |status| wire::Redirect {
        status,
        ..redirect("", "", 0, None)
    };
    for (bad, field) in [
        (with_status(0), "status"),
        (with_status(200), "status"),
        (with_status(304), "status"),
        (redirect("ftp", "", 0, None), "scheme"),
        (redirect("", "a b", 0, None), "hostname"),
        (redirect("", "", 65_536, None), "port"),
        (redirect("", "", 0, full(&"x".repeat(5000))), "path.full"),
    ] {
        assert_eq!(
            refused(Kind::Redirect(bad)),
            format!("filters[0].redirect.{field}")
        );
    }
}

#[test]
fn answers_have_the_response_headers_of_their_rule() {
    let list = filters(vec![
        Kind::Redirect(redirect("https", "", 0, None)),
        Kind::ResponseHeaders(changes(&["x-rule: 1"], &[], &[])),
    ]);
    let answer = apply_request(&list.unwrap(), &mut request("/", &[]), &CONTEXT).unwrap();
    assert_eq!(answer.headers()["x-rule"], "1");
}

#[test]
fn an_unknown_filter_fails_the_request() {
    let clusters = Clusters::default();
    let wire = [wire::Filter { kind: None }];
    let list = Filter::list(&wire, &|name| clusters.get(name)).unwrap();
    let answer = apply_request(&list, &mut request("/", &[]), &CONTEXT).unwrap();
    assert_eq!(answer.status(), 500);
    let by = answer.extensions().get::<AnsweredBy>().unwrap();
    assert_eq!(by.reason(), "filter_unsupported");
}

#[test]
fn mirrors_take_their_share() {
    let mirror = |backend: &str, numerator, denominator| {
        Kind::Mirror(wire::Mirror {
            backend: backend.to_owned(),
            numerator,
            denominator,
        })
    };
    let list = filters(vec![
        mirror("n/a/80", 1, 1),
        mirror("", 1, 1),
        mirror("n/b/80", 25, 100),
        mirror("n/c/80", 0, 100),
        mirror("n/d/80", 7, 3),
    ]);
    let list = list.unwrap();
    let taken = |mirror: &Mirror| {
        let points = (0..1000_u64).map(|point| point * (u64::MAX / 1000));
        points.filter(|point| mirror.takes(*point)).count()
    };
    let all: Vec<_> = mirrors(&list).collect();
    assert_eq!(
        all.iter().map(|mirror| taken(mirror)).collect::<Vec<_>>(),
        [1000, 1000, 251, 0, 1000]
    );
    assert!(all[1].cluster.is_none());
    assert_eq!(**all[2].cluster.as_ref().unwrap().name(), *"n/b/80");
    assert_eq!(
        refused(mirror("n/a/80", 1, 0)),
        "filters[0].mirror.denominator"
    );
    assert!(apply_request(&list, &mut request("/", &[]), &CONTEXT).is_none());
}
