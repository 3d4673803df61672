//! What carries the bytes of a client: a socket, a tunnel's stream, TLS over either, with or without bytes that
//! have been read from it already.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use karst_tunnel::HboneIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::sockets;

/// A stream of bytes in both directions that can be broken off, so that the other end does not take it for an
/// ordinary end.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Breaks it off.
    fn reset(self);
}

impl Carrier for TcpStream {
    fn reset(self) {
        sockets::reset(self);
    }
}

impl Carrier for HboneIo {
    fn reset(self) {
        // Dropping it without end of stream resets the stream.
        drop(self);
    }
}

impl<C: Carrier> Carrier for TlsStream<C> {
    fn reset(self) {
        self.into_inner().0.reset();
    }
}

/// A pipe in memory, for tests: it has no other way to end.
impl Carrier for DuplexStream {
    fn reset(self) {
        drop(self);
    }
}

/// A stream of which some bytes have been read already; they come again.
#[derive(Debug)]
pub struct Prefixed<C> {
    prefix: Bytes,
    inner: C,
}

impl<C> Prefixed<C> {
    /// Puts `prefix` back in front of what `inner` still has.
    pub fn new(prefix: Bytes, inner: C) -> Self {
        Self { prefix, inner }
    }
}

impl<C: Carrier> Carrier for Prefixed<C> {
    fn reset(self) {
        self.inner.reset();
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Prefixed<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let count = this.prefix.len().min(buffer.remaining());
        buffer.put_slice(&this.prefix[..count]);
        this.prefix.advance(count);
        if this.prefix.is_empty() {
            // Gives the memory back.
            this.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Prefixed<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::Prefixed;

    #[tokio::test]
    async fn what_was_read_comes_again() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut io = Prefixed::new(Bytes::from_static(b"hello "), near);
        far.write_all(b"world").await.expect("written");
        drop(far);
        let mut text = String::new();
        let mut start = [0; 2];
        io.read_exact(&mut start).await.expect("read");
        io.read_to_string(&mut text).await.expect("read");
        assert_eq!((&start, text.as_str()), (b"he", "llo world"));
    }
}
