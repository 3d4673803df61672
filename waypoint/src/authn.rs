//! Authentication of end users: whether the token (JWT) of a request counts, and what it says
//! (RequestAuthentication).
//!
//! [`Authentication`] is what is attached to one frontend. A request without a token passes and has no principal; one
//! with a token that no rule takes is refused, and so is one with several tokens: whose request it is would be a
//! guess. [`Authenticator::check`] also brings the request into the form in which it goes on: tokens are taken out
//! and claims are written into headers, which a client cannot forge.
//!
//! Keys come with the configuration or are fetched in the background ([`source`], [`fetch`]). A request waits for
//! them only on first need, or when its token names a key that is not known, and no longer than one fetch may take.
//! No token is ever in a log, a metric or an error.

mod cache;
mod claims;
mod extract;
pub mod fetch;
pub mod keys;
mod refusal;
mod rule;
pub mod source;
mod verify;

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

pub use cache::Authenticator;
pub use claims::{MAX_DEPTH, Verified};
use extract::Place;
pub use refusal::Refusal;
pub use rule::Document;
use rule::Rule;

/// Objects attached to one frontend.
pub const MAX_DOCUMENTS: usize = 256;

/// Longest token, bytes. Tokens are in headers, and with 8 KiB a whole request's are full in most servers.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The rules of one frontend.
#[derive(Default)]
pub struct Authentication {
    rules: Vec<Arc<Rule>>,
    places: Vec<Place>,
    /// What a client may not send.
    outputs: Vec<HeaderName>,
    /// An object that is attached and not there, or not valid: nobody knows what it is about.
    missing: bool,
    /// An object of which not all could be understood: no token is taken.
    unusable: bool,
}

/// What a token has come to.
#[derive(Default)]
pub struct Passed {
    /// What it says; `None` without a token.
    pub token: Option<Arc<Verified>>,
    /// Headers made of it.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Passed {
    /// Writes the headers. Once more behind everything that a client can have headers removed by (`connection`).
    pub fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
    }
}

impl Authentication {
    /// Puts rules together: those of all objects count as if they were of one.
    pub fn new(documents: impl IntoIterator<Item = Arc<Document>>) -> Self {
        let mut all = Self::default();
        for document in documents {
            all.unusable |= document.unusable;
            for rule in &document.rules {
                all.places.extend(rule.places.iter().cloned());
                all.outputs.extend(rule.outputs().cloned());
                all.rules.push(Arc::clone(rule));
            }
        }
        if all.unusable {
            all.places.extend(extract::usual());
        }
        extract::in_order(&mut all.places);
        all.outputs
            .sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        all.outputs.dedup();
        all
    }

    /// Notes an object that is attached and cannot be used. Nothing passes then.
    pub fn add_missing(&mut self) {
        self.missing = true;
    }

    /// Whether nothing is to be checked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && self.outputs.is_empty() && !self.missing
    }

    /// Removes what only we may write, also in the spelling that some applications take for the same.
    pub fn clean(&self, headers: &mut HeaderMap) {
        for name in &self.outputs {
            headers.remove(name);
        }
        let is_alike = |name: &HeaderName| {
            let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
            self.outputs.iter().any(|output| {
                let (name, output) = (name.as_str(), output.as_str());
                name.len() == output.len() && name.bytes().map(dash).eq(output.bytes().map(dash))
            })
        };
        let alike: Vec<HeaderName> = headers
            .keys()
            .filter(|name| is_alike(name))
            .cloned()
            .collect();
        for name in alike {
            headers.remove(name);
        }
    }
}

impl Authenticator {
    /// Checks the token of a request, and brings the request into the form in which it goes on.
    ///
    /// # Errors
    /// It has one that does not count.
    pub async fn check(
        &self,
        authentication: &Authentication,
        parts: &mut Parts,
    ) -> Result<Passed, Refusal> {
        if authentication.missing {
            return Err(Refusal::NotReady);
        }
        let found = extract::find(&authentication.places, parts);
        authentication.clean(&mut parts.headers);
        let Some((place, token)) = found? else {
            return Ok(Passed::default());
        };
        if authentication.unusable {
            return Err(Refusal::NotReady);
        }
        let parsed = verify::Parsed::new(&token)?;
        let rules = authentication.rules.iter();
        let rules =
            rules.filter(|rule| rule.issuer == parsed.issuer && rule.places.contains(place));
        let mut refusal = Refusal::UnknownIssuer;
        for rule in rules {
            match self.verified(rule, &parsed).await {
                Ok(verified) => {
                    let passed = Passed {
                        headers: rule.headers_of(&verified),
                        token: Some(verified),
                    };
                    if !rule.forward {
                        extract::remove(place, parts);
                    }
                    passed.write(&mut parts.headers);
                    return Ok(passed);
                }
                Err(other) => refusal = refusal.or(other),
            }
        }
        Err(refusal)
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
#[path = "authn/tests.rs"]
mod tests;
