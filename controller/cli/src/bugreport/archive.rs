//! The archive: `FOLDER/PATH` files in a compressed tar, and a list of them with what could not be had.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::redact;
use crate::failure::Failure;

/// Bytes of all files together before compression. Enough for a cluster of some thousand pods, and a report is
/// mailed.
const MAX_TOTAL: usize = 512 << 20;

/// Bytes of one file.
const MAX_FILE: usize = 64 << 20;

/// A report under way. Only its owner can read the file: it tells much of a cluster, even without secrets.
pub struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    path: PathBuf,
    folder: String,
    /// Seconds since the epoch, for the files' dates.
    now: u64,
    total: usize,
    files: Vec<Value>,
    problems: Vec<Value>,
}

/// What came of it.
#[derive(Debug)]
pub struct Summary {
    /// The archive.
    pub path: PathBuf,
    /// Files in it.
    pub files: usize,
    /// What could not be had: what, and why.
    pub problems: Vec<(String, String)>,
}

impl Archive {
    /// Makes the file `path`, which must not be there yet; all in it is below `folder`.
    ///
    /// # Errors
    /// It is there, or cannot be made.
    pub fn create(path: &Path, folder: &str, now: u64) -> Result<Self, Failure> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| unwritable(path, &error))?;
        Ok(Self {
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            path: path.to_owned(),
            folder: folder.to_owned(),
            now,
            total: 0,
            files: Vec::new(),
            problems: Vec::new(),
        })
    }

    /// Adds a text, without its secrets.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub fn text(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        self.add(name, redact::text(text).as_bytes())
    }

    /// Adds a document, without its secrets.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub fn json(&mut self, name: &str, value: &Value) -> Result<(), Failure> {
        let mut value = value.clone();
        redact::json(&mut value);
        self.add(name, format!("{value:#}\n").as_bytes())
    }

    /// Notes that something could not be had.
    pub fn missing(&mut self, what: &str, why: &str) {
        let why = redact::text(why);
        self.problems.push(json!({"what": what, "why": why}));
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        // The end is what matters of a log.
        let kept = bytes
            .get(bytes.len().saturating_sub(MAX_FILE)..)
            .unwrap_or(bytes);
        if kept.len() < bytes.len() {
            self.missing(name, &format!("only its last {MAX_FILE} bytes are here"));
        }
        if self.total.saturating_add(kept.len()) > MAX_TOTAL {
            self.missing(name, &format!("a report has at most {MAX_TOTAL} bytes"));
            return Ok(());
        }
        self.total += kept.len();
        self.write(name, kept)?;
        self.files.push(json!({"name": name, "bytes": kept.len()}));
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        header.set_cksum();
        let name = format!("{}/{}", self.folder, plain(name));
        self.tar
            .append_data(&mut header, name, bytes)
            .map_err(|error| unwritable(&self.path, &error))
    }

    /// Adds `index.json` and ends the archive.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub fn finish(mut self, about: &Value) -> Result<Summary, Failure> {
        let index = json!({"about": about, "files": self.files, "problems": self.problems});
        self.write("index.json", format!("{index:#}\n").as_bytes())?;
        let ended = self
            .tar
            .into_inner()
            .and_then(GzEncoder::finish)
            .and_then(|mut file| file.flush());
        ended.map_err(|error| unwritable(&self.path, &error))?;
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let problem = |one: &Value| (text(one, "what"), text(one, "why"));
        Ok(Summary {
            path: self.path,
            files: self.files.len() + 1,
            problems: self.problems.iter().map(problem).collect(),
        })
    }
}

/// A path that leads nowhere else: names come from a cluster.
fn plain(name: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let name: String = name
        .chars()
        .map(|c| if safe(c) { c } else { '_' })
        .collect();
    let parts = name.split('/').filter(|part| !part.is_empty());
    let part = |part: &str| {
        if part == ".." || part == "." {
            "_".to_owned()
        } else {
            part.to_owned()
        }
    };
    parts.map(part).collect::<Vec<_>>().join("/")
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed("report_unwritable", format!("{}: {error}", path.display()))
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use flate2::read::GzDecoder;
    use serde_json::{Value, json};

    use super::{Archive, plain};

    /// Files of an archive by name.
    pub fn read(path: &Path) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(GzDecoder::new(File::open(path).expect("there")));
        let mut files = BTreeMap::new();
        for entry in tar.entries().expect("a tar archive") {
            let mut entry = entry.expect("entry");
            let name = entry.path().expect("name").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            files.insert(name, text);
        }
        files
    }

    #[test]
    fn files_are_there_without_their_secrets_and_for_their_owner_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("r.tar.gz");
        let mut archive = Archive::create(&path, "r", 1).expect("makes");
        archive.text("a/log", "password=hunter2").expect("writes");
        archive
            .json("b.json", &json!({"token": "hunter2"}))
            .expect("writes");
        archive.missing("c", "Bearer hunter2hunter2");
        let summary = archive.finish(&json!({"version": "1"})).expect("ends");
        assert_eq!(summary.files, 3);
        assert_eq!(summary.problems[0].0, "c");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = read(&path);
        assert_eq!(files["r/a/log"], "password=[redacted]");
        let index: Value = serde_json::from_str(&files["r/index.json"]).expect("JSON");
        assert_eq!(index["files"][1]["name"], "b.json");
        assert!(
            files.values().all(|text| !text.contains("hunter2")),
            "{files:?}"
        );
        let again = Archive::create(&path, "r", 1).err().expect("refused");
        assert_eq!(again.reason, "report_unwritable");
    }

    #[test]
    fn names_lead_nowhere_else() {
        assert_eq!(plain("../../etc/passwd"), "_/_/etc/passwd");
        assert_eq!(plain("/a b:c"), "a_b_c");
    }
}
