//! Requests with tokens.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Parser;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::tests::{object, without_policies};
use super::{Explanation, explain, words};
use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::source::Input;

const ISSUER: &str = "https://issuer.example";

/// Somebody who signs tokens.
struct Issuer(KeyPair);

impl Issuer {
    fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
        Self(key.expect("key"))
    }

    fn jwks(&self, kid: &str) -> String {
        // An uncompressed point: a byte that says so, and two coordinates.
        let (x, y) = self.0.der_bytes()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid}]}).to_string()
    }

    /// A token that ends in so many seconds.
    fn token(&self, subject: &str, seconds: i64) -> String {
        let end = i64::try_from(get_current_timestamp()).expect("time") + seconds;
        let claims = json!({"iss": ISSUER, "sub": subject, "exp": end});
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("k".to_owned());
        let key = EncodingKey::from_ec_der(&self.0.serialize_der());
        jsonwebtoken::encode(&header, &claims, &key).expect("signs")
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("file");
    writeln!(file, "{text}").expect("writes");
    file
}

/// The shop, whose Service `web` takes tokens of the issuer and lets alice in.
fn guarded(keys: (&str, &str)) -> Input {
    let mut input = without_policies();
    let target = json!([{"kind": "Service", "name": "web"}]);
    let mut rule = json!({"issuer": ISSUER});
    rule[keys.0] = json!(keys.1);
    let tokens = json!({"targetRefs": target, "jwtRules": [rule]});
    let tokens = object("RequestAuthentication", "shop", "tokens", tokens);
    let alice = format!("{ISSUER}/alice");
    let rules = json!([{"from": [{"source": {"requestPrincipals": [alice]}}]}]);
    let policy = json!({"targetRefs": target, "action": "ALLOW", "rules": rules});
    let policy = object("AuthorizationPolicy", "shop", "alice", policy);
    input.documents.extend([tokens, policy]);
    input
}

fn ask(input: &Input, jwt: Option<&str>, jwks: Option<&str>) -> Result<Explanation, Failure> {
    let (jwt, jwks) = (jwt.map(file), jwks.map(file));
    let mut args: Vec<String> = ["karst", "explain", "shop/cart", "svc/web.shop:80"]
        .map(str::to_owned)
        .to_vec();
    for (option, file) in [("--jwt", &jwt), ("--jwks", &jwks)] {
        let path = file.as_ref().map(|file| file.path().display().to_string());
        args.extend(
            path.map(|path| [option.to_owned(), path])
                .into_iter()
                .flatten(),
        );
    }
    match Cli::try_parse_from(args).expect("parses").command {
        Command::Explain(args) => explain(&args, input),
        other => panic!("not explain: {other:?}"),
    }
}

/// Whether the waypoint lets it in, why not, and the principal that it sees.
fn at_the_waypoint(told: &Explanation) -> (bool, Option<&'static str>, Option<&str>) {
    let hop = told.hops.iter().find(|hop| hop.by == "waypoint");
    let hop = hop.expect("a waypoint");
    (hop.allowed, hop.reason, hop.request_principal.as_deref())
}

#[test]
fn a_token_counts_as_at_the_waypoint() {
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let input = guarded(("jwks", &issuer.jwks("k")));
    let alice = format!("{ISSUER}/alice");
    let bob = format!("{ISSUER}/bob");
    for (token, expected) in [
        (None, (false, Some("policy_denied"), None)),
        (
            Some(issuer.token("alice", 600)),
            (true, None, Some(alice.as_str())),
        ),
        (
            Some(issuer.token("bob", 600)),
            (false, Some("policy_denied"), Some(bob.as_str())),
        ),
        (
            Some(issuer.token("alice", -600)),
            (false, Some("jwt_expired"), None),
        ),
        (
            Some(other.token("alice", 600)),
            (false, Some("jwt_bad_signature"), None),
        ),
        (
            Some("no token".to_owned()),
            (false, Some("jwt_malformed"), None),
        ),
    ] {
        let told = ask(&input, token.as_deref(), None).expect("explains");
        assert_eq!(at_the_waypoint(&told), expected, "{token:?}");
        assert_eq!(told.allowed, expected.0);
        let json = serde_json::to_string(&told).expect("JSON");
        let said = words::text(&told);
        if let Some(token) = token.filter(|token| token.len() > 20) {
            assert!(!said.contains(&token) && !json.contains(&token), "{said}");
        }
    }
}

#[test]
fn keys_that_are_fetched_must_be_given() {
    let issuer = Issuer::new();
    let uri = "http://keys.shop.svc.cluster.local/jwks";
    let input = guarded(("jwksUri", uri));
    let token = issuer.token("alice", 600);
    let unknown = ask(&input, Some(&token), None).expect_err("no keys");
    assert_eq!(unknown.reason, "keys_unknown");
    assert!(unknown.message.contains("--jwks"), "{}", unknown.message);
    let told = ask(&input, Some(&token), Some(&issuer.jwks("k"))).expect("explains");
    assert!(told.allowed, "{told:#?}");
    let told = ask(&input, Some(&token), Some(&issuer.jwks("another"))).expect("explains");
    assert_eq!(
        at_the_waypoint(&told),
        (false, Some("jwt_unknown_key"), None)
    );
    let wrong = ask(&input, Some(&token), Some("{}")).expect_err("no key set");
    assert_eq!(wrong.reason, "jwks");
    // Without a token nobody asks for keys.
    let told = ask(&input, None, None).expect("explains");
    assert_eq!(at_the_waypoint(&told).1, Some("policy_denied"));
}

#[test]
fn without_a_rule_for_it_a_token_is_not_looked_at() {
    let input = without_policies();
    let token = Issuer::new().token("alice", -600);
    let told = ask(&input, Some(&token), None).expect("explains");
    assert_eq!(at_the_waypoint(&told), (true, None, None));
    let notes = &told.hops[0].notes;
    let said = notes.iter().any(|note| note.contains("not looked at"));
    assert!(said, "{notes:?}");
}

/// What a condition that does not hold is said to have found.
#[test]
fn an_unmet_condition_says_whose_token_it_is() {
    let issuer = Issuer::new();
    let input = guarded(("jwks", &issuer.jwks("k")));
    let unmet = |token: Option<&str>| -> Value {
        let told = ask(&input, token, None).expect("explains");
        let value = serde_json::to_value(&told).expect("JSON");
        value["hops"][0]["policies"][0]["rules"][0]["unmet"][0].clone()
    };
    let none = unmet(None).to_string();
    assert!(none.contains("no validated token"), "{none}");
    let bob = unmet(Some(&issuer.token("bob", 600))).to_string();
    assert!(bob.contains("https://issuer.example/bob"), "{bob}");
}
