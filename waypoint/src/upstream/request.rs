//! The form of a request on the wire, and its body as HTTP takes it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HOST, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::UpstreamError;
use crate::body::{Body, BodyError};

/// How far the body of a request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing of it was asked for.
    #[default]
    Untouched,
    /// Some of it was taken.
    Begun,
    /// It broke off.
    Failed,
}

/// The body of a request whose progress can be seen from outside.
pub(super) struct RequestBody {
    inner: Body,
    /// `None` for an empty body.
    progress: Option<Rc<Cell<Progress>>>,
}

/// The progress of a request's body.
#[derive(Clone)]
pub(super) struct Watch(Option<Rc<Cell<Progress>>>);

impl Watch {
    pub(super) fn has_begun(&self) -> bool {
        self.get() != Progress::Untouched
    }

    pub(super) fn has_failed(&self) -> bool {
        self.get() == Progress::Failed
    }

    fn get(&self) -> Progress {
        self.0
            .as_ref()
            .map(|progress| progress.get())
            .unwrap_or_default()
    }
}

impl RequestBody {
    pub(super) fn new(inner: Body) -> (Self, Watch) {
        let progress = (!inner.is_end_stream()).then(Rc::default);
        let watch = Watch(progress.clone());
        (Self { inner, progress }, watch)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        if let (Some(progress), Poll::Ready(Some(frame))) = (&this.progress, &frame) {
            progress.set(match frame {
                Ok(_) => Progress::Begun,
                Err(_) => Progress::Failed,
            });
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Whether the connection may be taken over by another protocol.
pub(super) fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE) || request.method() == Method::CONNECT
}

/// Puts a request of any version into the form of HTTP/1.1 (RFC 9112, 3.2): the path alone on the request
/// line, and a `Host`.
pub(super) fn to_http1<B>(request: &mut Request<B>, host: &str) -> Result<(), UpstreamError> {
    *request.version_mut() = Version::HTTP_11;
    if !request.headers().contains_key(HOST) {
        let authority = request.uri().authority();
        let host = authority.map_or(host, Authority::as_str);
        let host = HeaderValue::try_from(host).map_err(|_| UpstreamError::Request {
            problem: "the host is no header value".to_owned(),
        })?;
        request.headers_mut().insert(HOST, host);
    }
    if request.method() != Method::CONNECT && request.uri().scheme().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    Ok(())
}

/// Puts a request of any version into the form of HTTP/2 (RFC 9113, 8.3.1): `:scheme` and `:authority`, and no
/// `Host`.
pub(super) fn to_http2<B>(
    request: &mut Request<B>,
    host: &str,
    scheme: Scheme,
) -> Result<(), UpstreamError> {
    *request.version_mut() = Version::HTTP_2;
    let named = request.headers_mut().remove(HOST);
    if request.method() == Method::CONNECT && request.uri().scheme().is_none() {
        return Ok(());
    }
    let uri = request.uri();
    let authority = match (uri.authority(), named) {
        (Some(authority), _) => authority.clone(),
        (None, Some(named)) => Authority::try_from(named.as_bytes()).map_err(invalid)?,
        (None, None) => Authority::try_from(host).map_err(invalid)?,
    };
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    let path = uri.path_and_query().cloned();
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| UpstreamError::Request {
        problem: error.to_string(),
    })?;
    Ok(())
}

fn invalid(error: http::uri::InvalidUri) -> UpstreamError {
    UpstreamError::Request {
        problem: format!("the host is no authority: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str) -> Request<()> {
        Request::builder().uri(uri).body(()).unwrap()
    }

    #[test]
    fn http2_becomes_http1() {
        let mut request = request("https://shop.example:8443/a/b?c=d");
        *request.version_mut() = Version::HTTP_2;
        to_http1(&mut request, "unused").unwrap();
        assert_eq!(request.version(), Version::HTTP_11);
        assert_eq!(request.uri(), "/a/b?c=d");
        assert_eq!(request.headers()[HOST], "shop.example:8443");
    }

    #[test]
    fn a_host_that_is_there_stays() {
        let mut request = request("http://other/x");
        request.headers_mut().insert(HOST, "shop".parse().unwrap());
        to_http1(&mut request, "unused").unwrap();
        assert_eq!(request.headers()[HOST], "shop");
        assert_eq!(request.uri(), "/x");
    }

    #[test]
    fn an_asterisk_stays_one() {
        let mut request = request("*");
        *request.method_mut() = Method::OPTIONS;
        to_http1(&mut request, "shop").unwrap();
        assert_eq!(request.uri(), "*");
        assert_eq!(request.headers()[HOST], "shop");
    }

    #[test]
    fn http1_becomes_http2() {
        let mut request = request("/a?b");
        request
            .headers_mut()
            .insert(HOST, "shop:80".parse().unwrap());
        to_http2(&mut request, "unused", Scheme::HTTP).unwrap();
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.uri(), "http://shop:80/a?b");
        assert!(!request.headers().contains_key(HOST));
    }

    #[test]
    fn without_any_host_the_backend_is_named() {
        let mut request = request("/");
        to_http2(&mut request, "shop.test.svc", Scheme::HTTPS).unwrap();
        assert_eq!(request.uri(), "https://shop.test.svc/");
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        let mut request = request("/");
        request.headers_mut().insert(HOST, "a b".parse().unwrap());
        let error = to_http2(&mut request, "unused", Scheme::HTTP).unwrap_err();
        assert_eq!(error.reason(), "request_not_sendable");
    }
}
