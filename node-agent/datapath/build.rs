//! Embeds the BPF object when it has been built, and an empty stub otherwise, so that a plain
//! `cargo check` needs neither a BPF toolchain nor root.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=KARST_BPF_OBJECT");
    let object = match env::var_os("KARST_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => default_object(),
    };
    // A missing file would make cargo run this script at every build, so its folder is watched.
    if let Some(folder) = object.parent() {
        fs::create_dir_all(folder)?;
        println!("cargo::rerun-if-changed={}", folder.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let embedded = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("karst.o");
    match fs::read(&object) {
        Ok(bytes) => fs::write(embedded, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(embedded, []),
        Err(error) => Err(error),
    }
}

/// Where `cargo xtask build-ebpf` puts it, whatever `CARGO_TARGET_DIR` is.
fn default_object() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bpf/karst.o")
}
