//! A backend with the state of its endpoints.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use tokio::time::Instant;

use super::budget::{self, Allowance, RetryPermit};
use super::clusters::OwnPlace;
use super::endpoint::{Description, Endpoint};
use super::limits::{ConnectionSlot, InUse, Limit, PendingSlot};
use super::outlier;
use super::picked::{Outcome, Picked};
use super::select;
use super::settings::{ClusterSettings, SuccessRate};
use super::view::{Members, View};
use super::{PickError, PickRequest};

/// A backend: its settings, its endpoints, and what is under way to them.
///
/// It lives on from update to update. One that is removed becomes empty for those who still hold it.
pub struct Cluster {
    id: u64,
    name: Arc<str>,
    own: OwnPlace,
    started: Instant,
    view: ArcSwap<View>,
    /// Held while a new view is made; picks do not wait for it.
    changing: Mutex<()>,
    in_use: Arc<InUse>,
    allowance: Allowance,
    turn: AtomicUsize,
    /// When success rates are compared next, milliseconds of our clock.
    next_comparison: AtomicU64,
    ejections: AtomicU64,
}

/// A backend in numbers, for metrics and listings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ClusterStats {
    /// Endpoints.
    pub endpoints: usize,
    /// Those that are chosen from.
    pub active: usize,
    /// Those that are ejected.
    pub ejected: usize,
    /// Ejections so far.
    pub ejections_total: u64,
    /// Requests under way.
    pub requests: u32,
    /// Retries under way.
    pub retries: u32,
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
}

impl Cluster {
    pub(super) fn new(name: &str, own: &OwnPlace) -> Self {
        static ID: AtomicU64 = AtomicU64::new(1);
        let view = View::new(Arc::default(), Arc::default(), 0);
        Self {
            id: ID.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            own: own.clone(),
            started: Instant::now(),
            view: ArcSwap::from_pointee(view),
            changing: Mutex::new(()),
            in_use: Arc::default(),
            allowance: Allowance::default(),
            turn: AtomicUsize::new(rand::random_range(0..1 << 16)),
            next_comparison: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
        }
    }

    /// Unique in this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Name of the Backend resource, or `workload/UID`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The settings of the moment.
    #[must_use]
    pub fn settings(&self) -> Arc<ClusterSettings> {
        Arc::clone(&self.view.load().settings)
    }

    /// All endpoints, for listings.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.view.load().members.all.clone()
    }

    /// Whether an endpoint is ejected now.
    #[must_use]
    pub fn is_ejected(&self, endpoint: &Endpoint) -> bool {
        endpoint.state().health.is_ejected(self.now_millis())
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Chooses an endpoint and counts the request until the answer is dropped.
    ///
    /// # Errors
    /// When there is no endpoint, the backend is invalid, or it has as many requests as it may.
    pub fn pick(self: &Arc<Self>, request: &PickRequest<'_>) -> Result<Picked, PickError> {
        let now = self.now_millis();
        let mut view = self.view.load();
        if now >= view.expires {
            drop(view);
            self.refresh(now);
            view = self.view.load();
        }
        if let Some(reason) = &view.settings.invalid {
            return Err(PickError::Invalid(Arc::clone(reason)));
        }
        let endpoint = select::select(&view, request, &self.turn, now);
        let endpoint = endpoint.ok_or(PickError::NoEndpoints)?;
        let port = request.port.unwrap_or(endpoint.port());
        if port == 0 {
            return Err(PickError::NoEndpoints);
        }
        if !self.in_use.requests.try_add(view.settings.limits.requests) {
            return Err(PickError::Overloaded(Limit::Requests));
        }
        let address = request.address.unwrap_or(endpoint.address());
        Ok(Picked::new(self, endpoint, (address, port).into()))
    }

    /// Permission for a retry, unless the budget is used up. Keep it until the retry has its answer.
    #[must_use]
    pub fn try_retry(&self) -> Option<RetryPermit> {
        let view = self.view.load();
        let budget = &view.settings.retry_budget;
        budget::try_retry(&self.in_use, &self.allowance, budget, self.now_micros())
    }

    /// Counts a connection, unless there are as many as there may be.
    #[must_use]
    pub fn try_connection(&self) -> Option<ConnectionSlot> {
        self.in_use
            .connection(self.view.load().settings.limits.connections)
    }

    /// Counts a request that waits for a connection, unless as many as may do wait.
    #[must_use]
    pub fn try_wait(&self) -> Option<PendingSlot> {
        self.in_use
            .pending(self.view.load().settings.limits.pending)
    }

    /// Waits until a connection has ended; its place may be gone again by then.
    pub async fn connection_released(&self) {
        self.in_use.released().await;
    }

    /// Requests that wait because all connections are in use.
    #[must_use]
    pub fn waiting_for_release(&self) -> u32 {
        self.in_use.waiting()
    }

    /// The backend in numbers.
    #[must_use]
    pub fn stats(&self) -> ClusterStats {
        let view = self.view.load();
        ClusterStats {
            endpoints: view.members.all.len(),
            active: view.active.len(),
            ejected: view.ejected,
            ejections_total: self.ejections.load(Ordering::Relaxed),
            requests: self.in_use.requests.get(),
            retries: self.in_use.retries.get(),
            connections: self.in_use.connections.get(),
            pending: self.in_use.pending.get(),
        }
    }

    /// Replaces settings and endpoints. An endpoint of a known key keeps its state.
    pub(super) fn update(&self, settings: ClusterSettings, endpoints: Vec<Description>) {
        let _changing = self.lock();
        let now = self.now_millis();
        let former = self.view.load_full();
        // Where all are new there is nobody else to take the load.
        let born = (!former.members.all.is_empty()).then_some(now);
        let mut all: HashMap<Arc<str>, Arc<Endpoint>> = HashMap::with_capacity(endpoints.len());
        let mut order = Vec::with_capacity(endpoints.len());
        for description in endpoints {
            let key = Arc::clone(description.key());
            let endpoint = Endpoint::of(description, former.members.get(&key), born);
            // The first of two with the same key counts.
            if let hashbrown::hash_map::Entry::Vacant(vacant) = all.entry(key) {
                vacant.insert(Arc::clone(&endpoint));
                order.push(endpoint);
            }
        }
        let members = Members::new(order, &self.own, settings.balancing.locality);
        let view = View::new(Arc::new(settings), Arc::new(members), now);
        self.view.store(Arc::new(view));
    }

    /// Makes the view anew when an ejection has ended, unless another thread does.
    #[cold]
    fn refresh(&self, now: u64) {
        let _changing = match self.changing.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return,
        };
        self.remake(now);
    }

    /// The same endpoints and settings, seen anew. The lock must be held.
    fn remake(&self, now: u64) {
        let former = self.view.load_full();
        let (settings, members) = (Arc::clone(&former.settings), Arc::clone(&former.members));
        self.view.store(Arc::new(View::new(settings, members, now)));
    }

    /// Counts what became of a request.
    pub(super) fn record(&self, endpoint: &Arc<Endpoint>, outcome: Outcome) {
        let view = self.view.load();
        let Some(outliers) = &view.settings.outliers else {
            return;
        };
        let now = self.now_millis();
        let mut failing = Vec::new();
        if endpoint.state().health.record(outcome, outliers) {
            failing.push(Arc::clone(endpoint));
        }
        if let Some(rate) = outliers.success_rate
            && self.comparison_is_due(rate, now)
        {
            failing.extend(outlier::compare(&view.members.all, rate));
        }
        if !failing.is_empty() {
            drop(view);
            self.eject(&failing, now);
        }
    }

    /// Whether success rates are to be compared now; one thread alone gets a yes.
    fn comparison_is_due(&self, rate: SuccessRate, now: u64) -> bool {
        let interval = u64::try_from(rate.interval.as_millis()).unwrap_or(u64::MAX);
        let due = |next: u64| match next {
            // The first interval begins with the first request.
            0 => Some(now.saturating_add(interval).max(1)),
            _ => (now >= next).then(|| now.saturating_add(interval)),
        };
        let order = (Ordering::Relaxed, Ordering::Relaxed);
        let former = self.next_comparison.fetch_update(order.0, order.1, due);
        former.is_ok_and(|former| former != 0)
    }

    #[cold]
    fn eject(&self, failing: &[Arc<Endpoint>], now: u64) {
        let _changing = self.lock();
        let view = self.view.load_full();
        let Some(outliers) = &view.settings.outliers else {
            return;
        };
        let mut ejected = 0;
        for endpoint in failing {
            if outlier::eject(endpoint, &view.members.all, outliers, now) {
                ejected += 1;
                tracing::info!(
                    backend = %self.name,
                    endpoint = %endpoint.key(),
                    dst.addr = %endpoint.address(),
                    reason = "outlier",
                    "endpoint ejected"
                );
            }
        }
        if ejected > 0 {
            self.ejections.fetch_add(ejected, Ordering::Relaxed);
            self.remake(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    pub(super) fn now_micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn now_millis(&self) -> u64 {
        self.now_micros() / 1_000
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
