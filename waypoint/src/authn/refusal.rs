//! Why a token does not count.

use http::StatusCode;

/// Why a request is refused for its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What is to be checked is not known.
    NotReady,
    /// It has more than one token.
    Several,
    /// The token is too long.
    TooLarge,
    /// It is no token.
    Malformed,
    /// It is signed in a way that is not taken, or that does not fit the key.
    BadAlgorithm,
    /// No rule is for its issuer, or for its issuer at this place.
    UnknownIssuer,
    /// The issuer has no such key.
    UnknownKey,
    /// The signature is wrong.
    BadSignature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It is for others.
    WrongAudience,
    /// The issuer's keys have not been got so far.
    NoKeys,
}

impl Refusal {
    /// Stable label for answer, log and metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotReady => "authentication_not_ready",
            Self::Several => "jwt_several_tokens",
            Self::TooLarge => "jwt_too_large",
            Self::Malformed => "jwt_malformed",
            Self::BadAlgorithm => "jwt_bad_algorithm",
            Self::UnknownIssuer => "jwt_unknown_issuer",
            Self::UnknownKey => "jwt_unknown_key",
            Self::BadSignature => "jwt_bad_signature",
            Self::Expired => "jwt_expired",
            Self::NotYetValid => "jwt_not_yet_valid",
            Self::WrongAudience => "jwt_wrong_audience",
            Self::NoKeys => "jwks_unavailable",
        }
    }

    /// The status of the answer. A token that is good, but for others, is forbidden, as at Istio's proxies.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::WrongAudience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The refusal that says most, of two rules for the same issuer: a rule that got further knows more.
    pub(super) fn or(self, other: Self) -> Self {
        let rank = |refusal| match refusal {
            Self::UnknownIssuer => 0,
            Self::NotReady | Self::NoKeys | Self::UnknownKey => 1,
            Self::BadAlgorithm | Self::BadSignature => 2,
            _ => 3,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}
