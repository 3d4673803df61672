use std::borrow::Cow;

use super::{Attribute, Fact, Facts, Filter};

struct Request;

impl Facts for Request {
    fn fact(&self, attribute: Attribute) -> Option<Fact<'_>> {
        Some(match attribute {
            Attribute::ResponseCode => Fact::Number(404),
            Attribute::RequestHost => Fact::Text("shop.example".into()),
            Attribute::RequestPath => Fact::Text("/a?b=1".into()),
            Attribute::RequestUrlPath => Fact::Text("/a".into()),
            Attribute::ConnectionMtls => Fact::Bool(true),
            _ => return None,
        })
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        (name == "x-debug").then_some(Cow::Borrowed("yes"))
    }
}

fn matches(text: &str) -> Result<bool, String> {
    Filter::compile(text).expect(text).matches(&Request)
}

#[test]
fn expressions_over_attributes() {
    for (text, expected) in [
        ("response.code >= 400", true),
        ("response.code >= 500", false),
        ("response.code == 404 && connection.mtls", true),
        ("!connection.mtls || request.host == 'other'", false),
        ("request.host.endsWith('.example')", true),
        ("request.url_path.matches('^/[a-z]+$')", true),
        ("request.path == '/a?b=1'", true),
        ("response.code in [200, 204]", false),
        ("request.headers['x-debug'] == 'yes'", true),
        ("'x-debug' in request.headers", true),
        ("'x-other' in request.headers", false),
        ("has(request.headers.other)", false),
        (
            "has(response.grpc_status) && response.grpc_status != 0",
            false,
        ),
        ("response.code > 500 ? true : connection.mtls", true),
        ("true", true),
    ] {
        assert_eq!(matches(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_not_there_cannot_be_evaluated() {
    for text in [
        "response.grpc_status == 0",
        "request.headers['x-other'] == ''",
        "response.code == 'text' || response.code.startsWith('4')",
        "response.code",
    ] {
        assert!(matches(text).is_err(), "{text}");
    }
}

#[test]
fn what_cannot_be_compiled_says_why() {
    let deep = "(".repeat(40) + "true" + &")".repeat(40);
    let long = format!("request.host == '{}'", "a".repeat(1024));
    let not = "!".repeat(100) + "true";
    for (text, problem) in [
        ("response.code >=", "no CEL expression"),
        ("response.cod >= 1", "uses response.cod"),
        ("foo == 1", "uses foo"),
        ("request.duration > duration('1s')", "uses request.duration"),
        ("[1, 2].exists(x, x == response.code)", "loops"),
        ("request.host.matches(request.path)", "not written out"),
        ("request.host.matches('(')", "is no pattern"),
        ("request.headers[request.host] == ''", "not written out"),
        ("request.headers['X-Debug'] == ''", "lower case"),
        ("size(request.headers) > 1", "request.headers"),
        ("nothing(response.code)", "uses nothing"),
        (&deep, "brackets"),
        (&not, "brackets"),
        (&long, "longer"),
    ] {
        let error = Filter::compile(text).expect_err(text);
        assert!(error.contains(problem), "{text}: {error}");
    }
}

#[test]
fn says_which_headers_it_asks_for() {
    let filter = Filter::compile("request.headers['b'] == 'x' || 'a' in request.headers");
    assert_eq!(filter.expect("valid").headers(), ["b", "a"]);
}
