//! Container images without a container tool: OCI archives that containerd imports.
//!
//! An image here is one layer of files. A program that is linked against the C library brings the
//! libraries along that `ldd` names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use karst_harness::files::write;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The size of a tar archive's blocks, in bytes.
const TAR_BLOCK: usize = 512;

/// An image to be: files and how to start it.
#[derive(Clone, Debug)]
pub struct Image {
    reference: String,
    entrypoint: Vec<String>,
    user: String,
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Image {
    /// An empty image called `reference` (`karst.dev/test/app:1`) that starts `entrypoint`.
    pub fn new(reference: &str, entrypoint: &[&str]) -> Self {
        Self {
            reference: reference.to_owned(),
            entrypoint: entrypoint.iter().map(|&part| part.to_owned()).collect(),
            user: String::new(),
            files: BTreeMap::new(),
        }
    }

    /// What it is called.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// The numeric user that it runs as; root unless said.
    pub fn user(mut self, user: u32) -> Self {
        self.user = user.to_string();
        self
    }

    /// Adds a file with permissions `mode`.
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        let path = path.trim_start_matches('/').to_owned();
        self.files.insert(path, (mode, content.into()));
        self
    }

    /// Adds a program of this machine and the shared libraries that it needs.
    pub fn program(mut self, path: &str, source: &Path) -> Result<Self> {
        for library in libraries(source)? {
            let content =
                fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
            self = self.file(&library.to_string_lossy(), 0o755, content);
        }
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        Ok(self.file(path, 0o755, content))
    }

    /// The image as an OCI archive: the same bytes for the same files.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut layer = Tar::default();
        for (path, (mode, content)) in &self.files {
            layer.add(path, *mode, content)?;
        }
        let layer = layer.finish();
        let layer_digest = digest(&layer);
        let mut config = json!({"Entrypoint": self.entrypoint, "Env": ["PATH=/:/bin:/usr/bin"]});
        if !self.user.is_empty() {
            config["User"] = json!(self.user);
        }
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({"io.containerd.image.name": self.reference});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
        let mut archive = Tar::default();
        archive.add("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.add("index.json", 0o644, &index)?;
        for blob in [&config, &manifest, &layer] {
            let name = digest(blob).replace(':', "/");
            archive.add(&format!("blobs/{name}"), 0o644, blob)?;
        }
        Ok(archive.finish())
    }
}

/// Writes an image's archive to a file.
pub fn write_archive(image: &Image, path: &Path) -> Result<()> {
    write(path, image.archive()?)
}

fn digest(content: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(content) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

/// The shared libraries of a program, the loader among them; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("starting ldd (Debian package libc-bin)")?;
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

/// The words of ldd's output that are paths; each line has one at most.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .filter(|word| !word.ends_with(':'))
        .map(PathBuf::from)
        .collect()
}

/// A tar archive (ustar) in memory.
#[derive(Default)]
struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = [0_u8; TAR_BLOCK];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        ensure!(path.len() <= 100, "{path} is too long for a tar header");
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        // The sum counts its own field as blanks.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar");
        put(263, "00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        let padded = self.bytes.len().next_multiple_of(TAR_BLOCK);
        self.bytes.resize(padded, 0);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        // Two empty blocks end an archive.
        self.bytes.resize(self.bytes.len() + 2 * TAR_BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use karst_harness::host::run;

    use super::*;

    #[test]
    fn tar_reads_what_was_written() {
        let dir = std::env::temp_dir().join(format!("karst-image-{}", std::process::id()));
        let archive = dir.join("image.tar");
        let image = Image::new("karst.dev/test/x:1", &["/x"]).file("/x", 0o755, "content");
        write_archive(&image, &archive).unwrap();
        let listed = run(Command::new("tar").arg("-tf").arg(&archive)).unwrap();
        assert!(
            listed.starts_with("oci-layout\nindex.json\nblobs/sha256/"),
            "{listed}"
        );
        let index = run(Command::new("tar")
            .arg("-xOf")
            .arg(&archive)
            .arg("index.json"));
        assert!(index.unwrap().contains("karst.dev/test/x:1"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn finds_libraries_in_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text), expected);
        assert!(parse_ldd("\tstatically linked\n").is_empty());
    }
}
