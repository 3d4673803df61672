//! The handle that the rest of a program uses, and the task that does the work.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use karst_api::discovery::Resource;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::{
    backoff::Backoff, channel::Controller, config::AdsConfig, error::ClientError,
    report::TypeReport, session::Session, subscriptions::TypeState,
};

/// Receives resources. Called in order, from one task, and never concurrently.
pub trait ResourceHandler {
    /// Applies one response of one type: new and changed resources, and names that are gone (for a
    /// name that was subscribed to: that does not exist). Returns the name of each resource that
    /// could not be applied with the reason; the others count as applied, and the last good state
    /// of a rejected one stays. Must not block.
    fn apply(
        &mut self,
        type_url: &str,
        updates: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<(String, String)>;
}

/// How the connection to the controller is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdsStatus {
    /// A stream is open and has been answered.
    pub connected: bool,
    /// A complete first response of every type has been applied, at some time since the start.
    pub synced: bool,
    /// Why the last attempt or stream ended ([`ClientError::reason`]), while not connected.
    pub last_reason: Option<&'static str>,
    /// Streams opened and answered so far.
    pub streams: u64,
    /// Resources rejected so far.
    pub rejected: u64,
    /// Resources whose newest version was rejected; the last good one of each is still in force. At most 256
    /// of a type.
    pub rejected_now: Arc<[RejectedResource]>,
}

/// A resource whose newest version could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedResource {
    /// Its type.
    pub type_url: &'static str,
    /// Its name.
    pub name: String,
    /// What is wrong with it; at most 512 bytes.
    pub error: String,
}

/// Shared by handle and task.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: AdsConfig,
    types: Mutex<BTreeMap<&'static str, TypeState>>,
    /// Wakes the task after a subscription changed.
    pub(crate) changed: Notify,
    pub(crate) status: watch::Sender<AdsStatus>,
    /// The latest full list of enrolled pods; `None` until the first report.
    pub(crate) enrolled: watch::Sender<Option<Vec<String>>>,
}

impl Shared {
    /// The lock is held for map operations only, never across an await.
    pub(crate) fn types(&self) -> MutexGuard<'_, BTreeMap<&'static str, TypeState>> {
        // Poisoned only by a panic between two map operations; the maps themselves stay sound.
        self.types.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle to a discovery session. Cheap to clone, all methods return at once.
#[derive(Debug, Clone)]
pub struct DeltaAds {
    shared: Arc<Shared>,
}

/// The session itself; [`AdsTask::run`] drives it.
#[derive(Debug)]
pub struct AdsTask {
    shared: Arc<Shared>,
}

impl DeltaAds {
    /// Prepares a session. Nothing happens until the task is run.
    #[must_use]
    pub fn new(config: AdsConfig) -> (Self, AdsTask) {
        let types = config
            .types
            .iter()
            .map(|(type_url, initial)| (*type_url, TypeState::new(*initial)))
            .collect();
        let shared = Arc::new(Shared {
            config,
            types: Mutex::new(types),
            changed: Notify::new(),
            status: watch::Sender::new(AdsStatus::default()),
            enrolled: watch::Sender::new(None),
        });
        let task = AdsTask {
            shared: shared.clone(),
        };
        (Self { shared }, task)
    }

    /// Subscribes to resources by name or alias. The answer comes to the handler: the resource, or
    /// its name among the removed ones if there is none. Types that are not in the configuration
    /// are ignored.
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        if let Some(state) = self.shared.types().get_mut(type_url)
            && state.want(names)
        {
            self.shared.changed.notify_one();
        }
    }

    /// Takes subscriptions back.
    pub fn unsubscribe(&self, type_url: &str, names: &[String]) {
        if let Some(state) = self.shared.types().get_mut(type_url)
            && state.drop_names(names)
        {
            self.shared.changed.notify_one();
        }
    }

    /// Sets the full list of pods (Kubernetes uids) enrolled on this node. The controller is told
    /// now, or as soon as it is there, and again after every reconnect.
    pub fn report_enrolment(&self, mut pod_uids: Vec<String>) {
        pod_uids.sort_unstable();
        self.shared.enrolled.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&pod_uids);
            *current = Some(pod_uids);
            changed
        });
    }

    /// Takes the list back: another agent of this node reports from now on. What the controller
    /// was told stands until that one's report.
    pub fn withdraw_enrolment(&self) {
        self.shared.enrolled.send_replace(None);
    }

    /// Follows the state of the connection.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<AdsStatus> {
        self.shared.status.subscribe()
    }

    /// Resources held of a type.
    #[must_use]
    pub fn held(&self, type_url: &str) -> usize {
        self.shared.types().get(type_url).map_or(0, TypeState::held)
    }

    /// What has become of each type, by its URL.
    #[must_use]
    pub fn types(&self) -> Vec<TypeReport> {
        let types = self.shared.types();
        let report = |(url, state): (&&'static str, &TypeState)| state.report(url);
        types.iter().map(report).collect()
    }

    /// Returns when the first state of every type is complete. It waits for the controller without
    /// a limit; put a limit around it where one is wanted.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut status = self.shared.status.subscribe();
        async move {
            // The error means that the session is gone; then there is nothing to wait for.
            let _ = status.wait_for(|status| status.synced).await;
        }
    }
}

impl AdsTask {
    /// Connects, and reconnects after every failure with a growing wait, until the future is
    /// dropped. It is `Send` when the handler is, and runs on any tokio runtime with time and I/O.
    pub async fn run<H: ResourceHandler>(self, mut handler: H) {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.stream(&mut handler, &mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let reason = error.reason();
            self.shared.status.send_modify(|status| {
                status.connected = false;
                status.last_reason = Some(reason);
            });
            let wait = backoff.next();
            let controller = &self.shared.config.controller.address;
            if matches!(error, ClientError::StreamEnded { .. }) {
                info!(reason, %error, controller, retry_in = ?wait, "controller stream ended");
            } else {
                warn!(reason, %error, controller, retry_in = ?wait, "controller unreachable");
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn stream<H: ResourceHandler>(
        &self,
        handler: &mut H,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, ClientError> {
        let controller = Controller::connect(&self.shared.config.controller).await?;
        let session = Session::open(self.shared.clone(), &controller).await?;
        session.run(handler, backoff, &controller).await
    }
}
