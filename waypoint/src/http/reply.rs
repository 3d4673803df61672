//! Answers of our own.

use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::{Response, StatusCode};

use super::authenticate;
use crate::authn::Refusal;
use crate::authz::Denial;
use crate::authz::external::{Refused, change};
use crate::body::Body;
use crate::reason::Reason;

/// Tells an answer of ours from one of an application, and why it is ours.
pub static KARST_REASON: HeaderName = HeaderName::from_static("karst-reason");

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// gRPC's code for a deadline that has passed.
pub(super) const DEADLINE_EXCEEDED: u32 = 4;

/// gRPC's code for what somebody may not do.
const PERMISSION_DENIED: u32 = 7;

/// Why a request is answered by us.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) reason: Reason,
    /// More, for the log alone.
    pub(super) error: Option<String>,
    /// The policy that refuses it.
    pub(super) denial: Option<Denial>,
    /// Why the token does not count, and what the client is to do.
    refusal: Option<Box<(Refusal, HeaderValue)>>,
    /// What a provider wants the client to be told.
    pub(super) refused: Option<Box<Refused>>,
    /// Nothing more is to be read from an HTTP/1 connection.
    close: bool,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: &'static str) -> Self {
        Self::because(status, Reason::Other(reason))
    }

    pub(super) fn because(status: StatusCode, reason: Reason) -> Self {
        Self {
            status,
            reason,
            error: None,
            denial: None,
            refusal: None,
            refused: None,
            close: false,
        }
    }

    /// A request that a policy refuses, or whose policy is not there.
    pub(super) fn denied(denial: Denial) -> Self {
        let status = if denial.unusable {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::FORBIDDEN
        };
        let mut failure = Self::new(status, denial.reason());
        failure.error = Some(denial.to_string());
        failure.denial = Some(denial);
        failure
    }

    /// A request with a token that does not count.
    pub(super) fn unauthenticated(refusal: Refusal, challenge: HeaderValue) -> Self {
        let mut failure = Self::new(refusal.status(), refusal.reason());
        failure.refusal = Some(Box::new((refusal, challenge)));
        failure
    }

    /// A request that cannot be understood; what follows it may be anything.
    pub(super) fn bad_request(reason: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason).closing()
    }

    /// Closes the connection behind the answer.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(super) fn with(mut self, error: impl ToString) -> Self {
        self.error = Some(error.to_string());
        self
    }

    /// The answer for a client that speaks plain HTTP.
    pub(super) fn response(&self) -> Response<Body> {
        let reason = HeaderValue::from_static(self.reason.as_str());
        let body = match (&self.refused, &self.denial, &self.refusal) {
            (Some(refused), ..) => Body::full(refused.body.clone()),
            (None, Some(denial), _) => Body::full(denied_text(denial)),
            (None, None, Some(refusal)) => Body::full(authenticate::text(refusal.0)),
            (None, None, None) => Body::full(self.reason.as_str()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        match &self.refused {
            Some(refused) => {
                change::apply(&refused.headers, headers);
                if !refused.body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                }
            }
            None => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            }
        }
        headers.insert(KARST_REASON.clone(), reason);
        if let Some(refusal) = &self.refusal
            && self.status == StatusCode::UNAUTHORIZED
        {
            headers.insert(WWW_AUTHENTICATE, refusal.1.clone());
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The answer for a gRPC client: no body, the status in the head ("trailers-only").
    pub(super) fn grpc_response(&self) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        let headers = response.headers_mut();
        if let Some(refused) = &self.refused {
            change::apply(&refused.headers, headers);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS.clone(), grpc_status(self.status).into());
        let reason = HeaderValue::from_static(self.reason.as_str());
        let message = match (&self.refused, &self.denial, &self.refusal) {
            (Some(refused), ..) if !refused.body.is_empty() => provider_message(&refused.body),
            (_, Some(denial), _) => denied_message(denial),
            (_, None, Some(refusal)) => HeaderValue::from_static(authenticate::text(refusal.0)),
            (_, None, None) => reason.clone(),
        };
        headers.insert(GRPC_MESSAGE.clone(), message);
        headers.insert(KARST_REASON.clone(), reason);
        response
    }
}

/// What a client is told whom a policy refuses. It begins as Istio's answer, which clients and tests look for.
fn denied_text(denial: &Denial) -> String {
    format!("RBAC: access denied ({denial})")
}

/// The same for gRPC, which wants what is no printable ASCII encoded: in names of policies there is none of it.
fn denied_message(denial: &Denial) -> HeaderValue {
    HeaderValue::try_from(denied_text(denial))
        .unwrap_or_else(|_| HeaderValue::from_static("RBAC: access denied"))
}

/// The body of a provider's answer as a message of gRPC (percent-encoded), as far as one is worth reading.
fn provider_message(body: &[u8]) -> HeaderValue {
    const LONGEST: usize = 1024;
    let mut text = String::new();
    for byte in body.iter().take(LONGEST) {
        if (b' '..=b'~').contains(byte) && *byte != b'%' {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("denied"))
}

/// The gRPC code that says what a status of HTTP says. Where gRPC's own table for proxies that know nothing of
/// gRPC differs, it is because we know what happened.
pub(super) fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 | 500 => 13,
        401 => 16,
        403 => PERMISSION_DENIED,
        404 | 405 | 501 => 12,
        408 | 504 => DEADLINE_EXCEEDED,
        413 | 429 | 431 => 8,
        421 | 502 | 503 => 14,
        _ => 2,
    }
}

/// Trailers that end a gRPC response whose deadline has passed.
pub(super) fn deadline_trailers() -> http::HeaderMap {
    let mut trailers = http::HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS.clone(), DEADLINE_EXCEEDED.into());
    trailers.insert(
        GRPC_MESSAGE.clone(),
        HeaderValue::from_static("request_timeout"),
    );
    trailers
}

/// Trailers that end a gRPC response that a policy allows no more.
pub(super) fn denied_trailers(denial: &Denial) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS.clone(), PERMISSION_DENIED.into());
    trailers.insert(GRPC_MESSAGE.clone(), denied_message(denial));
    trailers
}

/// The status of a gRPC response, from its trailers or a head without body.
pub(super) fn grpc_status_of(headers: &http::HeaderMap) -> Option<u32> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Whether a request is of gRPC; gRPC-Web is not.
pub(super) fn is_grpc(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = content_type.and_then(|text| text.strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::{Failure, denied_text, grpc_status, is_grpc};
    use crate::authz::Denial;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let check = |content_type: &'static str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", content_type.parse().unwrap());
            assert_eq!(is_grpc(&headers), expected, "{content_type}");
        };
        check("application/grpc", true);
        check("application/grpc+proto", true);
        check("application/grpc;x=y", true);
        check("application/grpc-web", false);
        check("application/json", false);
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn denials_name_their_policy() {
        let denial = Denial {
            policy: "shop/readers".into(),
            rule: Some(2),
            unusable: false,
            external: None,
        };
        let failure = Failure::denied(denial.clone());
        assert_eq!(failure.reason.as_str(), "policy_denied");
        assert_eq!(failure.response().status(), 403);
        assert_eq!(failure.response().headers()["content-type"], "text/plain");
        assert_eq!(
            denied_text(&denial),
            "RBAC: access denied (policy shop/readers, rules[2])"
        );
        let grpc = failure.grpc_response();
        assert_eq!(grpc.headers()["grpc-status"], "7");
        assert_eq!(grpc.headers()["grpc-message"], *denied_text(&denial));
        let unusable = Denial {
            rule: None,
            unusable: true,
            ..denial
        };
        let failure = Failure::denied(unusable);
        assert_eq!(failure.reason.as_str(), "policy_not_ready");
        assert_eq!(failure.response().status(), 503);
        assert_eq!(failure.grpc_response().headers()["grpc-status"], "14");
    }

    #[test]
    fn errors_of_ours_are_answered_in_the_protocol() {
        let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no_endpoints");
        let plain = failure.response();
        assert_eq!(plain.status(), 503);
        assert_eq!(plain.headers()["karst-reason"], "no_endpoints");
        let grpc = failure.grpc_response();
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], "14");
        assert_eq!(grpc.headers()["grpc-message"], "no_endpoints");
        for (status, code) in [
            (504, 4),
            (404, 12),
            (401, 16),
            (403, 7),
            (500, 13),
            (418, 2),
        ] {
            assert_eq!(grpc_status(StatusCode::from_u16(status).unwrap()), code);
        }
    }
}
