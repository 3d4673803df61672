//! Who is calling: every request carries a service-account token.
//!
//! Tokens are JWTs as the Kubernetes API server signs them. The signature is checked against a
//! JWKS file, and audience, issuer and times against what is configured.

mod jwks;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;
use tonic::{Status, metadata::MetadataMap};

use self::jwks::Jwks;
use crate::metrics::{Metrics, Reason};

/// Longest token in bytes. Kubernetes makes tokens of about 1 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Clocks may differ by this much.
const LEEWAY_SECONDS: u64 = 10;

/// What tokens must say.
#[derive(Debug, Clone)]
pub struct TokenRules {
    /// JWKS file with the keys that may sign tokens.
    pub jwks: PathBuf,
    /// Who issued the token.
    pub issuer: String,
    /// Whom the token is for.
    pub audience: String,
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The service account.
    pub account: ServiceAccount,
    /// The node that the caller's pod runs on, if the token says.
    pub node: Option<String>,
    /// When the token ends, in seconds since 1970.
    pub expires_at: u64,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why a caller is not who it says. The caller is at fault, except for unusable keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token.
    #[error("the request has no bearer token")]
    MissingToken,
    /// Not a JWT, or too long.
    #[error("the token is not a JWT")]
    MalformedToken,
    /// An algorithm that is not allowed, or not that of the key.
    #[error("the token is signed with an algorithm that is not allowed")]
    BadAlgorithm,
    /// No key of that name.
    #[error("the token is signed with a key that is not trusted")]
    UnknownKey,
    /// The signature does not match.
    #[error("the token's signature is not valid")]
    BadSignature,
    /// Too old.
    #[error("the token has expired")]
    Expired,
    /// Too young.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// For somebody else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// From somebody else.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// Signed properly, but not a service-account token.
    #[error("the token lacks the claim {0:?}")]
    MissingClaim(String),
    /// The JWKS file cannot be used. Ours to fix; a retry may help.
    #[error("the keys that tokens are checked with cannot be read")]
    KeysUnavailable,
}

impl AuthError {
    /// Stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingToken => "auth_missing_token",
            Self::MalformedToken => "auth_malformed_token",
            Self::BadAlgorithm => "auth_bad_algorithm",
            Self::UnknownKey => "auth_unknown_key",
            Self::BadSignature => "auth_bad_signature",
            Self::Expired => "auth_expired",
            Self::NotYetValid => "auth_not_yet_valid",
            Self::WrongAudience => "auth_wrong_audience",
            Self::WrongIssuer => "auth_wrong_issuer",
            Self::MissingClaim(_) => "auth_missing_claim",
            Self::KeysUnavailable => "auth_keys_unavailable",
        }
    }

    fn status(&self) -> Status {
        let message = format!("{}: {self}", self.reason());
        match self {
            Self::KeysUnavailable => Status::unavailable(message),
            _ => Status::unauthenticated(message),
        }
    }
}

/// Checks tokens.
pub struct Authenticator {
    rules: TokenRules,
    keys: Mutex<Jwks>,
    metrics: Metrics,
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

impl Authenticator {
    /// Reads the keys for the first time.
    ///
    /// # Errors
    /// When the JWKS file cannot be used.
    pub fn new(rules: TokenRules, metrics: Metrics) -> anyhow::Result<Self> {
        let keys = Jwks::read(&rules.jwks)?;
        Ok(Self {
            rules,
            keys: Mutex::new(keys),
            metrics,
        })
    }

    /// Authenticates a request by its metadata; refusals are counted and logged.
    pub fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        bearer(metadata)
            .and_then(|token| self.check(token))
            .map_err(|error| {
                let reason = error.reason();
                self.metrics
                    .auth_refused
                    .get_or_create(&Reason { reason })
                    .inc();
                tracing::info!(reason, %error, "caller not authenticated");
                error.status()
            })
    }

    fn check(&self, token: &str) -> Result<Caller, AuthError> {
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

fn bearer(metadata: &MetadataMap) -> Result<&str, AuthError> {
    let value = metadata
        .get("authorization")
        .ok_or(AuthError::MissingToken)?;
    let text = value.to_str().map_err(|_| AuthError::MalformedToken)?;
    let (scheme, token) = text.split_once(' ').ok_or(AuthError::MissingToken)?;
    if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() {
        Ok(token.trim())
    } else {
        Err(AuthError::MissingToken)
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

/// Callers that may act for a node: the service accounts of node agents.
#[derive(Debug, Clone)]
pub struct NodeAgents(pub Vec<ServiceAccount>);

/// A caller that is the agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAgent {
    /// The node.
    pub node: String,
    /// When its token ends, in seconds since 1970.
    pub expires_at: u64,
}

/// Why a caller may not act for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotNodeAgent {
    /// Another service account.
    #[error("the caller's service account is not that of a node agent")]
    Account,
    /// The token is not bound to a pod on a node.
    #[error("the token does not say on which node the caller runs")]
    NoNode,
}

impl NodeAgents {
    /// The node agent that the caller is.
    pub fn agent(&self, caller: Caller) -> Result<NodeAgent, NotNodeAgent> {
        if !self.0.contains(&caller.account) {
            return Err(NotNodeAgent::Account);
        }
        Ok(NodeAgent {
            node: caller.node.ok_or(NotNodeAgent::NoNode)?,
            expires_at: caller.expires_at,
        })
    }
}
