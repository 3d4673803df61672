//! Requests with tokens: what counts, what is refused and how, and what the application sees.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use karst_api::waypoint as wire;
use karst_api::waypoint::{Attribute, PolicyAction};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use super::support::{
    PATIENCE, Proxy, application, body_of, channel, echo, get, get2, listener, run, text,
};
use crate::authn::testing::{ISSUER, Issuer, claims, document, fetched, inline, jwks, raw, rule};
use crate::authz::testing::{has, policy, when};
use crate::body::Body;

const NAME: &str = "shop/jwt";
const ALLOW: PolicyAction = PolicyAction::ActionAllow;
const DENY: PolicyAction = PolicyAction::ActionDeny;

/// A proxy that checks tokens by these rules, and how many requests its application has had.
async fn checking(rules: Vec<wire::TokenRule>) -> (Proxy, Rc<Cell<u32>>) {
    let hits = Rc::new(Cell::new(0));
    let seen = Rc::clone(&hits);
    let proxy = Proxy::of(move |request| {
        seen.set(seen.get() + 1);
        echo(request)
    })
    .await;
    proxy.authentication(&document(NAME, rules));
    proxy.listen(&[]);
    (proxy, hits)
}

fn bearing(path: &str, token: &str) -> Request<Body> {
    let mut request = get(path);
    let value = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert("authorization", value);
    request
}

struct Answer {
    status: StatusCode,
    reason: String,
    challenge: Option<String>,
    body: String,
}

async fn ask(proxy: &Proxy, request: Request<Body>) -> Answer {
    let mut client = proxy.http1().await;
    let answer = client.send_request(request);
    let answer = timeout(PATIENCE, answer).await.expect("in time").unwrap();
    let header = |name: &str| {
        let value = answer.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let (reason, challenge) = (header("karst-reason"), header("www-authenticate"));
    Answer {
        status: answer.status(),
        reason: reason.unwrap_or_default(),
        challenge,
        body: body_of(answer).await,
    }
}

/// Status and reason of a request with a token.
async fn come(proxy: &Proxy, token: &str) -> (u16, String) {
    let answer = ask(proxy, bearing("/", token)).await;
    (answer.status.as_u16(), answer.reason)
}

fn is(status: u16, reason: &str) -> (u16, String) {
    (status, reason.to_owned())
}

fn ok() -> (u16, String) {
    is(200, "")
}

fn refused(reason: &str) -> (u16, String) {
    is(401, reason)
}

/// Changes a token's payload and leaves its signature.
fn forged(token: &str, claims: &Value) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let other = raw(&json!({}), claims, b"");
    let payload = other.split('.').nth(1).unwrap();
    [parts[0], payload, parts[2]].join(".")
}

#[test]
fn every_token_has_its_answer() {
    run(async {
        let (ec, rsa, stranger) = (Issuer::new("ec"), Issuer::rsa("rsa"), Issuer::new("ec"));
        let mut for_shop = inline(&[&ec, &rsa]);
        for_shop.audiences = vec!["shop".to_owned(), "store".to_owned()];
        let (proxy, hits) = checking(vec![for_shop]).await;
        let now = get_current_timestamp();
        let with = |over: Value| {
            let mut all = claims(json!({"aud": "shop"}));
            for (name, value) in over.as_object().unwrap() {
                all[name] = value.clone();
            }
            all
        };
        let token = |over: Value| ec.sign(&with(over));
        let header = |algorithm, kid: Option<&str>| {
            let mut header = Header::new(algorithm);
            header.kid = kid.map(str::to_owned);
            header
        };
        let good = token(json!({}));
        let secret = |bytes: &[u8], kid| {
            let header = header(Algorithm::HS256, Some(kid));
            jsonwebtoken::encode(&header, &with(json!({})), &EncodingKey::from_secret(bytes))
                .unwrap()
        };
        let mut without_audience = with(json!({}));
        without_audience.as_object_mut().unwrap().remove("aud");
        let mut without_end = with(json!({}));
        without_end.as_object_mut().unwrap().remove("exp");
        let mut without_issuer = with(json!({}));
        without_issuer.as_object_mut().unwrap().remove("iss");
        let (head, rest) = good.split_once('.').unwrap();
        let none = |name: &str| raw(&json!({"alg": name, "kid": "ec"}), &with(json!({})), b"");
        let cases: Vec<(&str, String, (u16, String))> = vec![
            ("good", good.clone(), ok()),
            ("good, RSA", rsa.sign(&with(json!({}))), ok()),
            (
                "without kid",
                ec.sign_with(&header(Algorithm::ES256, None), &with(json!({}))),
                ok(),
            ),
            ("without an end", ec.sign(&without_end), ok()),
            (
                "end is null",
                token(json!({"exp": null})),
                refused("jwt_malformed"),
            ),
            (
                "expired",
                token(json!({"exp": now - 120})),
                refused("jwt_expired"),
            ),
            ("expired just now", token(json!({"exp": now - 30})), ok()),
            (
                "too early",
                token(json!({"nbf": now + 120})),
                refused("jwt_not_yet_valid"),
            ),
            ("a little early", token(json!({"nbf": now + 30})), ok()),
            (
                "end is text",
                token(json!({"exp": "soon"})),
                refused("jwt_malformed"),
            ),
            (
                "for others",
                token(json!({"aud": "other"})),
                is(403, "jwt_wrong_audience"),
            ),
            (
                "for others, list",
                token(json!({"aud": ["a", "b"]})),
                is(403, "jwt_wrong_audience"),
            ),
            (
                "for nobody",
                ec.sign(&without_audience),
                is(403, "jwt_wrong_audience"),
            ),
            (
                "for several",
                token(json!({"aud": ["other", "store"]})),
                ok(),
            ),
            (
                "another issuer",
                token(json!({"iss": "https://other"})),
                refused("jwt_unknown_issuer"),
            ),
            (
                "issuer and more",
                token(json!({"iss": format!("{ISSUER}/")})),
                refused("jwt_unknown_issuer"),
            ),
            (
                "no issuer",
                ec.sign(&without_issuer),
                refused("jwt_unknown_issuer"),
            ),
            ("alg none", none("none"), refused("jwt_bad_algorithm")),
            ("alg NoNe", none("NoNe"), refused("jwt_bad_algorithm")),
            (
                "no alg",
                raw(&json!({"kid": "ec"}), &with(json!({})), b"x"),
                refused("jwt_bad_algorithm"),
            ),
            (
                "HMAC with the RSA key",
                secret(rsa.public(), "rsa"),
                refused("jwt_bad_algorithm"),
            ),
            (
                "HMAC with the RSA JWK",
                secret(rsa.jwk()["n"].to_string().as_bytes(), "rsa"),
                refused("jwt_bad_algorithm"),
            ),
            (
                "HMAC with the EC key",
                secret(ec.public(), "ec"),
                refused("jwt_bad_algorithm"),
            ),
            (
                "EC with an RSA key's name",
                ec.sign_with(&header(Algorithm::ES256, Some("rsa")), &with(json!({}))),
                refused("jwt_bad_algorithm"),
            ),
            (
                "unknown key",
                ec.sign_with(&header(Algorithm::ES256, Some("new")), &with(json!({}))),
                refused("jwt_unknown_key"),
            ),
            (
                "another's key of that name",
                stranger.sign(&with(json!({}))),
                refused("jwt_bad_signature"),
            ),
            (
                "other claims",
                forged(&good, &with(json!({"sub": "root"}))),
                refused("jwt_bad_signature"),
            ),
            (
                "no signature",
                format!("{}.", good.rsplit_once('.').unwrap().0),
                refused("jwt_bad_signature"),
            ),
            (
                "crit",
                raw(
                    &json!({"alg": "ES256", "kid": "ec", "crit": ["b64"]}),
                    &with(json!({})),
                    b"x",
                ),
                refused("jwt_malformed"),
            ),
            (
                "kid is a number",
                raw(&json!({"alg": "ES256", "kid": 1}), &with(json!({})), b"x"),
                refused("jwt_malformed"),
            ),
            ("long", token(json!({"filler": "x".repeat(4000)})), ok()),
            (
                "too long",
                token(json!({"filler": "x".repeat(8000)})),
                refused("jwt_too_large"),
            ),
            ("one part", "abc".to_owned(), refused("jwt_malformed")),
            ("two parts", rest.to_owned(), refused("jwt_malformed")),
            ("four parts", format!("{good}.x"), refused("jwt_malformed")),
            (
                "no base64",
                format!("!{head}.{rest}"),
                refused("jwt_malformed"),
            ),
            (
                "padding",
                format!("{head}=.{rest}"),
                refused("jwt_malformed"),
            ),
            (
                "no JSON",
                format!("{head}.AAAA.AAAA"),
                refused("jwt_malformed"),
            ),
            (
                "JSON of a list",
                raw(&json!([]), &json!([]), b"x"),
                refused("jwt_malformed"),
            ),
            (
                "deep",
                raw(&json!({"alg": "ES256"}), &nested(400), b"x"),
                refused("jwt_malformed"),
            ),
        ];
        for (what, token, expected) in cases {
            let before = hits.get();
            let answer = ask(&proxy, bearing("/", &token)).await;
            let (status, reason) = (answer.status.as_u16(), answer.reason);
            assert_eq!((status, reason.clone()), expected, "{what}");
            let challenge = "Bearer realm=\"shop\", error=\"invalid_token\"";
            let challenge = (status == 401).then(|| challenge.to_owned());
            assert_eq!(answer.challenge, challenge, "{what}");
            assert_eq!(hits.get() - before, u32::from(status == 200), "{what}");
            if status != 200 {
                assert!(
                    answer.body.contains(&format!("({reason})")),
                    "{what}: {}",
                    answer.body
                );
                assert!(proxy.refusals(&reason) > 0, "{what}");
                assert!(!answer.body.contains(&token), "{what}");
            }
        }
        // A good one is good again, from memory, and one without any passes.
        assert_eq!(come(&proxy, &good).await, ok());
        assert_eq!(ask(&proxy, get("/")).await.status, 200);
    });
}

fn nested(depth: usize) -> Value {
    let mut value = json!("x");
    for _ in 0..depth {
        value = json!([value]);
    }
    json!({"iss": ISSUER, "deep": value})
}

#[test]
fn every_kind_of_key_counts() {
    run(async {
        let issuers = [
            Issuer::of("p256", Algorithm::ES256, &rcgen::PKCS_ECDSA_P256_SHA256),
            Issuer::of("p384", Algorithm::ES384, &rcgen::PKCS_ECDSA_P384_SHA384),
            Issuer::of("ed", Algorithm::EdDSA, &rcgen::PKCS_ED25519),
            Issuer::rsa("rsa"),
        ];
        let all: Vec<&Issuer> = issuers.iter().collect();
        let (proxy, _) = checking(vec![inline(&all)]).await;
        for issuer in &issuers {
            assert_eq!(
                come(&proxy, &issuer.token("alice")).await,
                ok(),
                "{}",
                issuer.kid
            );
        }
        let rsa = &issuers[3];
        for algorithm in [
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ] {
            let mut header = rsa.header();
            header.alg = algorithm;
            let token = rsa.sign_with(&header, &claims(json!({})));
            assert_eq!(come(&proxy, &token).await, ok(), "{algorithm:?}");
        }
    });
}

#[test]
fn more_than_one_token_is_nobody() {
    run(async {
        let issuer = Issuer::new("a");
        let (proxy, hits) = checking(vec![inline(&[&issuer])]).await;
        let token = issuer.token("alice");
        let mut twice = bearing("/", &token);
        let second = format!("Bearer {}", issuer.token("bob")).parse().unwrap();
        twice.headers_mut().append("authorization", second);
        let same = bearing(&format!("/?access_token={token}"), &token);
        for request in [twice, same] {
            let answer = ask(&proxy, request).await;
            assert_eq!(
                (answer.status.as_u16(), &*answer.reason),
                (401, "jwt_several_tokens")
            );
        }
        assert_eq!(hits.get(), 0);
        assert_eq!(
            ask(&proxy, get(&format!("/?access_token={token}")))
                .await
                .status,
            200
        );
    });
}

#[test]
fn grpc_is_refused_as_grpc_does() {
    run(async {
        let issuer = Issuer::new("a");
        let mut rule = inline(&[&issuer]);
        rule.audiences = vec!["shop".to_owned()];
        let (proxy, _) = checking(vec![rule]).await;
        let mut client = proxy.http2().await;
        let expired = claims(json!({"aud": "shop", "exp": 1}));
        for (claims, code, reason) in [
            (expired, "16", "jwt_expired"),
            (claims(json!({"aud": "x"})), "7", "jwt_wrong_audience"),
        ] {
            let mut request = get2("/shop.Cart/Get");
            *request.method_mut() = http::Method::POST;
            let headers = request.headers_mut();
            headers.insert("content-type", "application/grpc".parse().unwrap());
            let token = format!("Bearer {}", issuer.sign(&claims)).parse().unwrap();
            headers.insert("authorization", token);
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["grpc-status"], code);
            let message = answer.headers()["grpc-message"].to_str().unwrap();
            assert!(message.contains(reason), "{message}");
            assert_eq!(body_of(answer).await, "");
        }
    });
}

fn claim(path: &str, values: &[&str]) -> wire::AttributeMatch {
    wire::AttributeMatch {
        key: path.to_owned(),
        ..has(Attribute::RequestClaim, values)
    }
}

#[test]
fn policies_see_what_a_token_says() {
    run(async {
        let issuer = Issuer::new("a");
        let (proxy, _) = checking(vec![inline(&[&issuer])]).await;
        let token = issuer.sign(&claims(json!({
            "aud": ["shop", "store"], "azp": "app", "groups": ["red", "blue"], "scope": "read write",
            "realm": {"roles": ["admin"]}, "level": 5,
        })));
        let principal = format!("{ISSUER}/alice");
        let holds = |attribute, values: &[&str]| (has(attribute, values), true);
        let fails = |attribute, values: &[&str]| (has(attribute, values), false);
        use Attribute::{RequestAudiences, RequestPresenter, RequestPrincipal};
        let cases = [
            holds(RequestPrincipal, &[&principal]),
            holds(RequestPrincipal, &["*"]),
            holds(RequestPrincipal, &["*/alice"]),
            holds(RequestPrincipal, &["!*/bob"]),
            fails(RequestPrincipal, &["*/bob"]),
            fails(RequestPrincipal, &["!*"]),
            holds(RequestAudiences, &["store"]),
            fails(RequestAudiences, &["other"]),
            fails(RequestAudiences, &["!shop"]),
            holds(RequestPresenter, &["app"]),
            fails(RequestPresenter, &["other"]),
            (claim("groups", &["blue"]), true),
            (claim("groups", &["green"]), false),
            (claim("groups", &["!blue"]), false),
            (claim("groups", &["!green"]), true),
            (claim("scope", &["write"]), true),
            (claim("scope", &["read write"]), false),
            (claim("realm][roles", &["admin"]), true),
            (claim("realm][roles", &["user"]), false),
            (claim("realm.roles", &["admin"]), false),
            (claim("level", &["5"]), false),
            (claim("gone", &["*"]), false),
            (claim("gone", &["!x"]), true),
        ];
        for (condition, expected) in cases {
            let rule = || vec![when(vec![condition.clone()])];
            proxy.policy(&policy("shop/p", ALLOW, rule()));
            proxy.listen(&[]);
            let (status, _) = come(&proxy, &token).await;
            assert_eq!(status == 200, expected, "allow {condition:?}");
            // Without a token there is nothing that could match, and nothing that is excluded.
            let nobody = ask(&proxy, get("/")).await.status;
            assert_eq!(
                nobody == 200,
                condition.values.is_empty(),
                "nobody {condition:?}"
            );
            proxy.policy(&policy("shop/p", DENY, rule()));
            proxy.listen(&[]);
            let (status, _) = come(&proxy, &token).await;
            assert_eq!(status == 403, expected, "deny {condition:?}");
        }
    });
}

#[test]
fn a_good_token_can_be_of_another_rule() {
    run(async {
        let (one, other) = (Issuer::new("a"), Issuer::new("a"));
        let mut second = inline(&[&other]);
        second.headers = vec![wire::TokenHeader {
            name: "x-jwt".to_owned(),
            prefix: String::new(),
        }];
        // Two rules for one issuer, with other keys and places.
        let (proxy, _) = checking(vec![inline(&[&one]), second]).await;
        assert_eq!(come(&proxy, &one.token("alice")).await, ok());
        assert_eq!(
            come(&proxy, &other.token("alice")).await,
            refused("jwt_bad_signature")
        );
        let mut request = get("/");
        let token = other.token("alice").parse().unwrap();
        request.headers_mut().insert("x-jwt", token);
        assert_eq!(ask(&proxy, request).await.status, 200);
    });
}

#[test]
fn headers_of_claims_cannot_be_forged() {
    run(async {
        let issuer = Issuer::new("a");
        let mut rule = inline(&[&issuer]);
        let header = |header: &str, claim: &[&str]| wire::ClaimHeader {
            header: header.to_owned(),
            claim: claim.iter().map(|&name| name.to_owned()).collect(),
        };
        rule.claim_headers = vec![
            header("x-user", &["sub"]),
            header("x-tier", &["plan", "tier"]),
            header("x-list", &["groups"]),
            header("x_role", &["role"]),
        ];
        rule.payload_header = "x-payload".to_owned();
        let (proxy, _) = checking(vec![rule]).await;
        let claims = claims(json!({"plan": {"tier": 3}, "groups": ["a"]}));
        let token = issuer.sign(&claims);
        let forge = |mut request: Request<Body>| {
            for name in [
                "x-user",
                "x_user",
                "x-tier",
                "x-list",
                "x-payload",
                "x-role",
            ] {
                let headers = request.headers_mut();
                headers.insert(name, "forged".parse().unwrap());
            }
            let nominated = "x-user, x-payload, close".parse().unwrap();
            request.headers_mut().insert("connection", nominated);
            request
        };
        let seen = ask(&proxy, forge(bearing("/", &token))).await.body;
        assert!(!seen.contains("forged"), "{seen}");
        for line in ["\nx-user: alice\n", "\nx-tier: 3\n"] {
            assert!(seen.contains(line), "{seen}");
        }
        assert!(!seen.contains("x-list"), "{seen}");
        let payload = token.split('.').nth(1).unwrap();
        assert!(
            seen.contains(&format!("\nx-payload: {payload}\n")),
            "{seen}"
        );
        assert!(
            !seen.contains("authorization") && !seen.contains(&token),
            "{seen}"
        );
        let seen = ask(&proxy, forge(get("/"))).await.body;
        assert!(
            !seen.contains("forged") && !seen.contains("x-user"),
            "{seen}"
        );
    });
}

#[test]
fn tokens_are_taken_out_unless_they_are_to_be_sent_on() {
    run(async {
        let issuer = Issuer::new("a");
        let token = issuer.token("alice");
        for forward in [false, true] {
            let mut rule = inline(&[&issuer]);
            rule.parameters = vec!["t".to_owned()];
            rule.cookies = vec!["session".to_owned()];
            rule.headers = vec![wire::TokenHeader {
                name: "x-jwt".to_owned(),
                prefix: "JWT ".to_owned(),
            }];
            rule.forward = forward;
            let (proxy, _) = checking(vec![rule]).await;
            let with = |name: &'static str, value: String| {
                let mut request = get("/");
                request.headers_mut().insert(name, value.parse().unwrap());
                request
            };
            for request in [
                get(&format!("/?a=b&t={token}&c=d")),
                with("cookie", format!("a=b; session={token}; c=d")),
                with("x-jwt", format!("JWT {token}")),
            ] {
                let seen = ask(&proxy, request).await;
                assert_eq!(seen.status, 200);
                assert_eq!(seen.body.contains(&token), forward, "{}", seen.body);
            }
            let seen = ask(&proxy, get(&format!("/?a=b&t={token}&c=d"))).await.body;
            assert_eq!(seen.contains("GET /?a=b&c=d\n"), !forward, "{seen}");
            // What is elsewhere is no token.
            let elsewhere = bearing("/", "none");
            assert_eq!(ask(&proxy, elsewhere).await.status, 200);
        }
    });
}

#[test]
fn what_is_not_known_refuses() {
    run(async {
        let issuer = Issuer::new("a");
        let (proxy, _) = checking(vec![inline(&[&issuer])]).await;
        let token = issuer.token("alice");
        // Not all of an object was understood: tokens are refused, and who has none has no principal.
        let mut unusable = document("shop/other", Vec::new());
        unusable.unusable = true;
        proxy.authentication(&unusable);
        proxy.listen(&[]);
        let not_ready = refused("authentication_not_ready");
        assert_eq!(come(&proxy, &token).await, not_ready);
        assert_eq!(ask(&proxy, get("/")).await.status, 200);
        // A rule was not understood: tokens of its issuer are refused, and others are not.
        let mut bad = rule(wire::token_rule::Keys::Unusable(true));
        bad.issuer = "https://bad".to_owned();
        proxy.authentication(&document("shop/other", vec![bad]));
        assert_eq!(come(&proxy, &token).await, ok());
        let of_bad = issuer.sign(&claims(json!({"iss": "https://bad"})));
        assert_eq!(come(&proxy, &of_bad).await, not_ready);
        // An object that never came: nobody knows what it is about.
        let absent = Proxy::of(echo).await;
        absent.authentications.borrow_mut().push(NAME.to_owned());
        absent.listen(&[]);
        // The frontend without it stays in force while it is waited for; a new one has none before it.
        assert_eq!(ask(&absent, get("/")).await.status, 200);
        let fresh = Proxy::new();
        fresh.authentications.borrow_mut().push(NAME.to_owned());
        fresh.service(&[application(echo).await]);
        let answer = ask(&fresh, get("/")).await;
        assert_eq!((answer.status.as_u16(), answer.reason), not_ready);
        fresh.authentication(&document(NAME, vec![inline(&[&issuer])]));
        assert_eq!(ask(&fresh, get("/")).await.status, 200);
        assert_eq!(come(&fresh, &token).await, ok());
    });
}

/// Where keys are got from, and how often that was asked.
async fn keys_at<F, R>(answer: F) -> (String, Rc<Cell<u32>>)
where
    F: Fn() -> R + 'static,
    R: Future<Output = Response<Body>> + 'static,
{
    let asked = Rc::new(Cell::new(0));
    let count = Rc::clone(&asked);
    let address = application(move |_: Request<Incoming>| {
        count.set(count.get() + 1);
        answer()
    })
    .await;
    (uri(address), asked)
}

fn uri(address: SocketAddr) -> String {
    format!("http://{address}/keys?x=1")
}

async fn status(status: u16) -> Response<Body> {
    let mut answer = text("moved").await;
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    let elsewhere = "http://127.0.0.1:1/keys".parse().unwrap();
    answer.headers_mut().insert("location", elsewhere);
    answer
}

#[test]
fn keys_that_cannot_be_got_refuse_tokens() {
    run(async {
        let issuer = Issuer::new("a");
        let set = jwks(&[&issuer]);
        let served = |body: String| keys_at(move || text(body.clone()));
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let down = gone.local_addr().unwrap();
        drop(gone);
        let silent = listener(|stream| async move {
            sleep(PATIENCE).await;
            drop(stream);
        });
        let large = format!("{}{}", " ".repeat(300 * 1024), set);
        let symmetric = json!({"keys": [{"kty": "oct", "k": "AAAA", "kid": "a"}]}).to_string();
        let for_encryption = {
            let mut key = issuer.jwk();
            key["use"] = json!("enc");
            json!({ "keys": [key] }).to_string()
        };
        let cases = [
            ("down", uri(down), "connect_failed"),
            ("slow", uri(silent.await), "timeout"),
            ("redirect", keys_at(|| status(302)).await.0, "redirect"),
            ("error", keys_at(|| status(500)).await.0, "status"),
            ("large", served(large).await.0, "too_large"),
            ("garbage", served("<html>".to_owned()).await.0, "invalid"),
            ("symmetric", served(symmetric).await.0, "invalid"),
            ("encryption", served(for_encryption).await.0, "invalid"),
            (
                "link-local",
                "http://169.254.169.254/keys".to_owned(),
                "address_not_allowed",
            ),
        ];
        // These proxies have no authorities, so that no server can prove itself to them.
        let https = served(set.clone()).await.0.replace("http:", "https:");
        let cases = cases
            .into_iter()
            .chain([("HTTPS", https, "no_authorities")]);
        for (what, uri, result) in cases {
            let mut rule = fetched(uri);
            rule.timeout_ms = 300;
            let (proxy, hits) = checking(vec![rule]).await;
            let since = Instant::now();
            assert_eq!(
                come(&proxy, &issuer.token("alice")).await,
                refused("jwks_unavailable"),
                "{what}"
            );
            assert!(since.elapsed() < Duration::from_secs(5), "{what}");
            assert_eq!(
                ask(&proxy, get("/")).await.status,
                200,
                "{what}: without a token"
            );
            assert_eq!(hits.get(), 1, "{what}");
            super::support::eventually(|| proxy.fetches().iter().any(|(name, _)| *name == result))
                .await;
            assert!(
                !proxy.fetches().iter().any(|(name, _)| *name == "ok"),
                "{what}"
            );
        }
        let (uri, _) = served(set).await;
        let (proxy, _) = checking(vec![fetched(uri)]).await;
        assert_eq!(come(&proxy, &issuer.token("alice")).await, ok());
        assert_eq!(proxy.fetches(), [("ok", 1)]);
    });
}

#[test]
fn one_fetch_is_for_all_who_wait() {
    run(async {
        let issuer = Issuer::new("a");
        let set = jwks(&[&issuer]);
        let (uri, asked) = keys_at(move || {
            let set = set.clone();
            async move {
                sleep(Duration::from_millis(200)).await;
                text(set).await
            }
        })
        .await;
        let (proxy, hits) = checking(vec![fetched(uri)]).await;
        let token = issuer.token("alice");
        let all = (0..20).map(|_| come(&proxy, &token));
        for answer in futures_util::future::join_all(all).await {
            assert_eq!(answer, ok());
        }
        assert_eq!((asked.get(), hits.get()), (1, 20));
    });
}

#[test]
fn keys_change_and_the_last_good_ones_stay() {
    run(async {
        let (old, new) = (Issuer::new("old"), Issuer::new("new"));
        let served = Rc::new(RefCell::new(Some(jwks(&[&old]))));
        let answer = Rc::clone(&served);
        let (uri, asked) = keys_at(move || {
            let set = answer.borrow().clone();
            async move {
                match set {
                    Some(set) => text(set).await,
                    None => status(503).await,
                }
            }
        })
        .await;
        let (proxy, _) = checking(vec![fetched(uri)]).await;
        assert_eq!(come(&proxy, &old.token("alice")).await, ok());
        assert_eq!(
            come(&proxy, &new.token("alice")).await,
            refused("jwt_unknown_key")
        );
        // The issuer begins to use another key: the first token that names it has it fetched.
        *served.borrow_mut() = Some(jwks(&[&old, &new]));
        sleep(Duration::from_millis(60)).await;
        assert_eq!(come(&proxy, &new.token("alice")).await, ok());
        assert_eq!(come(&proxy, &old.token("alice")).await, ok());
        // It is not to be reached: what was got last stays.
        *served.borrow_mut() = None;
        sleep(Duration::from_millis(60)).await;
        let third = Issuer::new("third");
        assert_eq!(
            come(&proxy, &third.token("alice")).await,
            refused("jwt_unknown_key")
        );
        assert!(
            proxy
                .fetches()
                .iter()
                .any(|(result, _)| *result == "status")
        );
        assert_eq!(come(&proxy, &new.token("alice")).await, ok());
        // It uses the old one no more.
        *served.borrow_mut() = Some(jwks(&[&new]));
        let removed = async {
            while come(&proxy, &old.token("alice")).await != refused("jwt_unknown_key") {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, removed).await.expect("the old key goes");
        assert_eq!(come(&proxy, &new.token("alice")).await, ok());
        assert!(asked.get() >= 4);
    });
}

#[test]
fn a_response_goes_on_for_whom_it_was_begun() {
    run(async {
        let issuer = Issuer::new("a");
        let (sender, body) = channel();
        let body = RefCell::new(Some(body));
        let proxy = Proxy::of(move |_: Request<Incoming>| {
            let body = body.borrow_mut().take().unwrap();
            async move { Response::new(body) }
        })
        .await;
        let only = |subject: &str| {
            let principal = has(Attribute::RequestPrincipal, &[&format!("*/{subject}")]);
            policy("shop/p", ALLOW, vec![when(vec![principal])])
        };
        proxy.authentication(&document(NAME, vec![inline(&[&issuer])]));
        proxy.policy(&only("alice"));
        proxy.listen(&[]);
        let mut client = proxy.http2().await;
        let mut request = get2("/events");
        let token = format!("Bearer {}", issuer.token("alice")).parse().unwrap();
        request.headers_mut().insert("authorization", token);
        let mut answer = client.send_request(request).await.unwrap();
        use http_body_util::BodyExt as _;
        for part in ["one", "two"] {
            sender.data(part);
            let frame = timeout(PATIENCE, answer.frame()).await.expect("goes on");
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), part);
            // Each change asks again.
            proxy.policy(&policy(
                "shop/q",
                DENY,
                vec![when(vec![has(Attribute::Path, &["/other"])])],
            ));
            proxy.listen(&[]);
            sleep(Duration::from_millis(250)).await;
        }
        proxy.policy(&only("bob"));
        let end = timeout(PATIENCE, answer.frame()).await.expect("cut");
        assert!(end.unwrap().is_err());
    });
}
