//! End users' tokens at a waypoint: who has a good one comes through, and what the application sees of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use karst_harness::until;
use karst_lab_tests::shop::Shop;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.example";

/// Somebody who signs tokens.
struct Issuer(KeyPair);

impl Issuer {
    fn new() -> Result<Self> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    fn jwks(&self) -> String {
        let url = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (x, y) = self.0.der_bytes()[1..].split_at(32);
        let key = json!({"kty": "EC", "crv": "P-256", "kid": "k", "x": url(x), "y": url(y)});
        json!({ "keys": [key] }).to_string()
    }

    /// The header with a token that ends so many seconds from now.
    fn bearer(&self, subject: &str, audience: &str, seconds: i64) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("k".to_owned());
        let end = i64::try_from(get_current_timestamp())? + seconds;
        let claims = json!({"iss": ISSUER, "sub": subject, "aud": audience, "exp": end,
            "realm": {"roles": ["buyer"]}});
        let key = EncodingKey::from_ec_der(&self.0.serialize_der());
        let token = jsonwebtoken::encode(&header, &claims, &key)?;
        Ok(format!("authorization: Bearer {token}"))
    }
}

fn manifests(jwks: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: members, namespace: shop}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: jwt, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: members}}]
  jwtRules:
  - issuer: {ISSUER}
    audiences: [shop]
    jwks: '{jwks}'
    outputClaimToHeaders: [{{header: x-user, claim: sub}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: members, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: members}}]
  action: ALLOW
  rules:
  - from: [{{source: {{requestPrincipals: ['{ISSUER}/alice']}}}}]
    when: [{{key: 'request.auth.claims[realm][roles]', values: [buyer]}}]
"
    )
}

#[test]
fn who_has_a_good_token_comes_through_the_waypoint() -> Result<()> {
    let shop = Shop::open("jwt")?;
    let (issuer, stranger) = (Issuer::new()?, Issuer::new()?);
    shop.world.lab.apply(&manifests(&issuer.jwks()))?;
    let ask = |headers: &[&str]| {
        let more: Vec<&str> = headers
            .iter()
            .flat_map(|header| ["--header", *header])
            .collect();
        shop.ask("members:80", &more)
    };
    let alice = issuer.bearer("alice", "shop", 600)?;
    let forged = "x-user: root";
    until("the token to count", Duration::from_secs(20), || {
        let answer = ask(&[&alice, forged])?;
        ensure!(answer["status"] == 200, "{answer}");
        let headers = &answer["page"]["headers"];
        ensure!(headers["x-user"] == "alice", "{answer}");
        ensure!(headers["authorization"].is_null(), "{answer}");
        Ok(())
    })?;
    let check = |headers: &[&str], status: u16, reason: &str| -> Result<()> {
        let answer = ask(headers)?;
        let found: &Value = answer
            .pointer("/headers/karst-reason")
            .context("no reason")?;
        ensure!(answer["status"] == status && found == reason, "{answer}");
        Ok(())
    };
    check(&[], 403, "policy_denied")?;
    check(&[&issuer.bearer("bob", "shop", 600)?], 403, "policy_denied")?;
    check(
        &[&issuer.bearer("alice", "other", 600)?],
        403,
        "jwt_wrong_audience",
    )?;
    check(
        &[&issuer.bearer("alice", "shop", -600)?],
        401,
        "jwt_expired",
    )?;
    check(
        &[&stranger.bearer("alice", "shop", 600)?],
        401,
        "jwt_bad_signature",
    )?;
    check(&["authorization: Bearer nonsense"], 401, "jwt_malformed")?;
    check(&[&alice, &alice], 401, "jwt_several_tokens")?;
    Ok(())
}
