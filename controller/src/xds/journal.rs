//! What has changed of a kind of resource that all agents are told alike, for all of their streams.
//!
//! A stream that follows everything is in step with the journal: where it stands is one number, not a copy of the names
//! and versions that its client has. What is told from one number to another is the same for all who stand there, so it
//! is written once and shared, and so is the first state for those who come together. A thousand agents of a large mesh
//! so cost the controller a thousand numbers.
//!
//! What lies back for longer than any client may take to answer is forgotten; a stream that stood there ends, and its
//! client comes back with what it has.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use karst_api::discovery::{DeltaDiscoveryResponse, PARTIAL_SUFFIX};

use super::{
    frame::framed,
    resources::{ResourceKind, View},
};

/// A change is remembered for at least this long: twice what a client has to answer a response.
const KEPT_FOR: Duration = Duration::from_secs(120);

/// Names of changed resources that are remembered. A cluster of 100,000 pods whose pods are all replaced within
/// [`KEPT_FOR`] has this many twice over.
const MAX_CHANGES: usize = 500_000;

/// A response of changes is closed when it has this many bytes; what remains follows in the next one.
const PUSH_BYTES: usize = 4 * 1024 * 1024;

/// A part of the first state is closed when it has this many bytes. Small, because the client has a part in memory
/// several times over while it reads it.
const PART_BYTES: usize = 2 * 1024 * 1024;

/// Written responses that are kept for other streams. Streams stand at the end of one of the last pushes.
const MAX_WRITTEN: usize = 16;

/// A first state that is older than so many changes is not given to those who come now.
const MAX_SNAPSHOT_AGE: u64 = 10_000;

/// Bytes a resource takes in a message besides its content: type URL and framing.
const RESOURCE_OVERHEAD_BYTES: usize = 128;

/// A response that many streams send.
#[derive(Debug)]
pub struct Push {
    /// Where a stream stands that has sent it.
    pub to: u64,
    /// What it is answered with.
    pub nonce: String,
    /// As gRPC sends it.
    pub frame: Bytes,
    /// Names of the resources that it tells of.
    pub names: Vec<Arc<str>>,
    /// How many of them are there.
    pub resources: usize,
    /// When the first of the changes came; none in a first state.
    pub since: Option<Instant>,
}

/// A first state, in parts.
#[derive(Debug)]
pub struct Snapshot {
    /// Where a stream stands that has sent all parts.
    pub to: u64,
    pub parts: Vec<Arc<Push>>,
}

/// The changes that a stream has not been told of were forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FellBehind;

/// See the module's description.
#[derive(Debug)]
pub struct Journal {
    kind: ResourceKind,
    state: Mutex<State>,
    snapshot: Mutex<Weak<Snapshot>>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the last change.
    head: u64,
    /// Changes up to this one may have been forgotten.
    floor: u64,
    /// The last change of each name.
    last: HashMap<Arc<str>, u64>,
    changes: BTreeMap<u64, Change>,
    /// Written responses, the newest last, by where they begin.
    written: VecDeque<(u64, Arc<Push>)>,
}

#[derive(Debug)]
struct Change {
    name: Arc<str>,
    since: Instant,
}

/// Names of what has changed, with where a stream stands that has looked at them and when the first of the changes came.
pub type Changed = (Vec<Arc<str>>, u64, Option<Instant>);

impl Journal {
    /// A journal of a kind of resource.
    pub fn new(kind: ResourceKind) -> Self {
        Self {
            kind,
            state: Mutex::default(),
            snapshot: Mutex::default(),
        }
    }

    /// Takes names of resources that have changed because of what came at `since`. The index must have the changes.
    pub fn note<'a>(&self, names: impl IntoIterator<Item = &'a String>, since: Instant) {
        let mut state = self.state();
        for name in names {
            let name: Arc<str> = Arc::from(name.as_str());
            state.head += 1;
            let head = state.head;
            if let Some(former) = state.last.insert(name.clone(), head) {
                state.changes.remove(&former);
            }
            state.changes.insert(head, Change { name, since });
        }
        state.forget(MAX_CHANGES);
    }

    /// Where a stream stands that has been told everything. Asked under the index's lock, this is never ahead of the index.
    pub fn head(&self) -> u64 {
        self.state().head
    }

    /// Names of what has changed after `from`.
    pub fn since(&self, from: u64) -> Result<Changed, FellBehind> {
        let state = self.state();
        state.check(from)?;
        let changes = state.changes.range(from + 1..);
        let names = changes.clone().map(|(_, change)| change.name.clone());
        let since = changes.map(|(_, change)| change.since).min();
        Ok((names.collect(), state.head, since))
    }

    /// What a stream that stands at `from` is told next; nothing if it has been told everything.
    pub fn push(&self, from: u64, view: &View<'_>) -> Result<Option<Arc<Push>>, FellBehind> {
        let mut state = self.state();
        state.check(from)?;
        if from >= state.head {
            return Ok(None);
        }
        // What was cut short at its limit is as good as what ends at the head.
        let is_current = |push: &Push| push.to == state.head || push.frame.len() >= PUSH_BYTES;
        let mut written = state.written.iter();
        if let Some((_, push)) = written.find(|(begin, push)| *begin == from && is_current(push)) {
            return Ok(Some(push.clone()));
        }
        let mut draft = Draft::default();
        for (number, change) in state.changes.range(from + 1..) {
            draft.put(self.kind, view, &change.name);
            draft.to = *number;
            draft.since = Some(draft.since.map_or(change.since, |at| at.min(change.since)));
            if draft.bytes >= PUSH_BYTES {
                break;
            }
        }
        let is_last = draft.to == state.head;
        let nonce = format!("c{}", draft.to);
        let push = Arc::new(draft.finish(self.kind, nonce, is_last));
        if state.written.len() >= MAX_WRITTEN {
            state.written.pop_front();
        }
        state.written.push_back((from, push.clone()));
        Ok(Some(push))
    }

    /// The first state for a stream: one that others are being told, or a new one.
    pub fn snapshot(&self, view: &View<'_>) -> Arc<Snapshot> {
        let mut current = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, floor) = {
            let state = self.state();
            (state.head, state.floor)
        };
        if let Some(snapshot) = current.upgrade()
            && snapshot.to >= floor
            && to - snapshot.to <= MAX_SNAPSHOT_AGE
        {
            return snapshot;
        }
        let mut parts = Vec::new();
        let mut draft = Draft::default();
        let mut all = view.all().into_iter().peekable();
        loop {
            while draft.bytes < PART_BYTES
                && let Some(rendered) = all.next()
            {
                draft.add(self.kind, rendered);
            }
            draft.to = to;
            let is_last = all.peek().is_none();
            let nonce = format!("s{to}.{}", parts.len());
            let full = std::mem::take(&mut draft);
            parts.push(Arc::new(full.finish(self.kind, nonce, is_last)));
            if is_last {
                break;
            }
        }
        let snapshot = Arc::new(Snapshot { to, parts });
        *current = Arc::downgrade(&snapshot);
        snapshot
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self, from: u64) -> Result<(), FellBehind> {
        if from < self.floor {
            return Err(FellBehind);
        }
        Ok(())
    }

    /// Forgets what is old, and what is too much.
    fn forget(&mut self, limit: usize) {
        while let Some((number, change)) = self.changes.first_key_value() {
            if self.changes.len() <= limit && change.since.elapsed() <= KEPT_FOR {
                break;
            }
            self.floor = *number;
            self.last.remove(&change.name);
            self.changes.pop_first();
        }
    }
}

/// A push in the making.
#[derive(Default)]
struct Draft {
    response: DeltaDiscoveryResponse,
    names: Vec<Arc<str>>,
    bytes: usize,
    to: u64,
    since: Option<Instant>,
}

impl Draft {
    /// Says what has become of a resource.
    fn put(&mut self, kind: ResourceKind, view: &View<'_>, name: &Arc<str>) {
        match view.get(name) {
            Some(rendered) => self.add(kind, rendered),
            None => {
                self.bytes += name.len();
                self.response.removed_resources.push(name.to_string());
                self.names.push(name.clone());
            }
        }
    }

    fn add(&mut self, kind: ResourceKind, rendered: &karst_core::Rendered) {
        self.bytes += rendered.bytes.len() + RESOURCE_OVERHEAD_BYTES;
        let resource = rendered.to_resource(kind.type_url());
        self.response.resources.push(resource);
        self.names.push(Arc::from(rendered.name.as_str()));
    }

    fn finish(mut self, kind: ResourceKind, nonce: String, is_last: bool) -> Push {
        let response = &mut self.response;
        kind.type_url().clone_into(&mut response.type_url);
        response.nonce.clone_from(&nonce);
        response.system_version_info = self.to.to_string();
        if !is_last {
            response.system_version_info.push_str(PARTIAL_SUFFIX);
        }
        Push {
            to: self.to,
            nonce,
            resources: response.resources.len(),
            frame: framed(response),
            names: self.names,
            since: self.since,
        }
    }
}

#[cfg(test)]
mod tests;
