//! A lock between processes, which goes with what it guards.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Holding it keeps out every other process that takes the lock of this path. The kernel gives it
/// back when its holder ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock at `path`, without a time limit. Makes the file and the directories above
    /// it if need be; fails where that is not possible.
    pub fn take(path: PathBuf) -> Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("opening the lock {}", path.display()))?;
            file.lock()
                .with_context(|| format!("taking the lock {}", path.display()))?;
            // Whoever held it may have removed the file: then this lock is on a file that nobody
            // else will find.
            let named = fs::metadata(&path).map(|named| named.ino()).ok();
            if named == Some(file.metadata()?.ino()) {
                return Ok(Self { _file: file, path });
            }
        }
    }

    /// Gives the lock back and removes its file: the end of what it guards.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path)
            .with_context(|| format!("removing the lock {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::ensure;

    use super::*;
    use crate::wait::until;

    #[test]
    fn who_waited_for_a_removed_lock_has_one_that_others_find() {
        let dir = std::env::temp_dir().join(format!("karst-lock-{}", std::process::id()));
        let path = dir.join("a.lock");
        let first = Lock::take(path.clone()).unwrap();
        let inode = format!(":{} ", fs::metadata(&path).unwrap().ino());
        let second = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::take(path.clone()).unwrap());
            until("the second to wait", Duration::from_secs(10), || {
                let locks = fs::read_to_string("/proc/locks")?;
                let mut lines = locks.lines();
                ensure!(lines.any(|line| line.contains("-> FLOCK") && line.contains(&inode)));
                Ok(())
            })
            .unwrap();
            first.remove().unwrap();
            waiting.join().unwrap()
        });
        let other = File::open(&path).unwrap();
        assert!(other.try_lock().is_err(), "held by the second");
        second.remove().unwrap();
        fs::remove_dir(dir).unwrap();
    }
}
