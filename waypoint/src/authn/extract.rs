//! Where tokens are in a request.

use std::borrow::Cow;

use http::Uri;
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;

use super::{MAX_TOKEN_BYTES, Refusal};

/// The parameter of RFC 6750 2.3.
const PARAMETER: &str = "access_token";

/// Where a token can be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In this header behind this text; without regard to case where it is the scheme of RFC 6750 2.1.
    Header(String, String),
    /// In a parameter of the query.
    Parameter(String),
    /// In a cookie.
    Cookie(String),
}

/// Where tokens are unless a rule says otherwise.
pub(super) fn usual() -> [Place; 2] {
    [
        Place::Header(AUTHORIZATION.as_str().to_owned(), "Bearer ".to_owned()),
        Place::Parameter(PARAMETER.to_owned()),
    ]
}

/// Brings places into the order in which [`find`] wants them: of a header the longest text in front comes first.
pub(super) fn in_order(places: &mut Vec<Place>) {
    places.sort_unstable_by(|one, other| other.cmp(one));
    places.dedup();
}

/// The token of a request with its place, if it has one.
///
/// # Errors
/// It has several, or one that nobody would take.
pub(super) fn find<'a>(
    places: &'a [Place],
    parts: &Parts,
) -> Result<Option<(&'a Place, String)>, Refusal> {
    let mut found: Option<(&Place, String)> = None;
    for (at, place) in places.iter().enumerate() {
        let mut add = |token: Cow<'_, str>| {
            if token.is_empty() {
                return Ok(());
            }
            if found.is_some() {
                return Err(Refusal::Several);
            }
            if token.len() > MAX_TOKEN_BYTES {
                return Err(Refusal::TooLarge);
            }
            found = Some((place, token.into_owned()));
            Ok(())
        };
        match place {
            Place::Header(name, prefix) => {
                // With several texts for one header, the first that a line begins with counts for it.
                let is_done = |value: &HeaderValue| {
                    let earlier = places.iter().take(at);
                    let mut texts = earlier.filter_map(|place| match place {
                        Place::Header(other, text) if other == name => Some(text),
                        _ => None,
                    });
                    texts.any(|text| behind(value, text).is_some())
                };
                for value in parts.headers.get_all(name.as_str()) {
                    if let Some(token) = behind(value, prefix).filter(|_| !is_done(value)) {
                        add(token?.into())?;
                    }
                }
            }
            Place::Parameter(name) => {
                for (key, value) in pairs(parts.uri.query().unwrap_or_default()) {
                    if decoded(key) == name.as_str() {
                        add(decoded(value))?;
                    }
                }
            }
            Place::Cookie(name) => {
                for (key, value) in cookies(&parts.headers) {
                    if key == name.as_bytes() {
                        let value = value.strip_prefix(b"\"").unwrap_or(value);
                        let value = value.strip_suffix(b"\"").unwrap_or(value);
                        add(text(value)?.into())?;
                    }
                }
            }
        }
    }
    Ok(found)
}

fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed)
}

/// What is behind a text; `None` if that is not there.
fn behind<'a>(value: &'a HeaderValue, prefix: &str) -> Option<Result<&'a str, Refusal>> {
    let (front, rest) = value.as_bytes().split_at_checked(prefix.len())?;
    let is_there = if prefix == "Bearer " {
        front.eq_ignore_ascii_case(prefix.as_bytes())
    } else {
        front == prefix.as_bytes()
    };
    is_there.then(|| text(rest.trim_ascii()))
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&');
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// A name or value of a query without its percent signs. What is no escape stays.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digit = |index: usize| char::from(*behind.get(index)?).to_digit(16);
        let escaped = (*first == b'%')
            .then(|| u8::try_from(digit(0)? * 16 + digit(1)?).ok())
            .flatten();
        bytes.push(match (escaped, first) {
            (Some(byte), _) => byte,
            (None, b'+') => b' ',
            (None, other) => *other,
        });
        rest = match escaped {
            Some(_) => behind.get(2..).unwrap_or_default(),
            None => behind,
        };
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// Names and values of all cookies.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let mut half = || halves.next().unwrap_or_default().trim_ascii();
        (half(), half())
    })
}

/// Takes the token out of a request.
pub(super) fn remove(place: &Place, parts: &mut Parts) {
    match place {
        Place::Header(name, _) => {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                parts.headers.remove(name);
            }
        }
        Place::Parameter(name) => {
            let query = parts.uri.query().unwrap_or_default();
            let kept = query.split('&').filter(|pair| {
                let key = pair.split_once('=').map_or(*pair, |(key, _)| key);
                decoded(key) != name.as_str()
            });
            let kept = kept.collect::<Vec<_>>().join("&");
            let path = parts.uri.path();
            let target = if kept.is_empty() {
                path.to_owned()
            } else {
                format!("{path}?{kept}")
            };
            if let Ok(target) = PathAndQuery::try_from(target) {
                // The normal form has neither scheme nor host.
                parts.uri = Uri::from(target);
            }
        }
        Place::Cookie(name) => {
            let kept: Vec<Vec<u8>> = cookies(&parts.headers)
                .filter(|(key, _)| *key != name.as_bytes() && !key.is_empty())
                .map(|(key, value)| [key, b"=", value].concat())
                .collect();
            parts.headers.remove(COOKIE);
            if let Ok(line) = HeaderValue::from_bytes(&kept.join(&b"; "[..]))
                && !kept.is_empty()
            {
                parts.headers.insert(COOKIE, line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::{Place, find, in_order, remove, usual};
    use crate::authn::{MAX_TOKEN_BYTES, Refusal};

    fn places() -> Vec<Place> {
        let mut places = usual().to_vec();
        places.push(Place::Header("x-jwt".to_owned(), String::new()));
        places.push(Place::Header("x-jwt".to_owned(), "JWT ".to_owned()));
        places.push(Place::Cookie("session".to_owned()));
        in_order(&mut places);
        places
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> http::request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn found(uri: &str, headers: &[(&str, &str)]) -> Result<Option<String>, Refusal> {
        let places = places();
        let found = find(&places, &parts(uri, headers));
        found.map(|found| found.map(|(_, token)| token))
    }

    #[test]
    fn tokens_are_found_where_they_may_be() {
        let one = |token: &str| Ok(Some(token.to_owned()));
        assert_eq!(
            found("/", &[("authorization", "Bearer a.b.c")]),
            one("a.b.c")
        );
        assert_eq!(
            found("/", &[("authorization", "bearer  a.b.c ")]),
            one("a.b.c")
        );
        assert_eq!(found("/?x=1&access_token=a.b%2Ec", &[]), one("a.b.c"));
        assert_eq!(found("/?access%5Ftoken=t", &[]), one("t"));
        assert_eq!(found("/", &[("x-jwt", "t")]), one("t"));
        assert_eq!(found("/", &[("x-jwt", "JWT t")]), one("t"));
        assert_eq!(found("/", &[("cookie", "a=b; session=t")]), one("t"));
        for nothing in ["Basic dTpw", "Bearer", "Bearer ", ""] {
            assert_eq!(
                found("/", &[("authorization", nothing)]),
                Ok(None),
                "{nothing}"
            );
        }
        assert_eq!(
            found("/?access_token=&token=t", &[("cookie", "x=session")]),
            Ok(None)
        );
    }

    #[test]
    fn more_than_one_token_is_refused() {
        let several = Err(Refusal::Several);
        let bearer = ("authorization", "Bearer t");
        assert_eq!(found("/", &[bearer, bearer]), several);
        assert_eq!(found("/?access_token=t", &[bearer]), several);
        assert_eq!(found("/?access_token=t&access_token=t", &[]), several);
        assert_eq!(
            found("/", &[("cookie", "session=a"), ("cookie", "session=b")]),
            several
        );
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
        assert_eq!(
            found("/", &[("authorization", &long)]),
            Err(Refusal::TooLarge)
        );
        let longest = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES));
        assert!(
            found("/", &[("authorization", &longest)])
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn tokens_are_taken_out() {
        let check = |uri: &str, headers: &[(&str, &str)], target: &str, left: &[(&str, &str)]| {
            let mut parts = parts(uri, headers);
            let places = places();
            let (place, _) = find(&places, &parts).unwrap().unwrap();
            remove(place, &mut parts);
            assert_eq!(parts.uri, target);
            let rest = parts.headers.iter();
            let rest: Vec<_> = rest
                .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
                .collect();
            assert_eq!(rest, left);
        };
        let other = ("x-other", "1");
        check(
            "/a?b",
            &[("authorization", "Bearer t"), other],
            "/a?b",
            &[other],
        );
        check("/a?access_token=t", &[], "/a", &[]);
        check("/a?b=%20&access%5ftoken=t&c", &[], "/a?b=%20&c", &[]);
        check(
            "/",
            &[("cookie", "a=b; session=t"), ("cookie", "c=d=e")],
            "/",
            &[("cookie", "a=b; c=d=e")],
        );
        check("/", &[("cookie", "session=t")], "/", &[]);
    }

    /// An application may take either of them.
    #[test]
    fn one_header_with_two_kinds_of_tokens_has_several() {
        let both = [("x-jwt", "JWT a"), ("x-jwt", "b")];
        assert_eq!(found("/", &both), Err(Refusal::Several));
        assert_eq!(found("/", &[both[1], both[0]]), Err(Refusal::Several));
        // One line has one token: that behind the longest text.
        assert_eq!(found("/", &both[..1]), Ok(Some("a".to_owned())));
        assert_eq!(found("/", &both[1..]), Ok(Some("b".to_owned())));
    }
}
