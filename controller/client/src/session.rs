//! One stream: subscribe, apply, acknowledge, until it ends.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use karst_api::{
    REJECTED_RESOURCE_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status},
    node::RejectedResource,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tracing::{debug, info, warn};

use crate::{
    ads::{self, ResourceHandler, Shared},
    backoff::Backoff,
    channel::Controller,
    error::ClientError,
    subscriptions::{self, TypeState},
};

/// Requests that may wait to be sent. There is one per response and subscription change; a
/// controller that reads none of them for `SEND_LIMIT` is given up.
const SEND_QUEUE: usize = 16;

/// How long a request may wait for a place in the queue.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Rejected resources that are named to the controller in one answer; the rest are counted.
const MAX_REJECTED_DETAILS: usize = 100;

/// Wait before a failed report of enrolled pods is tried again on a stream that is still up.
const REPORT_RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Session {
    shared: Arc<Shared>,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Session {
    /// Opens the stream and sends the first request of every type.
    pub(crate) async fn open(
        shared: Arc<Shared>,
        controller: &Controller,
    ) -> Result<Self, ClientError> {
        let first: Vec<DeltaDiscoveryRequest> = shared
            .types()
            .iter_mut()
            .enumerate()
            .map(|(index, (type_url, state))| {
                let mut request = state.first_request(type_url);
                if index == 0 {
                    request.node = Some(Node {
                        id: shared.config.client_id.clone(),
                        ..Default::default()
                    });
                }
                request
            })
            .collect();
        let (requests, queue) = mpsc::channel(SEND_QUEUE.max(first.len()));
        for request in first {
            // There is a place for each, so this never waits and fails only if the queue is gone.
            let _ = requests.try_send(request);
        }
        let stream = controller.request(ReceiverStream::new(queue)).await?;
        let responses = controller
            .discovery()
            .delta_aggregated_resources(stream)
            .await
            .map_err(|status| ClientError::from_status(&status))?
            .into_inner();
        Ok(Self {
            shared,
            requests,
            responses,
        })
    }

    /// Runs until the stream ends, which is always an error here.
    pub(crate) async fn run<H: ResourceHandler>(
        mut self,
        handler: &mut H,
        backoff: &mut Backoff,
        controller: &Controller,
    ) -> Result<Infallible, ClientError> {
        let reports = report_enrolment(controller.clone(), self.shared.enrolled.subscribe());
        tokio::pin!(reports);
        let mut answered = false;
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                message = self.responses.message() => {
                    let response = message
                        .map_err(|status| ClientError::from_status(&status))?
                        .ok_or_else(|| ClientError::StreamEnded {
                            problem: "closed by the controller".to_owned(),
                        })?;
                    if !answered {
                        answered = true;
                        backoff.reset();
                        self.note_connected();
                    }
                    self.handle(handler, response).await?;
                }
                () = shared.changed.notified() => self.send_changes().await?,
                error = &mut reports => return Err(error),
            }
        }
    }

    fn note_connected(&self) {
        info!(
            controller = self.shared.config.controller.address,
            "controller connected"
        );
        self.shared.status.send_modify(|status| {
            status.connected = true;
            status.last_reason = None;
            status.streams += 1;
        });
    }

    async fn handle<H: ResourceHandler>(
        &self,
        handler: &mut H,
        response: DeltaDiscoveryResponse,
    ) -> Result<(), ClientError> {
        let type_url = response.type_url.clone();
        if !self.shared.types().contains_key(type_url.as_str()) {
            debug!(type_url, "response of a type that nobody asked for");
            return Ok(());
        }
        let versions = subscriptions::versions(&response);
        let partial = response.is_partial();
        let removed = response.removed_resources.clone();
        let named = (response.system_version_info.clone(), response.nonce.clone());
        let rejected = handler.apply(&type_url, response.resources, response.removed_resources);

        let (synced, rejected_now) = {
            let mut types = self.shared.types();
            if let Some(state) = types.get_mut(type_url.as_str()) {
                state.record(versions, &removed, &rejected);
                state.synced |= !partial;
                state.answers.note(named, &rejected, SystemTime::now());
            }
            let rejected_now: Arc<[_]> = rejected_now(&types).collect();
            (types.values().all(|state| state.synced), rejected_now)
        };
        for (name, error) in &rejected {
            warn!(type_url, resource = name, error, "resource rejected");
        }
        self.shared.status.send_if_modified(|status| {
            let changed = status.synced != synced
                || !rejected.is_empty()
                || status.rejected_now != rejected_now;
            status.rejected_now = rejected_now;
            status.synced = synced;
            status.rejected += rejected.len() as u64;
            changed
        });
        self.send(DeltaDiscoveryRequest {
            type_url,
            response_nonce: response.nonce,
            error_detail: rejection(&rejected),
            ..Default::default()
        })
        .await
    }

    async fn send_changes(&self) -> Result<(), ClientError> {
        let changes: Vec<DeltaDiscoveryRequest> = self
            .shared
            .types()
            .iter_mut()
            .filter_map(|(type_url, state)| state.change_request(type_url))
            .collect();
        for request in changes {
            self.send(request).await?;
        }
        Ok(())
    }

    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), ClientError> {
        match tokio::time::timeout(SEND_LIMIT, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ClientError::StreamEnded {
                problem: "closed while sending".to_owned(),
            }),
            Err(_) => Err(ClientError::StreamEnded {
                problem: format!("the controller read nothing for {SEND_LIMIT:?}"),
            }),
        }
    }
}

/// What of all types is rejected, in the order of types and names.
fn rejected_now(
    types: &BTreeMap<&'static str, TypeState>,
) -> impl Iterator<Item = ads::RejectedResource> {
    types.iter().flat_map(|(type_url, state)| {
        let of_type = state.rejected();
        of_type.map(|(name, error)| ads::RejectedResource {
            type_url,
            name: name.clone(),
            error: error.clone(),
        })
    })
}

/// The answer to a response of which some resources were rejected.
fn rejection(rejected: &[(String, String)]) -> Option<Status> {
    let (name, error) = rejected.first()?;
    let more = match rejected.len() - 1 {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    };
    let details = rejected
        .iter()
        .take(MAX_REJECTED_DETAILS)
        .map(|(name, error)| prost_types::Any {
            type_url: REJECTED_RESOURCE_TYPE.to_owned(),
            value: prost::Message::encode_to_vec(&RejectedResource {
                name: name.clone(),
                error: error.clone(),
            }),
        })
        .collect();
    Some(Status {
        code: Code::InvalidArgument as i32,
        message: format!("{name}: {error}{more}"),
        details,
    })
}

/// Sends the latest list of enrolled pods: at once if there is one, then after each change. Returns
/// only when reporting makes no sense on this connection any more.
async fn report_enrolment(
    controller: Controller,
    mut enrolled: watch::Receiver<Option<Vec<String>>>,
) -> ClientError {
    loop {
        let latest = enrolled.borrow_and_update().clone();
        if let Some(pod_uids) = latest {
            while let Err(error) = controller.report_enrolment(pod_uids.clone()).await {
                if matches!(error, ClientError::StreamEnded { .. }) {
                    return error;
                }
                warn!(reason = error.reason(), %error, "enrolment not reported");
                tokio::time::sleep(REPORT_RETRY).await;
                if enrolled.has_changed().unwrap_or(true) {
                    break;
                }
            }
        }
        if enrolled.changed().await.is_err() {
            return ClientError::StreamEnded {
                problem: "the session is over".to_owned(),
            };
        }
    }
}
