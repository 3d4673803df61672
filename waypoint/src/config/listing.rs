//! What is held, for people: the admin dump and tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// What is held of the configuration. Cheap to clone; all clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    items: Arc<Mutex<BTreeMap<(Kind, String), Entry>>>,
}

/// A type of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Listeners.
    Listener,
    /// Routes.
    Route,
    /// Backends.
    Backend,
    /// Certificates and authorities. Their content is never shown.
    TlsSecret,
    /// Policies.
    AuthorizationPolicy,
    /// Whose tokens count.
    RequestAuthentication,
}

/// How a resource is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In force.
    Active,
    /// Its newest version waits for something it refers to; the former one is in force.
    Waiting,
    /// Its newest version is invalid; the former one is in force.
    Stale,
    /// No version was valid, or, of a policy, the newest was not. What refers to it fails.
    Rejected,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The newest version that was received.
    pub version: String,
    /// How it is doing.
    pub state: State,
    /// What is wrong, or what is waited for; empty if all is well.
    pub problems: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    version: String,
    state: State,
    /// Of the newest version itself.
    error: Option<String>,
    /// Of what it refers to.
    problems: Vec<String>,
}

impl Listing {
    /// All resources, by type and name.
    #[must_use]
    pub fn items(&self) -> Vec<Item> {
        let items = self.lock();
        let item = |((kind, name), entry): (&(Kind, String), &Entry)| Item {
            kind: *kind,
            name: name.clone(),
            version: entry.version.clone(),
            state: entry.state,
            problems: entry.error.iter().chain(&entry.problems).cloned().collect(),
        };
        items.iter().map(item).collect()
    }

    /// Notes a version that was received.
    pub(super) fn received(&self, kind: Kind, name: &str, version: &str, error: Option<String>) {
        let mut items = self.lock();
        let key = (kind, name.to_owned());
        let former = items.remove(&key);
        let state = match (&error, &former) {
            (None, _) => State::Active,
            (Some(_), Some(former))
                if former.state != State::Rejected && kind != Kind::AuthorizationPolicy =>
            {
                State::Stale
            }
            (Some(_), _) => State::Rejected,
        };
        let entry = Entry {
            version: version.to_owned(),
            state,
            error,
            problems: former.map(|former| former.problems).unwrap_or_default(),
        };
        items.insert(key, entry);
    }

    /// Notes how a resource is doing whose newest version was valid.
    pub(super) fn resolved(&self, kind: Kind, name: &str, state: State, problems: Vec<String>) {
        if let Some(entry) = self.lock().get_mut(&(kind, name.to_owned())) {
            entry.problems = problems;
            if entry.error.is_none() {
                entry.state = state;
            }
        }
    }

    pub(super) fn removed(&self, kind: Kind, name: &str) {
        self.lock().remove(&(kind, name.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Kind, String), Entry>> {
        // Poisoned only by a panic between two map operations; the map itself stays sound.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
