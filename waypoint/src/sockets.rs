//! Listening sockets, and what is set on those they accept.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Connections the kernel completes before we accept them. The kernel cuts it to net.core.somaxconn (4096 by
/// default).
const BACKLOG: i32 = 4096;

/// A dead peer is noticed after 180 s + 9 x 180 s.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// Unanswered probes before a connection is given up.
const KEEPALIVE_PROBES: u32 = 9;

/// Wait after an accept that failed for lack of resources. Without it the loop would spin, because the
/// connection stays in the queue.
const BACKOFF: Duration = Duration::from_millis(50);

/// Whether several sockets share a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One for each worker; the kernel spreads connections over them.
    Shared,
    /// Only one.
    Alone,
}

/// Listens on an address.
///
/// # Errors
/// Those of the kernel, with the address in the text.
pub fn listen(address: SocketAddr, sharing: Sharing) -> io::Result<std::net::TcpListener> {
    let make = || {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if sharing == Sharing::Shared {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            // IPv4 has a socket of its own.
            socket.set_only_v6(true)?;
        }
        // Accepted sockets inherit these.
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    make().map_err(|error: io::Error| {
        io::Error::new(error.kind(), format!("listen on {address}: {error}"))
    })
}

/// Listens on each of several addresses, `each` times. One whose address family this pod does not have is left
/// out.
///
/// # Errors
/// The first of any other kind, or that none was left.
pub fn listen_all(
    addresses: impl IntoIterator<Item = SocketAddr>,
    each: usize,
) -> io::Result<Vec<Vec<std::net::TcpListener>>> {
    let sharing = if each > 1 {
        Sharing::Shared
    } else {
        Sharing::Alone
    };
    let mut sets: Vec<Vec<std::net::TcpListener>> = (0..each).map(|_| Vec::new()).collect();
    let mut missing = None;
    for address in addresses {
        let mut bound = address;
        for set in &mut sets {
            match listen(bound, sharing) {
                Ok(listener) => {
                    // With port 0 the first one chooses and the others join it.
                    bound = listener.local_addr()?;
                    set.push(listener);
                }
                Err(error) if is_missing_family(address, &error) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
    }
    match missing {
        Some(error) if sets.iter().any(Vec::is_empty) => Err(error),
        _ => Ok(sets),
    }
}

/// Whether it says that the host lacks IPv6 (or IPv4) altogether.
fn is_missing_family(address: SocketAddr, error: &io::Error) -> bool {
    let unspecified = match address.ip() {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    // The wrapped text has no code any more; the kinds are those of EAFNOSUPPORT and EADDRNOTAVAIL.
    let kind = error.kind();
    unspecified
        && (kind == io::ErrorKind::AddrNotAvailable
            || kind == io::Error::from_raw_os_error(Errno::EAFNOSUPPORT as i32).kind())
}

/// Accepts until `stop` fires; then what already waits in the queue is still taken.
pub async fn accept_loop(
    listener: TcpListener,
    stop: CancellationToken,
    metrics: &Metrics,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => take(stream, canonical(from)),
            Err(error) if is_scarcity(&error) => {
                metrics.accept_failures.inc();
                tracing::warn!(%error, "accept failed, waiting");
                tokio::time::sleep(BACKOFF).await;
            }
            // The client was gone before we came to it.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
    // Closing the socket would reset those whose handshake the kernel has completed.
    let Ok(listener) = listener.as_fd().try_clone_to_owned() else {
        return;
    };
    let listener = std::net::TcpListener::from(listener);
    while let Ok((stream, from)) = listener.accept() {
        let ready = stream.set_nonblocking(true);
        if let Ok(stream) = ready.and_then(|()| TcpStream::from_std(stream)) {
            take(stream, canonical(from));
        }
    }
}

/// IPv4 in IPv6's clothes is IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Errors that stay until something is freed.
fn is_scarcity(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else {
        return true;
    };
    matches!(
        Errno::from_raw(code),
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM
    )
}

/// Closes a connection with a reset, so that the other end does not take it for an ordinary end.
pub fn reset(stream: TcpStream) {
    // When it fails the connection is closed in the ordinary way, which is all that is left to do.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// Raises the limit of open files to what the administrator allows: each connection needs one, and one more
/// towards the application.
///
/// # Errors
/// The kernel refuses.
pub fn raise_open_files() -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;

    use super::{is_missing_family, is_scarcity, listen_all};

    #[test]
    fn workers_share_the_port_that_the_first_one_got() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
        let sets = listen_all([any], 3).expect("listens");
        let port = |set: &Vec<std::net::TcpListener>| set[0].local_addr().expect("bound").port();
        assert!(sets.iter().all(|set| port(set) == port(&sets[0])));
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_it() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = held.local_addr().expect("bound");
        let error = listen_all([address], 2).expect_err("taken");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn only_an_unspecified_address_may_be_missing() {
        let error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let check = |text: &str| is_missing_family(text.parse().expect("address"), &error);
        assert!(check("[::]:1"));
        assert!(!check("[fd00::1]:1"));
        assert!(is_scarcity(&io::Error::from_raw_os_error(24)), "EMFILE");
    }
}
