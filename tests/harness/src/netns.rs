//! Named network namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::host;

/// Where `ip netns` keeps named network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// The file of a named network namespace.
pub fn file(netns: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(netns)
}

/// Moves this thread into the network namespace of `file`, for good: for programs that go on to do
/// nothing else.
pub fn enter(file: &Path) -> Result<()> {
    let netns = File::open(file).with_context(|| format!("opening netns {}", file.display()))?;
    setns(&netns, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering netns {}", file.display()))
}

/// Runs `f` on a thread of its own inside a named network namespace. The thread ends with
/// `f`, so no other code of this process ever runs in there.
pub fn run_in<T: Send>(netns: &str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            enter(&file(netns))?;
            f()
        });
        inside
            .join()
            .map_err(|_| anyhow!("the thread in netns {netns} panicked"))?
    })
}

/// Whether a named network namespace exists.
pub fn exists(netns: &str) -> bool {
    file(netns).exists()
}

/// Removes a named network namespace; fine if there is none.
pub fn remove(netns: &str) -> Result<()> {
    if !exists(netns) {
        return Ok(());
    }
    host::run(Command::new("ip").args(["netns", "delete", netns])).map(drop)
}

/// The named network namespaces whose names begin with `prefix`.
pub(crate) fn with_prefix(prefix: &str) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Ok(Vec::new());
    };
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect())
}

/// Writes kernel settings (`net/ipv4/ip_forward`) inside a named network namespace.
pub fn sysctl(netns: &str, settings: &[(&str, &str)]) -> Result<()> {
    run_in(netns, || {
        for (key, value) in settings {
            fs::write(format!("/proc/sys/{key}"), value)
                .with_context(|| format!("setting {key} to {value}"))?;
        }
        Ok(())
    })
}
