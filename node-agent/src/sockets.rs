//! Sockets inside a pod's network namespace. Only the socket itself is made in
//! there; everything that can wait happens outside.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use karst_datapath::netns::Netns;
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::pod::{HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT};

/// Time for a TCP connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections the kernel completes before we accept them. The kernel cuts it
/// to net.core.somaxconn (4096 by default).
const BACKLOG: i32 = 4096;

/// A dead peer is noticed after 180 s + 9 x 180 s, as in ztunnel.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// Unanswered probes before a connection is given up.
const KEEPALIVE_PROBES: u32 = 9;

/// The listeners of one worker in one pod.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Captured outbound connections.
    pub outbound: Vec<std::net::TcpListener>,
    /// Steered plaintext connections, by pod address.
    pub plaintext: Vec<(IpAddr, std::net::TcpListener)>,
    /// Tunnels.
    pub hbone: Vec<std::net::TcpListener>,
}

impl Listeners {
    /// Opens the listeners of `workers` workers in the namespace of a pod with
    /// these addresses. Loopback listeners exist for the families the pod has.
    ///
    /// # Errors
    /// A port is taken by the application, or there are no file descriptors.
    pub fn open(netns: &Netns, addresses: &[IpAddr], workers: usize) -> io::Result<Vec<Self>> {
        netns.run(|| (0..workers).map(|_| Self::open_here(addresses)).collect())?
    }

    /// Spreads the listeners of a former agent's workers over `workers` workers. Each of
    /// its sockets has a queue of its own, so none may be left out; workers that get none
    /// get new ones.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn spread(
        former: Vec<Self>,
        netns: &Netns,
        addresses: &[IpAddr],
        workers: usize,
    ) -> io::Result<Vec<Self>> {
        let missing = workers.saturating_sub(former.len());
        let mut spread: Vec<Self> = Vec::new();
        for (index, one) in former.into_iter().enumerate() {
            match spread.get_mut(index % workers.max(1)) {
                Some(worker) => worker.append(one),
                None => spread.push(one),
            }
        }
        if missing > 0 {
            spread.extend(Self::open(netns, addresses, missing)?);
        }
        Ok(spread)
    }

    fn append(&mut self, other: Self) {
        self.outbound.extend(other.outbound);
        self.plaintext.extend(other.plaintext);
        self.hbone.extend(other.hbone);
    }

    fn open_here(addresses: &[IpAddr]) -> io::Result<Self> {
        let mut listeners = Self::default();
        for address in addresses {
            let loopback = match address {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
            };
            listeners
                .outbound
                .push(listen(SocketAddr::new(loopback, OUTBOUND_PORT))?);
            let plaintext = listen(SocketAddr::new(loopback, PLAINTEXT_PORT))?;
            listeners.plaintext.push((*address, plaintext));
            listeners
                .hbone
                .push(listen(SocketAddr::new(*address, HBONE_PORT))?);
        }
        // A v4-mapped connect is captured to the IPv4 loopback also in a pod
        // without an IPv4 address; nothing listens there and it is refused.
        Ok(listeners)
    }
}

/// What a worker listens on in one pod.
#[derive(Debug, Default)]
pub struct Listening {
    /// Captured outbound connections.
    pub outbound: Vec<Rc<TcpListener>>,
    /// Steered plaintext connections, by pod address.
    pub plaintext: Vec<(IpAddr, Rc<TcpListener>)>,
    /// Tunnels.
    pub hbone: Vec<Rc<TcpListener>>,
}

impl Listening {
    /// Puts listeners under this thread's runtime.
    ///
    /// # Errors
    /// The kernel refuses to watch one.
    pub fn new(listeners: Listeners) -> io::Result<Self> {
        let watched = |listener| TcpListener::from_std(listener).map(Rc::new);
        let each = |list: Vec<_>| list.into_iter().map(watched).collect::<io::Result<_>>();
        let plaintext = listeners.plaintext.into_iter();
        Ok(Self {
            outbound: each(listeners.outbound)?,
            plaintext: plaintext
                .map(|(ip, listener)| Ok((ip, watched(listener)?)))
                .collect::<io::Result<_>>()?,
            hbone: each(listeners.hbone)?,
        })
    }

    /// The same sockets under descriptors of their own.
    ///
    /// # Errors
    /// There are no file descriptors.
    pub fn copy(&self) -> io::Result<Listeners> {
        let copy = |listener: &Rc<TcpListener>| {
            let fd = listener.as_fd().try_clone_to_owned()?;
            Ok(std::net::TcpListener::from(fd))
        };
        Ok(Listeners {
            outbound: self.outbound.iter().map(copy).collect::<io::Result<_>>()?,
            plaintext: self
                .plaintext
                .iter()
                .map(|(ip, listener)| Ok((*ip, copy(listener)?)))
                .collect::<io::Result<_>>()?,
            hbone: self.hbone.iter().map(copy).collect::<io::Result<_>>()?,
        })
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let context =
        |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
    let make = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        // One listener for each worker, and the old and the new agent side by
        // side during an upgrade.
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Accepted sockets inherit these.
        tune(&socket)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    make().map_err(context)
}

fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Which end of a connection through the agent is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The pod's own application, in the namespace that the socket is made in. One that dies is noticed,
    /// because the kernel that ends it is the same, so there are no keepalive probes.
    Application,
    /// Another pod, or a host outside.
    Network,
}

/// Connects from inside a pod's namespace. `prepare` sees the socket before the
/// first packet leaves.
///
/// # Errors
/// Those of `prepare`, of connect, and a timeout after [`CONNECT_TIMEOUT`]. What this node has too little
/// of is told by [`is_shortage`].
pub async fn connect(
    netns: &Netns,
    (end, address): (End, SocketAddr),
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let connected = match begin(netns, (end, address), prepare) {
        Ok(Begun::Connected(stream)) => return Ok(stream),
        Ok(Begun::Connecting(stream)) => established(stream).await,
        Err(error) => Err(error),
    };
    connected.map_err(|error| {
        if is_scarcity(&error) {
            // A kind of its own, because those who hear of it may keep no more than the kind.
            return io::Error::new(io::ErrorKind::QuotaExceeded, error);
        }
        error
    })
}

/// A connect that has been asked for.
enum Begun {
    Connected(TcpStream),
    Connecting(TcpStream),
}

fn begin(
    netns: &Netns,
    (end, address): (End, SocketAddr),
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<Begun> {
    let domain = Domain::for_address(address);
    let socket =
        netns.run(|| Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)))??;
    match end {
        End::Application => socket.set_tcp_nodelay(true)?,
        End::Network => tune(&socket)?,
    }
    prepare(socket.as_fd())?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
        _ => {}
    }
    // Over the loopback the handshake is over before connect() has returned, though it does not say so.
    let connected = end == End::Application && socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    Ok(if connected {
        Begun::Connected(stream)
    } else {
        Begun::Connecting(stream)
    })
}

async fn established(stream: TcpStream) -> io::Result<TcpStream> {
    match tokio::time::timeout(CONNECT_TIMEOUT, stream.writable()).await {
        Ok(writable) => writable?,
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "connect timed out")),
    }
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Whether [`connect`] failed for lack of something of this node, which says nothing about the destination.
pub fn is_shortage(kind: io::ErrorKind) -> bool {
    kind == io::ErrorKind::QuotaExceeded
}

/// Errors that stay until something of this node, descriptors or kernel memory, is freed.
fn is_scarcity(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(
        code,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

/// Closes a connection with a reset, so that the other end does not take it for
/// an ordinary end.
pub fn reset(stream: TcpStream) {
    // When it fails the connection is closed in the ordinary way, which is all
    // that is left to do.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
