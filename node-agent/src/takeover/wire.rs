//! The messages, and the socket that carries them: one message a packet, JSON,
//! with the files it speaks of.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use karst_datapath::passing;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{TakeoverError, failed};

/// Longest message: the labels of [`passing::MAX_FILES`] sockets, or some hundred
/// identities, with room to spare.
const MAX_BYTES: usize = 64 << 10;

/// New agents that may wait to be heard: there is never more than one.
const BACKLOG: i32 = 4;

/// What the new agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL`] as it speaks it.
    pub protocol: u32,
    /// Its version, for the log.
    pub version: String,
    /// Identities of this node's pods that it has no certificate for.
    pub missing: Vec<String>,
}

/// What a passed socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Captured outbound connections.
    Outbound,
    /// Steered plaintext connections.
    Plaintext,
    /// Tunnels.
    Hbone,
}

/// One passed socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// What it is for.
    pub kind: Kind,
    /// The worker it belonged to.
    pub worker: usize,
    /// The pod's address, for plaintext.
    pub address: Option<IpAddr>,
}

/// Everything that is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The new agent asks.
    Hello(Hello),
    /// The running one does not agree.
    Refused {
        /// Stable label.
        reason: String,
        /// Details.
        message: String,
    },
    /// Some sockets of a pod, in the order of the files that come with it.
    Sockets {
        /// The pod's uid.
        pod: String,
        /// What they are.
        labels: Vec<Label>,
    },
    /// These were all. The lock on the state directory comes with it.
    Complete {
        /// Layout of the running agent's maps.
        layout: u32,
        /// How many sockets there were.
        sockets: usize,
    },
    /// The new agent has everything and is able to serve.
    Taken,
    /// The running one serves no more.
    Released,
}

/// One connection between two agents.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    pub(crate) fn new(socket: Socket) -> Result<Self, TakeoverError> {
        socket
            .set_nonblocking(true)
            .map_err(failed("prepare the takeover socket"))?;
        let watched = passing::watch(socket.into()).map_err(failed("watch the takeover socket"))?;
        Ok(Self(watched))
    }

    /// Connects to the running agent.
    ///
    /// # Errors
    /// Nobody listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, TakeoverError> {
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
            socket.set_nonblocking(true)?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(socket)
        };
        Self::new(connect().map_err(failed("reach the running agent"))?)
    }

    /// The user who runs the other side.
    ///
    /// # Errors
    /// The kernel does not know.
    pub fn peer_uid(&self) -> Result<u32, TakeoverError> {
        passing::peer_uid(self.0.get_ref().as_fd()).map_err(failed("identify the other agent"))
    }

    /// Sends a message with files.
    ///
    /// # Errors
    /// The other side is gone, or does not read for `limit`.
    pub async fn send(
        &self,
        message: &Message,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), TakeoverError> {
        let bytes = serde_json::to_vec(message)
            .map_err(|error| TakeoverError::Malformed(error.to_string()))?;
        let sending = self.0.async_io(Interest::WRITABLE, |socket| {
            passing::send(socket.as_fd(), &bytes, files)
        });
        match tokio::time::timeout(limit, sending).await {
            Ok(Err(error)) if is_end(&error) => Err(TakeoverError::Ended),
            Ok(sent) => sent.map_err(failed("send to the other agent")),
            Err(_) => Err(TakeoverError::Silent(limit)),
        }
    }

    /// Receives a message and its files.
    ///
    /// # Errors
    /// The other side is gone, says nothing for `limit`, or what makes no sense.
    pub async fn receive(&self, limit: Duration) -> Result<(Message, Vec<OwnedFd>), TakeoverError> {
        let mut buffer = vec![0; MAX_BYTES];
        let receiving = self.0.async_io(Interest::READABLE, |socket| {
            passing::receive(socket.as_fd(), &mut buffer)
        });
        let (length, files) = match tokio::time::timeout(limit, receiving).await {
            Ok(Ok((0, _))) => return Err(TakeoverError::Ended),
            Ok(Ok(received)) => received,
            Ok(Err(error)) if is_end(&error) => return Err(TakeoverError::Ended),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(TakeoverError::Malformed(error.to_string()));
            }
            Ok(Err(error)) => return Err(failed("hear the other agent")(error)),
            Err(_) => return Err(TakeoverError::Silent(limit)),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        let message = serde_json::from_slice(bytes)
            .map_err(|error| TakeoverError::Malformed(error.to_string()))?;
        Ok((message, files))
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Where new agents ask.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens at `path`, for root alone.
    ///
    /// # Errors
    /// The path cannot be used.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = crate::admin::bind_private(path, |path| {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::unix(path)?)?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        })?;
        Ok(Self(passing::watch(socket.into())?))
    }

    /// The next one that asks.
    ///
    /// # Errors
    /// There are no file descriptors.
    pub async fn accept(&self) -> Result<Channel, TakeoverError> {
        let accepted = self
            .0
            .async_io(Interest::READABLE, |socket| SockRef::from(socket).accept())
            .await;
        Channel::new(accepted.map_err(failed("accept a takeover"))?.0)
    }
}
