//! Tokens checked against a JWKS file: for where there is no API server to ask.

use std::sync::{Mutex, PoisonError};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;

use super::{AuthError, Caller, MAX_TOKEN_BYTES, ServiceAccount, TokenRules, jwks::Jwks};

/// Clocks may differ by this much.
const LEEWAY_SECONDS: u64 = 10;

/// Checks signatures, and audience, issuer and times against what is configured.
pub struct SignedTokens {
    rules: TokenRules,
    keys: Mutex<Jwks>,
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    node: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl SignedTokens {
    /// Reads the keys for the first time.
    ///
    /// # Errors
    /// When the JWKS file cannot be used.
    pub fn new(rules: TokenRules) -> anyhow::Result<Self> {
        let keys = Jwks::read(&rules.jwks)?;
        Ok(Self {
            rules,
            keys: Mutex::new(keys),
        })
    }

    /// The caller that a token proves.
    pub fn check(&self, token: &str) -> Result<Caller, AuthError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::MalformedToken);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
                AuthError::BadAlgorithm
            }
            // An algorithm that the library has no name for (such as "none") fails to parse.
            ErrorKind::Json(_) => AuthError::BadAlgorithm,
            _ => AuthError::MalformedToken,
        })?;
        let (key, algorithm) = self.key(header.kid.as_deref())?;
        if header.alg != algorithm {
            return Err(AuthError::BadAlgorithm);
        }
        let token = jsonwebtoken::decode::<Claims>(token, &key, &self.validation(algorithm))
            .map_err(|error| refused(error.kind()))?;
        caller(token.claims)
    }

    /// The algorithm comes from our key and never from the token, so that no token can choose how
    /// it is checked.
    fn key(&self, kid: Option<&str>) -> Result<(DecodingKey, Algorithm), AuthError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(problem) = keys.refresh(&self.rules.jwks) {
            // The keys we have are still good; it is only new ones that we may be missing.
            tracing::warn!(reason = "auth_keys_unavailable", %problem, file = %self.rules.jwks.display(), "keys not read again");
        }
        if keys.is_empty() {
            return Err(AuthError::KeysUnavailable);
        }
        keys.find(kid).ok_or(AuthError::UnknownKey)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_exp = true;
        validation.validate_nbf = true;
        validation.validate_aud = true;
        validation.set_audience(&[&self.rules.audience]);
        validation.set_issuer(&[&self.rules.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation
    }
}

fn refused(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::ExpiredSignature => AuthError::Expired,
        ErrorKind::ImmatureSignature => AuthError::NotYetValid,
        ErrorKind::InvalidAudience => AuthError::WrongAudience,
        ErrorKind::InvalidIssuer => AuthError::WrongIssuer,
        ErrorKind::InvalidAlgorithm => AuthError::BadAlgorithm,
        ErrorKind::InvalidSignature => AuthError::BadSignature,
        ErrorKind::MissingRequiredClaim(claim) => AuthError::MissingClaim(claim.clone()),
        _ => AuthError::MalformedToken,
    }
}

fn caller(claims: Claims) -> Result<Caller, AuthError> {
    let kubernetes = claims
        .kubernetes
        .ok_or_else(|| AuthError::MissingClaim("kubernetes.io".to_owned()))?;
    let account = ServiceAccount {
        namespace: kubernetes.namespace,
        name: kubernetes.serviceaccount.name,
    };
    // Two ways to say the same; a token in which they differ was not made by Kubernetes.
    let subject = format!(
        "system:serviceaccount:{}:{}",
        account.namespace, account.name
    );
    if claims.sub != subject {
        return Err(AuthError::MissingClaim("sub".to_owned()));
    }
    Ok(Caller {
        account,
        node: kubernetes.node.map(|node| node.name),
        expires_at: claims.exp,
    })
}
