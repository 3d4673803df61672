//! Tap: events of the data plane for whoever watches it now, and nothing while nobody does.
//!
//! What handles a connection or request asks [`Tap::is_on`], which is one relaxed load, and says what has happened
//! only then. Each subscriber's [`Selector`] is evaluated there and then, on borrowed facts; an event is formatted
//! once, if anybody wants it, and offered to a bounded queue. The data path never waits: what finds no room is
//! dropped, counted and told to the subscriber. A subscription ends when its reader goes, and at a time limit.
//!
//! Start reading at [`Tap::publish`]; [`query`] is what a subscriber asks for, [`answer`] the page of the admin server.

pub mod facts;
mod metrics;
pub mod query;
mod queue;
mod rate;
pub mod selector;
mod subscription;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;

use crate::access_log::{Record, append_event};
use crate::http_server::{self, Reply};
use facts::Facts;
use query::{Query, Sees};
use queue::Queue;

pub use selector::Selector;
pub use subscription::{Feed, Subscription};

/// Subscribers of one process at once. Each costs the data path an evaluation of its selector for every event, and
/// up to a queue of memory; an operator and a colleague need two.
pub const MAX_SUBSCRIBERS: usize = 8;

/// Content type of a stream of events: a JSON object a line.
const CONTENT_TYPE: &str = "application/x-ndjson";

/// Where the data plane says what happens, and where subscribers come to. Clones share everything.
#[derive(Clone)]
pub struct Tap(Arc<Hub>);

struct Hub {
    /// How many subscribers there are: all that is looked at while there is none.
    live: AtomicUsize,
    queues: ArcSwap<Vec<Arc<Queue>>>,
    /// Held while `queues` is changed; never on the data path.
    changing: Mutex<u64>,
    /// Who reports, as fields of every event.
    reporter: Vec<(&'static str, String)>,
    counts: Counts,
}

/// What there was of all subscribers, since the start.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    queue_full: AtomicU64,
    rate_limit: AtomicU64,
    refused: AtomicU64,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("subscribers", &self.subscribers())
            .finish_non_exhaustive()
    }
}

/// Why there is no subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_SUBSCRIBERS} subscribers already, which is the limit")]
pub struct TooMany;

impl Tap {
    /// A tap of a process that calls itself `reporter`: names and values that every event begins with.
    #[must_use]
    pub fn new(reporter: Vec<(&'static str, String)>) -> Self {
        Self(Arc::new(Hub {
            live: AtomicUsize::new(0),
            queues: ArcSwap::default(),
            changing: Mutex::new(0),
            reporter,
            counts: Counts::default(),
        }))
    }

    /// Whether anybody watches.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.live.load(Ordering::Relaxed) != 0
    }

    /// Offers an event to everybody whose selector takes it. `record` is formatted if there is somebody, once.
    pub fn publish(&self, facts: &Facts<'_>, record: &impl Record) {
        let queues = self.0.queues.load();
        let now = Instant::now();
        let mut wanted = queues
            .iter()
            .filter(|queue| queue.wants(facts) && queue.admits(now, &self.0.counts))
            .peekable();
        if wanted.peek().is_none() {
            return;
        }
        let line = self.line(facts, record);
        wanted.for_each(|queue| queue.offer(line.clone(), &self.0.counts));
    }

    fn line(&self, facts: &Facts<'_>, record: &impl Record) -> Bytes {
        let mut line = Vec::with_capacity(512);
        let head = [
            ("event", facts.event.as_str()),
            ("verdict", facts.verdict.as_str()),
        ];
        let reporter = self
            .0
            .reporter
            .iter()
            .map(|(name, value)| (*name, &**value));
        append_event(
            &mut line,
            SystemTime::now(),
            head.into_iter().chain(reporter),
            record,
        );
        line.into()
    }

    /// Subscribes to what `query` asks for.
    ///
    /// # Errors
    /// There are [`MAX_SUBSCRIBERS`] already.
    pub fn subscribe(&self, query: Query) -> Result<Subscription, TooMany> {
        let mut last_id = self.changing();
        let queues = self.0.queues.load_full();
        if queues.len() >= MAX_SUBSCRIBERS {
            self.0.counts.refused.fetch_add(1, Ordering::Relaxed);
            return Err(TooMany);
        }
        *last_id += 1;
        let (queue, receiver) = Queue::new(*last_id, query);
        let mut all = Vec::clone(&queues);
        all.push(Arc::clone(&queue));
        // Made first: where it cannot be made nobody would give its place back.
        let subscription = Subscription::new(self.clone(), queue, receiver);
        self.set(all);
        drop(last_id);
        Ok(subscription)
    }

    /// Forgets a subscriber, if it has not been forgotten.
    fn remove(&self, id: u64) {
        let changing = self.changing();
        let mut all = Vec::clone(&self.0.queues.load_full());
        all.retain(|queue| queue.id() != id);
        self.set(all);
        drop(changing);
    }

    fn set(&self, all: Vec<Arc<Queue>>) {
        let live = all.len();
        self.0.queues.store(Arc::new(all));
        // After the list: whoever sees a number finds the list, or the next event does.
        self.0.live.store(live, Ordering::Relaxed);
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, u64> {
        self.0
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribers at the moment.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.0.live.load(Ordering::Relaxed)
    }
}

/// Answers `GET /v1/tap?QUERY` of a process that sees `sees`. `begin` gets where to put what is there already, if
/// that is asked for. Runs inside a `LocalSet`.
pub fn answer(tap: &Tap, sees: Sees, query: Option<&str>, begin: impl FnOnce(Feed)) -> Reply {
    let problem = |status, reason: &str, error: String| {
        http_server::json(status, &json!({"reason": reason, "error": error}))
    };
    let query = match Query::parse(query.unwrap_or_default(), sees) {
        Ok(query) => query,
        Err(error) => {
            let reason = "tap_query_invalid";
            return problem(StatusCode::BAD_REQUEST, reason, error.to_string());
        }
    };
    let live = query.live;
    let subscription = match tap.subscribe(query) {
        Ok(subscription) => subscription,
        Err(error) => {
            let reason = "tap_too_many_subscribers";
            return problem(StatusCode::SERVICE_UNAVAILABLE, reason, error.to_string());
        }
    };
    if live {
        begin(subscription.feed());
    }
    let mut response = http::Response::new(subscription.boxed_unsync());
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(CONTENT_TYPE),
    );
    response
}

#[cfg(test)]
mod tests;
