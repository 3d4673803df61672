//! Tells whoever counts them how TLS handshakes of tunnels went.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{TlsInfo, TunnelError};

/// Which side of a tunnel connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// We dialled.
    Client,
    /// We accepted.
    Server,
}

impl Side {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// A TLS handshake that has ended, with what follows from it: protocol and identity of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Which side we were.
    pub side: Side,
    /// Whether an earlier session was resumed, or why there is no tunnel ([`TunnelError::reason`]).
    pub outcome: Result<bool, &'static str>,
    /// From the first byte to be sent or awaited, after the TCP connect.
    pub took: Duration,
}

/// Who is told of handshakes; by default nobody. Called on the worker's thread, so it must be quick.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<dyn Fn(Handshake) + Send + Sync>>);

impl Observer {
    /// Tells `of`.
    pub fn new(of: impl Fn(Handshake) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(of)))
    }

    pub(crate) fn tell<T>(
        &self,
        side: Side,
        since: Instant,
        outcome: &Result<T, TunnelError>,
        tls: impl FnOnce(&T) -> &TlsInfo,
    ) {
        if let Some(tell) = &self.0 {
            tell(Handshake {
                side,
                outcome: match outcome {
                    Ok(done) => Ok(tls(done).resumed),
                    Err(error) => Err(error.reason()),
                },
                took: since.elapsed(),
            });
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observer").field(&self.0.is_some()).finish()
    }
}
