//! How often the programs ran and how long that took, as far as the kernel counts it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;

use crate::node::Datapath;
use crate::{DatapathError, links, sys};

/// Runs of one program that this node's links run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Name, of which the kernel keeps 15 bytes.
    pub program: String,
    /// Runs since it was loaded, while they were counted.
    pub count: u64,
    /// Nanoseconds that they took.
    pub nanoseconds: u64,
}

impl Datapath {
    /// What the kernel has counted; nothing while `kernel.bpf_stats_enabled` is off, which is what it is unless
    /// somebody wants to know: counting costs some nanoseconds for each run.
    ///
    /// # Errors
    /// The pins cannot be read. A program that goes away meanwhile is left out.
    pub fn program_runs(&self) -> Result<Vec<ProgramRuns>, DatapathError> {
        // The same switch as BPF_ENABLE_STATS has, but that one cannot be read.
        let counted = fs::read("/proc/sys/kernel/bpf_stats_enabled");
        if !counted.is_ok_and(|value| value.starts_with(b"1")) {
            return Ok(Vec::new());
        }
        let mut ids = BTreeSet::new();
        for name in self.pins.link_names()? {
            ids.extend(links::info(&self.pins, &name)?.map(|link| link.program));
        }
        let read = |id: u32| {
            let program = sys::program_by_id(id).ok()?;
            let raw = sys::program_info(program.as_fd()).ok()?.raw;
            let name = raw.name.split(|byte| *byte == 0).next().unwrap_or_default();
            Some(ProgramRuns {
                program: String::from_utf8_lossy(name).into_owned(),
                count: raw.run_count,
                nanoseconds: raw.run_time_ns,
            })
        };
        Ok(ids.into_iter().filter_map(read).collect())
    }
}
