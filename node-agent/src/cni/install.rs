//! Puts the CNI plugin on the node: its binary among the others, its entry in the configuration
//! that the container runtime uses; looks after both for as long as the agent runs.
//!
//! The runtime takes the first file by name. If that is a list, our entry is added to it; if it
//! is a single plugin, a list made of it is written beside it under a name that comes first.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karst_api::OUTSIDE_NAMESPACES;
use karst_cni::PLUGIN_TYPE;
use notify::{RecursiveMode, Watcher};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::conflist::{self, ConflistError};
use crate::enrol::Problem;

/// How often both are looked at although nobody told of a change: the kernel's watches can be
/// used up, and some file systems have none.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Wait after a change before looking: files are written in steps, and a daemon that undoes our
/// change must not be fought as fast as the disk allows.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// Largest configuration file read, in bytes: real ones have a few thousand.
const MAX_CONF: u64 = 1 << 20;

/// Names for a list of our own, for the one that comes before the file it wraps.
const OWN_LISTS: [&str; 2] = ["00-karst.conflist", "!00-karst.conflist"];

/// Where the plugin goes.
#[derive(Clone, Debug)]
pub struct CniInstall {
    /// The binary as it comes with the agent.
    pub source: PathBuf,
    /// The runtime's directory of plugins.
    pub bin_dir: PathBuf,
    /// The runtime's directory of configurations.
    pub conf_dir: PathBuf,
    /// Our entry.
    pub entry: Value,
}

/// Our entry in a configuration. The namespaces in it are those that the controller keeps outside the
/// mesh; no others may be named, as their pods would start in clear.
pub fn entry(socket: &Path) -> Value {
    json!({
        "type": PLUGIN_TYPE,
        "socket": socket,
        "logFile": "",
        "excludeNamespaces": OUTSIDE_NAMESPACES,
    })
}

/// Why the plugin is not in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A file or directory.
    #[error("{action} {path}: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// There is no network to be chained into yet.
    #[error("there is no CNI configuration in {0} yet")]
    Missing(PathBuf),
    /// The one there cannot be edited.
    #[error("{path}: {source}")]
    Conf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConflistError,
    },
}

impl InstallError {
    /// The stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "cni_dir_unusable",
            Self::Missing(_) => "cni_conf_missing",
            Self::Conf { source, .. } => source.reason(),
        }
    }

    /// Whether a file is none that we could have edited: it leads nowhere, is too large or no text.
    /// Anything else that keeps us from reading one says nothing of what is in it.
    fn is_of_the_file(&self) -> bool {
        match self {
            Self::File { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::FileTooLarge
            ),
            Self::Missing(_) => false,
            Self::Conf { .. } => true,
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File {
        action,
        path,
        source,
    }
}

impl CniInstall {
    /// Puts right what is not; says how many files were written or removed.
    ///
    /// # Errors
    /// The plugin is not in place.
    pub fn ensure(&self) -> Result<u64, InstallError> {
        let _lock = self.lock()?;
        // The binary first: an entry without one would fail every pod of the node.
        Ok(self.ensure_binary()? + self.ensure_conf()?)
    }

    /// During an upgrade two agents look after the same directories: one at a time. Released when
    /// dropped.
    fn lock(&self) -> Result<File, InstallError> {
        let dir = &self.conf_dir;
        let lock = File::open(dir).map_err(failed("open", dir))?;
        lock.lock().map_err(failed("lock", dir))?;
        Ok(lock)
    }

    fn ensure_binary(&self) -> Result<u64, InstallError> {
        let target = self.bin_dir.join(PLUGIN_TYPE);
        let wanted = fs::read(&self.source).map_err(failed("read", &self.source))?;
        let mode = fs::metadata(&target).map(|m| m.mode() & 0o777);
        if fs::read(&target).is_ok_and(|found| found == wanted) && matches!(mode, Ok(0o755)) {
            return Ok(0);
        }
        let always = || Ok(());
        write_atomically(&target, &wanted, 0o755, always).map_err(failed("write", &target))?;
        Ok(1)
    }

    fn ensure_conf(&self) -> Result<u64, InstallError> {
        let files = self.conf_files()?;
        let Some(first) = files.iter().find(|name| !self.is_own_list(name)) else {
            // A list of ours outlives what it was made from: the network it describes is gone.
            self.clean(&files, |_| false)?;
            return Err(InstallError::Missing(self.conf_dir.clone()));
        };
        let path = self.conf_dir.join(first);
        let text = read_text(&path)?;
        let conf = |source| InstallError::Conf {
            path: path.clone(),
            source,
        };
        let mut keep = None;
        let mut changes = 0;
        if first.ends_with(".conflist") {
            let chained = conflist::chain(&text, &self.entry).map_err(conf)?;
            changes += write_if_other(&path, &text, &chained)?;
        } else {
            let own = OWN_LISTS.into_iter().find(|own| *own < first.as_str());
            let own = own.unwrap_or(OWN_LISTS[1]);
            let wrapped = conflist::wrap(&text, first, &self.entry).map_err(conf)?;
            let target = self.conf_dir.join(own);
            let there = match read_text(&target) {
                Err(InstallError::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    String::new()
                }
                there => there?,
            };
            changes += write_if_other(&target, &there, &wrapped)?;
            keep = Some(own);
        }
        Ok(changes + self.clean(&files, |name| name == first || Some(name) == keep)?)
    }

    /// Takes everything of ours away, the configuration first; says how many files were changed.
    ///
    /// # Errors
    /// Something of ours is still there.
    pub fn remove(&self) -> Result<u64, InstallError> {
        let changes = match self.lock() {
            Err(InstallError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => 0,
            lock => {
                let _lock = lock?;
                self.clean(&self.conf_files()?, |_| false)?
            }
        };
        Ok(changes + remove_file(&self.bin_dir.join(PLUGIN_TYPE))?)
    }

    /// Takes our entry out of all files but those to keep. A file that cannot be read as a list
    /// has no entry of ours that a runtime would find, and none that we put there.
    fn clean(&self, files: &[String], keep: impl Fn(&str) -> bool) -> Result<u64, InstallError> {
        let mut changes = 0;
        for name in files.iter().filter(|name| !keep(name)) {
            let path = self.conf_dir.join(name);
            if self.is_own_list(name) {
                changes += remove_file(&path)?;
                continue;
            }
            if !name.ends_with(".conflist") {
                continue;
            }
            let text = match read_text(&path) {
                Err(error) if error.is_of_the_file() => continue,
                text => text?,
            };
            if let Ok(clean) = conflist::unchain(&text) {
                changes += write_if_other(&path, &text, &clean)?;
            }
        }
        Ok(changes)
    }

    /// What a runtime considers, in its order.
    fn conf_files(&self) -> Result<Vec<String>, InstallError> {
        let mut names = Vec::new();
        let dir = &self.conf_dir;
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let entry = entry.map_err(failed("list", dir))?;
            if entry.path().is_dir() {
                continue;
            }
            if let Ok(name) = entry.file_name().into_string()
                && [".conflist", ".conf", ".json"]
                    .iter()
                    .any(|e| name.ends_with(e))
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn is_own_list(&self, name: &str) -> bool {
        OWN_LISTS.contains(&name)
            && fs::read_to_string(self.conf_dir.join(name))
                .is_ok_and(|text| conflist::is_wrapped(&text))
    }
}

fn read_text(path: &Path) -> Result<String, InstallError> {
    let size = fs::metadata(path).map_err(failed("examine", path))?.len();
    if size > MAX_CONF {
        let text = format!("more than {MAX_CONF} bytes");
        return Err(failed("read", path)(io::Error::new(
            io::ErrorKind::FileTooLarge,
            text,
        )));
    }
    let bytes = fs::read(path).map_err(failed("read", path))?;
    String::from_utf8(bytes).map_err(|_| InstallError::Conf {
        path: path.to_owned(),
        source: ConflistError::Unusable("it is no text".to_owned()),
    })
}

/// Replaces what was read as `there`; empty stands for no file. Whoever else writes into the
/// directory must not lose what it wrote since.
fn write_if_other(path: &Path, there: &str, wanted: &str) -> Result<u64, InstallError> {
    if there == wanted {
        return Ok(0);
    }
    // A symbolic link stays one: what it points to is the file.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map_or(0o644, |m| m.mode() & 0o777);
    let unchanged = || {
        let now = match fs::read(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            now => now?,
        };
        if now == there.as_bytes() {
            return Ok(());
        }
        let text = "it was changed meanwhile; it is looked at again in a moment";
        Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
    };
    write_atomically(&target, wanted.as_bytes(), mode, unchanged).map_err(failed("write", path))?;
    Ok(1)
}

fn remove_file(path: &Path) -> Result<u64, InstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// A reader sees the old or the new content. The temporary name has no ending that a runtime
/// would read. `may` is asked in the last moment.
fn write_atomically(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    may: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.karst-new"));
    let _ = fs::remove_file(&temporary);
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            // Whatever the umask says.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.sync_all()
        })
        .and_then(|()| may())
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// How the plugin stands, for readiness and metrics.
#[derive(Debug)]
pub struct InstallStatus {
    changes: AtomicU64,
    problem: Mutex<Option<Problem>>,
}

impl InstallStatus {
    /// Before the first look, the plugin is not known to be in place.
    pub fn pending() -> Self {
        let problem = Problem {
            reason: "cni_install_pending",
            message: "the CNI directories have not been looked at yet".to_owned(),
        };
        Self {
            changes: AtomicU64::new(0),
            problem: Mutex::new(Some(problem)),
        }
    }

    /// What stands in the way of it being in place.
    pub fn problem(&self) -> Option<Problem> {
        self.lock().clone()
    }

    /// Whether it is in place, and how many files were changed for it since the start.
    pub fn read(&self) -> (bool, u64) {
        (self.lock().is_none(), self.changes.load(Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Problem>> {
        // It is replaced as a whole, so a panic elsewhere leaves nothing half done in it.
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the outcome of a look; says it once.
    fn note(&self, outcome: Result<u64, InstallError>) {
        let found = match outcome {
            Ok(changes) => {
                if changes > 0 {
                    self.changes.fetch_add(changes, Ordering::Relaxed);
                    tracing::info!(files = changes, "CNI plugin put in place");
                }
                None
            }
            Err(error) => Some(Problem {
                reason: error.reason(),
                message: error.to_string(),
            }),
        };
        let mut known = self.lock();
        if let Some(found) = &found
            && known.as_ref() != Some(found)
        {
            tracing::warn!(
                reason = found.reason,
                error = found.message,
                "CNI plugin is not in place"
            );
        }
        *known = found;
    }
}

/// Keeps the plugin in place until dropped.
pub async fn keep(install: CniInstall, status: Arc<InstallStatus>) {
    let (changed, mut changes) = mpsc::channel(1);
    let watcher = watch_directories(&install, changed);
    if let Err(error) = &watcher {
        tracing::warn!(%error, every_s = CHECK_EVERY.as_secs(), "CNI directories cannot be watched and are only looked at");
    }
    loop {
        // Reads, and may have to wait for a disk: not on the control thread.
        let work = install.clone();
        match tokio::task::spawn_blocking(move || work.ensure()).await {
            Ok(outcome) => status.note(outcome),
            Err(error) => tracing::error!(%error, "the CNI plugin's place could not be looked at"),
        }
        // Without a watcher nothing comes from the channel, which then is closed.
        let wait = async {
            if changes.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        };
        if tokio::time::timeout(CHECK_EVERY, wait).await.is_ok() {
            tokio::time::sleep(DEBOUNCE).await;
            while changes.try_recv().is_ok() {}
        }
    }
}

fn watch_directories(
    install: &CniInstall,
    changed: mpsc::Sender<()>,
) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is not changing; we do it ourselves all the time.
        if event.is_ok_and(|event| event.kind.is_access()) {
            return;
        }
        // Full means that a look is due already.
        let _ = changed.try_send(());
    })?;
    for dir in [&install.conf_dir, &install.bin_dir] {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
