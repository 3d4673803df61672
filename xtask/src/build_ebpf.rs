//! `cargo xtask build-ebpf`: compiles the BPF programs and puts the object where the datapath
//! crate embeds it from; with `--verify`, shows that the running kernel accepts every program.
//!
//! The programs need a nightly language feature, `core` compiled for the BPF target and
//! bpf-linker. Two toolchains will do: a rustup nightly with rust-src, or Debian's rustc-web
//! with rust-web-src, which is a release compiler told to accept nightly features.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use comfy_table::Table;

use crate::setup::{BpfCompiler, bpf_linker};
use crate::workspace::Workspace;

/// The package that holds the programs, and its binary.
const PACKAGE: &str = "karst-bpf-programs";
const BINARY: &str = "karst";
const TARGET: &str = "bpfel-unknown-none";

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

/// Builds the object and returns where it is.
pub fn build() -> Result<PathBuf> {
    let workspace = Workspace::locate()?;
    let root = workspace.root();
    let compiler = BpfCompiler::find().context(
        "no compiler for BPF: neither a rustup nightly with rust-src nor Debian's rustc-web with \
         rust-web-src is installed; run `cargo xtask setup`",
    )?;
    let linker =
        bpf_linker(&workspace).context("bpf-linker is not installed; run `cargo xtask setup`")?;
    println!(
        "building the BPF programs with {} and {}",
        compiler.rustc.display(),
        linker.display()
    );
    // A folder of its own: it must not wait for, nor hold, the lock of the ordinary build.
    let target_dir = root.join("target/bpf-build");
    let status = workspace
        .cargo()
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
        .env("RUSTC", &compiler.rustc)
        // Unlocks -Z and nightly features where compiler or cargo are release ones.
        .env("RUSTC_BOOTSTRAP", "1")
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
