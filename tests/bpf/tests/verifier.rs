//! The running kernel accepts every program, and says why when it does not.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use karst_datapath::verify_object;

/// The object the datapath crate embeds.
fn object() -> PathBuf {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bpf/karst.o");
    env::var_os("KARST_BPF_OBJECT").map_or_else(|| PathBuf::from(built), PathBuf::from)
}

#[test]
fn every_program_is_accepted() -> Result<()> {
    let object = object();
    let programs = verify_object(&object)
        .with_context(|| format!("{}: `cargo xtask build-ebpf` makes it", object.display()))?;
    let names: Vec<&str> = programs
        .iter()
        .map(|program| program.name.as_str())
        .collect();
    let expected = [
        "karst_connect4",
        "karst_connect6",
        "karst_peername4",
        "karst_peername6",
        "karst_sk_lookup",
        "karst_sock_ops",
        "karst_syn_check",
    ];
    ensure!(names == expected, "{names:?}");
    for program in programs {
        ensure!(
            program.verified_instructions > 0 && program.jited_bytes > 0,
            "{program:?}"
        );
        // The kernel gives up at a million; far below, a new feature still fits.
        ensure!(program.verified_instructions < 100_000, "{program:?}");
    }
    Ok(())
}

#[test]
fn a_broken_object_is_refused_with_a_reason() -> Result<()> {
    let mut bytes = fs::read(object())?;
    let path = env::temp_dir().join(format!("ke-{}-broken.o", std::process::id()));
    bytes.truncate(bytes.len() / 2);
    fs::write(&path, bytes)?;
    let outcome = verify_object(&path);
    fs::remove_file(&path)?;
    let error = outcome.err().context("it was accepted")?;
    ensure!(error.reason() == "bpf_load", "{error}");
    Ok(())
}
