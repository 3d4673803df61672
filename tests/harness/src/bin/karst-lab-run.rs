//! The lab's hidden helper: enters a pod or node and becomes a program there, probes a pod
//! from its node, or tears a lab down when the process that made it is gone. People use
//! `cargo xtask lab`; the code behind this is `karst_harness::inside`.

use std::process::ExitCode;

use karst_harness::inside::{HELPER, run};

fn main() -> ExitCode {
    HELPER.main("The lab's helper; use `cargo xtask lab`", run)
}
