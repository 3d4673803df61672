//! Tokens, from the wire to what a client sees: keys are fetched by the control side, and used by the workers.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use karst_api::waypoint::token_rule::Keys;
use karst_api::waypoint::{
    Listener, Protocol, RequestAuthentication, TokenRule, listener::Frontend,
};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use crate::support::{World, application, mirror, run, until};
use crate::wires;

const SERVICE: &str = "10.96.0.1:80";
const ISSUER: &str = "https://issuer.example";

/// A key, and what the issuer publishes of it.
fn issuer() -> (KeyPair, String) {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let url = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (x, y) = pair.der_bytes()[1..].split_at(32);
    let key = json!({"kty": "EC", "crv": "P-256", "kid": "k", "x": url(x), "y": url(y)});
    let set = json!({"keys": [key]}).to_string();
    (pair, set)
}

fn token(pair: &KeyPair, expires_in: i64) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("k".to_owned());
    let end = i64::try_from(get_current_timestamp()).unwrap() + expires_in;
    let claims = json!({"iss": ISSUER, "sub": "alice", "exp": end});
    let key = EncodingKey::from_ec_der(&pair.serialize_der());
    jsonwebtoken::encode(&header, &claims, &key).unwrap()
}

/// An endpoint that answers with a key set, or with whatever else.
async fn keys_at(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Rc::new(answer);
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Rc::clone(&answer);
            spawn_local(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    format!("http://{address}/keys")
}

fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn authenticated(mut listener: Listener) -> Listener {
    if let Some(Frontend::Service(service)) = &mut listener.frontend {
        service.authentications = vec!["test/jwt".to_owned()];
    }
    listener
}

async fn world(uri: String) -> World {
    let mut world = World::new().await;
    world.backend(&wires::backend("echo", &[application(mirror).await]));
    world.authentication(&RequestAuthentication {
        name: "test/jwt".to_owned(),
        rules: vec![TokenRule {
            issuer: ISSUER.to_owned(),
            keys: Some(Keys::JwksUri(uri)),
            timeout_ms: 2000,
            ..TokenRule::default()
        }],
        unusable: false,
    });
    let service = wires::service(Protocol::Http1, "echo", Vec::new());
    world.listener(&authenticated(service));
    world
}

async fn ask(world: &World, token: Option<&str>) -> String {
    let mut io = world.open(SERVICE).await.unwrap();
    let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let head = format!(
        "GET / HTTP/1.1\r\nhost: echo\r\n{}connection: close\r\n\r\n",
        authorization.unwrap_or_default()
    );
    io.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn tokens_count_by_keys_that_are_fetched() {
    run(async {
        let (pair, set) = issuer();
        let world = world(keys_at(ok(&set)).await).await;
        let good = token(&pair, 600);
        let answer = ask(&world, Some(&good)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(!answer.contains(&good), "{answer}");
        assert!(ask(&world, None).await.starts_with("HTTP/1.1 200"));
        let answer = ask(&world, Some(&token(&pair, -600))).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(answer.ends_with("Jwt is expired (jwt_expired)"), "{answer}");
        let (stranger, _) = issuer();
        let answer = ask(&world, Some(&token(&stranger, 600))).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(
            answer.contains("karst-reason: jwt_bad_signature\r\n"),
            "{answer}"
        );
        until("counted", async || world.refused("jwt_expired") == 1).await;
    });
}

#[test]
fn keys_from_elsewhere_do_not_count() {
    run(async {
        let (pair, set) = issuer();
        let elsewhere = keys_at(ok(&set)).await;
        let moved =
            format!("HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n");
        let world = world(keys_at(moved).await).await;
        let answer = ask(&world, Some(&token(&pair, 600))).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(
            answer.contains("karst-reason: jwks_unavailable\r\n"),
            "{answer}"
        );
        assert!(ask(&world, None).await.starts_with("HTTP/1.1 200"));
    });
}
