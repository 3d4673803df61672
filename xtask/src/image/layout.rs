//! Writes an OCI image layout as one tar file.
//!
//! Every blob is named by its SHA-256. Nothing in it depends on when, where or by whom it is made.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A file or folder of the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    path: String,
    mode: u32,
    /// None for a folder.
    bytes: Option<Vec<u8>>,
}

impl Entry {
    /// A file.
    pub fn file(path: &str, mode: u32, bytes: Vec<u8>) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            bytes: Some(bytes),
        }
    }

    /// An empty folder; `tmp` may be written by anybody.
    pub fn folder(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            mode: if path == "tmp" { 0o1777 } else { 0o755 },
            bytes: None,
        }
    }
}

/// What an image is made from.
#[derive(Debug, Clone)]
pub struct Image {
    /// `REGISTRY/NAME:TAG`.
    pub name: String,
    /// In Go's words.
    pub architecture: &'static str,
    /// `UID:GID`.
    pub user: &'static str,
    /// What it runs.
    pub entrypoint: String,
    /// Labels of the configuration, which are the manifest's annotations too.
    pub labels: Vec<(&'static str, String)>,
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// A finished archive.
#[derive(Debug)]
pub struct Archive {
    /// The tar file.
    pub bytes: Vec<u8>,
    /// Digest of the manifest, the image's identity.
    pub digest: String,
    /// Bytes of the layer when unpacked.
    pub unpacked: usize,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The time that everything in an image has: reproducible, and not so early that tools object.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Makes the archive of an image with one layer.
pub fn archive(image: &Image) -> Result<Archive> {
    let plain = layer(&image.entries)?;
    let packed = gzip(&plain)?;
    let labels: Value = image
        .labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let config = json!({
        "architecture": image.architecture,
        "os": "linux",
        "created": EPOCH,
        "config": {
            "User": image.user,
            "Entrypoint": [image.entrypoint],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&plain)]},
        "history": [{"created": EPOCH, "created_by": "cargo xtask image"}],
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &packed)],
        "annotations": labels,
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor(MANIFEST, &manifest);
    let tag = image.name.rsplit(':').next().unwrap_or_default();
    if let Some(entry) = entry.as_object_mut() {
        entry.insert(
            "platform".to_owned(),
            json!({"architecture": image.architecture, "os": "linux"}),
        );
        entry.insert(
            "annotations".to_owned(),
            // containerd takes the whole name from the first, others the tag from the second.
            json!({"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag}),
        );
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    })
    .to_string()
    .into_bytes();
    let name = digest(&manifest);
    let blobs = [&packed, &config, &manifest]
        .map(|blob| Entry::file(&blob_path(blob), 0o644, blob.clone()));
    let mut files = vec![
        Entry::file(
            "oci-layout",
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        Entry::file("index.json", 0o644, index),
    ];
    files.extend(blobs);
    Ok(Archive {
        bytes: layer(&files)?,
        digest: name,
        unpacked: plain.len(),
    })
}

/// A tar of `entries`, sorted, with the folders that they are in.
fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut all = entries.to_vec();
    for entry in entries {
        let mut path = entry.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            all.push(Entry::folder(parent));
            path = parent;
        }
    }
    all.sort();
    all.dedup_by(|a, b| a.path == b.path);
    let mut tar = tar::Builder::new(Vec::new());
    for entry in &all {
        let bytes = entry.bytes.as_deref().unwrap_or_default();
        let mut header = tar::Header::new_ustar();
        let folder = entry.bytes.is_none();
        header.set_entry_type(if folder {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        let path = if folder {
            format!("{}/", entry.path)
        } else {
            entry.path.clone()
        };
        tar.append_data(&mut header, &path, bytes)
            .with_context(|| format!("packing {path}"))?;
    }
    tar.into_inner().context("ending an archive")
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // No name, no time, and "unknown" for the system it was made on.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::default());
    gzip.write_all(bytes).context("compressing a layer")?;
    gzip.finish().context("compressing a layer")
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn image() -> Image {
        Image {
            name: "karst.dev/x:1.2.3".to_owned(),
            architecture: "amd64",
            user: "65532:65532",
            entrypoint: "/x".to_owned(),
            labels: vec![("org.opencontainers.image.version", "1.2.3".to_owned())],
            entries: vec![
                Entry::file("x", 0o755, b"binary".to_vec()),
                Entry::folder("tmp"),
                Entry::folder("var/run"),
                Entry::file("sbom.json", 0o644, b"{}".to_vec()),
            ],
        }
    }

    fn unpack(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 0);
                assert_eq!(entry.header().uid().unwrap(), 0);
                let path = entry.path().unwrap().display().to_string();
                let mode = entry.header().mode().unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (path, (mode, content))
            })
            .collect()
    }

    #[test]
    fn every_blob_is_what_its_descriptor_says() {
        let archive = archive(&image()).unwrap();
        let files = unpack(&archive.bytes);
        let read = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let path = format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
            let blob = files[&path].1.clone();
            assert_eq!(super::digest(&blob), digest);
            assert_eq!(descriptor["size"], blob.len());
            blob
        };
        let index: Value = serde_json::from_slice(&files["index.json"].1).unwrap();
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "karst.dev/x:1.2.3"
        );
        assert_eq!(index["manifests"][0]["digest"], archive.digest.as_str());
        let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        let mut layer = Vec::new();
        let packed = read(&manifest["layers"][0]);
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&layer));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"][0], "/x");
        let root = unpack(&layer);
        assert_eq!(root["x"], (0o755, b"binary".to_vec()));
        assert_eq!(root["tmp/"].0, 0o1777);
        let paths: Vec<_> = root.keys().map(String::as_str).collect();
        assert_eq!(paths, ["sbom.json", "tmp/", "var/", "var/run/", "x"]);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let first = archive(&image()).unwrap();
        let mut shuffled = image();
        shuffled.entries.reverse();
        let second = archive(&shuffled).unwrap();
        assert_eq!(first.bytes, second.bytes);
        let mut other = image();
        other.entries[0] = Entry::file("x", 0o755, b"other".to_vec());
        assert_ne!(archive(&other).unwrap().digest, first.digest);
    }
}
