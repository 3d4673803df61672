//! The token of an end user.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::header::HeaderValue;
use http::request::Parts;
use karst_waypoint::authn::keys::{KeySet, MAX_BYTES};
use karst_waypoint::authn::{Authentication, Authenticator, MAX_TOKEN_BYTES, Passed, Refusal};

use crate::failure::Failure;
use crate::input;

/// Most bytes of a file with a token: with more than the token and an end of line it is something else.
const MAX_FILE_BYTES: u64 = MAX_TOKEN_BYTES as u64 + 1024;

/// The token of a file, or of standard input where it is `-`, as a client sends it. It is in no message.
///
/// # Errors
/// It cannot be read, or is nothing that can be sent.
pub fn read(path: &Path) -> Result<HeaderValue, Failure> {
    let wrong = |error: String| Failure::failed("jwt", format!("{} {error}", path.display()));
    let bytes = input::bytes(path, MAX_FILE_BYTES).map_err(wrong)?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(wrong("is empty".to_owned()));
    }
    let header = HeaderValue::from_bytes(&[b"Bearer ", token].concat());
    let mut header = header.map_err(|_| wrong("cannot be in a header".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// A key set of a file, as text that was tried.
///
/// # Errors
/// It cannot be read, or is none.
pub fn keys(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |error: String| Failure::failed("jwks", format!("{} {error}", path.display()));
    let bytes = input::bytes(path, MAX_BYTES as u64).map_err(wrong)?;
    KeySet::read(&bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(bytes)
}

/// Checks the token of a request as proxies do, and brings the request into the form in which it goes on.
///
/// # Errors
/// It has one that does not count.
pub fn check(authentication: &Authentication, parts: &mut Parts) -> Result<Passed, Refusal> {
    let authenticator = Authenticator::default();
    let checking = pin!(authenticator.check(authentication, parts));
    // Nothing is fetched here, so that there is nothing to wait for: keys are there, or they are not.
    match checking.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => Err(Refusal::NoKeys),
    }
}
