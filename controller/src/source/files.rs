//! Finds and reads the manifest files of a folder.

use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Folders deeper than this are not looked into.
const MAX_DEPTH: usize = 16;

/// Files that are read; a folder with more is not one of manifests.
const MAX_FILES: usize = 200_000;

/// Largest file in bytes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Every `*.yaml`, `*.yml` and `*.json` file below `root`, by path. Hidden files and folders are
/// left out (editors' temporary files; a mounted ConfigMap's bookkeeping). A link to a file is
/// followed, a link to a folder is not.
pub fn list(root: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut files = BTreeMap::new();
    walk(root, 0, &mut files)?;
    Ok(files)
}

fn walk(folder: &Path, depth: usize, files: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth < MAX_DEPTH {
            match walk(&path, depth + 1, files) {
                // Removed while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        } else if is_manifest(&path)
            && files.len() < MAX_FILES
            && let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            files.insert(path, Stamp::of(&metadata));
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads a file as text.
pub fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    fs::read_to_string(path)
}
