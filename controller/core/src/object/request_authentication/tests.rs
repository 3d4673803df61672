use karst_api::waypoint::{self as wire, token_rule::Keys};
use serde_json::{Value, json};

use super::RequestAuthentication;
use crate::object::{Body, Object, authorization::Target};

const KEYS: &str = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;

/// A RequestAuthentication, and the fields of what was found wrong.
fn read(spec: Value) -> (RequestAuthentication, Vec<String>) {
    let document = json!({"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "jwt", "namespace": "shop"}, "spec": spec});
    let object = Object::from_value(document).unwrap().unwrap();
    let fields = object.findings.iter().map(|finding| {
        assert!(!finding.problem.is_empty() && !finding.hint.is_empty());
        finding.field.clone()
    });
    let fields = fields.collect();
    let Body::RequestAuthentication(policy) = object.body else {
        panic!("another kind");
    };
    (*policy, fields)
}

fn targeting(rules: Value) -> Value {
    json!({"targetRefs": [{"kind": "Service", "name": "web"}], "jwtRules": rules})
}

/// A rule that is right, with other fields.
fn rule(over: Value) -> Value {
    let mut rule = json!({"issuer": "https://i", "jwks": KEYS});
    let (fields, over) = (rule.as_object_mut().unwrap(), over.as_object().unwrap());
    for (key, value) in over {
        fields.insert(key.clone(), value.clone());
    }
    rule
}

#[test]
fn everything_is_taken_over() {
    let (policy, findings) = read(targeting(json!([{
        "issuer": "https://i", "audiences": ["a", "b"], "jwksUri": "https://i/keys",
        "fromHeaders": [{"name": "X-Token", "prefix": "JWT "}, {"name": "x-other"}],
        "fromParams": ["t"], "fromCookies": ["c"], "outputPayloadToHeader": "X-Payload",
        "outputClaimToHeaders": [{"header": "X-Sub", "claim": "sub"}, {"header": "x-deep", "claim": "a.b"}],
        "forwardOriginalToken": true, "timeout": "2.5s", "spaceDelimitedClaims": ["roles"],
    }])));
    assert_eq!(findings, [""; 0]);
    assert_eq!(policy.targets, [Target::Service("web".to_owned())]);
    let header = |name: &str, prefix: &str| wire::TokenHeader {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
    };
    let claim = |header: &str, claim: &[&str]| wire::ClaimHeader {
        header: header.to_owned(),
        claim: claim.iter().map(|&name| name.to_owned()).collect(),
    };
    let expected = wire::TokenRule {
        index: 0,
        issuer: "https://i".to_owned(),
        audiences: vec!["a".to_owned(), "b".to_owned()],
        keys: Some(Keys::JwksUri("https://i/keys".to_owned())),
        headers: vec![header("x-token", "JWT "), header("x-other", "")],
        parameters: vec!["t".to_owned()],
        cookies: vec!["c".to_owned()],
        payload_header: "x-payload".to_owned(),
        claim_headers: vec![claim("x-sub", &["sub"]), claim("x-deep", &["a", "b"])],
        forward: true,
        timeout_ms: 2500,
        space_delimited_claims: vec!["roles".to_owned()],
    };
    assert_eq!(policy.rules, [expected]);
    assert!(!policy.unusable && policy.unsupported.is_none());
}

#[test]
fn a_rule_with_a_mistake_takes_no_token() {
    let check = |over: Value, field: &str| {
        let good = json!({"issuer": "https://good", "jwks": KEYS});
        let (policy, findings) = read(targeting(json!([rule(over.clone()), good])));
        let field = format!("spec.jwtRules[0]{field}");
        assert_eq!(findings, [field], "{over}");
        assert_eq!(policy.faults.len(), 1, "{over}");
        assert_eq!(policy.rules[0].keys, Some(Keys::Unusable(true)), "{over}");
        // The other one is what it was.
        assert_eq!(policy.rules[1].keys, Some(Keys::Jwks(KEYS.to_owned())));
        assert!(!policy.unusable, "{over}");
    };
    check(json!({"unheard": 1}), ".unheard");
    check(json!({"issuer": 5}), ".issuer");
    check(json!({"audiences": ["a", ""]}), ".audiences[1]");
    check(json!({"audiences": vec!["a"; 65]}), ".audiences");
    check(json!({"jwksUri": "https://i/keys"}), ".jwks");
    check(json!({"jwks": "{}"}), ".jwks");
    check(json!({"jwks": r#"{"keys":[]}"#}), ".jwks");
    check(json!({"jwks": "x".repeat(256 * 1024 + 1)}), ".jwks");
    let many = json!({"keys": vec![json!({"kty": "RSA"}); 65]}).to_string();
    check(json!({"jwks": many}), ".jwks");
    check(
        json!({"jwks": r#"{"keys":[{"kty":"oct","k":"AA"}]}"#}),
        ".jwks",
    );
    check(
        json!({"jwks": r#"{"keys":[{"kty":"EC","d":"AA"}]}"#}),
        ".jwks",
    );
    for uri in [
        "ftp://i/",
        "https://",
        "https://u:p@i/",
        "https://i/a b",
        "keys",
    ] {
        check(json!({"jwks": null, "jwksUri": uri}), ".jwksUri");
    }
    check(json!({"jwks": null}), "");
    check(
        json!({"fromHeaders": [{"name": "a b"}]}),
        ".fromHeaders[0].name",
    );
    check(
        json!({"fromHeaders": [{"name": "a", "prefix": 1}]}),
        ".fromHeaders[0].prefix",
    );
    check(json!({"fromHeaders": [{"prefix": "a"}]}), ".fromHeaders[0]");
    check(json!({"fromParams": "t"}), ".fromParams");
    check(json!({"fromCookies": ["a;b"]}), ".fromCookies[0]");
    check(
        json!({"outputPayloadToHeader": "Host"}),
        ".outputPayloadToHeader",
    );
    let claim = |header: &str| json!({"header": header, "claim": "sub"});
    let reserved = json!({"outputClaimToHeaders": [claim("x-forwarded-for")]});
    check(reserved, ".outputClaimToHeaders[0].header");
    let twice = json!({"outputClaimToHeaders": [claim("x-a"), claim("X-A")]});
    check(twice, ".outputClaimToHeaders");
    let payload = json!({"outputPayloadToHeader": "x-a", "outputClaimToHeaders": [claim("x-a")]});
    check(payload, ".outputClaimToHeaders");
    check(
        json!({"forwardOriginalToken": "true"}),
        ".forwardOriginalToken",
    );
    for timeout in ["5", "0s", "31s", "-1s", "1m", "s", "nans", "1e1s"] {
        check(json!({"timeout": timeout}), ".timeout");
    }
    check(
        json!({"spaceDelimitedClaims": [1]}),
        ".spaceDelimitedClaims[0]",
    );
}

#[test]
fn where_not_all_is_understood_no_token_is_taken() {
    let check = |spec: Value, field: &str| {
        let (policy, findings) = read(spec.clone());
        assert_eq!(findings, [field], "{spec}");
        assert!(policy.unusable, "{spec}");
    };
    check(targeting(json!({})), "spec.jwtRules");
    check(targeting(json!(vec![rule(json!({})); 33])), "spec.jwtRules");
    let mut unheard = targeting(json!([]));
    unheard["unheard"] = json!(1);
    check(unheard, "spec.unheard");
}

#[test]
fn only_what_has_targets_is_enforced() {
    let check = |spec: Value, says: &str| {
        let (policy, _) = read(spec);
        assert!(policy.unsupported.unwrap().contains(says));
        assert!(policy.faults.is_empty() && policy.targets.is_empty());
    };
    let rules = json!([rule(json!({}))]);
    let selector = json!({"matchLabels": {"app": "web"}});
    check(
        json!({"jwtRules": rules}),
        "names nothing in spec.targetRefs",
    );
    check(
        json!({"jwtRules": rules, "selector": selector}),
        "spec.selector chooses pods",
    );
    let mut both = targeting(rules);
    both["selector"] = selector;
    assert_eq!(read(both).0.faults.len(), 1);
}
