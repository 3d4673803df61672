//! The loop of one stream.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use karst_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    resources::{ResourceKind, View},
    subscription::{Answer, Subscription},
};
use crate::{
    auth::NodeAgent,
    metrics::{Metrics, ResourceType},
    store::Store,
};

/// A client that does not answer a response for this long is given up; it will come back with what
/// it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

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
    /// The client broke a limit.
    #[error("{0}")]
    Protocol(super::subscription::ProtocolError),
    /// The client does not answer.
    #[error("no answer within {ANSWER_LIMIT:?}")]
    Silent,
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
            Self::Protocol(_) => "xds_protocol_error",
            Self::Silent => "xds_no_answer",
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
            Self::Silent => Some(Status::deadline_exceeded(message)),
            Self::TokenExpired => Some(Status::unauthenticated(message)),
            Self::Shutdown => Some(Status::unavailable(message)),
        }
    }
}

/// One stream.
pub struct Stream {
    pub store: Arc<Store>,
    pub agent: NodeAgent,
    pub metrics: Metrics,
    pub responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Stream {
    /// Runs until the stream ends, and says why it did.
    pub async fn run(&self, mut requests: Streaming<DeltaDiscoveryRequest>) -> StreamEnd {
        // Registered before the first look at the index, so that no change is missed.
        let registration = self.store.register(&self.agent.node);
        let mut types: BTreeMap<ResourceKind, Subscription> = BTreeMap::new();
        let opened = Instant::now();
        let token_end = tokio::time::sleep(remaining(self.agent.expires_at));
        tokio::pin!(token_end);
        let mut answer_by = opened + FIRST_REQUEST_LIMIT;
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(end) = self.request(&mut types, &request) {
                            return end;
                        }
                    }
                    Ok(None) => return StreamEnd::Closed,
                    Err(status) => return StreamEnd::Lost(status.message().to_owned()),
                },
                () = registration.queue.changed.notified() => {
                    let dirty = registration.queue.take();
                    for (kind, subscription) in &mut types {
                        if dirty.everything {
                            subscription.everything_changed();
                        } else if *kind == ResourceKind::Address {
                            subscription.changed(dirty.addresses.clone());
                        } else if *kind == ResourceKind::NodePod {
                            subscription.changed(dirty.node_pods.clone());
                        }
                    }
                }
                () = self.responses.closed() => return StreamEnd::Closed,
                () = &mut token_end => return StreamEnd::TokenExpired,
                () = tokio::time::sleep_until(answer_by) => return StreamEnd::Silent,
            }
            self.respond(&mut types);
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
        types: &mut BTreeMap<ResourceKind, Subscription>,
        request: &DeltaDiscoveryRequest,
    ) -> Result<(), StreamEnd> {
        if let Some(node) = &request.node {
            debug!(node = self.agent.node, client = node.id, "stream opened");
        }
        let kind = ResourceKind::of(&request.type_url)
            .ok_or_else(|| StreamEnd::UnknownType(request.type_url.chars().take(200).collect()))?;
        let Some(subscription) = types.get_mut(&kind) else {
            let subscription = Subscription::new(kind, request).map_err(StreamEnd::Protocol)?;
            types.insert(kind, subscription);
            return Ok(());
        };
        match subscription.request(request).map_err(StreamEnd::Protocol)? {
            Answer::None => {}
            Answer::Ack => debug!(r#type = kind.label(), node = self.agent.node, "applied"),
            Answer::Nack(resources, message) => {
                self.note_rejection(kind, &resources, &message);
                info!(
                    r#type = kind.label(),
                    node = self.agent.node,
                    rejected = subscription.rejected(),
                    "resources that the client does not have right"
                );
            }
        }
        Ok(())
    }

    fn note_rejection(&self, kind: ResourceKind, resources: &[(String, String)], message: &str) {
        let label = ResourceType {
            r#type: kind.label(),
        };
        self.metrics.xds_nacks.get_or_create(&label).inc();
        let node = &self.agent.node;
        if resources.is_empty() {
            warn!(
                reason = "xds_rejected",
                r#type = kind.label(),
                node,
                message,
                "response rejected"
            );
        }
        for (resource, error) in resources {
            warn!(
                reason = "xds_rejected",
                r#type = kind.label(),
                node,
                resource,
                error,
                "resource rejected"
            );
        }
    }

    /// Sends what there is to say.
    fn respond(&self, types: &mut BTreeMap<ResourceKind, Subscription>) {
        for (kind, subscription) in types {
            let response = {
                let index = self.store.index();
                subscription.respond(&View {
                    index: &index,
                    node: &self.agent.node,
                    kind: *kind,
                })
            };
            let Some(response) = response else { continue };
            let label = ResourceType {
                r#type: kind.label(),
            };
            self.metrics.xds_pushes.get_or_create(&label).inc();
            self.metrics
                .xds_resources
                .get_or_create(&label)
                .inc_by(response.resources.len() as u64);
            debug!(
                r#type = kind.label(),
                node = self.agent.node,
                resources = response.resources.len(),
                removed = response.removed_resources.len(),
                "sent"
            );
            // There is a place for each type. If the transport is gone, `closed` says so.
            let _ = self.responses.try_send(Ok(response));
        }
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
