//! Plain TCP with deadlines.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;

use crate::{PATIENCE, Place};

/// Connects from `place`.
pub fn connect(place: &Place, to: SocketAddr) -> Result<TcpStream> {
    let stream = place.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.with_context(|| format!("connect to {to}"))
}

/// Connects from `place` and says how it was refused; an error if it was not.
pub fn refused(place: &Place, to: SocketAddr, patience: Duration) -> Result<std::io::Error> {
    match place.run(|| TcpStream::connect_timeout(&to, patience))? {
        Ok(_) => bail!("connected to {to}"),
        Err(error) => Ok(error),
    }
}

/// Accepts one connection, waiting at most `patience`; `None` when none came.
pub fn accept(
    listener: &TcpListener,
    patience: Duration,
) -> Result<Option<(TcpStream, SocketAddr)>> {
    // A receive timeout bounds accept() too.
    SockRef::from(listener).set_read_timeout(Some(patience))?;
    match listener.accept() {
        Ok(accepted) => Ok(Some(accepted)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends a few bytes one way: shows that both ends belong together.
pub fn echo_once(mut one: &TcpStream, mut other: &TcpStream) -> Result<()> {
    let sent = *b"are you there?";
    let mut received = [0; 14];
    other.set_read_timeout(Some(PATIENCE))?;
    one.write_all(&sent)?;
    other.read_exact(&mut received)?;
    ensure!(sent == received);
    Ok(())
}
