//! `cargo xtask tidy`: rules of the house that no compiler checks.

use anyhow::Result;

/// Arguments of `tidy`.
#[derive(clap::Args, Default)]
pub struct Args {}

/// Checks every rule.
pub fn run(_args: &Args) -> Result<()> {
    anyhow::bail!("tidy is not built yet")
}
