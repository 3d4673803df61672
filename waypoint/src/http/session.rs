//! Session persistence (GEP-1619): a client comes back to the endpoint that it was sent to first.
//!
//! What the client carries is a token of 20 bytes in base64: when the session began, and a hash of backend and
//! endpoint. It names no address and no pod, and every proxy of the same configuration understands it. It is no
//! secret and is not signed: whoever makes one up reaches an endpoint of the route's backends, as without it.
//! A session whose endpoint or backend is gone ends, and the next response begins a new one.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hashbrown::HashMap;
use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use sha2::{Digest, Sha256};

use crate::balance::{Cluster, Picked};
use crate::filter::RequestScheme;
use crate::table::{BackendTarget, HttpRule, Session, SessionCarrier, WeightedBackend};

/// Endpoints of which a worker remembers the hash.
const MAX_KNOWN: usize = 16 << 10;

/// Bytes of a hash: nobody finds two endpoints with the same.
const HASH: usize = 15;

type EndpointHash = [u8; HASH];

/// Endpoints by backend and hash, as far as this worker has met them.
#[derive(Default)]
pub(super) struct Sessions {
    known: HashMap<(u64, EndpointHash), Arc<str>>,
}

impl Sessions {
    /// The endpoint of a backend that a hash is of.
    fn find(&mut self, cluster: &Cluster, hash: &EndpointHash) -> Option<Arc<str>> {
        if let Some(key) = self.known.get(&(cluster.id(), *hash)) {
            // It may be gone meanwhile; the balancer sees that.
            return Some(Arc::clone(key));
        }
        let endpoints = cluster.endpoints();
        let found = endpoints
            .iter()
            .find(|endpoint| hash_of(cluster.name(), endpoint.key()) == *hash)?;
        let key = Arc::clone(found.key());
        self.remember(cluster, *hash, &key);
        Some(key)
    }

    fn remember(&mut self, cluster: &Cluster, hash: EndpointHash, key: &Arc<str>) {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert((cluster.id(), hash), Arc::clone(key));
    }
}

/// The backend and endpoint of a client's session.
pub(super) struct Bound<'a> {
    pub(super) backend: &'a WeightedBackend,
    pub(super) key: Arc<str>,
}

/// What a client carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    /// Seconds since 1970.
    began: u64,
    hash: EndpointHash,
}

impl Token {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0_u8; 5 + HASH + 1];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let bytes = bytes.get(..length)?;
        let (began, hash) = bytes.split_first_chunk::<5>()?;
        let mut seconds = [0_u8; 8];
        seconds[3..].copy_from_slice(began);
        Some(Self {
            began: u64::from_be_bytes(seconds),
            hash: hash.try_into().ok()?,
        })
    }

    fn text(&self) -> String {
        let mut bytes = [0_u8; 5 + HASH];
        bytes[..5].copy_from_slice(&self.began.to_be_bytes()[3..]);
        bytes[5..].copy_from_slice(&self.hash);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whether the session's time is over. One that begins in the future, by other clocks, has just begun.
    fn is_over(&self, absolute: Option<Duration>, now: u64) -> bool {
        absolute.is_some_and(|limit| now.saturating_sub(self.began) >= limit.as_secs())
    }
}

fn hash_of(cluster: &str, key: &str) -> EndpointHash {
    let mut digest = Sha256::new();
    digest.update(b"karst session\0");
    digest.update(cluster.as_bytes());
    digest.update(b"\0");
    digest.update(key.as_bytes());
    let digest = digest.finalize();
    let mut hash = [0; HASH];
    hash.copy_from_slice(&digest[..HASH]);
    hash
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The session that a request belongs to, if the rule has sessions and it is not over.
pub(super) fn bound<'a>(
    rule: &'a HttpRule,
    headers: &HeaderMap,
    sessions: &RefCell<Sessions>,
) -> Option<Bound<'a>> {
    let session = rule.session.as_ref()?;
    let token = match &session.carrier {
        SessionCarrier::Header(name) => Token::parse(headers.get(name)?.as_bytes()),
        SessionCarrier::Cookie(name) => cookies(headers, name).find_map(Token::parse),
    }?;
    if token.is_over(session.absolute, now()) {
        return None;
    }
    rule.backends.list.iter().find_map(|backend| {
        let BackendTarget::Cluster(cluster) = &backend.target else {
            return None;
        };
        let key = sessions.borrow_mut().find(cluster, &token.hash)?;
        Some(Bound { backend, key })
    })
}

/// Values of the cookies of a name.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter();
    let pairs = pairs.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let pair = pair.trim_ascii();
        pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
    })
}

/// Begins a session: gives the client of a response what it shall carry.
pub(super) fn bind(
    session: &Session,
    picked: &Picked,
    scheme: RequestScheme,
    headers: &mut HeaderMap,
    sessions: &RefCell<Sessions>,
) {
    let hash = hash_of(picked.cluster().name(), picked.key());
    sessions
        .borrow_mut()
        .remember(picked.cluster(), hash, picked.key());
    let token = Token { began: now(), hash };
    match &session.carrier {
        SessionCarrier::Header(name) => {
            if let Ok(value) = HeaderValue::try_from(token.text()) {
                let _ = headers.try_insert(name, value);
            }
        }
        SessionCarrier::Cookie(name) => {
            let mut cookie = format!("{name}={}; Path=/; HttpOnly; SameSite=Lax", token.text());
            if scheme == RequestScheme::Https {
                cookie.push_str("; Secure");
            }
            if session.permanent
                && let Some(absolute) = session.absolute
            {
                cookie.push_str(&format!("; Max-Age={}", absolute.as_secs()));
            }
            if let Ok(value) = HeaderValue::try_from(cookie) {
                let _ = headers.try_append(SET_COOKIE, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};

    use super::{Token, cookies, hash_of};

    #[test]
    fn tokens_come_back_as_they_went() {
        let token = Token {
            began: 1_800_000_000,
            hash: hash_of("ns/a/80", "uid:80"),
        };
        let text = token.text();
        assert_eq!(text.len(), 27);
        assert_eq!(Token::parse(text.as_bytes()), Some(token));
        for bad in [
            "",
            "a",
            "AAAA",
            &text[1..],
            &format!("{text}A"),
            &format!("{text}AA"),
            "ä",
        ] {
            assert_eq!(Token::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn sessions_end() {
        let token = Token {
            began: 100,
            hash: [0; 15],
        };
        assert!(!token.is_over(None, u64::MAX));
        let limit = Some(Duration::from_secs(10));
        assert!(!token.is_over(limit, 109));
        assert!(token.is_over(limit, 110));
        assert!(!token.is_over(limit, 50));
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("xa=1; a=2;ab=3"));
        headers.append("cookie", HeaderValue::from_static("a=4"));
        let found: Vec<&[u8]> = cookies(&headers, "a").collect();
        assert_eq!(found, [b"2", b"4"]);
    }
}
