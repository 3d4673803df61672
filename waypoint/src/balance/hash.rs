//! Hashes that are the same in every proxy and every version, and the key of a request.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap, HeaderValue};

use super::settings::{ClusterSettings, HashBy};
use crate::client::Client;

/// FNV-1a of 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Hash of bytes.
pub(super) fn bytes(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
    finish(bytes.iter().fold(FNV_OFFSET, fold))
}

/// The `n`th hash that is derived from another.
pub(super) fn mix(hash: u64, n: u64) -> u64 {
    // The golden ratio of 2^64 spreads small numbers over all bits.
    finish(hash ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Makes every bit depend on every other: the finalizer of MurmurHash3.
fn finish(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// What tells a client apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// For [`super::PickRequest::hash`].
    pub value: u64,
    /// `Set-Cookie` for the response: the client has no cookie yet, and this one belongs to the hash.
    pub set_cookie: Option<HeaderValue>,
}

/// The hash key of a request; `None` if the backend hashes nothing, or the request has nothing to hash.
#[must_use]
pub fn hash_of(settings: &ClusterSettings, headers: &HeaderMap, client: &Client) -> Option<Hashed> {
    let plain = |value| Hashed {
        value,
        set_cookie: None,
    };
    match settings.balancing.hash.as_ref()? {
        HashBy::Header(name) => {
            let mut values = headers.get_all(name).iter().peekable();
            values.peek()?;
            let fold = |hash, value: &HeaderValue| mix(hash, bytes(value.as_bytes()));
            Some(plain(values.fold(0, fold)))
        }
        HashBy::Cookie { name, ttl, path } => {
            if let Some(value) = cookie(headers, name) {
                return Some(plain(bytes(value)));
            }
            let value = format!("{:032x}", rand::random::<u128>());
            let mut text = format!("{name}={value}; Path={path}; HttpOnly");
            if let Some(ttl) = ttl {
                // Writing to a String does not fail.
                let _ = write!(text, "; Max-Age={}", ttl.as_secs());
            }
            Some(Hashed {
                value: bytes(value.as_bytes()),
                set_cookie: HeaderValue::try_from(text).ok(),
            })
        }
        HashBy::SourceAddress => Some(plain(match client.address.ip().to_canonical() {
            IpAddr::V4(v4) => bytes(&v4.octets()),
            IpAddr::V6(v6) => bytes(&v6.octets()),
        })),
    }
}

/// The value of the first cookie of that name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter();
    let mut pairs = pairs.flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    pairs.find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    })
}
