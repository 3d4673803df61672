//! Takes secrets out of what goes into a report.
//!
//! Karst's programs write none, but what users configure may hold some (a header that a route sets, a variable of a
//! container), and logs of others may quote them. Too much is taken out rather than too little.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

/// What stands where a secret was.
const REDACTED: &str = "[redacted]";

/// Words in a name by which its value is a secret.
const SECRET_NAMES: [&str; 11] = [
    "authorization",
    "cookie",
    "credential",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "privatekey",
    "signature",
];

/// Ends of names that have such a word and only refer to a secret, or count some.
const REFERENCES: [&str; 9] = [
    "name",
    "names",
    "ref",
    "refs",
    "path",
    "seconds",
    "total",
    "type",
    "namespace",
];

/// Members of a JSON Web Key that are secret (RFC 7518, section 6).
const JWK_SECRETS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "k", "oth"];

/// Each takes its group `keep` over, and replaces the rest.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // Keys as PEM, also on one line with `\n` written out.
        r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
        // Tokens in the compact form of JWS and JWE.
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]*",
        // Credentials of HTTP.
        r"(?i)(?P<keep>\b(?:bearer|basic|negotiate|digest)\s+)[A-Za-z0-9+/_.~=-]{8,}",
        // User and password in a URL.
        r"(?P<keep>[a-z][a-z0-9+.-]*://)[^/\s:@?#]+:[^/\s@?#]+@",
        // Queries of URLs.
        r#"(?P<keep>/[^\s"'?]*\?)[^\s"']+"#,
        // What is said to be a secret, as in `password=x` or `"token":"x"`.
        r#"(?i)(?P<keep>\b[a-z0-9_-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key)\\?["']?\s*[=:]\s*\\?["']?)[^\s"',;&\\]+"#,
    ]
    .iter()
    // Each is tried by a test.
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

/// `text` without secrets.
pub fn text(text: &str) -> String {
    PATTERNS.iter().fold(text.to_owned(), |text, pattern| {
        pattern
            .replace_all(&text, |found: &Captures<'_>| {
                let keep = found.name("keep").map_or("", |keep| keep.as_str());
                format!("{keep}{REDACTED}")
            })
            .into_owned()
    })
}

/// Takes the secrets out of a document.
pub fn json(value: &mut Value) {
    match value {
        Value::String(string) => *string = inner(string),
        Value::Array(items) => items.iter_mut().for_each(json),
        Value::Object(fields) => {
            // A header or variable: what is in `value` is named by `name`.
            let named = fields.get("name").and_then(Value::as_str);
            if named.is_some_and(is_secret) && fields.contains_key("value") {
                fields.insert("value".to_owned(), REDACTED.into());
            }
            let is_jwk = fields.get("kty").is_some_and(Value::is_string);
            for (name, value) in fields.iter_mut() {
                let whole = is_secret(name) && !value.is_object() && !value.is_boolean();
                if whole || (is_jwk && JWK_SECRETS.contains(&name.as_str())) {
                    *value = REDACTED.into();
                } else {
                    json(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text may be a JSON document itself, as key sets and former configurations are.
fn inner(string: &str) -> String {
    let looks = string.trim_start().starts_with(['{', '[']);
    if looks && let Ok(mut document) = serde_json::from_str::<Value>(string) {
        json(&mut document);
        return document.to_string();
    }
    text(string)
}

fn is_secret(name: &str) -> bool {
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let says = SECRET_NAMES.iter().any(|word| plain.contains(word));
    says && !REFERENCES.iter().any(|end| plain.ends_with(end))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{PATTERNS, json, text};

    #[test]
    fn every_pattern_is_one() {
        assert_eq!(PATTERNS.len(), 6);
    }

    #[test]
    fn secrets_in_text_are_taken_out() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
        let key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----";
        let cases = [
            (format!("got {token} from x"), "got [redacted] from x"),
            (format!("a\n{key}\nb"), "a\n[redacted]\nb"),
            (
                "-----BEGIN PRIVATE KEY-----\\nMIIB\\n-----END PRIVATE KEY-----".to_owned(),
                "[redacted]",
            ),
            // Cut off in the middle of a log line.
            (
                "x -----BEGIN PRIVATE KEY-----\nMIIB".to_owned(),
                "x [redacted]",
            ),
            (
                "authorization: Bearer abcdefgh1234".to_owned(),
                "authorization: Bearer [redacted]",
            ),
            (
                "dial https://user:hunter2@host/x".to_owned(),
                "dial https://[redacted]host/x",
            ),
            (
                "path=/login?user=a&code=b status=200".to_owned(),
                "path=/login?[redacted] status=200",
            ),
            (
                "DB_PASSWORD=hunter2 x".to_owned(),
                "DB_PASSWORD=[redacted] x",
            ),
            (
                r#"{"api_key":"hunter2","a":1}"#.to_owned(),
                r#"{"api_key":"[redacted]","a":1}"#,
            ),
        ];
        for (from, to) in cases {
            assert_eq!(text(&from), to);
        }
    }

    #[test]
    fn what_helps_stays() {
        for line in [
            "1970-01-01T00:00:00.000Z error access connection complete src.addr=10.0.0.1:5 reason=policy_denied \
             policy.name=shop/readers src.identity=spiffe://cluster.local/ns/shop/sa/cart",
            "controller_token_unreadable: file /var/run/secrets/karst/token",
            "https://karst-controller.karst-system.svc:15012",
            "karst_refusals_total{reason=\"jwt_expired\"} 3",
        ] {
            assert_eq!(text(line), line);
        }
    }

    #[test]
    fn secrets_in_documents_are_taken_out() {
        let mut document = json!({
            "filters": [{"set": [{"name": "Authorization", "value": "x"}, {"name": "x-env", "value": "prod"}]}],
            "env": [{"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "MODE", "value": "fast"}],
            "clientSecret": "hunter2",
            "tokens": ["a", "b"],
            "secretName": "tls",
            "secretRef": {"name": "tls"},
            "automountServiceAccountToken": false,
            "jwks": r#"{"keys":[{"kty":"RSA","n":"public","e":"AQAB","d":"private"}]}"#,
            "note": "Bearer abcdefgh1234",
            "port": 80,
        });
        json(&mut document);
        assert_eq!(
            document,
            json!({
                "filters": [{"set": [{"name": "Authorization", "value": "[redacted]"}, {"name": "x-env", "value": "prod"}]}],
                "env": [{"name": "DB_PASSWORD", "value": "[redacted]"}, {"name": "MODE", "value": "fast"}],
                "clientSecret": "[redacted]",
                "tokens": "[redacted]",
                "secretName": "tls",
                "secretRef": {"name": "tls"},
                "automountServiceAccountToken": false,
                "jwks": r#"{"keys":[{"d":"[redacted]","e":"AQAB","kty":"RSA","n":"public"}]}"#,
                "note": "Bearer [redacted]",
                "port": 80,
            })
        );
    }
}
