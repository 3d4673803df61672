//! Headers that belong to one hop, and those that tell the next one about the client.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use rand::Rng as _;

use super::connection::Connection;
use super::limits::MAX_REQUEST_ID;
use super::{Entry, RequestScheme};
use crate::client::Client;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a client must not remove by naming it in `Connection`: without them a request is another one.
const PROTECTED: [&str; 8] = [
    "host",
    "content-length",
    "content-type",
    "authorization",
    "cookie",
    "expect",
    "trailer",
    "te",
];

/// Removes what concerned only the connection a message came by (RFC 9110, section 7.6.1). `trailer` stays, it
/// announces what is passed on.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        remove_named(headers, &[]);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
}

#[cold]
fn remove_named(headers: &mut HeaderMap, spared: &[&str]) {
    let values: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
    headers.remove(CONNECTION);
    let names = values.iter().filter_map(|value| value.to_str().ok());
    for name in names.flat_map(|names| names.split(',')) {
        let name = name.trim();
        if !is_one_of(&PROTECTED, name) && !is_one_of(spared, name) {
            // Names that are no header names are not in the map either.
            headers.remove(name);
        }
    }
}

/// Makes one line of cookies, which HTTP/2 lets come in several (RFC 9113, section 8.2.3): whoever gets
/// them otherwise would read them in different ways.
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(line) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, line);
    }
}

/// What a client says of its connection itself in `Connection`; it is read later.
const OF_CONNECTION: [&str; 5] = ["close", "http2-settings", "keep-alive", "te", "upgrade"];

/// Removes the headers that a client has named in `Connection`, before anybody looks at them: what
/// policies and authorizers decide about is what goes on, and what is written into a request from
/// then on is not the client's to remove.
pub(super) fn remove_named_by_client(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let values = headers.get_all(CONNECTION).iter();
        let names = values.filter_map(|value| value.to_str().ok());
        let own: Vec<&str> = names
            .flat_map(|names| names.split(','))
            .map(str::trim)
            .filter(|name| is_one_of(&OF_CONNECTION, name))
            .collect();
        let own = HeaderValue::try_from(own.join(", "));
        remove_named(headers, &OF_CONNECTION);
        if let Ok(own) = own
            && !own.is_empty()
        {
            headers.insert(CONNECTION, own);
        }
    }
}

fn is_one_of(list: &[&str], name: &str) -> bool {
    list.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Brings the headers of a request into the form in which it goes on; returns its id.
pub(super) fn prepare(parts: &mut Parts, connection: &Connection) -> HeaderValue {
    let headers = &mut parts.headers;
    remove_hop_by_hop(headers);
    headers.remove(&HTTP2_SETTINGS);
    if let Some(te) = headers.get(TE) {
        // gRPC needs it, and it is all that HTTP/2 allows.
        if has_token(te, "trailers") {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
    forwarded_for(headers, &connection.address);
    let at_gateway = matches!(connection.entry, Entry::Gateway { .. });
    if at_gateway || !headers.contains_key(&X_FORWARDED_PROTO) {
        let scheme = match connection.entry.scheme() {
            RequestScheme::Http => "http",
            RequestScheme::Https => "https",
        };
        headers.insert(X_FORWARDED_PROTO.clone(), HeaderValue::from_static(scheme));
    }
    match &connection.identity {
        Some(identity) => {
            headers.insert(X_FORWARDED_CLIENT_CERT.clone(), identity.clone());
        }
        None => {
            headers.remove(&X_FORWARDED_CLIENT_CERT);
        }
    }
    request_id(headers)
}

fn forwarded_for(headers: &mut HeaderMap, address: &HeaderValue) {
    if !headers.contains_key(&X_FORWARDED_FOR) {
        headers.insert(X_FORWARDED_FOR.clone(), address.clone());
        return;
    }
    let mut list = Vec::with_capacity(64);
    for value in headers.get_all(&X_FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(address.as_bytes());
    if let Ok(list) = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)) {
        headers.insert(X_FORWARDED_FOR.clone(), list);
    }
}

pub(super) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(&X_REQUEST_ID)
        && !id.is_empty()
        && id.len() <= MAX_REQUEST_ID
    {
        return id.clone();
    }
    let id = new_request_id();
    headers.insert(X_REQUEST_ID.clone(), id.clone());
    id
}

/// A random UUID (RFC 9562, version 4).
fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut random = [0_u8; 16];
    rand::rng().fill_bytes(&mut random);
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in random.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = DIGITS[usize::from(byte >> 4)];
        text[at + 1] = DIGITS[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Whether a comma-separated list has a token, parameters aside.
pub(super) fn has_token(value: &HeaderValue, token: &str) -> bool {
    let Ok(value) = value.to_str() else {
        return false;
    };
    value.split(',').any(|item| {
        let name = item.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(token)
    })
}

/// Brings the headers of a response into the form in which it goes back. `framed` says what its body knows of
/// its own length: a response whose length its framing does not tell has none to claim.
pub(super) fn return_response(headers: &mut HeaderMap, framed: Framed) {
    remove_hop_by_hop(headers);
    if framed == Framed::Open {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Whether the end of a response's body is known from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framed {
    /// By its length, or there is no body.
    Length,
    /// It is seen when it comes.
    Open,
}

/// The client's address as it is written into `x-forwarded-for`.
pub(super) fn address_value(client: &Client) -> HeaderValue {
    let text = client.address.ip().to_canonical().to_string();
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// What the mesh has proven of the client. At a gateway nothing is: whatever a client says there is removed.
pub(super) fn identity_value(entry: &Entry, client: &Client) -> Option<HeaderValue> {
    if matches!(entry, Entry::Gateway { .. }) {
        return None;
    }
    let identity = client.identity.as_ref()?;
    HeaderValue::try_from(format!("URI={}", identity.as_str())).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::{
        Framed, forwarded_for, has_token, join_cookies, new_request_id, remove_hop_by_hop,
        remove_named_by_client, return_response,
    };

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn what_is_of_one_hop_goes() {
        let mut headers = map(&[
            ("connection", "X-One, close"),
            ("connection", "x-two,host, content-length"),
            ("keep-alive", "1"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("proxy-connection", "x"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("host", "h"),
            ("content-length", "1"),
            ("trailer", "t"),
        ]);
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "trailer", "x-three"]);
    }

    #[test]
    fn what_a_client_names_goes_before_anybody_looks() {
        let mut headers = map(&[
            ("connection", "X-One, Upgrade"),
            ("connection", "x-two,host, TE"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("host", "h"),
        ]);
        remove_named_by_client(&mut headers);
        assert_eq!(headers["connection"], "Upgrade, TE");
        let mut left: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["connection", "host", "te", "upgrade", "x-three"]);
        // What is written from then on stays.
        headers.insert("x-one", HeaderValue::from_static("ours"));
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers["x-one"], "ours");
        let mut headers = map(&[("connection", "x-one"), ("x-one", "1")]);
        remove_named_by_client(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn cookies_are_one_line() {
        let lines = |lines: &[&'static str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("cookie", *line)).collect();
            let mut headers = map(&lines);
            join_cookies(&mut headers);
            let all = headers.get_all("cookie").iter();
            let all: Vec<_> = all.map(|line| line.to_str().unwrap().to_owned()).collect();
            all
        };
        assert!(lines(&[]).is_empty());
        assert_eq!(lines(&["a=1; b=2"]), ["a=1; b=2"]);
        assert_eq!(lines(&["a=1", "b=2", "c=3; d=4"]), ["a=1; b=2; c=3; d=4"]);
    }

    #[test]
    fn addresses_are_appended() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
        ]);
        forwarded_for(&mut headers, &HeaderValue::from_static("4.4.4.4"));
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(
            headers["x-forwarded-for"],
            "1.1.1.1, 2.2.2.2, 3.3.3.3, 4.4.4.4"
        );
    }

    #[test]
    fn ids_are_uuids() {
        let id = new_request_id();
        let id = id.to_str().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(
            matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'),
            "{id}"
        );
        assert_ne!(new_request_id(), id);
    }

    #[test]
    fn tokens() {
        let value = HeaderValue::from_static("gzip;q=0.5, Trailers ");
        assert!(has_token(&value, "trailers"));
        assert!(has_token(&value, "gzip"));
        assert!(!has_token(&value, "q=0.5"));
    }

    #[test]
    fn a_response_claims_no_length_that_is_not_its_framing() {
        let mut headers = map(&[("content-length", "3"), ("transfer-encoding", "chunked")]);
        return_response(&mut headers, Framed::Open);
        assert!(headers.is_empty());
        let mut headers = map(&[("content-length", "3")]);
        return_response(&mut headers, Framed::Length);
        assert_eq!(headers.len(), 1);
    }
}
