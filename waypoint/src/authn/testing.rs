//! Issuers of tokens for tests: keys are made when they are asked for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use karst_api::waypoint as wire;
use rcgen::{KeyPair, PublicKeyData as _, SignatureAlgorithm};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://issuer.example";

/// Somebody who signs tokens with one key.
pub(crate) struct Issuer {
    pub(crate) kid: &'static str,
    algorithm: Algorithm,
    pair: KeyPair,
}

fn url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    pub(crate) fn new(kid: &'static str) -> Self {
        Self::of(kid, Algorithm::ES256, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn rsa(kid: &'static str) -> Self {
        Self::of(kid, Algorithm::RS256, &rcgen::PKCS_RSA_SHA256)
    }

    pub(crate) fn of(
        kid: &'static str,
        algorithm: Algorithm,
        kind: &'static SignatureAlgorithm,
    ) -> Self {
        let pair = KeyPair::generate_for(kind).unwrap();
        Self {
            kid,
            algorithm,
            pair,
        }
    }

    /// The public key as it stands in a certificate.
    pub(crate) fn public(&self) -> &[u8] {
        self.pair.der_bytes()
    }

    /// The public key.
    pub(crate) fn jwk(&self) -> Value {
        let raw = self.pair.der_bytes();
        let mut key = match self.algorithm {
            Algorithm::ES256 | Algorithm::ES384 => {
                let (x, y) = raw[1..].split_at((raw.len() - 1) / 2);
                let curve = if self.algorithm == Algorithm::ES256 {
                    "P-256"
                } else {
                    "P-384"
                };
                json!({"kty": "EC", "crv": curve, "x": url(x), "y": url(y)})
            }
            Algorithm::EdDSA => json!({"kty": "OKP", "crv": "Ed25519", "x": url(raw)}),
            _ => {
                // SEQUENCE { INTEGER modulus, INTEGER exponent }, with lengths of two bytes but for the last.
                let modulus_len = usize::from(raw[6]) << 8 | usize::from(raw[7]);
                let (modulus, rest) = raw[8..].split_at(modulus_len);
                json!({"kty": "RSA", "n": url(&modulus[1..]), "e": url(&rest[2..])})
            }
        };
        key["kid"] = json!(self.kid);
        key["use"] = json!("sig");
        key
    }

    pub(crate) fn sign_with(&self, header: &Header, claims: &Value) -> String {
        let der = self.pair.serialize_der();
        let key = match self.algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_der(&der),
            Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
            // The library wants PKCS #1, which is what PKCS #8 has at its end.
            _ => EncodingKey::from_rsa_pem(self.pair.serialize_pem().as_bytes()).unwrap(),
        };
        jsonwebtoken::encode(header, claims, &key).unwrap()
    }

    pub(crate) fn header(&self) -> Header {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.to_owned());
        header
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(&self.header(), claims)
    }

    /// A good token of a subject.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.sign(&claims(json!({"sub": subject})))
    }
}

/// Good claims, with others.
pub(crate) fn claims(over: Value) -> Value {
    let mut all = json!({"iss": ISSUER, "sub": "alice", "exp": get_current_timestamp() + 600});
    for (name, value) in over.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

pub(crate) fn jwks(issuers: &[&Issuer]) -> String {
    let keys: Vec<Value> = issuers.iter().map(|issuer| issuer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

/// A token in three parts as they are.
pub(crate) fn raw(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| url(value.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), url(signature))
}

/// A rule for the issuer.
pub(crate) fn rule(keys: wire::token_rule::Keys) -> wire::TokenRule {
    wire::TokenRule {
        issuer: ISSUER.to_owned(),
        keys: Some(keys),
        timeout_ms: 5000,
        ..wire::TokenRule::default()
    }
}

pub(crate) fn inline(issuers: &[&Issuer]) -> wire::TokenRule {
    rule(wire::token_rule::Keys::Jwks(jwks(issuers)))
}

pub(crate) fn fetched(uri: String) -> wire::TokenRule {
    rule(wire::token_rule::Keys::JwksUri(uri))
}

pub(crate) fn document(name: &str, rules: Vec<wire::TokenRule>) -> wire::RequestAuthentication {
    wire::RequestAuthentication {
        name: name.to_owned(),
        rules,
        unusable: false,
    }
}
