//! Open files handed from one process to another: messages on a Unix socket that keeps message
//! boundaries (`SOCK_SEQPACKET`), each with the files it speaks of.

use std::io::{self, IoSlice};
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::slice;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, sockopt::PeerCredentials};
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
    let mut control = [0u64; CONTROL_WORDS];
    let mut data = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: it consists of numbers and pointers, which may all be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` and the two buffers it points to are live and have the lengths given.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // Before anything else: of a message that was cut off, too, files have come.
    let files = take_files(&message);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        let text = "the message or its files were cut off";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok((length, files))
}

/// Room for the control data of [`MAX_FILES`] files, in words of the alignment it needs.
const CONTROL_WORDS: usize = {
    // SAFETY: it computes a number.
    let bytes = unsafe { libc::CMSG_SPACE((MAX_FILES * size_of::<RawFd>()) as u32) };
    (bytes as usize).div_ceil(size_of::<u64>())
};

/// The files that came with a message that was just received.
fn take_files(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: the kernel has written the control data of `message`, and how much of it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: it points to a whole header inside the control data, which is aligned for it.
        let header = unsafe { *next };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: it computes a number.
            let before = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = header.cmsg_len.saturating_sub(before) / size_of::<RawFd>();
            // SAFETY: the data of a header inside the control data is inside it as well.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            // SAFETY: the kernel wrote so many descriptors there, and the place is aligned for them.
            let rights = unsafe { slice::from_raw_parts(first, count) };
            // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
            let owned = |fd: &RawFd| unsafe { OwnedFd::from_raw_fd(*fd) };
            files.extend(rights.iter().map(owned));
        }
        // SAFETY: `next` is a header of this very control data.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    files
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use nix::fcntl::OFlag;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::unistd::pipe2;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    #[test]
    fn files_come_with_their_message() {
        let (here, there) = pair();
        let (mut reading, writing) = pipe();
        send(here.as_fd(), b"none", &[]).unwrap();
        send(here.as_fd(), b"most", &[writing.as_fd(); MAX_FILES]).unwrap();
        drop(writing);
        let mut buffer = [0; 16];
        let (length, files) = receive(there.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], files.len()), (&b"none"[..], 0));
        let (length, files) = receive(there.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], files.len()), (&b"most"[..], MAX_FILES));
        assert!(!is_closed(&mut reading));
        drop(files);
        assert!(is_closed(&mut reading));
        let error = receive(there.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(here);
        assert_eq!(receive(there.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn files_of_a_message_that_is_cut_off_are_closed() {
        for (bytes, count) in [(4, MAX_FILES + 10), (40, 3), (40, MAX_FILES + 10)] {
            let (here, there) = pair();
            let (mut reading, writing) = pipe();
            let rights = vec![writing.as_raw_fd(); count];
            let (bytes, control) = (vec![0; bytes], [ControlMessage::ScmRights(&rights)]);
            let data = [IoSlice::new(&bytes)];
            sendmsg::<()>(here.as_raw_fd(), &data, &control, MsgFlags::empty(), None).unwrap();
            drop(writing);
            let error = receive(there.as_fd(), &mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(is_closed(&mut reading), "{count} files leaked");
        }
    }

    fn pipe() -> (File, OwnedFd) {
        let (reading, writing) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        (File::from(reading), writing)
    }

    /// Whether nobody holds the other end any more.
    fn is_closed(reading: &mut File) -> bool {
        matches!(reading.read(&mut [0]), Ok(0))
    }
}
