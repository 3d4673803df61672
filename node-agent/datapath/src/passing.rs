//! Open files handed from one process to another: messages on a Unix socket that keeps message
//! boundaries (`SOCK_SEQPACKET`), each with the files it speaks of.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, sockopt::PeerCredentials,
};
use tokio::io::unix::AsyncFd;

/// Most files in one message; the kernel's own limit (`SCM_MAX_FD`) is 253.
pub const MAX_FILES: usize = 64;

/// Puts a socket under the current thread's runtime.
///
/// # Errors
/// The kernel refuses to watch it.
pub fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is open, and stays so for as long as the value that owns it is not dropped; its
    // number never changes.
    let registered = unsafe { AsyncFd::register(socket) };
    registered.map_err(io::Error::from)
}

/// Sends one message and copies of `files`.
///
/// # Errors
/// The other end is gone or does not read, or there are more than [`MAX_FILES`] files.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if files.len() > MAX_FILES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many files for one message",
        ));
    }
    let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    let data = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &data, control, flags, None)?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives one message into `buffer`: its length and the files that came with it. At the end of
/// the connection the length is 0.
///
/// # Errors
/// The connection failed, or the message or its files did not fit: then it is lost.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FILES]);
    let mut data = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else
            // knows of them.
            let owned = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
            files.extend(rights.into_iter().map(owned));
        }
    }
    if message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
    {
        let text = "the message or its files were cut off";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok((message.bytes, files))
}

/// The user id of the process that made the other end of a Unix connection, as the kernel noted
/// it then.
///
/// # Errors
/// The kernel does not know.
pub fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let credentials = nix::sys::socket::getsockopt(&socket, PeerCredentials)?;
    Ok(credentials.uid())
}
