//! The stream of bytes below HTTP: TCP or a tunnel stream, and TLS with the application on top of it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use karst_tunnel::HboneIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::metrics::Metrics;
use crate::balance::ConnectionSlot;

/// What carries the bytes.
pub(super) enum Carrier {
    Tcp(TcpStream),
    Hbone(Box<HboneIo>),
}

impl Carrier {
    pub(super) fn is_tunnel(&self) -> bool {
        matches!(self, Self::Hbone(_))
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Hbone(hbone) => Pin::new(&mut **hbone).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Hbone(hbone) => Pin::new(&mut **hbone).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Hbone(hbone) => Pin::new(&mut **hbone).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Hbone(hbone) => hbone.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Hbone(hbone) => Pin::new(&mut **hbone).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Hbone(hbone) => Pin::new(&mut **hbone).poll_shutdown(cx),
        }
    }
}

/// What one can see of a connection from outside while HTTP has it.
#[derive(Default)]
pub(super) struct Wire {
    received: Cell<u64>,
    watcher: RefCell<Option<Waker>>,
}

impl Wire {
    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Wakes `waker` with the next bytes that come.
    pub(super) fn watch(&self, waker: &Waker) {
        self.watcher.replace(Some(waker.clone()));
    }

    fn add(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        let watcher = self.watcher.take();
        if let Some(watcher) = watcher {
            watcher.wake();
        }
    }
}

/// A connection to an application, counted while it lives.
pub(super) struct Connection {
    layer: Layer,
    wire: Rc<Wire>,
    _slot: ConnectionSlot,
    metrics: Arc<Metrics>,
}

enum Layer {
    Plain(Carrier),
    Tls(Box<TlsStream<Carrier>>),
}

impl Connection {
    pub(super) fn plain(carrier: Carrier, slot: ConnectionSlot, metrics: &Arc<Metrics>) -> Self {
        Self::new(Layer::Plain(carrier), slot, metrics)
    }

    pub(super) fn tls(
        tls: TlsStream<Carrier>,
        slot: ConnectionSlot,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self::new(Layer::Tls(Box::new(tls)), slot, metrics)
    }

    fn new(layer: Layer, slot: ConnectionSlot, metrics: &Arc<Metrics>) -> Self {
        metrics.opened();
        Self {
            layer,
            wire: Rc::default(),
            _slot: slot,
            metrics: Arc::clone(metrics),
        }
    }

    pub(super) fn wire(&self) -> Rc<Wire> {
        Rc::clone(&self.wire)
    }

    /// Whether a tunnel is below, which watches itself that the other end is alive.
    pub(super) fn is_tunnelled(&self) -> bool {
        match &self.layer {
            Layer::Plain(carrier) => carrier.is_tunnel(),
            Layer::Tls(tls) => tls.get_ref().0.is_tunnel(),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.closed();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let result = match &mut this.layer {
            Layer::Plain(carrier) => Pin::new(carrier).poll_read(cx, buffer),
            Layer::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
        };
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            this.wire.add(bytes);
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().layer {
            Layer::Plain(carrier) => Pin::new(carrier).poll_write(cx, bytes),
            Layer::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().layer {
            Layer::Plain(carrier) => Pin::new(carrier).poll_write_vectored(cx, slices),
            Layer::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.layer {
            Layer::Plain(carrier) => carrier.is_write_vectored(),
            Layer::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().layer {
            Layer::Plain(carrier) => Pin::new(carrier).poll_flush(cx),
            Layer::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().layer {
            Layer::Plain(carrier) => Pin::new(carrier).poll_shutdown(cx),
            Layer::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}
