//! Headers of a CONNECT: building and parsing, with limits.
//!
//! All of it comes from a peer that proved its identity but may still be broken or hostile:
//! parsers take bytes, never panic, keep what they return bounded and ignore what they do not
//! know. None of these values decides about access.

mod authority;
mod baggage;
mod forwarded;
mod traceparent;

pub use authority::Authority;
pub use baggage::{Baggage, WorkloadKind};
pub use forwarded::Forwarded;
pub use traceparent::TraceParent;

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName, HeaderValue};

use crate::{HeaderLimit, TunnelError};

/// `baggage`, the W3C header that tells about the workload at the other end.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// `traceparent`, the W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Bytes of all CONNECT headers together, names and values. Ours have about 500; a quarter of
/// what HTTP/2 lets through leaves room for other implementations.
pub const MAX_HEADER_BYTES: usize = 16 << 10;
/// Bytes of a `baggage` value; the W3C recommendation asks for 8,192.
pub const MAX_BAGGAGE_BYTES: usize = 8 << 10;
/// Bytes of a `forwarded` value: an address, a DNS name (253) and the punctuation.
pub const MAX_FORWARDED_BYTES: usize = 1 << 10;

/// The three headers about the source, as far as they are there and make sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHeaders {
    /// `baggage`.
    pub baggage: Option<Baggage>,
    /// `forwarded`.
    pub forwarded: Option<Forwarded>,
    /// `traceparent`.
    pub traceparent: Option<TraceParent>,
}

impl SourceHeaders {
    /// Reads the headers of a request or response. What does not parse is left out: these
    /// headers inform, and a peer with odd ones is still served.
    ///
    /// # Errors
    /// [`TunnelError::HeadersTooLarge`] when all headers together pass `max_bytes`, or one of
    /// ours passes its own limit.
    pub fn parse(headers: &HeaderMap, max_bytes: usize) -> Result<Self, TunnelError> {
        let total: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if total > max_bytes {
            return Err(too_large(HeaderLimit::Total));
        }
        let field = |name: &HeaderName, max: usize, label: &'static str| {
            let Some(value) = headers.get(name) else {
                return Ok(None);
            };
            if value.len() > max {
                return Err(too_large(HeaderLimit::Field(label)));
            }
            Ok(Some(value.as_bytes()))
        };
        Ok(Self {
            baggage: field(&BAGGAGE, MAX_BAGGAGE_BYTES, "baggage")?.map(Baggage::parse),
            forwarded: field(&FORWARDED, MAX_FORWARDED_BYTES, "forwarded")?
                .and_then(Forwarded::parse),
            traceparent: headers
                .get(&TRACEPARENT)
                .and_then(|value| TraceParent::parse(value.as_bytes())),
        })
    }

    /// Writes the headers that are there into `headers`.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(value) = self.baggage.as_ref().and_then(Baggage::to_value) {
            headers.insert(BAGGAGE, value);
        }
        if let Some(value) = self.forwarded.as_ref().and_then(Forwarded::to_value) {
            headers.insert(FORWARDED, once(value));
        }
        if let Some(value) = self.traceparent.as_ref().and_then(TraceParent::to_value) {
            headers.insert(TRACEPARENT, once(value));
        }
    }
}

/// A value that no other request of the connection has. Said to be sensitive it stays out of the tables of
/// header compression, where it would push out what does come again.
fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

fn too_large(limit: HeaderLimit) -> TunnelError {
    TunnelError::HeadersTooLarge { limit }
}
