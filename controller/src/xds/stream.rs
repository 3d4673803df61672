//! The loop of one stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use karst_api::discovery::DeltaDiscoveryRequest;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    frame::framed,
    journal::FellBehind,
    resources::{ResourceKind, View},
    subscription::{Answer, Part, Said, Subscription},
};
use crate::{
    auth::Subject,
    metrics::{Metrics, ResourceType},
    store::{Registration, Scope, Store},
};

/// A client that does not answer a response for this long is given up; it will come back with what
/// it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A stream may have a place among those that open for this long, however slowly its client talks.
const OPENING_LIMIT: Duration = Duration::from_secs(5);

/// A client that has asked for so many types has sent what may be large: clients ask for addresses and policies first.
const LARGE_TYPES: usize = 2;

/// The first request must come within this time.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Responses that may wait for the transport. Each type has at most one unanswered response, so
/// there is always a place.
pub const SEND_QUEUE: usize = 8;

/// Why the controller ended a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// The client closed it.
    #[error("closed by the client")]
    Closed,
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The client asked for something that does not exist.
    #[error("unknown resource type {0:?}")]
    UnknownType(String),
    /// The client asked for something that is for others.
    #[error("resources of type {0} are not for this client")]
    ForbiddenType(&'static str),
    /// The client broke a limit.
    #[error("{0}")]
    Protocol(super::subscription::ProtocolError),
    /// The client does not answer.
    #[error("no answer within {ANSWER_LIMIT:?}")]
    Silent,
    /// The client has been too slow to be told only what has changed.
    #[error("too far behind: what has changed since is not known any more")]
    FellBehind,
    /// The token that the stream was opened with has ended.
    #[error("the token has expired")]
    TokenExpired,
    /// The controller stops.
    #[error("the controller stops")]
    Shutdown,
}

impl StreamEnd {
    /// Stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "xds_closed",
            Self::Lost(_) => "xds_lost",
            Self::UnknownType(_) => "xds_unknown_type",
            Self::ForbiddenType(_) => "xds_type_not_allowed",
            Self::Protocol(_) => "xds_protocol_error",
            Self::Silent => "xds_no_answer",
            Self::FellBehind => "xds_fell_behind",
            Self::TokenExpired => "auth_expired",
            Self::Shutdown => "xds_shutdown",
        }
    }

    /// What the client is told; nothing if it is gone.
    pub fn status(&self) -> Option<Status> {
        let message = format!("{}: {self}", self.reason());
        match self {
            Self::Closed | Self::Lost(_) => None,
            Self::UnknownType(_) | Self::Protocol(_) => Some(Status::invalid_argument(message)),
            Self::ForbiddenType(_) => Some(Status::permission_denied(message)),
            Self::Silent => Some(Status::deadline_exceeded(message)),
            Self::FellBehind => Some(Status::aborted(message)),
            Self::TokenExpired => Some(Status::unauthenticated(message)),
            Self::Shutdown => Some(Status::unavailable(message)),
        }
    }
}

/// One stream.
pub struct Stream {
    store: Arc<Store>,
    /// Who is served.
    pub subject: Subject,
    scope: Scope,
    metrics: Metrics,
    responses: mpsc::Sender<Result<Bytes, Status>>,
}

type Types = BTreeMap<ResourceKind, Subscription>;

impl Stream {
    /// A stream of a client; responses go to `responses`, which takes [`SEND_QUEUE`] of them.
    pub fn new(
        store: Arc<Store>,
        subject: Subject,
        metrics: Metrics,
        responses: mpsc::Sender<Result<Bytes, Status>>,
    ) -> Self {
        Self {
            store,
            scope: subject.scope(),
            subject,
            metrics,
            responses,
        }
    }

    /// Runs until the stream ends, and says why it did.
    ///
    /// `opening` has the places for streams whose first requests are being read; without one, HTTP/2 keeps what the
    /// client sends.
    pub async fn run(
        &self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        opening: &Semaphore,
    ) -> StreamEnd {
        let place = tokio::select! {
            place = opening.acquire() => place,
            () = self.responses.closed() => return StreamEnd::Closed,
        };
        // The semaphore is never closed.
        let mut place = place.ok();
        // Registered before the first look at the index, so that no change is missed.
        let registration = self.store.register(self.scope.clone());
        let mut types = Types::new();
        let opened = Instant::now();
        let token_end = tokio::time::sleep(remaining(self.subject.expires_at()));
        tokio::pin!(token_end);
        let mut answer_by = opened + FIRST_REQUEST_LIMIT;
        let place_end = tokio::time::sleep(OPENING_LIMIT);
        tokio::pin!(place_end);
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(end) = self.request(&mut types, &request, &registration) {
                            return end;
                        }
                        if types.len() >= LARGE_TYPES {
                            place = None;
                        }
                    }
                    Ok(None) => return StreamEnd::Closed,
                    Err(status) => return StreamEnd::Lost(status.message().to_owned()),
                },
                () = registration.queue.changed.notified() => {
                    let dirty = registration.queue.take();
                    for (kind, subscription) in &mut types {
                        if dirty.everything {
                            subscription.everything_changed(dirty.since);
                            continue;
                        }
                        let names = match (kind.proxy(), kind) {
                            (Some(kind), _) => dirty.proxies.get(&kind).cloned().unwrap_or_default(),
                            (None, ResourceKind::Authorization) => dirty.authorizations.clone(),
                            (None, ResourceKind::NodePod) => dirty.node_pods.clone(),
                            (None, _) => BTreeSet::new(),
                        };
                        subscription.changed(names, dirty.since);
                    }
                }
                () = self.responses.closed() => return StreamEnd::Closed,
                () = &mut place_end, if place.is_some() => place = None,
                () = &mut token_end => return StreamEnd::TokenExpired,
                () = tokio::time::sleep_until(answer_by) => return StreamEnd::Silent,
            }
            if self.respond(&mut types).is_err() {
                return StreamEnd::FellBehind;
            }
            let waiting = types.values().filter_map(Subscription::waits_since);
            answer_by = match waiting.min() {
                Some(since) => Instant::from_std(since) + ANSWER_LIMIT,
                None if types.is_empty() => opened + FIRST_REQUEST_LIMIT,
                None => opened + FOREVER,
            };
        }
    }

    fn request(
        &self,
        types: &mut Types,
        request: &DeltaDiscoveryRequest,
        registration: &Registration<'_>,
    ) -> Result<(), StreamEnd> {
        if let Some(node) = &request.node {
            debug!(
                node = self.subject.node(),
                proxy = self.subject.proxy(),
                client = node.id,
                "stream opened"
            );
        }
        let kind = ResourceKind::of(&request.type_url)
            .ok_or_else(|| StreamEnd::UnknownType(request.type_url.chars().take(200).collect()))?;
        if !kind.is_served_to(&self.scope) {
            return Err(StreamEnd::ForbiddenType(kind.type_url()));
        }
        let Some(subscription) = types.get_mut(&kind) else {
            let subscription = match kind {
                ResourceKind::Address => {
                    Subscription::following(kind, request, self.store.addresses.clone())
                }
                _ => Subscription::new(kind, request),
            };
            let subscription = subscription.map_err(StreamEnd::Protocol)?;
            types.insert(kind, subscription);
            return Ok(());
        };
        match subscription.request(request).map_err(StreamEnd::Protocol)? {
            Answer::None => return Ok(()),
            Answer::Ack => {
                let took = subscription.propagation();
                if let Some(took) = took {
                    self.metrics.xds_propagation.observe(kind.label(), took);
                }
                debug!(
                    r#type = kind.label(),
                    node = self.subject.node(),
                    proxy = self.subject.proxy(),
                    ?took,
                    "applied"
                );
            }
            Answer::Nack(resources, message) => {
                self.note_rejection(kind, &resources, &message);
                info!(
                    r#type = kind.label(),
                    node = self.subject.node(),
                    proxy = self.subject.proxy(),
                    rejected = subscription.rejected().count(),
                    "resources that the client does not have right"
                );
            }
        }
        if let Some(kind) = kind.proxy() {
            registration.set_rejected(kind, subscription.rejections());
        }
        Ok(())
    }

    fn note_rejection(&self, kind: ResourceKind, resources: &[(String, String)], message: &str) {
        let label = ResourceType {
            r#type: kind.label(),
        };
        self.metrics.xds_nacks.get_or_create(&label).inc();
        let (node, proxy) = (self.subject.node(), self.subject.proxy());
        if resources.is_empty() {
            warn!(
                reason = "xds_rejected",
                r#type = kind.label(),
                node,
                proxy,
                message,
                "response rejected"
            );
        }
        for (resource, error) in resources {
            warn!(
                reason = "xds_rejected",
                r#type = kind.label(),
                node,
                proxy,
                resource,
                error,
                "resource rejected"
            );
        }
    }

    /// Sends what there is to say. To a proxy, what others refer to comes before what refers to it, and
    /// goes after it: a listener never points at a route that the proxy does not have yet, or any more.
    fn respond(&self, types: &mut Types) -> Result<(), FellBehind> {
        if matches!(self.scope, Scope::Node(_)) {
            return self.respond_to_node(types);
        }
        for (kind, subscription) in types.iter_mut() {
            self.send(*kind, subscription, Part::Updates)?;
            if subscription.has_updates() {
                return Ok(());
            }
        }
        for (kind, subscription) in types.iter_mut().rev() {
            self.send(*kind, subscription, Part::Removals)?;
            if subscription.has_removals() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends what there is to say to a node agent. Policies come before the workloads that list them, and
    /// go after these: a workload never lists a policy that the agent does not have yet, or any more.
    fn respond_to_node(&self, types: &mut Types) -> Result<(), FellBehind> {
        const POLICIES: ResourceKind = ResourceKind::Authorization;
        if let Some(policies) = types.get_mut(&POLICIES) {
            self.send(POLICIES, policies, Part::Updates)?;
            if policies.has_updates() {
                return Ok(());
            }
        }
        let mut is_said = true;
        for (kind, subscription) in types.iter_mut().filter(|(kind, _)| **kind != POLICIES) {
            self.send(*kind, subscription, Part::All)?;
            is_said &= !subscription.has_updates();
        }
        if let Some(policies) = types.get_mut(&POLICIES).filter(|_| is_said) {
            self.send(POLICIES, policies, Part::Removals)?;
        }
        Ok(())
    }

    fn send(
        &self,
        kind: ResourceKind,
        subscription: &mut Subscription,
        part: Part,
    ) -> Result<(), FellBehind> {
        let said = {
            let index = self.store.index();
            subscription.say(&View::new(&index, &self.scope, kind), part)?
        };
        let (resources, removed, frame) = match said {
            None => return Ok(()),
            Some(Said::Own(response)) => {
                let counts = (response.resources.len(), response.removed_resources.len());
                (counts.0, counts.1, framed(&response))
            }
            Some(Said::Shared(push)) => {
                let removed = push.names.len() - push.resources;
                (push.resources, removed, push.frame.clone())
            }
        };
        let label = ResourceType {
            r#type: kind.label(),
        };
        self.metrics.xds_pushes.get_or_create(&label).inc();
        self.metrics
            .xds_resources
            .get_or_create(&label)
            .inc_by(resources as u64);
        debug!(
            r#type = kind.label(),
            node = self.subject.node(),
            proxy = self.subject.proxy(),
            resources,
            removed,
            "sent"
        );
        // There is a place for each type. If the transport is gone, `closed` says so.
        let _ = self.responses.try_send(Ok(frame));
        Ok(())
    }
}

/// Longer than any stream.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

fn remaining(expires_at: u64) -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Duration::from_secs(expires_at)
        .saturating_sub(now)
        .min(FOREVER)
}
