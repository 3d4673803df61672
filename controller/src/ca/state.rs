//! The authority's key and certificate on disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// Key and certificate in one file, because the two must never be of different makes.
const FILE: &str = "mesh-ca.pem";

/// Bits that let anybody but the owner do anything with a file.
const OTHERS: u32 = 0o077;

/// The root file's mode: everybody may read what everybody is to trust.
const PUBLIC_MODE: u32 = 0o644;

/// Reads the file, or makes it with `make` if there is none. Of two controllers that do so at the
/// same time, both end up with the file of the one that was first.
pub fn load_or_create(
    folder: &Path,
    make: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("creating the state folder {}", folder.display()))?;
    let path = folder.join(FILE);
    if !path.exists() {
        let text = make()?;
        create(folder, &path, &text).with_context(|| format!("writing {}", path.display()))?;
    }
    read_private(&path)
}

/// Reads a file with a private key. One that others can read has to be taken as known to them.
pub fn read_private(path: &Path) -> anyhow::Result<String> {
    let mode = fs::metadata(path)
        .with_context(|| format!("reading {}", path.display()))?
        .mode();
    ensure!(
        mode & OTHERS == 0,
        "{} holds a private key and has mode {:o}: others could have read it; replace the key, or \
         if nobody did, run `chmod 600 {}`",
        path.display(),
        mode & 0o777,
        path.display()
    );
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a public file so that readers see the old content or the new one, never a part.
pub fn publish(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|current| current == text) {
        return Ok(());
    }
    let temporary = temporary(path);
    write(&temporary, text, PUBLIC_MODE)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("writing {}", path.display()))
}

fn create(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    let temporary = temporary(path);
    write(&temporary, text, 0o600)?;
    // Unlike a rename, a link never replaces what is there.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // The name must survive a crash as well as the content does.
    File::open(folder)?.sync_all()
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A name beside the file that no other process uses.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
