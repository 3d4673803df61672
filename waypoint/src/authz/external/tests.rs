use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Uri, Version, response};
use karst_api::ext_authz as rpc;
use karst_api::ext_authz::check_response::HttpResponse;
use karst_api::ext_authz::{CheckResponse, DeniedHttpResponse, HeaderValueOption, OkHttpResponse};
use karst_api::waypoint as wire;
use karst_api::waypoint::extension_provider::Kind as WireKind;
use karst_api::waypoint::header_name::Kind as NameKind;
use karst_identity::SpiffeId;
use prost::Message as _;

use super::change::{HeaderChange, How};
use super::question::{Asking, Excerpt};
use super::{CheckError, Kind, Provider, Refused, Verdict, Why, answer};
use crate::balance::Clusters;
use crate::client::Client;

fn head(status: u16, headers: &[(&str, &str)]) -> response::Parts {
    let mut head = Response::builder().status(status);
    for (name, value) in headers {
        head = head.header(*name, *value);
    }
    head.body(()).unwrap().into_parts().0
}

fn framed(message: &CheckResponse) -> Bytes {
    let message = message.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.extend_from_slice(&message);
    frame.freeze()
}

fn trailers(status: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    trailers
}

fn answered(code: i32, response: Option<HttpResponse>) -> Result<Verdict, CheckError> {
    let message = CheckResponse {
        status: Some(rpc::Status {
            code,
            message: String::new(),
        }),
        http_response: response,
    };
    let head = head(200, &[("content-type", "application/grpc")]);
    answer::grpc(&head, framed(&message), Some(&trailers("0")))
}

fn option(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(rpc::HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        ..HeaderValueOption::default()
    }
}

fn changed(how: How, name: &'static str, value: &'static str) -> HeaderChange {
    HeaderChange {
        how,
        name: HeaderName::from_static(name),
        value: HeaderValue::from_static(value),
    }
}

#[test]
fn headers_are_changed_as_the_answer_says() {
    use rpc::header_value_option::HeaderAppendAction as Action;
    let with = |append, action: Action| HeaderValueOption {
        append,
        append_action: action.into(),
        ..option("x", "v")
    };
    for (option, how) in [
        (with(None, Action::AppendIfExistsOrAdd), How::Set),
        (with(None, Action::AddIfAbsent), How::Add),
        (with(None, Action::OverwriteIfExistsOrAdd), How::Set),
        (with(None, Action::OverwriteIfExists), How::Replace),
        (with(Some(true), Action::AddIfAbsent), How::Append),
        (with(Some(false), Action::AddIfAbsent), How::Set),
    ] {
        let ok = OkHttpResponse {
            headers: vec![option],
            ..OkHttpResponse::default()
        };
        let Ok(Verdict::Allowed(changes)) = answered(0, Some(HttpResponse::OkResponse(ok))) else {
            panic!("allowed");
        };
        assert_eq!(changes.upstream, [changed(how, "x", "v")]);
        let after = |there: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in there {
                headers.append("x", HeaderValue::from_static(value));
            }
            changes.apply_upstream(&mut headers);
            let values = headers.get_all("x").iter();
            let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
            values.join(" ")
        };
        let (there, absent) = match how {
            How::Set => ("v", "v"),
            How::Replace => ("v", ""),
            How::Append => ("a b v", "v"),
            How::Add => ("a b", "v"),
        };
        assert_eq!(
            (after(&["a", "b"]), after(&[])),
            (there.into(), absent.into())
        );
    }
}

#[test]
fn what_may_not_be_changed_makes_an_answer_that_allows_unusable() {
    for name in [
        "content-length",
        "Transfer-Encoding",
        "connection",
        "host",
        ":path",
        ":authority",
        "upgrade",
        "te",
        "keep-alive",
        "",
        "a b",
    ] {
        let of = |upstream: bool| {
            let headers = vec![option("x-good", "1"), option(name, "v")];
            let ok = match upstream {
                true => OkHttpResponse {
                    headers,
                    ..OkHttpResponse::default()
                },
                false => OkHttpResponse {
                    response_headers_to_add: headers,
                    ..OkHttpResponse::default()
                },
            };
            answered(0, Some(HttpResponse::OkResponse(ok)))
                .unwrap_err()
                .why
        };
        assert_eq!(
            (of(true), of(false)),
            (Why::AnswerInvalid, Why::AnswerInvalid),
            "{name:?}"
        );
        // A refusal stays one.
        let denied = DeniedHttpResponse {
            headers: vec![option("x-good", "1"), option(name, "v")],
            ..DeniedHttpResponse::default()
        };
        let Ok(Verdict::Refused(refused)) = answered(7, Some(HttpResponse::DeniedResponse(denied)))
        else {
            panic!("refused");
        };
        assert_eq!(
            refused.headers,
            [changed(How::Set, "x-good", "1")],
            "{name:?}"
        );
    }
    let many = OkHttpResponse {
        headers: vec![option("x", "v"); 101],
        ..OkHttpResponse::default()
    };
    let error = answered(0, Some(HttpResponse::OkResponse(many))).unwrap_err();
    assert_eq!(error.why, Why::AnswerInvalid);
    let value = OkHttpResponse {
        headers: vec![option("x", "a\r\nb: c")],
        ..OkHttpResponse::default()
    };
    let error = answered(0, Some(HttpResponse::OkResponse(value))).unwrap_err();
    assert_eq!(error.why, Why::AnswerInvalid);
}

#[test]
fn headers_go_and_protected_ones_stay() {
    let ok = OkHttpResponse {
        headers_to_remove: ["x-gone", "Host", "content-length", ":path"]
            .map(str::to_owned)
            .into(),
        headers: vec![
            option("x-empty", ""),
            HeaderValueOption {
                keep_empty_value: true,
                ..option("x-kept", "")
            },
        ],
        ..OkHttpResponse::default()
    };
    let Ok(Verdict::Allowed(changes)) = answered(0, Some(HttpResponse::OkResponse(ok))) else {
        panic!("allowed");
    };
    let mut headers = HeaderMap::new();
    for name in ["x-gone", "host", "content-length"] {
        headers.insert(name, HeaderValue::from_static("1"));
    }
    changes.apply_upstream(&mut headers);
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "host", "x-kept"]);
}

#[test]
fn the_query_is_changed() {
    let target = |uri: &str, set: &[(&str, &str)], remove: &[&str]| {
        let set = set.iter().map(|(key, value)| rpc::QueryParameter {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        });
        let ok = OkHttpResponse {
            query_parameters_to_set: set.collect(),
            query_parameters_to_remove: remove.iter().map(ToString::to_string).collect(),
            ..OkHttpResponse::default()
        };
        let Ok(Verdict::Allowed(changes)) = answered(0, Some(HttpResponse::OkResponse(ok))) else {
            panic!("allowed");
        };
        let uri: Uri = uri.parse().unwrap();
        let target = changes.target(&uri);
        target.map_or("same".to_owned(), |uri| uri.to_string())
    };
    assert_eq!(target("/a?b=1", &[], &[]), "same");
    assert_eq!(target("/a?b=1&c=2&b=3", &[], &["b"]), "/a?c=2");
    assert_eq!(target("/a?%62=1", &[], &["b"]), "/a");
    assert_eq!(
        target("/a", &[("x y", "&=#\u{e4}")], &[]),
        "/a?x%20y=%26%3D%23%C3%A4"
    );
    assert_eq!(target("/a?u=1&v=2&u=3", &[("u", "9")], &[]), "/a?v=2&u=9");
}

#[test]
fn refusals_of_grpc() {
    let refused = |verdict: Result<Verdict, CheckError>| match verdict {
        Ok(Verdict::Refused(refused)) => *refused,
        other => panic!("{other:?}"),
    };
    let plain = Refused {
        status: StatusCode::FORBIDDEN,
        headers: Vec::new(),
        body: Bytes::new(),
    };
    assert_eq!(refused(answered(7, None)), plain);
    assert_eq!(
        refused(answered(
            16,
            Some(HttpResponse::OkResponse(OkHttpResponse::default()))
        )),
        plain
    );
    let with = |code: i32| {
        let denied = DeniedHttpResponse {
            status: Some(rpc::HttpStatus { code }),
            body: "why".to_owned(),
            headers: vec![option("x-why", "so")],
        };
        refused(answered(7, Some(HttpResponse::DeniedResponse(denied))))
    };
    let answer = with(401);
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (401, &b"why"[..])
    );
    for (code, status) in [(302, 302), (0, 403), (100, 403), (-1, 403), (99999, 403)] {
        assert_eq!(with(code).status.as_u16(), status, "{code}");
    }
}

#[test]
fn what_is_no_answer_of_grpc() {
    let good = framed(&CheckResponse::default());
    let ok = trailers("0");
    let check = |head: &response::Parts, body: &Bytes, trailers: Option<&HeaderMap>| {
        answer::grpc(head, body.clone(), trailers).map_err(|error| error.why)
    };
    let plain = head(200, &[]);
    assert_eq!(
        check(&plain, &good, Some(&ok)),
        Ok(Verdict::Allowed(Box::default()))
    );
    let down = Err(Why::Unavailable);
    assert_eq!(check(&plain, &good, None), down);
    assert_eq!(check(&plain, &good, Some(&trailers("x"))), down);
    for status in ["7", "14", "16"] {
        assert_eq!(
            check(&plain, &good, Some(&trailers(status))),
            down,
            "{status}"
        );
        assert_eq!(
            check(&head(200, &[("grpc-status", status)]), &Bytes::new(), None),
            down
        );
    }
    assert_eq!(check(&head(503, &[]), &good, Some(&ok)), down);
    let bad = [
        Bytes::new(),
        good.slice(..4),
        Bytes::from_static(&[1, 0, 0, 0, 0]),
        Bytes::from_static(&[0, 0, 0, 0, 1]),
        Bytes::from_static(&[0, 0, 0, 0, 0, 0]),
        Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]),
    ];
    for body in bad {
        assert_eq!(check(&plain, &body, Some(&ok)), down, "{body:?}");
    }
    let both = HttpResponse::DeniedResponse(DeniedHttpResponse::default());
    assert_eq!(answered(0, Some(both)).unwrap_err().why, Why::AnswerInvalid);
}

fn names(list: &[&str]) -> Vec<wire::HeaderName> {
    let name = |text: &&str| wire::HeaderName {
        kind: Some(match text.strip_suffix('*') {
            Some(prefix) => NameKind::Prefix(prefix.to_owned()),
            None => NameKind::Exact((*text).to_owned()),
        }),
    };
    list.iter().map(name).collect()
}

fn http(check: wire::HttpCheck) -> wire::ExtensionProvider {
    wire::ExtensionProvider {
        name: "p".to_owned(),
        backend: "b".to_owned(),
        kind: Some(WireKind::Http(check)),
        ..wire::ExtensionProvider::default()
    }
}

fn provider(wire: &wire::ExtensionProvider) -> Provider {
    Provider::new(wire, &Clusters::default()).unwrap()
}

#[test]
fn answers_of_http() {
    let judge = |check: wire::HttpCheck, head: &response::Parts| {
        let provider = provider(&http(check));
        let Kind::Http(check) = &provider.kind else {
            panic!("http");
        };
        answer::http(head, Bytes::from_static(b"text"), check)
    };
    let sent = [
        ("x-user", "u"),
        ("x-user", "v"),
        ("set-cookie", "c"),
        ("location", "/login"),
        ("content-length", "4"),
        ("connection", "close"),
    ];
    let check = || wire::HttpCheck {
        upstream_on_allow: names(&["x-*", "connection"]),
        downstream_on_allow: names(&["set-cookie"]),
        ..wire::HttpCheck::default()
    };
    let Ok(Verdict::Allowed(changes)) = judge(check(), &head(200, &sent)) else {
        panic!("allowed");
    };
    let user = [
        changed(How::Set, "x-user", "u"),
        changed(How::Append, "x-user", "v"),
    ];
    assert_eq!(changes.upstream, user);
    assert_eq!(changes.downstream, [changed(How::Set, "set-cookie", "c")]);
    for status in [201, 204, 302, 401, 403, 429] {
        let Ok(Verdict::Refused(refused)) = judge(check(), &head(status, &sent)) else {
            panic!("{status}");
        };
        assert_eq!(refused.status.as_u16(), status);
        assert_eq!(refused.body, "text");
        assert_eq!(refused.headers.len(), 4);
    }
    let on_deny = wire::HttpCheck {
        downstream_on_deny: names(&["x-other"]),
        ..wire::HttpCheck::default()
    };
    let Ok(Verdict::Refused(refused)) = judge(on_deny, &head(302, &sent)) else {
        panic!("refused");
    };
    assert_eq!(refused.headers, [changed(How::Set, "location", "/login")]);
    for status in [500, 503] {
        let error = judge(check(), &head(status, &sent)).unwrap_err();
        assert_eq!(error.why, Why::Unavailable);
    }
}

fn asking<'a>(client: &'a Client, uri: &'a Uri, headers: &'a HeaderMap) -> Asking<'a> {
    Asking {
        client,
        own_identity: Some("spiffe://td/ns/mesh/sa/wp"),
        id: "id-1",
        method: &Method::POST,
        uri,
        authority: "shop:8080",
        scheme: "https",
        version: Version::HTTP_2,
        headers,
        server_name: Some("shop"),
        body: Some(Excerpt {
            bytes: Bytes::from_static(b"a\xffb"),
            partial: true,
        }),
    }
}

fn client() -> Client {
    let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap();
    let mut client = Client::new("[::ffff:10.0.0.1]:4000".parse().unwrap(), Some(id));
    client.destination = Some("10.96.0.1:80".parse().unwrap());
    client
}

fn sent_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "shop:8080"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("content-length", "3"),
        ("cookie", "c"),
        ("te", "trailers"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn what_grpc_is_asked() {
    let (client, uri, headers) = (client(), Uri::from_static("/a/b?c=d"), sent_headers());
    let asking = asking(&client, &uri, &headers);
    let mut wire = http(wire::HttpCheck::default());
    wire.kind = Some(WireKind::Grpc(wire::GrpcCheck {}));
    wire.body = Some(wire::CheckedBody {
        max_bytes: 3,
        ..wire::CheckedBody::default()
    });
    let text = provider(&wire);
    let request = asking.grpc(&text);
    assert_eq!(request.uri(), "/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["grpc-timeout"], "10000m");
    let frame = request.body();
    assert_eq!(frame[0], 0);
    let length = u32::from_be_bytes(frame[1..5].try_into().unwrap());
    assert_eq!(length as usize, frame.len() - 5);
    let message = rpc::CheckRequest::decode(frame.slice(5..)).unwrap();
    let attributes = message.attributes.unwrap();
    let source = attributes.source.unwrap();
    assert_eq!(source.principal, "spiffe://td/ns/a/sa/b");
    let address = |peer: &rpc::attribute_context::Peer| format!("{:?}", peer.address);
    assert!(address(&source).contains("\"10.0.0.1\""), "{source:?}");
    assert!(address(&source).contains("4000"), "{source:?}");
    let destination = attributes.destination.unwrap();
    assert_eq!(destination.principal, "spiffe://td/ns/mesh/sa/wp");
    assert!(address(&destination).contains("\"10.96.0.1\""));
    assert_eq!(attributes.tls_session.unwrap().sni, "shop");
    let request = attributes.request.unwrap();
    assert!(request.time.unwrap().seconds > 1_700_000_000);
    let http = request.http.unwrap();
    let said = [
        &http.id,
        &http.method,
        &http.path,
        &http.host,
        &http.scheme,
        &http.protocol,
        &http.query,
    ];
    let expected = [
        "id-1",
        "POST",
        "/a/b?c=d",
        "shop:8080",
        "https",
        "HTTP/2",
        "",
    ];
    assert_eq!(said.map(String::as_str), expected);
    assert_eq!(http.size, 3);
    assert_eq!(http.body, "a\u{fffd}b");
    assert_eq!(http.raw_body, b"");
    let headers: Vec<_> = http
        .headers
        .iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    let expected = [
        ":authority=shop:8080",
        ":method=POST",
        ":path=/a/b?c=d",
        ":scheme=https",
        "content-length=3",
        "cookie=c",
        "te=trailers",
        "x-a=1,2",
        "x-envoy-auth-partial-body=true",
    ];
    assert_eq!(headers, expected);
    wire.body = wire.body.map(|body| wire::CheckedBody {
        as_bytes: true,
        ..body
    });
    let message = asking.message(provider(&wire).body);
    let http = message.attributes.unwrap().request.unwrap().http.unwrap();
    assert_eq!(
        (http.raw_body.as_slice(), http.body.as_str()),
        (&b"a\xffb"[..], "")
    );
}

#[test]
fn what_http_is_asked() {
    let (client, uri, headers) = (client(), Uri::from_static("/a/b?c=d"), sent_headers());
    let asking = asking(&client, &uri, &headers);
    let provider = provider(&http(wire::HttpCheck {
        path_prefix: "/check".to_owned(),
        request_headers: names(&["x-*", "te", "content-length"]),
        additional_headers: vec![wire::Header {
            name: "x-more".to_owned(),
            value: "m".to_owned(),
        }],
        ..wire::HttpCheck::default()
    }));
    let Kind::Http(check) = &provider.kind else {
        panic!("http");
    };
    let request = asking.http(check).unwrap();
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri(), "/check/a/b?c=d");
    assert_eq!(request.body(), &Bytes::from_static(b"a\xffb"));
    let headers = request.headers().iter();
    let mut headers: Vec<_> = headers
        .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
        .collect();
    headers.sort_unstable();
    let expected = [
        "host=shop:8080",
        "x-a=1",
        "x-a=2",
        "x-envoy-auth-partial-body=true",
        "x-more=m",
    ];
    assert_eq!(headers, expected);
}

/// It would pass by an authorizer that may be passed by when it cannot be asked.
#[test]
fn a_client_cannot_make_its_request_pass_unasked() {
    let provider = provider(&wire::ExtensionProvider {
        fail_open: true,
        ..http(wire::HttpCheck {
            path_prefix: format!("/{}", "p".repeat(2000)),
            ..wire::HttpCheck::default()
        })
    });
    let Kind::Http(check) = &provider.kind else {
        panic!("http");
    };
    let (client, headers) = (client(), sent_headers());
    let uri = Uri::try_from(format!("/{}", "a".repeat(64_000))).unwrap();
    let error = asking(&client, &uri, &headers).http(check).unwrap_err();
    assert!(!error.may_pass(&provider), "{error:?}");
    let gone = CheckError::new(Why::Unavailable, "nobody there");
    assert!(gone.may_pass(&provider));
}

#[test]
fn providers_that_cannot_be_used_name_the_field() {
    type Change = fn(&mut wire::ExtensionProvider);
    let error = |change: Change| {
        let mut wire = http(wire::HttpCheck::default());
        change(&mut wire);
        let error = Provider::new(&wire, &Clusters::default()).unwrap_err();
        error.to_string()
    };
    let cases: [(&str, Change); 6] = [
        ("kind", |it| it.kind = None),
        ("backend", |it| it.backend.clear()),
        ("timeout_ms", |it| it.timeout_ms = 600_001),
        ("status_on_error", |it| it.status_on_error = 200),
        ("body.max_bytes", |it| {
            it.body = Some(wire::CheckedBody::default());
        }),
        ("path_prefix", |it| {
            it.kind = Some(WireKind::Http(wire::HttpCheck {
                path_prefix: "x?".to_owned(),
                ..wire::HttpCheck::default()
            }));
        }),
    ];
    for (field, change) in cases {
        assert!(error(change).contains(field), "{field}");
    }
    let mut wire = http(wire::HttpCheck::default());
    wire.backend.clear();
    wire.kind = None;
    wire.invalid = "ProviderNotFound".to_owned();
    assert_eq!(
        &**provider(&wire).cluster.as_ref().unwrap_err(),
        "ProviderNotFound"
    );
}
