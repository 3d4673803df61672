//! Received frames on their way to their reader.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Frames a single vectored write takes.
const SLICES: usize = 16;
/// Frames smaller than this are joined with the one before them. A frame costs some 100 bytes
/// of bookkeeping, so that a stalled reader and a chatty sender would pin far more memory than
/// the flow-control window says.
const SMALL: usize = 1 << 10;
/// Joined frames fill buffers of this size.
const JOINED: usize = 16 << 10;

/// Bytes in order. Empty it owns no memory.
#[derive(Default)]
pub(crate) struct Queue {
    frames: VecDeque<Bytes>,
    /// Small frames behind `frames`.
    tail: BytesMut,
    bytes: usize,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        if self.frames.is_empty() && self.tail.is_empty() {
            // The usual case: one frame, written at once.
            self.frames.push_back(frame);
            return;
        }
        if frame.len() < SMALL {
            if self.tail.capacity() - self.tail.len() < frame.len() {
                self.seal();
                self.tail = BytesMut::with_capacity(JOINED);
            }
            self.tail.extend_from_slice(&frame);
            return;
        }
        self.seal();
        self.frames.push_back(frame);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.frames.push_back(self.tail.split().freeze());
        }
    }

    /// Writes as much as one call takes; returns the bytes written.
    pub(super) fn poll_write(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.frames.len() < SLICES {
            self.seal();
        }
        let written = match self.frames.front() {
            Some(frame) if self.frames.len() == 1 => Pin::new(tcp).poll_write(cx, frame),
            _ => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut count = 0;
                for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                    *slice = IoSlice::new(frame);
                    count += 1;
                }
                let slices = slices.get(..count).unwrap_or_default();
                Pin::new(tcp).poll_write_vectored(cx, slices)
            }
        };
        let written = std::task::ready!(written)?;
        if written == 0 && self.bytes > 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    /// Copies out as much as fits into `buffer`; returns the bytes copied.
    pub(crate) fn read(&mut self, buffer: &mut ReadBuf<'_>) -> usize {
        self.seal();
        let mut copied = 0;
        for frame in &self.frames {
            let fits = frame.len().min(buffer.remaining());
            if fits == 0 {
                break;
            }
            buffer.put_slice(frame.get(..fits).unwrap_or_default());
            copied += fits;
        }
        self.advance(copied);
        copied
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.frames.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.frames.pop_front();
        }
        if self.bytes > 0 {
            // What is left is in the tail, which a write of so many frames did not reach.
            return;
        }
        // All written: give the memory back, the connection may now be idle for hours.
        self.frames = VecDeque::new();
        self.tail = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Whatever a write takes, all that was pushed comes out, in order.
    #[tokio::test]
    async fn every_mix_of_frames_is_written_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        for large in 0..=2 * SLICES + 1 {
            for small in [0, 1, 3, 40] {
                let mut queue = Queue::default();
                let mut wanted = Vec::new();
                for number in 0..large + small {
                    let length = if number < large { SMALL + 1 } else { SMALL - 1 };
                    let frame = vec![u8::try_from(number).unwrap(); length];
                    wanted.extend_from_slice(&frame);
                    queue.push(frame.into());
                }
                let mut written = 0;
                let mut seen = vec![0; wanted.len()];
                while !queue.is_empty() {
                    let before = written;
                    written += poll_fn(|cx| queue.poll_write(&mut tcp, cx)).await.unwrap();
                    peer.read_exact(&mut seen[before..written]).await.unwrap();
                }
                assert!(
                    seen == wanted,
                    "{large} large frames, then {small} small ones"
                );
                assert_eq!(queue.tail.capacity(), 0);
            }
        }
    }
}
