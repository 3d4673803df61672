//! The body of a response on its way to the client. When it has ended the request has.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::authorize::Standing;
use super::exchange::{Ending, Exchange};
use super::reply;
use crate::authz::Denial;
use crate::body::{Body, BodyError};
use crate::reason::Reason;

/// A response body that ends its [`Exchange`].
pub struct Download {
    body: Body,
    exchange: Option<Box<Exchange>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The request's time was over before its response was.
#[derive(Debug, thiserror::Error)]
#[error("the request took too long")]
struct TookTooLong;

/// The policies have changed.
#[derive(Debug, thiserror::Error)]
#[error("the policies do not allow the request any more")]
struct NotAllowedAnyMore;

impl Download {
    /// A body whose end is that of the exchange. After `deadline` it is broken off.
    pub(super) fn new(body: Body, exchange: Box<Exchange>, deadline: Option<Instant>) -> Self {
        let mut download = Self {
            body,
            exchange: Some(exchange),
            deadline: None,
        };
        if download.body.is_end_stream() {
            download.end(Ending::Complete);
        } else {
            download.deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        }
        download
    }

    /// A head alone; the exchange goes on elsewhere.
    pub(super) fn nothing() -> Self {
        Self {
            body: Body::Empty,
            exchange: None,
            deadline: None,
        }
    }

    fn end(&mut self, ending: Ending) {
        if let Some(exchange) = self.exchange.take() {
            exchange.end(ending);
        }
    }

    /// Breaks a response off that the policies allow no more.
    fn poll_denied(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let standing = self
            .exchange
            .as_mut()
            .and_then(|each| each.standing.as_mut());
        match standing.map(|standing| standing.poll_denied(cx)) {
            Some(Poll::Ready(denial)) => self.deny(denial),
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }

    fn deny(&mut self, denial: Denial) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.body = Body::Empty;
        self.deadline = None;
        let grpc = self.exchange.as_ref().is_some_and(|exchange| exchange.grpc);
        let trailers = grpc.then(|| reply::denied_trailers(&denial));
        if let Some(exchange) = self.exchange.take() {
            exchange.end_denied(denial);
        }
        Poll::Ready(Some(match trailers {
            Some(trailers) => Ok(Frame::trailers(trailers)),
            None => Err(NotAllowedAnyMore.into()),
        }))
    }

    fn poll_deadline(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(deadline) = &mut self.deadline else {
            return Poll::Pending;
        };
        if deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.deadline = None;
        self.body = Body::Empty;
        let grpc = self.exchange.as_ref().is_some_and(|exchange| exchange.grpc);
        self.end(Ending::Broken(Reason::Other("request_timeout"), None));
        Poll::Ready(Some(if grpc {
            Ok(Frame::trailers(reply::deadline_trailers()))
        } else {
            Err(TookTooLong.into())
        }))
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let standing = this
            .exchange
            .as_ref()
            .and_then(|each| each.standing.as_ref());
        if let Some(denial) = standing.and_then(Standing::check) {
            return this.deny(denial);
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let denied = this.poll_denied(cx);
            return if denied.is_ready() {
                denied
            } else {
                this.poll_deadline(cx)
            };
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.frame(frame);
                }
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.end(Ending::Complete);
                }
            }
            Some(Err(error)) => {
                let error = Some(error.to_string());
                this.end(Ending::Broken(Reason::UpstreamReset, error));
            }
            None => this.end(Ending::Complete),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
