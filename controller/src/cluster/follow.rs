//! Keeps up with the objects of one kind.
//!
//! The first state comes as a streaming list where the server can do that (it costs the server no
//! second copy), else page by page. After it, changes come from where the list ended. A watch that
//! ends is taken up where it was; one whose place is forgotten (410, etcd compacted) starts again
//! with a list. Errors are waited out here: a follower only ever gives events.

mod watch;

use std::{fmt::Debug, time::Duration};

use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{debug, info, warn};

use self::watch::{Found, Watch, refused};
use super::{Cluster, retry::Retry};
use crate::metrics::Watched;

/// The server ends a watch after this many seconds, and it is taken up again.
const WATCH_SECONDS: u32 = 240;

/// A watch that is silent for this long is taken up again, as its connection may be dead. The server sends a bookmark about once
/// a minute.
const SILENCE_LIMIT: Duration = Duration::from_secs(100);

/// Wait before a watch that ended is taken up again, so that a server that keeps ending it is not
/// asked without pause.
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// A list must make progress within this time.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// Objects in a page of a list, unless told otherwise.
const PAGE: u32 = 500;

/// Events that a follower in a task of its own has ready; it waits when nobody takes them.
const QUEUE: usize = 64;

/// What a follower says.
#[derive(Debug)]
pub enum Event<K> {
    /// A list begins; what has been listed before it does not count.
    Started,
    /// An object of the list.
    Listed(K),
    /// The list is complete: what was not in it is gone.
    Synced,
    /// An object is new or has changed.
    Applied(K),
    /// An object is gone.
    Deleted(K),
    /// An object that could not even be read; the others go on.
    Unreadable(String),
}

enum State<K> {
    /// Nothing is known.
    Empty,
    /// A streaming list is under way.
    Streaming(Watch<K>),
    /// A list is under way, page by page.
    Paging {
        page: std::vec::IntoIter<K>,
        continue_token: Option<String>,
        version: Option<String>,
    },
    /// All is known up to this version.
    Known(String),
    /// Changes come.
    Watching(Watch<K>, String),
}

/// Why a step did not give an event.
enum Trouble {
    /// The place in the history is forgotten.
    Forgotten,
    /// The server does not accept what it is asked, and never will.
    Unacceptable(String),
    /// The server refuses; another time it may not.
    Refused(String),
    /// The server did not complete a streaming list.
    NoStreaming(String),
    /// Anything else.
    Problem(String),
    /// The watch came to its normal end.
    Ended,
}

impl Trouble {
    /// What it means for a list that was asked for as a stream. Servers refuse that in many ways:
    /// 422 when they are told not to do it, 400 or an error in the stream when what is behind them
    /// cannot. Whatever it is, a list page by page does without; only a server that has too much to
    /// do is left alone first.
    fn of_streaming(self) -> Self {
        match self {
            Self::Unacceptable(text) | Self::Refused(text) => Self::NoStreaming(text),
            Self::Ended => Self::NoStreaming("the list ended early".to_owned()),
            other => other,
        }
    }
}

/// A follower that runs in a task of its own, so that whoever waits for more than its events does
/// not interrupt what it asks the server. Dropping it stops it.
pub struct Followed<K> {
    events: mpsc::Receiver<Event<K>>,
    _task: JoinSet<()>,
}

impl<K> Followed<K> {
    /// The next event. May be dropped while it waits; nothing is lost then.
    pub async fn next(&mut self) -> Event<K> {
        match self.events.recv().await {
            Some(event) => event,
            // Only when the runtime ends; there is nothing to say any more.
            None => std::future::pending().await,
        }
    }
}

/// Follows one kind of object.
pub struct Follower<K> {
    api: Api<K>,
    /// Label of logs and metrics.
    name: &'static str,
    cluster: Cluster,
    labels: Option<String>,
    fields: Option<String>,
    /// Objects in a page.
    page: u32,
    /// Whether the next list is asked for as a stream.
    streaming: bool,
    state: State<K>,
    retry: Retry,
    wait_until: Option<Instant>,
    failing: bool,
}

impl<K> Follower<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Follows what `api` has. `name` is the label of logs and metrics.
    pub fn new(cluster: &Cluster, api: Api<K>, name: &'static str) -> Self {
        let label = Watched { kind: name };
        let metrics = cluster.metrics();
        metrics.watch_synced.get_or_create(&label).set(0);
        Self {
            api,
            name,
            cluster: cluster.clone(),
            labels: None,
            fields: None,
            page: PAGE,
            streaming: true,
            state: State::Empty,
            retry: Retry::default(),
            wait_until: None,
            failing: false,
        }
    }

    /// Only objects with these labels.
    #[must_use]
    pub fn labels(mut self, selector: &str) -> Self {
        self.labels = Some(selector.to_owned());
        self
    }

    /// Only objects with these fields.
    #[must_use]
    pub fn fields(mut self, selector: &str) -> Self {
        self.fields = Some(selector.to_owned());
        self
    }

    /// So many objects in a page of a list, for kinds whose objects are large.
    #[must_use]
    pub fn page(mut self, objects: u32) -> Self {
        self.page = objects;
        self
    }

    /// Goes on in a task of its own.
    pub fn spawn(mut self) -> Followed<K> {
        let (sender, events) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(async move { while sender.send(self.next().await).await.is_ok() {} });
        Followed {
            events,
            _task: task,
        }
    }

    /// The next event. Nothing is lost when it is dropped while it waits, but a request under way
    /// is: who waits for other things as well uses [`Follower::spawn`].
    pub async fn next(&mut self) -> Event<K> {
        loop {
            if let Some(until) = self.wait_until {
                tokio::time::sleep_until(until).await;
                self.wait_until = None;
            }
            match self.step().await {
                Ok(Some(event)) => {
                    if matches!(event, Event::Synced) {
                        self.synced();
                    }
                    return event;
                }
                Ok(None) => {}
                Err(trouble) => self.recover(trouble),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Event<K>>, Trouble> {
        match &mut self.state {
            State::Empty if self.streaming => {
                let params = self.watch_params(true);
                // No version: the list is as new as the request, not what a cache happens to have.
                let watch = start(&self.api, &params, "").await;
                self.state = State::Streaming(watch.map_err(Trouble::of_streaming)?);
                Ok(Some(Event::Started))
            }
            State::Empty => {
                self.state = State::Paging {
                    page: Vec::new().into_iter(),
                    continue_token: None,
                    version: None,
                };
                Ok(Some(Event::Started))
            }
            State::Streaming(watch) => {
                let found = watch.next(LIST_LIMIT).await;
                match found.map_err(Trouble::of_streaming)? {
                    Found::Object(object) => Ok(Some(Event::Listed(object))),
                    Found::Bookmark { version, end: true } => {
                        self.known(version);
                        Ok(Some(Event::Synced))
                    }
                    Found::Bookmark { .. } => Ok(None),
                    // Not in a list; were it sent, the object is not there.
                    Found::Deleted(_) => Ok(None),
                    Found::Unreadable(problem) => Ok(Some(Event::Unreadable(problem))),
                }
            }
            State::Paging { page, version, .. } if page.len() > 0 || version.is_some() => {
                if let Some(object) = page.next() {
                    return Ok(Some(Event::Listed(object)));
                }
                let version = version.take().unwrap_or_default();
                self.state = State::Known(version);
                Ok(Some(Event::Synced))
            }
            State::Paging { continue_token, .. } => {
                let params = ListParams {
                    label_selector: self.labels.clone(),
                    field_selector: self.fields.clone(),
                    limit: Some(self.page),
                    continue_token: continue_token.clone(),
                    ..ListParams::default()
                };
                self.state = list(&self.api, &params).await?;
                Ok(None)
            }
            State::Known(version) => {
                let version = version.clone();
                let params = self.watch_params(false);
                let watch = start(&self.api, &params, &version).await?;
                self.state = State::Watching(watch, version);
                Ok(None)
            }
            State::Watching(watch, version) => match watch.next(SILENCE_LIMIT).await? {
                Found::Object(object) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.progress();
                    Ok(Some(Event::Applied(object)))
                }
                Found::Deleted(object) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.progress();
                    Ok(Some(Event::Deleted(object)))
                }
                Found::Bookmark { version: at, .. } => {
                    *version = at;
                    self.progress();
                    Ok(None)
                }
                Found::Unreadable(problem) => Ok(Some(Event::Unreadable(problem))),
            },
        }
    }

    fn watch_params(&self, list: bool) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: list,
        }
    }

    /// The streaming list is complete; the same watch goes on with the changes.
    fn known(&mut self, version: String) {
        self.state = match std::mem::replace(&mut self.state, State::Empty) {
            State::Streaming(watch) => State::Watching(watch, version),
            _ => State::Known(version),
        };
    }

    fn synced(&mut self) {
        let kind = self.name;
        info!(kind, streaming = self.streaming, "list complete");
        // What kept this list from being streamed need not be there when the next one is due.
        self.streaming = true;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let metrics = self.cluster.metrics();
        metrics
            .watch_last_list
            .get_or_create(&Watched { kind })
            .set(now);
        self.progress();
    }

    /// The server answers.
    fn progress(&mut self) {
        self.retry.reset();
        if std::mem::take(&mut self.failing) {
            info!(kind = self.name, "watch works again");
        }
        let label = Watched { kind: self.name };
        let synced = matches!(self.state, State::Watching(..) | State::Known(_));
        let metrics = self.cluster.metrics();
        metrics
            .watch_synced
            .get_or_create(&label)
            .set(i64::from(synced));
    }

    fn recover(&mut self, trouble: Trouble) {
        let kind = self.name;
        let label = Watched { kind };
        let metrics = self.cluster.metrics().clone();
        metrics.watch_restarts.get_or_create(&label).inc();
        let former = std::mem::replace(&mut self.state, State::Empty);
        match trouble {
            Trouble::Forgotten => {
                info!(kind, "watch fell behind; listing again");
                self.wait_until = Some(Instant::now() + self.retry.next());
                return;
            }
            Trouble::NoStreaming(problem) => {
                info!(kind, problem, "no streaming lists; listing page by page");
                self.streaming = false;
                return;
            }
            Trouble::Ended => {
                debug!(kind, "watch ended");
                // What ends otherwise is a list, and that is a problem.
                if let State::Watching(watch, version) = former {
                    let pause = match watch.has_spoken() {
                        true => RESUME_PAUSE,
                        false => self.retry.next(),
                    };
                    self.state = State::Known(version);
                    self.wait_until = Some(Instant::now() + pause);
                    return;
                }
            }
            // The same question would be answered in the same way: it starts anew, with a list.
            Trouble::Unacceptable(problem) => self.fail(&problem),
            Trouble::Refused(problem) | Trouble::Problem(problem) => {
                self.fail(&problem);
                if let State::Watching(_, version) | State::Known(version) = former {
                    self.state = State::Known(version);
                }
            }
        }
        metrics.watch_synced.get_or_create(&label).set(0);
        self.wait_until = Some(Instant::now() + self.retry.next());
    }

    fn fail(&mut self, problem: &str) {
        let kind = self.name;
        let verb = crate::metrics::Verb { verb: "watch" };
        self.cluster.metrics().api_errors.get_or_create(&verb).inc();
        // Once for each time that it stops to work, however long that takes.
        if std::mem::replace(&mut self.failing, true) {
            debug!(kind, problem, "watch still fails");
        } else {
            warn!(
                reason = "watch_failed",
                kind, problem, "watch failed; retrying"
            );
        }
    }
}

async fn start<K>(api: &Api<K>, params: &WatchParams, version: &str) -> Result<Watch<K>, Trouble>
where
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    match tokio::time::timeout(LIST_LIMIT, api.watch(params, version)).await {
        Ok(Ok(watch)) => Ok(Watch::new(watch)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> Trouble {
    Trouble::Problem(format!("no answer within {LIST_LIMIT:?}"))
}

async fn list<K>(api: &Api<K>, params: &ListParams) -> Result<State<K>, Trouble>
where
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    let listed = match tokio::time::timeout(LIST_LIMIT, api.list(params)).await {
        Ok(listed) => listed.map_err(|error| refused(&error))?,
        Err(_) => return Err(no_answer()),
    };
    let continue_token = listed.metadata.continue_.filter(|token| !token.is_empty());
    // The version is taken with the last page, when there is no more to come.
    let version = match &continue_token {
        Some(_) => None,
        None => Some(listed.metadata.resource_version.unwrap_or_default()),
    };
    Ok(State::Paging {
        page: listed.items.into_iter(),
        continue_token,
        version,
    })
}

#[cfg(test)]
mod tests;
