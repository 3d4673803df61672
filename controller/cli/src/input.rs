//! Files that are named on the command line, and standard input.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

/// What is in a file, or for `-` what comes on standard input, up to so many bytes.
///
/// # Errors
/// It cannot be read, or is longer.
pub fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let limit = most.saturating_add(1);
    let done = if path == Path::new("-") {
        stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    done.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > most {
        return Err(format!("is larger than {most} bytes"));
    }
    Ok(bytes)
}

/// The same of a text.
///
/// # Errors
/// Likewise, or it is not UTF-8.
pub fn text(path: &Path, most: u64) -> Result<String, String> {
    let bytes = bytes(path, most)?;
    String::from_utf8(bytes).map_err(|_| "cannot be read: it is not UTF-8".to_owned())
}
