//! The cluster's hidden helper: makes a process a node, enters a node or a network namespace and
//! starts a program there, or takes a cluster down when the process that made it is gone. People use
//! `cargo xtask cluster`; the code behind this is `karst_cluster::inside`.

use std::process::ExitCode;

use karst_cluster::inside::{HELPER, run};

fn main() -> ExitCode {
    HELPER.main("The test cluster's helper; use `cargo xtask cluster`", run)
}
