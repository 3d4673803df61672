//! Mesh configurations, field by field.

use karst_api::waypoint::{self as wire, extension_provider::Kind, header_name};
use serde_json::{Value, json};

use super::ExtensionProviders;

fn merged(over: &Value) -> Value {
    let mut spec = json!({"service": "auth.sec.svc.cluster.local", "port": 9000});
    if let (Some(spec), Some(over)) = (spec.as_object_mut(), over.as_object()) {
        spec.extend(over.clone());
    }
    spec
}

fn read(kind: &str, over: &Value) -> Result<super::Provider, String> {
    let config = json!({"extensionProviders": [{"name": "p", kind: merged(over)}]});
    let (providers, findings) = ExtensionProviders::read(&config).unwrap();
    let read = providers.get("p").cloned();
    assert_eq!(findings.faults.len(), usize::from(read.is_err()));
    read.map_err(|unusable| {
        assert_eq!(unusable.reason, "ProviderInvalid");
        assert_eq!(findings.faults, [unusable.message.as_str()]);
        unusable.message
    })
}

fn grpc(over: &Value) -> Result<wire::ExtensionProvider, String> {
    read("envoyExtAuthzGrpc", over).map(|provider| provider.template)
}

fn http(over: &Value) -> Result<wire::HttpCheck, String> {
    let read = read("envoyExtAuthzHttp", over)?;
    match read.template.kind {
        Some(Kind::Http(http)) => Ok(http),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_needed_is_enough() {
    let provider = read("envoyExtAuthzGrpc", &json!({})).unwrap();
    let place = (provider.place.hostname.as_str(), provider.place.port);
    assert_eq!(place, ("auth.sec.svc.cluster.local", 9000));
    assert_eq!(provider.place.namespace, None);
    let expected = wire::ExtensionProvider {
        name: "p".to_owned(),
        kind: Some(Kind::Grpc(wire::GrpcCheck {})),
        ..wire::ExtensionProvider::default()
    };
    assert_eq!(provider.template, expected);
    assert_eq!(http(&json!({})).unwrap(), wire::HttpCheck::default());
    let named = json!({"service": "sec/Auth.example.com"});
    let provider = read("envoyExtAuthzGrpc", &named).unwrap();
    assert_eq!(provider.place.namespace.as_deref(), Some("sec"));
    assert_eq!(provider.place.hostname, "auth.example.com");
}

#[test]
fn fields_of_both_kinds() {
    let timeout = |text: &str| grpc(&json!({"timeout": text})).map(|it| it.timeout_ms);
    for (text, millis) in [
        ("1s", 1000),
        ("0.25s", 250),
        ("1.5s", 1500),
        ("600s", 600_000),
    ] {
        assert_eq!(timeout(text), Ok(millis), "{text}");
    }
    let read = grpc(&json!({
        "failOpen": true, "clearRouteCache": true, "statusOnError": "503",
        "includeRequestBodyInCheck": {"maxRequestBytes": 8192, "allowPartialMessage": true, "packAsBytes": true},
    }));
    let read = read.unwrap();
    assert!(read.fail_open && read.clear_route_cache);
    assert_eq!(read.status_on_error, 503);
    let body = wire::CheckedBody {
        max_bytes: 8192,
        allow_partial: true,
        as_bytes: true,
    };
    assert_eq!(read.body, Some(body));
    let number = grpc(&json!({"statusOnError": 401})).unwrap();
    assert_eq!(number.status_on_error, 401);
}

#[test]
fn fields_of_http() {
    let exact = |text: &str| wire::HeaderName {
        kind: Some(header_name::Kind::Exact(text.to_owned())),
    };
    let read = http(&json!({
        "pathPrefix": "/check/",
        "includeRequestHeadersInCheck": ["Authorization", "X-*", "*-Id"],
        "includeAdditionalHeadersInCheck": {"X-From": "mesh"},
        "headersToUpstreamOnAllow": ["x-user"],
        "headersToDownstreamOnAllow": ["set-cookie"],
        "headersToDownstreamOnDeny": ["x-why"],
    }));
    let read = read.unwrap();
    assert_eq!(read.path_prefix, "/check");
    let kinds = [
        header_name::Kind::Exact("authorization".to_owned()),
        header_name::Kind::Prefix("x-".to_owned()),
        header_name::Kind::Suffix("-id".to_owned()),
    ];
    let kinds = kinds.map(|kind| wire::HeaderName { kind: Some(kind) });
    assert_eq!(read.request_headers, kinds);
    let header = wire::Header {
        name: "x-from".to_owned(),
        value: "mesh".to_owned(),
    };
    assert_eq!(read.additional_headers, [header]);
    assert_eq!(read.upstream_on_allow, [exact("x-user")]);
    assert_eq!(read.downstream_on_allow, [exact("set-cookie")]);
    assert_eq!(read.downstream_on_deny, [exact("x-why")]);
    let former = http(&json!({"includeHeadersInCheck": ["a"]})).unwrap();
    assert_eq!(former.request_headers, [exact("a")]);
}

#[test]
fn mistakes_name_their_field() {
    for (over, words) in [
        (json!({"service": null}), "service is missing"),
        (json!({"service": 1}), "service is 1"),
        (json!({"service": "/x"}), "service is"),
        (json!({"service": "a/b/c"}), "service is"),
        (json!({"port": null}), "port is missing"),
        (json!({"port": 0}), "port is 0"),
        (json!({"port": 65536}), "port is 65536"),
        (json!({"port": "80"}), "port is \"80\""),
        (json!({"timeout": "0s"}), "timeout is"),
        (json!({"timeout": "601s"}), "timeout is"),
        (json!({"timeout": "1m"}), "timeout is"),
        (json!({"timeout": "-1s"}), "timeout is"),
        (json!({"timeout": 5}), "timeout is 5"),
        (json!({"timeout": "99999999999999999999999s"}), "timeout is"),
        (json!({"failOpen": "yes"}), "failOpen is"),
        (json!({"clearRouteCache": 1}), "clearRouteCache is"),
        (json!({"statusOnError": "200"}), "statusOnError is"),
        (json!({"statusOnError": "600"}), "statusOnError is"),
        (
            json!({"includeRequestBodyInCheck": {}}),
            "maxRequestBytes is missing",
        ),
        (
            json!({"includeRequestBodyInCheck": {"maxRequestBytes": 0}}),
            "maxRequestBytes is 0",
        ),
        (
            json!({"includeRequestBodyInCheck": {"maxRequestBytes": 1_048_577}}),
            "maxRequestBytes is 1048577",
        ),
        (
            json!({"includeRequestBodyInCheck": {"maxRequestBytes": 1, "x": 1}}),
            "includeRequestBodyInCheck.x is not supported",
        ),
        (json!({"unknown": 1}), "unknown is not supported"),
        // Of the other kind.
        (json!({"pathPrefix": "/x"}), "pathPrefix is not supported"),
    ] {
        let message = grpc(&over).unwrap_err();
        let place = "extensionProviders[0].envoyExtAuthzGrpc.";
        assert!(message.starts_with(place), "{message}");
        assert!(message.contains(words), "{message}");
    }
    for (over, words) in [
        (json!({"pathPrefix": "x"}), "pathPrefix is"),
        (json!({"pathPrefix": "/a?b"}), "pathPrefix is"),
        (
            json!({"includeRequestHeadersInCheck": ["a b"]}),
            "includeRequestHeadersInCheck[0] is",
        ),
        (
            json!({"headersToUpstreamOnAllow": ["*"]}),
            "headersToUpstreamOnAllow[0] is",
        ),
        (
            json!({"headersToDownstreamOnDeny": "x"}),
            "headersToDownstreamOnDeny is no list",
        ),
        (
            json!({"includeAdditionalHeadersInCheck": {"x": "a\nsecret"}}),
            "includeAdditionalHeadersInCheck[\"x\"] is no header",
        ),
    ] {
        let message = http(&over).unwrap_err();
        assert!(message.contains(words), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn others_are_named_and_left_alone() {
    let config = json!({
        "accessLogFile": "/dev/stdout",
        "extensionProviders": [
            {"name": "zipkin", "zipkin": {"service": "x", "port": 9411}},
            {"name": "trace", "opentelemetry": {"service": "x", "port": 4317}},
            {"name": "good", "envoyExtAuthzGrpc": merged(&json!({}))},
            {"name": "twice", "envoyExtAuthzGrpc": merged(&json!({}))},
            {"name": "twice", "envoyExtAuthzGrpc": merged(&json!({}))},
            {"name": "both", "envoyExtAuthzGrpc": merged(&json!({})), "envoyExtAuthzHttp": merged(&json!({}))},
            {"envoyExtAuthzGrpc": merged(&json!({}))},
            7,
        ],
    });
    let (providers, findings) = ExtensionProviders::read(&config).unwrap();
    assert_eq!(providers.usable(), 2);
    let ignored = ["accessLogFile", "extensionProviders[0].zipkin"];
    assert_eq!(findings.ignored, ignored);
    assert_eq!(findings.faults.len(), 4, "{findings:?}");
    for (name, reason) in [
        ("zipkin", "ProviderNotSupported"),
        ("trace", "ProviderNotSupported"),
        ("twice", "ProviderInvalid"),
        ("both", "ProviderInvalid"),
        ("gone", "ProviderNotFound"),
    ] {
        assert_eq!(providers.get(name).unwrap_err().reason, reason, "{name}");
    }
    for bad in [json!([]), json!({"extensionProviders": {}}), json!("x")] {
        assert!(ExtensionProviders::read(&bad).is_err(), "{bad}");
    }
    for empty in [json!(null), json!({}), json!({"extensionProviders": null})] {
        let (providers, _) = ExtensionProviders::read(&empty).unwrap();
        assert_eq!(providers, ExtensionProviders::default());
    }
}

#[test]
fn a_name_that_means_two_things_means_none() {
    let grpc = json!({"name": "p", "envoyExtAuthzGrpc": merged(&json!({}))});
    let spans = json!({"name": "p", "opentelemetry": {"service": "x", "port": 4317}});
    for order in [[&grpc, &spans], [&spans, &grpc]] {
        let config = json!({ "extensionProviders": order });
        let (providers, findings) = ExtensionProviders::read(&config).unwrap();
        assert_eq!(providers.usable(), 0, "{config}");
        assert_eq!(findings.faults.len(), 1, "{findings:?}");
        assert_eq!(providers.get("p").unwrap_err().reason, "ProviderInvalid");
        let unusable = providers.collector("p").unwrap_err();
        assert_eq!(unusable.reason, "ProviderInvalid");
    }
}

#[test]
fn what_is_wrong_with_the_default_for_spans_is_told() {
    let spans = json!([{"name": "p", "opentelemetry": {"service": "x", "port": 4317}},
        {"name": "check", "envoyExtAuthzGrpc": merged(&json!({}))}]);
    let told = |default: Value| {
        let config = json!({"extensionProviders": spans, "defaultProviders": default});
        let (providers, findings) = ExtensionProviders::read(&config).unwrap();
        let default = providers.default_collector().map(str::to_owned);
        (default, findings.faults.join("; "), findings.ignored)
    };
    for fine in [
        json!(null),
        json!({}),
        json!({"tracing": null}),
        json!({"tracing": []}),
    ] {
        assert_eq!(told(fine), (None, String::new(), Vec::new()));
    }
    let named = || Some("p".to_owned());
    assert_eq!(
        told(json!({"tracing": ["p"]})),
        (named(), String::new(), Vec::new())
    );
    let (default, faults, ignored) = told(json!({"tracing": ["p", "q"], "metrics": []}));
    assert_eq!((default, faults), (named(), String::new()));
    assert!(ignored[1].contains("beyond the first"), "{ignored:?}");
    for (bad, word) in [
        (json!([]), "defaultProviders is no object"),
        (json!({"tracing": "p"}), "no list of names"),
        (json!({"tracing": [{"name": "p"}]}), "no list of names"),
        (json!({"tracing": ["gone"]}), "no extension provider"),
        (json!({"tracing": ["check"]}), "takes no spans"),
    ] {
        let (_, faults, _) = told(bad.clone());
        assert!(faults.contains(word), "{bad}: {faults}");
    }
}
