//! One token: read, and checked against keys.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::Refusal;
use super::keys::KeySet;

/// How far clocks may be apart, seconds: that of Istio's proxies.
const LEEWAY_SECONDS: u64 = 60;

/// Signatures that are taken. What is symmetric is not among them, and neither is `none`.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// A token in its form (RFC 7519); nothing of it is proven yet.
pub(super) struct Parsed<'a> {
    token: &'a str,
    algorithm: Algorithm,
    key: Option<String>,
    /// The middle part, as it stands.
    pub(super) payload: &'a str,
    pub(super) issuer: String,
}

/// A part of a token.
fn part(text: &str) -> Result<Map<String, Value>, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(text);
    let bytes = bytes.map_err(|_| Refusal::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Refusal::Malformed)
}

impl<'a> Parsed<'a> {
    /// # Errors
    /// It is no token, or its header asks for something that we do not do.
    pub(super) fn new(token: &'a str) -> Result<Self, Refusal> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Malformed);
        };
        let header = part(header)?;
        let claims = part(payload)?;
        // RFC 7515 4.1.11: what must be understood and is not makes a token invalid. We know no extension.
        if header.contains_key("crit") {
            return Err(Refusal::Malformed);
        }
        let algorithm = header.get("alg").and_then(Value::as_str);
        let algorithm = algorithm.and_then(|name| name.parse().ok());
        let algorithm = algorithm.filter(|algorithm| ALGORITHMS.contains(algorithm));
        let key = match header.get("kid") {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(Refusal::Malformed),
        };
        let Some(Value::String(issuer)) = claims.get("iss") else {
            return Err(Refusal::UnknownIssuer);
        };
        Ok(Self {
            token,
            algorithm: algorithm.ok_or(Refusal::BadAlgorithm)?,
            key,
            payload,
            issuer: issuer.clone(),
        })
    }

    pub(super) fn text(&self) -> &str {
        self.token
    }

    /// The claims, when one of the keys proves them and they hold now.
    ///
    /// # Errors
    /// They do not.
    pub(super) fn verify(
        &self,
        keys: &KeySet,
        audiences: &[String],
    ) -> Result<Map<String, Value>, Refusal> {
        let mut refusal = Refusal::BadSignature;
        for key in keys.find(self.key.as_deref(), self.algorithm)? {
            match self.verify_by(key, audiences) {
                Err(Refusal::BadSignature) => {}
                Ok(claims) => return Ok(claims),
                Err(other) => refusal = other,
            }
        }
        Err(refusal)
    }

    fn verify_by(
        &self,
        key: &DecodingKey,
        audiences: &[String],
    ) -> Result<Map<String, Value>, Refusal> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_exp = true;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.validate_aud = !audiences.is_empty();
        if audiences.is_empty() {
            validation.set_required_spec_claims(&["iss"]);
        } else {
            validation.set_audience(audiences);
            validation.set_required_spec_claims(&["iss", "aud"]);
        }
        let decoded = jsonwebtoken::decode(self.token, key, &validation);
        decoded
            .map(|decoded| decoded.claims)
            .map_err(|error| refused(error.kind()))
    }
}

fn refused(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYetValid,
        ErrorKind::InvalidAudience => Refusal::WrongAudience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Refusal::WrongAudience,
        ErrorKind::InvalidIssuer => Refusal::UnknownIssuer,
        ErrorKind::InvalidAlgorithm => Refusal::BadAlgorithm,
        ErrorKind::InvalidSignature => Refusal::BadSignature,
        ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::InvalidToken
        | ErrorKind::Json(_)
        | ErrorKind::Utf8(_)
        | ErrorKind::MissingRequiredClaim(_) => Refusal::Malformed,
        // Of the signature or the key: none of them opens anything.
        _ => Refusal::BadSignature,
    }
}
