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
        // All written: give the memory back, the connection may now be idle for hours.
        self.frames = VecDeque::new();
        self.tail = BytesMut::new();
    }
}
