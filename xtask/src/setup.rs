//! `cargo xtask setup`: finds, or installs, what building, showing and testing Karst needs.
//!
//! Says what it is about to do before it does it, above all when a step needs root. Does nothing,
//! and takes no noticeable time, when nothing is missing. Starts no service: the Debian packages of
//! nginx, redis and Prometheus would start one, so service starts are held back while they are installed.
//! The other commands call [`ensure`] with what they need; start there.

pub mod envoy;
mod helm;
mod mounts;
mod packages;
mod toolchain;

use anyhow::Result;

pub use toolchain::{BpfCompiler, bpf_linker};

use crate::workspace::{Workspace, say};

/// Arguments of `setup`.
#[derive(clap::Args)]
pub struct Args {}

/// What a command needs to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// What building needs beside Rust: compiler, core sources and linker for the eBPF programs, and `make` for
    /// an allocator in C.
    Toolchain,
    /// Network namespaces, bpffs and cgroup2.
    Lab,
    /// The real servers and clients of the demo, and what looks at the wire.
    Demo,
    /// The load generators of the benchmarks, and what is measured beside Karst.
    Bench,
    /// Container runtime and network plugins of a real cluster; Go, which builds the rest of it.
    Cluster,
    /// Helm, for the chart's tests.
    Helm,
    /// Prometheus and promtool, which check and scrape our metrics.
    Prometheus,
}

/// Everything, in the order in which it is set up.
pub const ALL: &[Need] = &[
    Need::Toolchain,
    Need::Lab,
    Need::Demo,
    Need::Bench,
    Need::Cluster,
    Need::Helm,
    Need::Prometheus,
];

/// Sets up everything.
pub fn run(_args: &Args) -> Result<()> {
    ensure(&Workspace::locate()?, ALL)
}

/// Makes sure that `needs` are met, installing what is missing.
pub fn ensure(workspace: &Workspace, needs: &[Need]) -> Result<()> {
    let mut found = Vec::new();
    packages::ensure(needs, &mut found)?;
    if needs.contains(&Need::Toolchain) {
        toolchain::ensure(workspace, &mut found)?;
    }
    if needs.contains(&Need::Lab) || needs.contains(&Need::Cluster) {
        mounts::ensure(&mut found)?;
    }
    if needs.contains(&Need::Cluster) {
        found.push(karst_cluster::check_go()?);
    }
    if needs.contains(&Need::Bench) {
        envoy::ensure(workspace, &mut found)?;
    }
    if needs.contains(&Need::Helm) {
        helm::ensure(workspace, &mut found)?;
    }
    say(&format!("setup: {}", found.join(", ")));
    Ok(())
}
