//! What the agent sets up for itself as a process: limits, cgroup, lock.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to what the administrator allows: each
/// captured connection needs one, each listener and tunnel too.
///
/// # Errors
/// The kernel refuses.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Moves this process into `cgroup`, made if need be. Connections made from
/// inside it are never captured.
///
/// # Errors
/// It is not a cgroup v2 directory, or we may not write there.
pub fn join_cgroup(cgroup: &Path) -> io::Result<()> {
    fs::create_dir_all(cgroup)?;
    let procs = cgroup.join("cgroup.procs");
    if !procs.exists() {
        let text = format!("{} is not a cgroup directory", cgroup.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    fs::write(procs, std::process::id().to_string())
}

/// Checks that pins survive this process: a file system that a container mounts for itself goes
/// with it, and with it the capture of every pod.
///
/// # Errors
/// There is no bpffs at `root` or above it.
pub fn need_bpffs(root: &Path) -> io::Result<()> {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let found = nix::sys::statfs::statfs(there)?;
    if found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    let text = format!(
        "no bpffs is mounted at {}: mount one on the node (mount -t bpf bpf /sys/fs/bpf) and into the agent's pod",
        root.display()
    );
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// Takes the state directory for this process alone, until the returned file and
/// every copy of its descriptor are closed: two agents for one node would undo each
/// other's work. `None` when another agent has it.
///
/// # Errors
/// The directory cannot be used.
pub fn lock_state_dir(dir: &Path) -> io::Result<Option<File>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let file = File::create(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{join_cgroup, lock_state_dir};

    #[test]
    fn a_state_directory_has_one_owner() {
        let dir = tempfile::tempdir().expect("dir");
        let lock = || lock_state_dir(dir.path()).expect("usable");
        let first = lock().expect("locked");
        assert!(lock().is_none());
        let copy = first.try_clone().expect("copied");
        drop(first);
        assert!(lock().is_none(), "a copy, as a successor gets it, holds it");
        drop(copy);
        assert!(lock().is_some());
    }

    #[test]
    fn a_plain_directory_is_no_cgroup() {
        let dir = tempfile::tempdir().expect("dir");
        let error = join_cgroup(dir.path()).expect_err("refused");
        assert!(error.to_string().contains("not a cgroup"), "{error}");
    }
}
