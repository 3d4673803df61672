//! How messages of gRPC are framed, written once for as many streams as there are.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A message as gRPC sends it, not compressed. A message has less than 4 GiB: responses are closed long before.
pub fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows as needed, so this does not fail.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// The body of a response: framed messages, then how the stream ended.
pub struct Frames {
    queue: mpsc::Receiver<Result<Bytes, Status>>,
    has_ended: bool,
}

impl Frames {
    /// What comes out of the queue. An error is the last that is sent.
    pub fn new(queue: mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self {
            queue,
            has_ended: false,
        }
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.queue.poll_recv(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.has_ended = true;
        self.queue.close();
        let mut trailers = http::HeaderMap::new();
        if let Err(unfit) = status.add_header(&mut trailers) {
            // A text that no header may have: the code goes without it.
            let bare = Status::new(unfit.code(), "");
            let _ = bare.add_header(&mut trailers);
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}
