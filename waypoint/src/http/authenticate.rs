//! Whose request it is, by its token.

use http::header::HeaderValue;
use http::request::Parts;

use super::exchange::Exchange;
use super::frontend::Frontend;
use super::reply::Failure;
use crate::authn::{Passed, Refusal};

/// Checks the token of a request that has its normal form, and brings the request into the form in which it goes on.
///
/// # Errors
/// Its token does not count.
pub(super) async fn authenticate(
    exchange: &mut Exchange,
    parts: &mut Parts,
    frontend: &Frontend<'_>,
) -> Result<Passed, Failure> {
    let authentication = frontend.authentication();
    if authentication.is_empty() {
        return Ok(Passed::default());
    }
    let authenticator = &exchange.connection.server.authenticator;
    let checked = authenticator.check(authentication, parts).await;
    let passed = checked
        .map_err(|refusal| Failure::unauthenticated(refusal, challenge(&exchange.authority)))?;
    exchange.token.clone_from(&passed.token);
    Ok(passed)
}

/// What a client is to do (RFC 6750 3).
fn challenge(authority: &HeaderValue) -> HeaderValue {
    // In an authority that was let in there is nothing that would have to be escaped.
    let realm = authority.to_str().unwrap_or_default();
    HeaderValue::try_from(format!("Bearer realm=\"{realm}\", error=\"invalid_token\""))
        .unwrap_or_else(|_| HeaderValue::from_static("Bearer error=\"invalid_token\""))
}

/// What a client is told. It begins as the answer of Istio's proxies, which clients and tests look for.
pub(super) fn text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotReady => "Jwt verification fails (authentication_not_ready)",
        Refusal::Several => "Jwt verification fails: more than one token (jwt_several_tokens)",
        Refusal::TooLarge => "Jwt verification fails: the token is too long (jwt_too_large)",
        Refusal::Malformed => "Jwt is not in the form of Header.Payload.Signature (jwt_malformed)",
        Refusal::BadAlgorithm => "Jwt header [alg] is not supported (jwt_bad_algorithm)",
        Refusal::UnknownIssuer => "Jwt issuer is not configured (jwt_unknown_issuer)",
        Refusal::UnknownKey => "Jwks doesn't have key to match kid from Jwt (jwt_unknown_key)",
        Refusal::BadSignature => "Jwt verification fails (jwt_bad_signature)",
        Refusal::Expired => "Jwt is expired (jwt_expired)",
        Refusal::NotYetValid => "Jwt not yet valid (jwt_not_yet_valid)",
        Refusal::WrongAudience => "Audiences in Jwt are not allowed (jwt_wrong_audience)",
        Refusal::NoKeys => "Jwks remote fetch is failed (jwks_unavailable)",
    }
}
