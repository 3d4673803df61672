//! Says when the folder has changed, once it has come to rest.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode},
};

/// Changes that come closer together than this are looked at together.
const QUIET: Duration = Duration::from_millis(30);

/// Under constant change, what has changed is looked at this often.
const LONGEST_WAIT: Duration = Duration::from_millis(300);

/// The folder is looked at this often even if no change is announced: events can be lost (queue
/// overflow, a folder that fills up before it is watched, a network file system).
const RESCAN: Duration = Duration::from_secs(10);

/// A file that somebody is writing is not read until it is closed, or for this long.
const WRITER_PATIENCE: Duration = Duration::from_secs(2);

/// Changed paths that are remembered; when there are more, every file is read.
const MAX_CHANGED: usize = 10_000;

/// What to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Files to read even if they look unchanged.
    pub changed: Vec<PathBuf>,
    /// Files that are being written and are to be left as they were.
    pub unfinished: Vec<PathBuf>,
    /// Every file is to be read.
    pub everything: bool,
}

/// Watches a folder.
pub struct Watch {
    shared: Arc<Shared>,
    _watcher: RecommendedWatcher,
}

/// Ends a [`Watch::wait`] for good.
#[derive(Clone)]
pub struct Stop(Arc<Shared>);

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    woken: Condvar,
}

#[derive(Default)]
struct Pending {
    /// When the first and the last of the pending events came.
    span: Option<(Instant, Instant)>,
    changed: HashMap<PathBuf, ()>,
    /// Files with a writer, and when its last write was seen.
    writers: HashMap<PathBuf, Instant>,
    everything: bool,
    stopped: bool,
}

impl Watch {
    /// Starts to watch.
    pub fn new(folder: &Path) -> notify::Result<Self> {
        let shared = Arc::new(Shared::default());
        let target = shared.clone();
        let mut watcher = notify::recommended_watcher(move |event| target.note(event))?;
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(Self {
            shared,
            _watcher: watcher,
        })
    }

    /// The handle that ends [`Watch::wait`].
    pub fn stop(&self) -> Stop {
        Stop(self.shared.clone())
    }

    /// Blocks until there is something to look at. `None` when stopped.
    pub fn wait(&self) -> Option<Look> {
        let rescan_at = Instant::now() + RESCAN;
        let mut pending = self.shared.pending();
        loop {
            if pending.stopped {
                return None;
            }
            let now = Instant::now();
            let due = pending.due().map_or(rescan_at, |due| due.min(rescan_at));
            if due <= now {
                return Some(pending.take(now));
            }
            pending = self
                .shared
                .woken
                .wait_timeout(pending, due - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Stop {
    /// Stops.
    pub fn stop(&self) {
        self.0.pending().stopped = true;
        self.0.woken.notify_all();
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: notify::Result<notify::Event>) {
        let now = Instant::now();
        let mut pending = self.pending();
        match event {
            Ok(event) if event.need_rescan() => pending.everything = true,
            Ok(event) => {
                if !pending.note(&event, now) {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "watching the source failed; reading all of it");
                pending.everything = true;
            }
        }
        let first = pending.span.map_or(now, |(first, _)| first);
        pending.span = Some((first, now));
        drop(pending);
        self.woken.notify_all();
    }
}

impl Pending {
    /// Takes an event. Returns whether it says that something changed.
    fn note(&mut self, event: &notify::Event, now: Instant) -> bool {
        for path in &event.paths {
            match event.kind {
                // Closed: what was written is all there is.
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(
                    RenameMode::To | RenameMode::From | RenameMode::Both,
                )) => {
                    self.writers.remove(path);
                }
                EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                    self.writers.insert(path.clone(), now);
                }
                EventKind::Access(_) => return false,
                _ => {}
            }
            if self.changed.len() < MAX_CHANGED {
                self.changed.insert(path.clone(), ());
            } else {
                self.everything = true;
            }
        }
        true
    }

    /// When to look.
    fn due(&self) -> Option<Instant> {
        let writer = self
            .writers
            .values()
            .min()
            .map(|seen| *seen + WRITER_PATIENCE);
        let quiet = self
            .span
            .map(|(first, last)| (last + QUIET).min(first + LONGEST_WAIT));
        match (quiet, writer) {
            (Some(quiet), Some(writer)) => Some(quiet.min(writer)),
            (quiet, writer) => quiet.or(writer),
        }
    }

    fn take(&mut self, now: Instant) -> Look {
        let mut changed = std::mem::take(&mut self.changed);
        let late = |seen: Instant| now.duration_since(seen) >= WRITER_PATIENCE;
        for (path, _) in self.writers.extract_if(|_, seen| late(*seen)) {
            changed.insert(path, ());
        }
        self.span = None;
        let unfinished: Vec<PathBuf> = self.writers.keys().cloned().collect();
        Look {
            changed: changed
                .into_keys()
                .filter(|path| !self.writers.contains_key(path))
                .collect(),
            unfinished,
            everything: std::mem::take(&mut self.everything),
        }
    }
}
