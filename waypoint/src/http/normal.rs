//! One normal form of requests: origin-form target, exactly one `Host`, normal path.

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};
use hyper::ext::Protocol;

use super::path;
use super::reply::Failure;

/// Longest host of a request, bytes: a DNS name, or an IPv6 address in brackets, with port.
const MAX_AUTHORITY: usize = 253 + 6;

/// Brings a request into normal form and returns its `Host`, which stays in its headers.
///
/// # Errors
/// It has none, or is of a kind that is not served.
pub(super) fn normalise(parts: &mut Parts) -> Result<HeaderValue, Failure> {
    method(parts)?;
    let host = host(parts)?;
    target(parts)?;
    Ok(host)
}

/// TRACE shows a client's headers, such as cookies, to scripts that may not read them. CONNECT would make an open
/// proxy of us; only its extended form (RFC 8441) is served.
fn method(parts: &Parts) -> Result<(), Failure> {
    if parts.method == Method::TRACE {
        return Err(Failure::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "http_method_trace",
        ));
    }
    if parts.method == Method::CONNECT && parts.extensions.get::<Protocol>().is_none() {
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "http_method_connect").closing());
    }
    Ok(())
}

/// RFC 9112, section 3.2, and RFC 9113, section 8.3.1. Where a request says its host twice, both must agree.
fn host(parts: &mut Parts) -> Result<HeaderValue, Failure> {
    let bad = |reason| Failure::bad_request(reason);
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("http_several_hosts"));
    }
    let host = match (parts.uri.authority(), header) {
        (Some(authority), Some(header)) => {
            let same = authority
                .as_str()
                .as_bytes()
                .eq_ignore_ascii_case(header.as_bytes());
            if !same {
                return Err(bad("http_host_mismatch"));
            }
            header.clone()
        }
        (None, Some(header)) => header.clone(),
        (Some(authority), None) if parts.version != Version::HTTP_11 => {
            let host = HeaderValue::from_str(authority.as_str());
            let host = host.map_err(|_| bad("http_bad_host"))?;
            parts.headers.insert(HOST, host.clone());
            host
        }
        (None, None) if parts.version == Version::HTTP_10 => {
            return Ok(HeaderValue::from_static(""));
        }
        (_, None) => return Err(bad("http_no_host")),
    };
    if is_authority(host.as_bytes()) {
        Ok(host)
    } else {
        Err(bad("http_bad_host"))
    }
}

/// A host name, an IPv4 address or an IPv6 address in brackets, and perhaps a port.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !text[colon..].contains(&b']') => (&text[..colon], &text[colon + 1..]),
        _ => (text, &b""[..]),
    };
    let name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let address = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
    let valid = match host {
        [b'[', inner @ .., b']'] => !inner.is_empty() && inner.iter().all(address),
        host => !host.is_empty() && host.iter().all(name),
    };
    valid && text.len() <= MAX_AUTHORITY && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

fn target(parts: &mut Parts) -> Result<(), Failure> {
    let uri = &parts.uri;
    let is_origin = uri.authority().is_none() && uri.scheme().is_none();
    if is_origin && uri.path() == "*" {
        // RFC 9110, section 9.3.7: it asks about the server as a whole.
        return if parts.method == Method::OPTIONS {
            Ok(())
        } else {
            Err(Failure::bad_request("http_bad_target"))
        };
    }
    if !uri.path().starts_with('/') {
        return Err(Failure::bad_request("http_bad_target"));
    }
    let bad_path = |_| Failure::bad_request("http_bad_path");
    match path::normalise(uri.path()).map_err(bad_path)? {
        None if is_origin => {}
        None => {
            let path = uri.path_and_query().cloned();
            parts.uri = path.map(Uri::from).unwrap_or_default();
        }
        Some(mut path) => {
            if let Some(query) = uri.query() {
                path.push('?');
                path.push_str(query);
            }
            let path = PathAndQuery::from_maybe_shared(path);
            parts.uri = path
                .map_err(|_| Failure::bad_request("http_bad_path"))?
                .into();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Version};

    use super::{is_authority, normalise};

    fn request(
        method: Method,
        version: Version,
        uri: &str,
        hosts: &[&str],
    ) -> http::request::Parts {
        let mut request = Request::builder().method(method).version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(version: Version, uri: &str, hosts: &[&str], expected: Result<&str, &str>) {
        let mut parts = request(Method::GET, version, uri, hosts);
        let found = normalise(&mut parts);
        let found = found
            .map(|_| parts.uri.to_string())
            .map_err(|failure| failure.reason.as_str());
        assert_eq!(found.as_deref().map_err(|reason| *reason), expected);
        if expected.is_ok() && version != Version::HTTP_10 {
            assert_eq!(parts.headers.get_all("host").iter().count(), 1);
        }
    }

    #[test]
    fn a_request_has_one_host() {
        let one = Version::HTTP_11;
        check(one, "/a?b=%zz", &["h"], Ok("/a?b=%zz"));
        check(one, "/a", &[], Err("http_no_host"));
        check(one, "/a", &["h", "h"], Err("http_several_hosts"));
        check(one, "http://h/a", &["H"], Ok("/a"));
        check(one, "http://h/a", &["other"], Err("http_host_mismatch"));
        check(one, "http://h/a", &[], Err("http_no_host"));
        check(one, "/a", &["h/x"], Err("http_bad_host"));
        check(one, "/a", &["u@h"], Err("http_bad_host"));
        check(one, "/a", &[""], Err("http_bad_host"));
        check(Version::HTTP_10, "/a", &[], Ok("/a"));
        check(Version::HTTP_2, "https://h/a", &[], Ok("/a"));
        check(Version::HTTP_2, "https://h/a", &["h"], Ok("/a"));
        check(
            Version::HTTP_2,
            "https://h/a",
            &["i"],
            Err("http_host_mismatch"),
        );
    }

    #[test]
    fn a_target_has_one_form() {
        let one = Version::HTTP_11;
        check(one, "/a/%2e%2e/b?c=/../", &["h"], Ok("/b?c=/../"));
        check(one, "http://h", &["h"], Ok("/"));
        check(one, "/%", &["h"], Err("http_bad_path"));
        check(one, "*", &["h"], Err("http_bad_target"));
        assert!(normalise(&mut request(Method::OPTIONS, one, "*", &["h"])).is_ok());
    }

    #[test]
    fn some_methods_are_not_served() {
        let failure = normalise(&mut request(Method::TRACE, Version::HTTP_11, "/", &["h"]));
        assert_eq!(failure.unwrap_err().reason.as_str(), "http_method_trace");
        let failure = normalise(&mut request(
            Method::CONNECT,
            Version::HTTP_11,
            "h:1",
            &["h:1"],
        ));
        assert_eq!(failure.unwrap_err().reason.as_str(), "http_method_connect");
    }

    #[test]
    fn authorities() {
        for good in [
            "a",
            "a.b-c.",
            "1.2.3.4:80",
            "[::1]",
            "[::1]:8080",
            "a_b:1",
            "a:",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a,b", "[", "[]", "[::1", "::1", "a:b", "a:123456", "[x]", "a\u{e4}",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
