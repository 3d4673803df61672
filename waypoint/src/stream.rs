//! A connection below HTTP: an endpoint is chosen for it as a whole, and bytes are passed on in both directions.
//!
//! Policies are asked before anything is connected, and again whenever they change: a connection that they allow no
//! more is reset.

mod copy;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use karst_tunnel::server::Drain;

use crate::access_log::{ConnectionRecord, EndpointRecord};
use crate::authz::Denial;
use crate::authz::recheck::Watch;
use crate::authz::scope::Scope;
use crate::balance::{self, Cluster, Outcome, PickError, PickRequest, Picked};
use crate::carrier::Carrier;
use crate::client::Client;
use crate::observe::Observed;
use crate::reason::Reason;
use crate::route::L4Rule;
use crate::table::BackendTarget;
use crate::upstream::{UpstreamError, UpstreamStream};
use crate::worker::Worker;

/// Endpoints tried for one connection. Each failed attempt may take as long as the backend's connect timeout.
const ATTEMPTS: usize = 3;

/// Time for all attempts together.
const CONNECT: Duration = Duration::from_secs(20);

/// Where a connection goes.
pub enum Way {
    /// To a backend; a workload reached by its own address has the address and port asked for.
    Cluster(Arc<Cluster>, Option<SocketAddr>),
    /// Where a route says.
    Rule(Arc<L4Rule>),
}

/// Why a connection does not come about.
struct Failure {
    reason: Reason,
    error: Option<String>,
}

impl Failure {
    fn new(reason: Reason, error: impl ToString) -> Self {
        Self {
            reason,
            error: Some(error.to_string()),
        }
    }
}

/// Connects, if the policies allow it, and relays until both directions have ended, and records that.
pub async fn serve<C: Carrier>(
    worker: Rc<Worker>,
    io: C,
    way: Way,
    scope: Scope,
    mut record: ConnectionRecord,
) {
    let since = Instant::now();
    let tables = &worker.shared.tables;
    let watch = worker.http.rechecks().watch(tables.generation());
    observe(&worker, &scope, &mut record);
    match admit(&worker, &scope, &record) {
        Admission::Allowed => {}
        Admission::Gone => {
            return refuse(&worker, io, record, Reason::UnknownDestination, None);
        }
        Admission::Denied(denial) => return deny(&worker, io, record, denial),
    }
    let connecting = Box::pin(open(&worker, &way, &mut record));
    let opened = tokio::time::timeout(CONNECT, connecting).await;
    let opened = opened.unwrap_or_else(|_| {
        Err(Failure {
            reason: Reason::Other("upstream_connect_timeout"),
            error: None,
        })
    });
    match opened {
        Ok((picked, upstream)) => {
            let guard = Guard { scope, watch };
            relay(&worker, io, (picked, upstream), guard, record, since).await;
        }
        Err(failure) => {
            record.duration = since.elapsed();
            refuse(&worker, io, record, failure.reason, failure.error);
        }
    }
}

/// Notes what is reported of the connection, and whose child what goes on is.
fn observe(worker: &Worker, scope: &Scope, record: &mut ConnectionRecord) {
    let table = worker.shared.tables.load();
    if let Some(reporting) = scope.reporting(&table) {
        let observed = Observed::connection(reporting, record.client.trace);
        record.client.trace = observed.context().or(record.client.trace);
        record.observed = Some(observed);
    }
}

/// What the policies say of a connection that comes.
enum Admission {
    Allowed,
    /// What it came to is not served any more, so that nothing says who may come.
    Gone,
    Denied(Denial),
}

fn admit(worker: &Worker, scope: &Scope, record: &ConnectionRecord) -> Admission {
    let table = worker.shared.tables.load();
    let Some(authorization) = scope.authorization(&table) else {
        return Admission::Gone;
    };
    let attributes = scope.attributes(&record.client, record.sni.as_deref());
    if authorization.has_observers() {
        authorization.observe(&attributes, |observed| {
            worker.recorder.observed(&observed, &attributes);
        });
    }
    match authorization.decide(&attributes) {
        Ok(()) => Admission::Allowed,
        Err(denial) => Admission::Denied(denial),
    }
}

/// What watches over an established connection.
struct Guard {
    scope: Scope,
    watch: Watch,
}

impl Guard {
    /// Waits until the policies allow the connection no more. What is not served any more has none: then the
    /// connection goes on, as it does when other parts of the configuration go.
    async fn denied(&mut self, worker: &Worker, client: &Client, sni: Option<&str>) -> Denial {
        loop {
            self.watch.due().await;
            let table = worker.shared.tables.load();
            let attributes = self.scope.attributes(client, sni);
            let authorization = self.scope.authorization(&table);
            if let Some(Err(denial)) = authorization.map(|each| each.decide(&attributes)) {
                return denial;
            }
        }
    }
}

/// Resets a connection that the policies do not allow.
fn deny<C: Carrier>(worker: &Worker, io: C, mut record: ConnectionRecord, denial: Denial) {
    let reason = Reason::Other(denial.reason());
    let text = Some(denial.to_string());
    record.denial = Some(denial);
    refuse(worker, io, record, reason, text);
}

/// Resets a connection, and records why.
pub fn refuse<C: Carrier>(
    worker: &Worker,
    io: C,
    mut record: ConnectionRecord,
    reason: Reason,
    error: Option<String>,
) {
    record.reason = Some(reason);
    record.error = error;
    worker.recorder.connection_refused(record);
    io.reset();
}

async fn open(
    worker: &Worker,
    way: &Way,
    record: &mut ConnectionRecord,
) -> Result<(Picked, UpstreamStream), Failure> {
    let (cluster, target) = match way {
        Way::Cluster(cluster, target) => (cluster, *target),
        Way::Rule(rule) => (choose(rule)?, None),
    };
    record.destination = worker.http.destination(cluster);
    let mut tried = Vec::new();
    loop {
        let picked = pick(cluster, target, &tried, &record.client)?;
        record.endpoint = Some(EndpointRecord::of(&picked));
        let error = match worker.upstream.connect(&picked, &record.client).await {
            Ok(stream) => return Ok((picked, stream)),
            Err(error) => error,
        };
        tried.push(Arc::clone(picked.key()));
        let again = is_worth_another(&error, &tried, cluster);
        let failure = Failure::new(Reason::Other(error.reason()), &error);
        picked.finish(error.outcome());
        if !again {
            return Err(failure);
        }
    }
}

fn choose(rule: &L4Rule) -> Result<&Arc<Cluster>, Failure> {
    match rule.backends.choose(rand::random()) {
        Some(backend) => match &backend.target {
            BackendTarget::Cluster(cluster) => Ok(cluster),
            BackendTarget::Invalid(reason) => Err(Failure::new(Reason::InvalidBackend, reason)),
        },
        None => Err(Failure::new(
            Reason::InvalidBackend,
            "the rule has no backends",
        )),
    }
}

fn pick(
    cluster: &Arc<Cluster>,
    target: Option<SocketAddr>,
    tried: &[Arc<str>],
    client: &Client,
) -> Result<Picked, Failure> {
    let hashed = balance::hash_of(&cluster.settings(), &HeaderMap::new(), client);
    let request = PickRequest {
        hash: hashed.map(|hashed| hashed.value),
        tried,
        port: target.map(|target| target.port()),
        address: target.map(|target| target.ip()),
        ..PickRequest::default()
    };
    cluster.pick(&request).map_err(|error| {
        let reason = match &error {
            PickError::NoEndpoints => Reason::Other("no_endpoints"),
            PickError::Invalid(_) => Reason::InvalidBackend,
            PickError::Overloaded(limit) => Reason::Other(limit.reason()),
        };
        Failure::new(reason, error)
    })
}

/// Nothing of the connection has been sent yet, so any other endpoint will do.
fn is_worth_another(error: &UpstreamError, tried: &[Arc<str>], cluster: &Cluster) -> bool {
    let ours = matches!(error, UpstreamError::NoCertificate);
    error.is_safe_to_retry() && !ours && tried.len() < ATTEMPTS.min(cluster.stats().endpoints)
}

/// How an established connection ended.
enum Ended {
    Copied(copy::End),
    /// The policies have changed.
    Denied(Denial),
    Drained,
}

async fn relay<C: Carrier>(
    worker: &Worker,
    io: C,
    (mut picked, upstream): (Picked, UpstreamStream),
    mut guard: Guard,
    mut record: ConnectionRecord,
    since: Instant,
) {
    // The latency that counts is that of connecting; how long a connection lives is its client's choice.
    picked.observe(Outcome::Response(http::StatusCode::OK));
    let mut open = worker.recorder.connection_opened(&record);
    let mut drain = worker.drain();
    let relay = copy::Relay::new(io, upstream);
    let passed = relay.passed();
    let ended = {
        let denied = guard.denied(worker, &record.client, record.sni.as_deref());
        let copying = relay.run(|received, sent| open.total(received, sent));
        tokio::select! {
            copied = copying => Ended::Copied(copied),
            denial = denied => Ended::Denied(denial),
            // The sender is the worker's, which we hold.
            _ = drain.wait_for(|drain| *drain == Drain::Immediate) => Ended::Drained,
        }
    };
    (record.bytes_received, record.bytes_sent) = passed.get();
    record.duration = since.elapsed();
    let (reason, outcome) = match ended {
        Ended::Copied(copy::End::Done) => (None, Outcome::Cancelled),
        Ended::Copied(copy::End::Idle) => (Some(Reason::IdleTimeout), Outcome::Cancelled),
        Ended::Copied(copy::End::ClientFailed(error)) => {
            record.error = Some(error.to_string());
            (Some(Reason::ClientGone), Outcome::Cancelled)
        }
        Ended::Copied(copy::End::UpstreamFailed(error)) => {
            record.error = Some(error.to_string());
            (Some(Reason::UpstreamReset), Outcome::Reset)
        }
        Ended::Denied(denial) => {
            let reason = Reason::Other(denial.reason());
            record.error = Some(denial.to_string());
            record.denial = Some(denial);
            (Some(reason), Outcome::Cancelled)
        }
        Ended::Drained => (Some(Reason::Shutdown), Outcome::Cancelled),
    };
    record.reason = reason;
    picked.finish(outcome);
    worker.recorder.connection_finished(record, open);
}
