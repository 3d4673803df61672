//! Where a node's pins are, and the file system they live in.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::DatapathError;

/// Where a bpffs is expected, and mounted when it is not.
const BPFFS: &str = "/sys/fs/bpf";

const LINKS: &str = "links";
const MAPS_PREFIX: &str = "maps-v";
const SK_LOOKUP_PREFIX: &str = "sk_lookup-";
const SYN_CHECK_PREFIX: &str = "syn_check-";

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Path {
        action,
        path,
        source,
    }
}

/// A name as a file name: bpffs reserves the dot.
pub(crate) fn escape(name: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = !name.is_empty() && name.len() <= 253 && name.bytes().all(plain);
    fits.then(|| name.replace('.', ":"))
}

fn unescape(file_name: &str) -> String {
    file_name.replace(':', ".")
}

/// The pins of one node.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    node: PathBuf,
}

impl Pins {
    pub(crate) fn new(bpffs_root: &Path, node_name: &str) -> Result<Self, DatapathError> {
        let node = escape(node_name).ok_or_else(|| {
            let invalid = io::Error::new(io::ErrorKind::InvalidInput, "not a node name");
            failed("use", Path::new(node_name))(invalid)
        })?;
        Ok(Self {
            node: bpffs_root.join(node),
        })
    }

    /// Makes the folders, mounting a bpffs if there is none.
    pub(crate) fn prepare(&self, bpffs_root: &Path, layout: u32) -> Result<(), DatapathError> {
        ensure_bpffs(bpffs_root)?;
        for folder in [self.links(), self.maps(layout)] {
            make_private(&folder)?;
        }
        Ok(())
    }

    pub(crate) fn maps(&self, layout: u32) -> PathBuf {
        self.node.join(format!("{MAPS_PREFIX}{layout}"))
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.node.join(LINKS)
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// The link of the pod with this (escaped) uid.
    pub(crate) fn sk_lookup(&self, uid: &str) -> String {
        format!("{SK_LOOKUP_PREFIX}{uid}")
    }

    /// The uid in the name of a pod's link.
    pub(crate) fn sk_lookup_uid(name: &str) -> Option<String> {
        name.strip_prefix(SK_LOOKUP_PREFIX).map(unescape)
    }

    /// The link that checks handshakes to the pod with this (escaped) uid.
    pub(crate) fn syn_check(&self, uid: &str) -> String {
        format!("{SYN_CHECK_PREFIX}{uid}")
    }

    /// The uid in the name of such a link.
    pub(crate) fn syn_check_uid(name: &str) -> Option<String> {
        name.strip_prefix(SYN_CHECK_PREFIX).map(unescape)
    }

    /// Names of the pinned links, in order.
    pub(crate) fn link_names(&self) -> Result<Vec<String>, DatapathError> {
        names(&self.links())
    }

    /// Layout versions that have maps, in order.
    pub(crate) fn layouts(&self) -> Result<Vec<u32>, DatapathError> {
        let mut versions: Vec<u32> = names(&self.node)?
            .iter()
            .filter_map(|name| name.strip_prefix(MAPS_PREFIX)?.parse().ok())
            .collect();
        versions.sort_unstable();
        Ok(versions)
    }

    pub(crate) fn unpin(&self, name: &str) -> Result<(), DatapathError> {
        remove_file(&self.link(name))
    }

    pub(crate) fn remove_maps(&self, layout: u32) -> Result<(), DatapathError> {
        remove_folder(&self.maps(layout))
    }

    /// Links first: maps without programs do nothing, programs without maps would misbehave.
    pub(crate) fn remove_all(&self) -> Result<(), DatapathError> {
        remove_folder(&self.links())?;
        for layout in self.layouts()? {
            self.remove_maps(layout)?;
        }
        remove_folder(&self.node)
    }

    /// One agent at a time changes this node's pins. Held until dropped.
    pub(crate) fn lock(&self) -> Result<Flock<File>, DatapathError> {
        let folder = File::open(&self.node).map_err(failed("open", &self.node))?;
        Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("lock", &self.node)(errno.into()))
    }
}

/// Nodes with pins under `bpffs_root`.
pub(crate) fn nodes(bpffs_root: &Path) -> Result<Vec<String>, DatapathError> {
    let folders = names(bpffs_root)?;
    let ours = |name: &String| bpffs_root.join(name).join(LINKS).is_dir();
    Ok(folders
        .into_iter()
        .filter(ours)
        .map(|name| unescape(&name))
        .collect())
}

fn names(folder: &Path) -> Result<Vec<String>, DatapathError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", folder))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_folder(folder: &Path) -> Result<(), DatapathError> {
    for name in names(folder)? {
        remove_file(&folder.join(name))?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Only root may look: whoever can open a map can change it.
fn make_private(folder: &Path) -> Result<(), DatapathError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("create", folder))
}

/// Mounts a bpffs where `root` expects one, unless there is.
fn ensure_bpffs(root: &Path) -> Result<(), DatapathError> {
    if is_bpffs(root)? {
        return Ok(());
    }
    let point = if root.starts_with(BPFFS) {
        Path::new(BPFFS)
    } else {
        make_private(root)?;
        root
    };
    // Two agents that start together must not mount one over the other's pins: the folder
    // below the mount is the lock.
    let below = File::open(point).map_err(failed("open", point))?;
    let lock = Flock::lock(below, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("lock", point)(errno.into()))?;
    if !is_bpffs(root)? {
        mount(
            Some("bpf"),
            point,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(|errno| failed("mount a bpffs on", point)(errno.into()))?;
    }
    drop(lock);
    Ok(())
}

/// Whether `path`, or the nearest folder above it that exists, is on a bpffs.
fn is_bpffs(path: &Path) -> Result<bool, DatapathError> {
    for folder in path.ancestors() {
        match statfs(folder) {
            Ok(found) => return Ok(found.filesystem_type() == BPF_FS_MAGIC),
            Err(nix::errno::Errno::ENOENT) => {}
            Err(errno) => return Err(failed("examine", folder)(errno.into())),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_survive_the_escape() {
        for name in ["node-1", "ip-10-0-0-1.ec2.internal", "a_b"] {
            let file = escape(name).unwrap();
            assert!(!file.contains('.'));
            assert_eq!(unescape(&file), name);
        }
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in ["", "a/b", "a\0b", "a:b", "ä", &"x".repeat(300)] {
            assert_eq!(escape(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_pods_link_names_its_uid() {
        let pins = Pins::new(Path::new("/sys/fs/bpf/karst"), "n").unwrap();
        let name = pins.sk_lookup(&escape("a.b-c").unwrap());
        assert_eq!(Pins::sk_lookup_uid(&name).as_deref(), Some("a.b-c"));
        assert_eq!(Pins::sk_lookup_uid("connect4"), None);
        let name = pins.syn_check(&escape("a.b-c").unwrap());
        assert_eq!(Pins::syn_check_uid(&name).as_deref(), Some("a.b-c"));
        assert_eq!(Pins::sk_lookup_uid(&name), None);
    }
}
