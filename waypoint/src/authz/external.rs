//! External authorization (CUSTOM): what an authorizer is asked about a request, and what its answer means.
//!
//! [`Provider`] is an authorizer as the configuration describes it, [`Asking`] what it is asked, [`Verdict`] what it has said.
//! Nothing here is sent: see [`crate::http`]. What an authorizer wants changed of a request is checked first
//! ([`change`]): it can neither frame messages nor choose another host.

pub mod answer;
pub mod change;
mod provider;
pub mod question;

use std::sync::Arc;

use http::StatusCode;

pub use answer::{Refused, Verdict};
pub use change::Changes;
pub use provider::{CheckedBody, Kind, Provider};

/// Why a CUSTOM policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The provider has refused.
    Denied,
    /// The provider gave no answer, or none that could be read.
    Unavailable,
    /// The provider did not answer in time.
    Timeout,
    /// There are too many checks under way.
    Overloaded,
    /// The provider's answer asks for what must not be.
    AnswerInvalid,
    /// The configuration has no such provider, or it cannot be used.
    ProviderInvalid,
    /// Policies that match want different providers.
    ProviderConflict,
    /// Nobody was asked, and nobody can be any more: a connection of bytes, or a request that is under way.
    NotAsked,
    /// The request's body is larger than the provider is to be sent.
    BodyTooLarge,
}

impl Why {
    /// Stable label for log and metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Denied => "custom_denied",
            Self::Unavailable => "custom_provider_unavailable",
            Self::Timeout => "custom_provider_timeout",
            Self::Overloaded => "custom_overloaded",
            Self::AnswerInvalid => "custom_answer_invalid",
            Self::ProviderInvalid => "custom_provider_invalid",
            Self::ProviderConflict => "custom_provider_conflict",
            Self::NotAsked => "custom_not_asked",
            Self::BodyTooLarge => "custom_body_too_large",
        }
    }
}

/// Whom to ask about a request, and why.
#[derive(Debug)]
pub struct Ask {
    /// Whom.
    pub provider: Arc<Provider>,
    /// The first policy that wants it.
    pub policy: Arc<str>,
    /// The place of its rule.
    pub rule: u32,
    /// All policies that want it.
    pub policies: Vec<Arc<str>>,
}

/// Why there is no verdict.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckError {
    /// Why.
    pub why: Why,
    /// More, for the log.
    pub text: String,
}

impl CheckError {
    /// With what a log says of it.
    pub fn new(why: Why, text: impl ToString) -> Self {
        Self {
            why,
            text: text.to_string(),
        }
    }

    /// Whether a provider that may be passed by is, then. An answer that must not be followed is an answer; and what
    /// nobody can be asked about as the client has made it so does not pass either.
    #[must_use]
    pub fn may_pass(&self, provider: &Provider) -> bool {
        provider.fail_open && !matches!(self.why, Why::AnswerInvalid | Why::NotAsked)
    }
}

/// What a client is told whose request could not be checked, unless the provider says otherwise.
pub(super) const STATUS_ON_ERROR: StatusCode = StatusCode::FORBIDDEN;

#[cfg(test)]
#[path = "external/tests.rs"]
mod tests;
