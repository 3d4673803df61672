//! Keys that are fetched: held by address, shared by all rules and workers that name it.
//!
//! A [`KeySource`] is written by the one task that fetches for it ([`super::fetch`]) and read by requests without a
//! lock. What was got last stays when a fetch fails.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Uri;
use karst_process::counts::Counts;
use tokio::sync::{Notify, mpsc, watch};

use super::keys::KeySet;

/// When keys are fetched.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between fetches that succeed: Istio's interval.
    pub refresh: Duration,
    /// At least between two fetches because of keys that are not known: clients can name any.
    pub pause: Duration,
    /// Behind the first fetch that fails; twice as long behind each further one.
    pub backoff: Duration,
    /// Longest such time.
    pub max_backoff: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(20 * 60),
            pause: Duration::from_secs(30),
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5 * 60),
        }
    }
}

/// All sources that rules name.
pub struct KeySources {
    by_address: Mutex<HashMap<(String, Duration), Weak<KeySource>>>,
    new: mpsc::UnboundedSender<Weak<KeySource>>,
    timing: Timing,
    /// Fetches by result.
    fetches: Counts<&'static str>,
}

/// Sources that a task is to be started for.
pub type NewSources = mpsc::UnboundedReceiver<Weak<KeySource>>;

impl KeySources {
    /// None, and where new ones are told.
    #[must_use]
    pub fn new(timing: Timing) -> (Arc<Self>, NewSources) {
        let (new, sources) = mpsc::unbounded_channel();
        let all = Self {
            by_address: Mutex::default(),
            new,
            timing,
            fetches: Counts::default(),
        };
        (Arc::new(all), sources)
    }

    /// The source of an address; `None` if it is none of HTTP or HTTPS.
    pub(super) fn get(
        self: &Arc<Self>,
        address: &str,
        timeout: Duration,
    ) -> Option<Arc<KeySource>> {
        let uri: Uri = address.parse().ok()?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        let has_user = uri.authority().is_some_and(|it| it.as_str().contains('@'));
        if !is_web || !has_host || has_user {
            return None;
        }
        let mut sources = self.lock();
        let key = (address.to_owned(), timeout);
        if let Some(source) = sources.get(&key).and_then(Weak::upgrade) {
            return Some(source);
        }
        sources.retain(|_, source| source.strong_count() > 0);
        let source = Arc::new(KeySource {
            uri,
            timeout,
            pause: self.timing.pause,
            state: ArcSwap::default(),
            ended: watch::Sender::new(0),
            wake: Arc::default(),
        });
        sources.insert(key, Arc::downgrade(&source));
        // Without a task that fetches, requests wait for their time limit and are refused.
        let _ = self.new.send(Arc::downgrade(&source));
        Some(source)
    }

    pub(super) fn timing(&self) -> Timing {
        self.timing
    }

    pub(super) fn count(&self, result: &'static str) {
        self.fetches.count(result);
    }

    /// Fetches so far, by result.
    #[must_use]
    pub fn fetches(&self) -> Vec<(&'static str, u64)> {
        let mut counts = self.fetches.read();
        counts.sort_unstable();
        counts
    }

    /// For how many sources there are keys, for how many there are none, and how old the oldest keys are.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut health = Health::default();
        for source in self.lock().values().filter_map(Weak::upgrade) {
            match &source.state.load().held {
                Some((_, since)) => {
                    health.available += 1;
                    health.oldest = health.oldest.max(since.elapsed());
                }
                None => health.unavailable += 1,
            }
        }
        health
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, Duration), Weak<KeySource>>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// How sources are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// With keys.
    pub available: usize,
    /// Without keys.
    pub unavailable: usize,
    /// Since the oldest keys were got.
    pub oldest: Duration,
}

/// The keys at one address.
pub struct KeySource {
    pub(super) uri: Uri,
    /// For one fetch.
    pub(super) timeout: Duration,
    pause: Duration,
    state: ArcSwap<State>,
    /// Fetches that have ended.
    ended: watch::Sender<u64>,
    /// Tells the task that keys are wanted, or that nobody wants any more.
    wake: Arc<Notify>,
}

#[derive(Clone, Default)]
struct State {
    held: Option<(Arc<KeySet>, Instant)>,
    /// When the last fetch ended.
    tried: Option<Instant>,
}

impl KeySource {
    /// The keys. Waits for the first fetch, no longer than it may take; `None` if it has failed.
    pub(super) async fn keys(&self) -> Option<Arc<KeySet>> {
        let mut ended = self.ended.subscribe();
        let state = self.state.load_full();
        if state.held.is_none() && state.tried.is_none() {
            let first = ended.wait_for(|count| *count > 0);
            let _ = tokio::time::timeout(self.timeout, first).await;
        }
        self.held()
    }

    /// Keys that are newer than these, fetched now unless that was done only just.
    pub(super) async fn newer(&self, than: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let is_newer = |keys: &Arc<KeySet>| !Arc::ptr_eq(keys, than);
        let mut ended = self.ended.subscribe();
        if let Some(keys) = self.held().filter(is_newer) {
            return Some(keys);
        }
        if !self.may_fetch() {
            return None;
        }
        self.wake.notify_one();
        let _ = tokio::time::timeout(self.timeout, ended.changed()).await;
        self.held().filter(is_newer)
    }

    fn held(&self) -> Option<Arc<KeySet>> {
        let state = self.state.load();
        state.held.as_ref().map(|(keys, _)| Arc::clone(keys))
    }

    /// Whether the last fetch is long enough ago for one because of a key that is not known.
    pub(super) fn may_fetch(&self) -> bool {
        let tried = self.state.load().tried;
        tried.is_none_or(|tried| tried.elapsed() >= self.pause)
    }

    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// A fetch has ended; without keys it has failed.
    pub fn fetched(&self, keys: Option<KeySet>) {
        let now = Instant::now();
        let former = self.state.load_full();
        let keys = keys.map(|keys| (Arc::new(keys), now));
        self.state.store(Arc::new(State {
            held: keys.or_else(|| former.held.clone()),
            tried: Some(now),
        }));
        // Behind the state: who is woken sees it.
        self.ended.send_modify(|count| *count += 1);
    }
}

impl Drop for KeySource {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}
