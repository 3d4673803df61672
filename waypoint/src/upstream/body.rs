//! The body of a response, which holds on to its connection.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::entry::Entry;
use super::http1::{Http1, is_takeover};
use super::http2::Lease;
use crate::body::{Body, BodyError};

/// The body of a response. Read to its end it gives the connection back; dropped before, it closes an
/// HTTP/1.1 connection, and resets a stream of HTTP/2.
pub struct UpstreamBody {
    incoming: Incoming,
    hold: Hold,
}

/// What is held while the body is under way.
enum Hold {
    Nothing,
    Http1(Box<Http1>, Rc<Entry>),
    Http2(#[expect(dead_code, reason = "counts a stream while it lives")] Lease),
}

impl UpstreamBody {
    pub(super) fn http1(
        response: Response<Incoming>,
        connection: Http1,
        entry: &Rc<Entry>,
    ) -> Response<Self> {
        let hold = if is_takeover(&response) {
            Hold::Nothing
        } else {
            Hold::Http1(Box::new(connection), Rc::clone(entry))
        };
        Self::response(response, hold)
    }

    pub(super) fn http2(response: Response<Incoming>, lease: Lease) -> Response<Self> {
        Self::response(response, Hold::Http2(lease))
    }

    fn response(response: Response<Incoming>, hold: Hold) -> Response<Self> {
        let mut response = response.map(|incoming| Self { incoming, hold });
        response.body_mut().release_at_end();
        response
    }

    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        match std::mem::replace(&mut self.hold, Hold::Nothing) {
            Hold::Http1(connection, entry) => connection.give_back(&entry),
            Hold::Nothing | Hold::Http2(_) => {}
        }
    }
}

impl From<UpstreamBody> for Body {
    fn from(body: UpstreamBody) -> Self {
        Self::boxed(body)
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.incoming).poll_frame(cx);
        match &frame {
            Poll::Ready(None) => this.release(),
            Poll::Ready(Some(Ok(_))) => this.release_at_end(),
            // A connection that failed is not used again.
            Poll::Ready(Some(Err(_))) => this.hold = Hold::Nothing,
            Poll::Pending => {}
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
