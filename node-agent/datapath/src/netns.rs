//! Network namespaces: named by device and inode, entered for one short call at a time.
//!
//! A socket belongs for life to the namespace it was made in, so the agent enters a pod's
//! namespace only to make sockets and comes straight back on the same thread.

use std::fs::{self, File};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::fstat;
use serde::Serialize;

/// `NS_GET_NSTYPE` of linux/nsfs.h: which kind of namespace a descriptor stands for (Linux 4.11).
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14), not yet named by libc everywhere.
const SO_NETNS_COOKIE: libc::c_int = 71;

thread_local! {
    /// The namespace this thread belongs to, opened once: `/proc` need not be read again to return.
    static HOME: OnceLock<File> = const { OnceLock::new() };
}

/// Which network namespace: stable as long as it lives, reused by the kernel afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NetnsId {
    /// Device of the nsfs.
    pub dev: u64,
    /// Inode in the nsfs.
    pub ino: u64,
}

/// A network namespace held open, so that it cannot be reused while we look at it.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
    cookie: OnceLock<u64>,
}

impl Netns {
    /// Opens the namespace at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// The file cannot be opened, or is not a network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    fn from_file(file: File) -> io::Result<Self> {
        // SAFETY: the descriptor is open for the whole call and this request takes no argument.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a network namespace",
            ));
        }
        let stat = fstat(&file)?;
        Ok(Self {
            file,
            id: NetnsId {
                dev: stat.st_dev,
                ino: stat.st_ino,
            },
            cookie: OnceLock::new(),
        })
    }

    /// Device and inode.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// The kernel's number for this namespace, never reused until reboot (Linux 5.14).
    ///
    /// # Errors
    /// As [`Netns::run`], or the kernel is older.
    pub fn cookie(&self) -> io::Result<u64> {
        if let Some(cookie) = self.cookie.get() {
            return Ok(*cookie);
        }
        // Any socket will do: a Unix one needs no address family to be up.
        let probe = self.run(|| {
            socket(
                AddressFamily::Unix,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
        })??;
        let cookie = socket_netns_cookie(probe.as_fd())?;
        Ok(*self.cookie.get_or_init(|| cookie))
    }

    /// Runs `f` on this thread inside the namespace and returns; aborts the process if the
    /// thread cannot return, because everything it did afterwards would be in the wrong place.
    /// `f` must not block or await.
    ///
    /// # Errors
    /// The namespace cannot be entered (no `CAP_SYS_ADMIN`), or `/proc` is not mounted.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        HOME.with(|home| {
            let home = match home.get() {
                Some(home) => home,
                None => {
                    let here = File::open("/proc/thread-self/ns/net")?;
                    home.get_or_init(|| here)
                }
            };
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            let back = Return(home);
            let value = f();
            drop(back);
            Ok(value)
        })
    }
}

impl Netns {
    /// As [`Netns::run`], on a thread of its own, so that the caller's is never in another namespace.
    ///
    /// # Errors
    /// As [`Netns::run`], or there can be no more threads.
    pub fn run_apart<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let running = thread::Builder::new().spawn_scoped(scope, || self.run(f))?;
            running
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that enters it panicked")))
        })
    }
}

/// The namespace whose inode's low half is `ino`, which is how links name theirs: looked for among the
/// files of `folders` (where runtimes bind namespaces) and then among those of the processes in `proc`.
/// `None` when nobody who can be seen has it.
pub fn find(ino: u32, folders: &[&Path], proc: &Path) -> Option<Netns> {
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|found| found.ino() as u32 == ino);
    let bound = folders.iter().flat_map(|folder| entries(folder));
    let of_process = entries(proc).map(|process| process.join("ns/net"));
    let mut candidates = bound.chain(of_process).filter(|path| is_it(path));
    candidates.find_map(|path| {
        let found = Netns::open(&path).ok()?;
        // It may have gone and come back as another one between the look and the opening.
        (found.id.ino as u32 == ino).then_some(found)
    })
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// Whether an error of [`Netns::open`] says that there is no such namespace, and not merely that it
/// could not be looked at (no descriptors or memory left, no permission).
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
    )
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home, also when the closure panics.
struct Return<'a>(&'a File);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a pod's network namespace, aborting");
            process::abort();
        }
    }
}

/// The cookie of the namespace a socket lives in.
pub(crate) fn socket_netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals and `length` is the size of the first.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
