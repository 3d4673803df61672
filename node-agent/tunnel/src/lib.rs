//! The HBONE tunnel: HTTP/2 CONNECT over mutual TLS, one TCP connection of an application each stream.
//!
//! What it does: accepts tunnel connections ([`server::serve`]), keeps a pool of them towards
//! peers ([`pool::Pool`]), copies bytes between an application's socket and a stream
//! ([`relay`]) or makes a stream read and written like a socket ([`HboneIo`]), and builds and
//! parses the headers ([`headers`]).
//!
//! What it does not: decide who may connect (the caller's [`server::InboundHandler`] does),
//! make sockets in a pod's namespace (the caller's [`pool::Dialer`] does), or get certificates
//! (`karst-identity` does).
//!
//! Everything here lives on one worker thread, a current-thread runtime inside a `LocalSet`:
//! no lock is shared and one thread drains a whole batch of readiness events before the tunnel
//! connection writes, which is what makes small messages cheap.
//!
//! Start reading at [`server::serve`] and [`pool::Pool::connect`]; `settings.rs` holds every
//! number that is visible on the wire.

mod buffers;
mod counters;
mod error;
mod handshake;
pub mod headers;
mod io;
mod keepalive;
pub mod pool;
pub mod relay;
pub mod server;
pub mod settings;
mod stream;
mod tls;

pub use counters::Counters;
pub use error::{HeaderLimit, TunnelError};
pub use handshake::{Handshake, Observer, Side};
pub use io::HboneIo;
pub use stream::{HboneStream, TlsInfo};
