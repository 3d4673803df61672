//! `cargo xtask demo`: shows the mesh at work.

use anyhow::Result;

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the demo.
pub fn run(_args: &Args) -> Result<()> {
    anyhow::bail!("the demo is not built yet")
}
