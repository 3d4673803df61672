//! A connection below HTTP: an endpoint is chosen for it as a whole, and bytes are passed on in both directions.

mod copy;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use karst_tunnel::server::Drain;

use crate::access_log::{ConnectionRecord, Destination, EndpointRecord};
use crate::balance::{self, Cluster, Outcome, PickError, PickRequest, Picked, Via};
use crate::carrier::Carrier;
use crate::client::Client;
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

/// Connects and relays until both directions have ended, and records that.
pub async fn serve<C: Carrier>(worker: Rc<Worker>, io: C, way: Way, mut record: ConnectionRecord) {
    let since = Instant::now();
    let connecting = Box::pin(open(&worker, &way, &mut record));
    let opened = tokio::time::timeout(CONNECT, connecting).await;
    let opened = opened.unwrap_or_else(|_| {
        Err(Failure {
            reason: Reason::Other("upstream_connect_timeout"),
            error: None,
        })
    });
    match opened {
        Ok((picked, upstream)) => relay(&worker, io, (picked, upstream), record, since).await,
        Err(failure) => {
            record.duration = since.elapsed();
            refuse(&worker, io, record, failure.reason, failure.error);
        }
    }
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
    record.destination = destination(cluster);
    let mut tried = Vec::new();
    loop {
        let picked = pick(cluster, target, &tried, &record.client)?;
        record.endpoint = Some(endpoint(&picked));
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

fn destination(cluster: &Cluster) -> Option<Arc<Destination>> {
    let settings = cluster.settings();
    (settings.port != 0).then(|| {
        Arc::new(Destination {
            namespace: Arc::clone(&settings.namespace),
            name: Arc::clone(&settings.service),
            hostname: Arc::clone(&settings.hostname),
            port: settings.port,
        })
    })
}

fn endpoint(picked: &Picked) -> EndpointRecord {
    let endpoint = picked.endpoint();
    EndpointRecord {
        uid: Arc::clone(endpoint.uid()),
        address: picked.destination(),
        identity: match endpoint.via() {
            Via::Plain => None,
            Via::Hbone { identity, .. } => Some(identity.clone()),
        },
    }
}

async fn relay<C: Carrier>(
    worker: &Worker,
    io: C,
    (mut picked, upstream): (Picked, UpstreamStream),
    mut record: ConnectionRecord,
    since: Instant,
) {
    // The latency that counts is that of connecting; how long a connection lives is its client's choice.
    picked.observe(Outcome::Response(http::StatusCode::OK));
    let mut open = worker.recorder.connection_opened(&record);
    let mut drain = worker.drain();
    let relay = copy::Relay::new(io, upstream);
    let passed = relay.passed();
    let copied = {
        let copying = relay.run(|received, sent| open.total(received, sent));
        tokio::select! {
            copied = copying => Some(copied),
            // The sender is the worker's, which we hold.
            _ = drain.wait_for(|drain| *drain == Drain::Immediate) => None,
        }
    };
    (record.bytes_received, record.bytes_sent) = passed.get();
    record.duration = since.elapsed();
    let (reason, outcome) = match copied {
        Some(copy::End::Done) => (None, Outcome::Cancelled),
        Some(copy::End::Idle) => (Some(Reason::IdleTimeout), Outcome::Cancelled),
        Some(copy::End::ClientFailed(error)) => {
            record.error = Some(error.to_string());
            (Some(Reason::ClientGone), Outcome::Cancelled)
        }
        Some(copy::End::UpstreamFailed(error)) => {
            record.error = Some(error.to_string());
            (Some(Reason::UpstreamReset), Outcome::Reset)
        }
        None => (Some(Reason::Shutdown), Outcome::Cancelled),
    };
    record.reason = reason;
    picked.finish(outcome);
    worker.recorder.connection_finished(record, open);
}
