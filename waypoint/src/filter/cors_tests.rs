//! Cross-origin resource sharing; most cases are those of "HTTPRouteCORS" of the conformance tests.

use super::*;

/// `origins` and so on are separated by spaces.
fn cors(origins: &str, methods: &str, headers: &str, expose: &str) -> wire::Cors {
    let list = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    wire::Cors {
        allow_origins: list(origins),
        allow_methods: list(methods),
        allow_headers: list(headers),
        expose_headers: list(expose),
        allow_credentials: false,
        max_age_seconds: 0,
    }
}

fn credentials(cors: wire::Cors) -> wire::Cors {
    wire::Cors {
        allow_credentials: true,
        ..cors
    }
}

fn preflight(cors: wire::Cors, headers: &[&str]) -> Vec<String> {
    let list = filters(vec![Kind::Cors(cors)]).unwrap();
    let mut parts = request("/", headers);
    parts.method = Method::OPTIONS;
    let answer = apply_request(&list, &mut parts, &CONTEXT).unwrap();
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.extensions().get(), Some(&AnsweredBy::Preflight));
    lines(answer.headers())
}

fn response(cors: wire::Cors, origin: Option<&str>, headers: &[&str]) -> Vec<String> {
    let list = filters(vec![Kind::Cors(cors)]).unwrap();
    let origin = origin.map(|origin| HeaderValue::from_str(origin).unwrap());
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.headers = map(headers);
    let context = FilterContext {
        origin: origin.as_ref(),
        ..CONTEXT
    };
    apply_response(&list, &mut parts, &context);
    lines(&parts.headers)
}

fn several() -> wire::Cors {
    wire::Cors {
        max_age_seconds: 3600,
        ..credentials(cors(
            "https://www.foo.com https://*.bar.com",
            "GET OPTIONS",
            "x-header-1 x-header-2",
            "x-header-3 x-header-4",
        ))
    }
}

#[test]
fn a_preflight_from_an_allowed_origin_is_told_what_is_allowed() {
    for origin in [
        "https://www.foo.com",
        "https://www.bar.com",
        "https://xpto.www.bar.com",
    ] {
        let asked = [
            &format!("origin: {origin}"),
            "access-control-request-method: GET",
            "access-control-request-headers: x-header-1, x-header-2",
        ];
        assert_eq!(
            preflight(several(), &asked),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: x-header-1, x-header-2",
                "access-control-allow-methods: GET, OPTIONS",
                &format!("access-control-allow-origin: {origin}"),
                "access-control-expose-headers: x-header-3, x-header-4",
                "access-control-max-age: 3600",
                "vary: origin",
            ]
        );
    }
}

#[test]
fn other_origins_are_told_nothing() {
    for origin in [
        "https://foobar.com",
        "https://bar.com",
        "https://.bar.com.evil.com",
        "https://www.foo.com:8443",
        "http://www.foo.com",
        "https://xwww.foo.com",
        "https://www.foo.com.evil.com",
        "https://evilbar.com",
        "null",
        "www.foo.com",
        "https://",
    ] {
        let asked = [
            &*format!("origin: {origin}"),
            "access-control-request-method: GET",
        ];
        assert_eq!(preflight(several(), &asked), ["vary: origin"], "{origin}");
        assert_eq!(
            response(several(), Some(origin), &[]),
            ["vary: origin"],
            "{origin}"
        );
    }
}

#[test]
fn origins_are_compared_with_their_ports() {
    let allowed = |pattern: &str, origin: &str| {
        let lines = response(cors(pattern, "", "", ""), Some(origin), &[]);
        lines.contains(&format!("access-control-allow-origin: {origin}"))
    };
    for (pattern, origin, expected) in [
        ("https://a.b", "https://a.b", true),
        ("https://a.b", "https://a.b:443", true),
        ("https://a.b:443", "https://a.b", true),
        ("http://a.b:80", "http://a.b", true),
        ("http://a.b:8080", "http://a.b:8080", true),
        ("http://a.b:8080", "http://a.b", false),
        ("https://a.b", "https://a.b:80", false),
        ("https://A.b", "HTTPS://a.B", true),
        ("https://*", "https://anything.at.all", true),
        ("https://*", "https://anything:444", false),
        ("https://*:444", "https://anything:444", true),
        ("https://*", "http://anything", false),
        ("https://*.a.b", "https://a.b", false),
        ("https://*.a.b:81", "https://x.a.b:81", true),
        ("https://[::1]:81", "https://[::1]:81", true),
        ("https://[::1]", "https://[::1]", true),
        ("https://a.b", "https://a.b:0443", true),
        ("https://a.b", "https://a.b:+443", false),
    ] {
        assert_eq!(allowed(pattern, origin), expected, "{pattern} {origin}");
    }
}

#[test]
fn a_wildcard_for_methods_and_headers_means_what_is_asked_for() {
    let asked = [
        "origin: https://www.foo.com",
        "access-control-request-method: PUT",
        "access-control-request-headers: x-1, authorization",
        "access-control-request-headers: x-2",
    ];
    let any = || cors("*", "*", "*", "*");
    assert_eq!(
        preflight(credentials(any()), &asked),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-1, authorization, x-2",
            "access-control-allow-methods: PUT",
            "access-control-allow-origin: https://www.foo.com",
            "access-control-max-age: 5",
            "vary: origin",
        ]
    );
    assert_eq!(
        preflight(any(), &asked[..2]),
        [
            "access-control-allow-methods: PUT",
            "access-control-allow-origin: *",
            "access-control-expose-headers: *",
            "access-control-max-age: 5",
        ]
    );
    // Nothing is said about methods beyond those that are always allowed.
    assert_eq!(
        preflight(cors("https://www.foo.com", "", "", ""), &asked),
        [
            "access-control-allow-origin: https://www.foo.com",
            "access-control-max-age: 5",
            "vary: origin",
        ]
    );
}

#[test]
fn only_a_preflight_is_answered() {
    let list = filters(vec![Kind::Cors(several())]).unwrap();
    let origin = "origin: https://www.foo.com";
    let method = "access-control-request-method: GET";
    for (name, headers) in [
        (Method::GET, vec![origin, method]),
        (Method::OPTIONS, vec![origin]),
        (Method::OPTIONS, vec![method]),
    ] {
        let mut parts = request("/", &headers);
        parts.method = name;
        assert!(apply_request(&list, &mut parts, &CONTEXT).is_none());
    }
}

#[test]
fn a_preflight_is_answered_before_other_filters() {
    let list = filters(vec![
        Kind::Redirect(redirect("https", "", 0, None)),
        Kind::Cors(several()),
    ]);
    let mut parts = request(
        "/",
        &[
            "origin: https://www.foo.com",
            "access-control-request-method: GET",
        ],
    );
    parts.method = Method::OPTIONS;
    let list = list.unwrap();
    assert_eq!(
        apply_request(&list, &mut parts, &CONTEXT).unwrap().status(),
        204
    );
    parts.method = Method::GET;
    let origin = parts.headers[ORIGIN].clone();
    let context = FilterContext {
        origin: Some(&origin),
        ..CONTEXT
    };
    let answer = apply_request(&list, &mut parts, &context).unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(
        answer.headers()["access-control-allow-origin"],
        "https://www.foo.com"
    );
}

#[test]
fn responses_say_who_may_read_them() {
    let application = &[
        "access-control-allow-origin: https://evil.com",
        "x-a: 1",
        "vary: accept",
    ];
    assert_eq!(
        response(several(), Some("https://www.foo.com"), application),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://www.foo.com",
            "access-control-expose-headers: x-header-3, x-header-4",
            "vary: accept",
            "vary: origin",
            "x-a: 1",
        ]
    );
    // The application does not decide, and caches learn that the origin does.
    let expected = ["vary: accept", "vary: origin", "x-a: 1"];
    assert_eq!(
        response(several(), Some("https://evil.com"), application),
        expected
    );
    assert_eq!(response(several(), None, application), expected);
    // With one answer for all there is nothing to tell apart.
    let any = || cors("*", "", "", "");
    assert_eq!(
        response(any(), Some("https://a.b:1"), &[]),
        ["access-control-allow-origin: *"]
    );
    assert_eq!(response(any(), None, &[]), [""; 0]);
    assert_eq!(
        response(any(), Some("null"), &[]),
        ["access-control-allow-origin: *"]
    );
}

#[test]
fn with_credentials_a_wildcard_is_spelled_out() {
    let all = credentials(cors("*", "*", "*", "*"));
    assert_eq!(
        response(
            all,
            Some("https://a.b"),
            &["x-a: 1", "set-cookie: s=1", "vary: Accept, ORIGIN"]
        ),
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.b",
            "access-control-expose-headers: x-a, vary",
            "set-cookie: s=1",
            "vary: Accept, ORIGIN",
            "x-a: 1",
        ]
    );
}

#[test]
fn what_cannot_be_an_origin_or_a_name_is_refused() {
    for bad in [
        "foo.com",
        "ftp://foo.com",
        "https://",
        "https://a/b",
        "https://a:0",
        "https://a:70000",
        "https://a.*.b",
    ] {
        let field = refused(Kind::Cors(cors(&format!("https://ok {bad}"), "", "", "")));
        assert_eq!(field, "filters[0].cors.allow_origins[1]", "{bad}");
    }
    for (bad, field) in [
        (cors("*", "G(T", "", ""), "allow_methods[0]"),
        (cors("*", "", "ok a:b", ""), "allow_headers[1]"),
        (cors("*", "", "", "a:b"), "expose_headers[0]"),
    ] {
        assert_eq!(refused(Kind::Cors(bad)), format!("filters[0].cors.{field}"));
    }
}
