//! What an authorizer wants changed of a request that may go on, and of its response.

use http::Uri;
use http::header::{EXPECT, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;

use crate::filter::is_protected;

/// Most headers of a message that an authorizer changes.
pub(super) const MAX_HEADERS: usize = 100;

/// Parameters of the query that it changes.
pub(super) const MAX_PARAMETERS: usize = 100;

/// What is done with a header that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Replaced, or a new one.
    Set,
    /// Replaced.
    Replace,
    /// Another value, or a new one.
    Append,
    /// A new one if there is none.
    Add,
}

/// A change of one header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// What is done.
    pub how: How,
    /// The header.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
}

/// What is to be changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers of the request.
    pub upstream: Vec<HeaderChange>,
    /// Headers of the request that go, before others come.
    pub remove: Vec<HeaderName>,
    /// Parameters of the query.
    pub set_query: Vec<(String, String)>,
    /// Parameters of the query that go, before others come.
    pub remove_query: Vec<String>,
    /// Headers of the response.
    pub downstream: Vec<HeaderChange>,
}

/// Whether an authorizer may say something about a header: not those that frame messages, belong to one hop, or
/// say for whom a request is.
#[must_use]
pub fn is_free(name: &HeaderName) -> bool {
    !is_protected(name) && *name != EXPECT && *name != HOST
}

impl Changes {
    /// Whether the request stays as it is.
    #[must_use]
    pub fn keeps_request(&self) -> bool {
        self.upstream.is_empty()
            && self.remove.is_empty()
            && self.set_query.is_empty()
            && self.remove_query.is_empty()
    }

    /// Changes the headers of a request.
    pub fn apply_upstream(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        apply(&self.upstream, headers);
    }

    /// The target of a request as it is to be; `None`: as it is.
    #[must_use]
    pub fn target(&self, uri: &Uri) -> Option<Uri> {
        if self.set_query.is_empty() && self.remove_query.is_empty() {
            return None;
        }
        let name_of = |pair: &str| decoded(pair.split('=').next().unwrap_or_default());
        let goes = |pair: &str| {
            let name = name_of(pair);
            let set = self.set_query.iter().any(|(key, _)| *key == name);
            set || self.remove_query.contains(&name)
        };
        let pairs = uri.query().unwrap_or_default().split('&');
        let pairs = pairs.filter(|pair| !pair.is_empty() && !goes(pair));
        let mut query: Vec<String> = pairs.map(str::to_owned).collect();
        let set = self.set_query.iter();
        query.extend(set.map(|(key, value)| format!("{}={}", encoded(key), encoded(value))));
        let mut target = uri.path().to_owned();
        if !query.is_empty() {
            target.push('?');
            target.push_str(&query.join("&"));
        }
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// Changes headers.
pub fn apply(changes: &[HeaderChange], headers: &mut HeaderMap) {
    for HeaderChange { how, name, value } in changes {
        let there = headers.contains_key(name);
        // A map that can hold no more keeps what it has.
        let _ = match (how, there) {
            (How::Set, _) | (How::Replace, true) | (How::Add, false) => {
                headers.try_insert(name, value.clone()).is_ok()
            }
            (How::Append, _) => headers.try_append(name, value.clone()).is_ok(),
            (How::Replace, false) | (How::Add, true) => true,
        };
    }
}

/// A part of a query as text; what is no UTF-8 becomes a replacement character.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text as a part of a query.
fn encoded(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    out
}
