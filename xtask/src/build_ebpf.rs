//! `cargo xtask build-ebpf`: compiles the BPF programs and puts the object where the datapath
//! crate embeds it from; with `--verify`, shows that the running kernel accepts every program.
//!
//! The programs need a nightly language feature, `core` compiled for the BPF target and
//! bpf-linker. Two toolchains will do: a rustup nightly with rust-src, or Debian's rustc-web
//! with rust-web-src, which is a release compiler told to accept nightly features.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;

/// The package that holds the programs, and its binary.
const PACKAGE: &str = "karst-bpf-programs";
const BINARY: &str = "karst";
const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler, its library sources and the version knob that unlocks nightly features.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core";

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Load every program into the running kernel's verifier, attaching none (needs root).
    #[arg(long)]
    verify: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let object = build()?;
    println!("built {}", object.display());
    if args.verify { verify(&object) } else { Ok(()) }
}

/// A compiler that can build for BPF.
struct Toolchain {
    description: String,
    /// Environment of the cargo that uses it.
    environment: Vec<(&'static str, OsString)>,
}

/// Builds the object and returns where it is.
pub fn build() -> Result<PathBuf> {
    let root = workspace_root()?;
    let toolchain = find_toolchain()?;
    let linker = find_linker(&root)?;
    println!(
        "building the BPF programs with {} and {}",
        toolchain.description,
        linker.display()
    );
    // A folder of its own: it must not wait for, nor hold, the lock of the ordinary build.
    let target_dir = root.join("target/bpf-build");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&root)
        .args(["build", "--quiet", "--profile", "bpf", "--package", PACKAGE])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        // BTF names the maps' types to the kernel; per-socket storage cannot be made without.
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
            "-C debuginfo=2 -C link-arg=--btf",
        )
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .envs(toolchain.environment)
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "the BPF programs do not compile");
    let built = target_dir.join(TARGET).join("bpf").join(BINARY);
    let object = root.join("target/bpf/karst.o");
    publish(&built, &object)?;
    Ok(object)
}

/// Puts the object in place at once, and not at all when it is the same: whatever embeds it
/// need not be built again.
fn publish(built: &Path, object: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = object.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let new = object.with_extension("new");
    fs::write(&new, bytes).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, object).with_context(|| format!("write {}", object.display()))
}

fn workspace_root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(root.context("xtask has no parent folder")?.to_owned())
}

fn find_toolchain() -> Result<Toolchain> {
    if let Some(sysroot) = nightly_sysroot() {
        return Ok(Toolchain {
            description: "the rustup nightly".to_owned(),
            environment: vec![
                ("RUSTC", sysroot.join("bin/rustc").into()),
                // For cargo, which may be a release one and then refuses -Z.
                ("RUSTC_BOOTSTRAP", "1".into()),
            ],
        });
    }
    if Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_SOURCES).exists() {
        return Ok(Toolchain {
            description: format!("Debian's {DEBIAN_RUSTC}"),
            environment: vec![
                ("RUSTC", DEBIAN_RUSTC.into()),
                ("RUSTC_BOOTSTRAP", "1".into()),
            ],
        });
    }
    bail!(
        "no compiler for BPF: neither a rustup nightly with rust-src nor Debian's rustc-web with \
         rust-web-src is installed; run `cargo xtask setup`"
    )
}

/// The folder of the rustup nightly, if it has the library sources.
fn nightly_sysroot() -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let sysroot = PathBuf::from(text.trim_end());
    let sources = sysroot.join("lib/rustlib/src/rust/library/core");
    (output.status.success() && sources.exists()).then_some(sysroot)
}

/// The folder of our own tools comes first.
fn find_linker(root: &Path) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = root.join("target/tools/bin");
    let folders = std::iter::once(own).chain(env::split_paths(&path));
    folders
        .map(|folder| folder.join("bpf-linker"))
        .find(|linker| linker.is_file())
        .context("bpf-linker is not installed; run `cargo xtask setup`")
}

/// Shows what the verifier of the running kernel made of each program.
fn verify(object: &Path) -> Result<()> {
    let programs = karst_datapath::verify_object(object)?;
    ensure!(!programs.is_empty(), "the object holds no programs");
    let mut table = Table::new();
    table.set_header(["program", "type", "verified instructions", "machine code"]);
    for program in &programs {
        table.add_row([
            program.name.clone(),
            program.kind.to_owned(),
            program.verified_instructions.to_string(),
            format!("{} bytes", program.jited_bytes),
        ]);
    }
    println!("{table}");
    println!("{} programs accepted by this kernel", programs.len());
    Ok(())
}
