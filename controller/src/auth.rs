//! Who is calling: every request carries a service-account token.
//!
//! Tokens are JWTs as the Kubernetes API server signs them. `review` asks that server about them;
//! `signed` checks them against a JWKS file where there is none.

mod cache;
mod callers;
mod jwks;
mod review;
mod signed;

use std::path::PathBuf;

use tonic::{Status, metadata::MetadataMap};

use self::signed::SignedTokens;
pub use self::{
    callers::{Callers, NodeAgents, NotPermitted, Proxy, Subject},
    review::ReviewedTokens,
};
use crate::metrics::{Metrics, Reason};

/// Longest token in bytes. Kubernetes makes tokens of about 1 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

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
    /// The API server does not accept it.
    #[error("the API server does not accept the token: {0}")]
    Rejected(String),
    /// The API server cannot be asked. Nobody's fault; a retry helps once it is back.
    #[error("the API server cannot be asked about the token now; retry")]
    ReviewUnavailable,
    /// The token says itself that it is somebody else's.
    #[error("the token is of a service account that is neither a node agent's nor a gateway's")]
    NotNodeAgent,
    /// The pod that the token is bound to is not there. A retry helps if it is new.
    #[error("the pod that the token is bound to is not known, or has ended; retry if it is new")]
    PodUnknown,
    /// The pod that the token is bound to is not what the token says.
    #[error("the pod that the token is bound to differs from the token in its {0}")]
    PodMismatch(&'static str),
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
            Self::Rejected(_) => "auth_token_rejected",
            Self::ReviewUnavailable => "auth_review_unavailable",
            Self::NotNodeAgent => "auth_not_node_agent",
            Self::PodUnknown => "auth_pod_unknown",
            Self::PodMismatch(_) => "auth_pod_mismatch",
        }
    }

    fn status(&self) -> Status {
        let message = format!("{}: {self}", self.reason());
        match self {
            Self::KeysUnavailable | Self::ReviewUnavailable => Status::unavailable(message),
            Self::NotNodeAgent => Status::permission_denied(message),
            _ => Status::unauthenticated(message),
        }
    }
}

/// Checks tokens.
pub struct Authenticator {
    tokens: Tokens,
    metrics: Metrics,
}

enum Tokens {
    Signed(Box<SignedTokens>),
    Reviewed(Box<ReviewedTokens>),
}

impl Authenticator {
    /// Checks tokens against a JWKS file.
    ///
    /// # Errors
    /// When the JWKS file cannot be used.
    pub fn signed(rules: TokenRules, metrics: Metrics) -> anyhow::Result<Self> {
        Ok(Self {
            tokens: Tokens::Signed(Box::new(SignedTokens::new(rules)?)),
            metrics,
        })
    }

    /// Asks the API server about tokens.
    pub fn reviewed(tokens: ReviewedTokens, metrics: Metrics) -> Self {
        Self {
            tokens: Tokens::Reviewed(Box::new(tokens)),
            metrics,
        }
    }

    /// Authenticates a request by its metadata; refusals are counted and logged.
    pub async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        self.check(metadata).await.map_err(|error| {
            let reason = error.reason();
            self.metrics
                .auth_refused
                .get_or_create(&Reason { reason })
                .inc();
            tracing::info!(reason, %error, "caller not authenticated");
            error.status()
        })
    }

    async fn check(&self, metadata: &MetadataMap) -> Result<Caller, AuthError> {
        let token = bearer(metadata)?;
        match &self.tokens {
            Tokens::Signed(tokens) => tokens.check(token),
            Tokens::Reviewed(tokens) => tokens.check(token).await,
        }
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
