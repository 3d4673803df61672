//! Ports for servers that are told theirs before they open it. Shared with the tests of the controller.

use std::net::{Ipv4Addr, SocketAddr};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};

/// Below the ports that the kernel gives to clients (from 32768 on): a client must not have the port before its server
/// opens it.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A port of 127.0.0.1 that nobody uses, and that this process has not been given before.
pub fn free() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes that are started together begin far from each other.
    let begin = (process::id() % COUNT) * 7_417;
    loop {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(given < COUNT, "all ports were given");
        let port = u16::try_from(FIRST + (begin + given) % COUNT).unwrap();
        if is_free(port) {
            return port;
        }
    }
}

/// Looks without listening. A child that another thread forks at this moment has a copy of the socket until it runs its
/// program: a copy that listened would take clients of the server that opens the port, and reset them.
fn is_free(port: u16) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // As servers do. Without it a copy would keep them from the port.
    socket.set_reuse_address(true).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.bind(&address.into()).is_ok()
}
