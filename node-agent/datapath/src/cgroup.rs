//! cgroup2 folders by id, which is what the programs compare.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::DatapathError;
use crate::pins::failed;

/// A cgroup held open.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) folder: File,
    /// The kernel's id, which is the inode.
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self, DatapathError> {
        let folder = File::open(path).map_err(failed("open cgroup", path))?;
        let found = fstatfs(&folder).map_err(|errno| failed("examine", path)(errno.into()))?;
        if found.filesystem_type() != CGROUP2_SUPER_MAGIC {
            let other = io::Error::new(io::ErrorKind::InvalidInput, "not a cgroup2 folder");
            return Err(failed("use cgroup", path)(other));
        }
        let id = folder.metadata().map_err(failed("examine", path))?.ino();
        Ok(Self { folder, id })
    }
}
