//! The cluster's record: which processes it started. One JSON file, read and written under the
//! cluster's file lock, so that a cluster can be taken down after any crash, by process ids that
//! are certainly its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use karst_harness::files::write_atomic;
use karst_harness::process::ProcessRecord;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// Everything a cluster remembers between commands.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Its processes by name: `etcd`, `kube-apiserver`, ..., `node1` (that node's first process),
    /// `node1-kubelet`, ...
    pub processes: BTreeMap<String, ProcessRecord>,
    /// How many nodes it has.
    pub nodes: u8,
    /// The multi-call binary that it runs.
    pub kubernetes: PathBuf,
    /// Whether the API server writes an audit log.
    pub audit: bool,
}

impl State {
    /// Reads the record; none if there is no cluster.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        let file = paths.state();
        let Ok(text) = fs::read_to_string(&file) else {
            return Ok(None);
        };
        let state = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a cluster's record", file.display()))?;
        Ok(Some(state))
    }

    /// Writes it so that a reader sees the old record or the new, never a part.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        write_atomic(&paths.state(), &serde_json::to_vec_pretty(self)?)
    }

    /// The process called `name`, if it runs.
    pub fn running(&self, name: &str) -> Option<ProcessRecord> {
        self.processes
            .get(name)
            .copied()
            .filter(|process| process.is_alive())
    }
}
