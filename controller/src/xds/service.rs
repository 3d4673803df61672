//! The gRPC services for discovery, of node agents and of proxies, and for node agents' reports.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use karst_api::{
    discovery::{DeltaDiscoveryRequest, aggregated_discovery_service_server},
    node::{ReportEnrolmentRequest, ReportEnrolmentResponse, node_service_server::NodeService},
};
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::{
    Request, Response, Status, Streaming, body::Body, codegen::Service, metadata::MetadataMap,
    server::NamedService,
};
use tonic_prost::ProstDecoder;
use tracing::info;

use super::{
    frame::Frames,
    stream::{SEND_QUEUE, Stream, StreamEnd},
};
use crate::{
    auth::{Authenticator, Callers, NotPermitted, Subject},
    cluster::reports::Reports,
    metrics::{Metrics, Reason},
    store::Store,
};

/// The method, after the service's name.
const DELTA_METHOD: &str = "/DeltaAggregatedResources";

/// Largest request in bytes: what an agent of a large mesh says it has when it reconnects.
const MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;

/// Streams whose first request is being read. That of an agent of a large mesh has megabytes, and all agents come at
/// once when a controller starts: more of them at a time would be no faster, and take memory for each.
const MAX_OPENING: usize = 8;

/// Streams that may be open at a time: several times the nodes of the largest cluster.
const MAX_STREAMS: usize = 20_000;

/// Pods that may be reported for one node. Kubernetes itself is tested to 110, some run 500.
const MAX_REPORTED_PODS: usize = 10_000;

/// Discovery and node service.
#[derive(Clone)]
pub struct Discovery {
    store: Arc<Store>,
    authenticator: Arc<Authenticator>,
    callers: Callers,
    /// Shares reports with other replicas, where there are any.
    reports: Option<Arc<Reports>>,
    metrics: Metrics,
    places: Arc<Semaphore>,
    opening: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
}

impl Discovery {
    /// The services over a store. Streams end when `shutdown` becomes true.
    pub fn new(
        store: Arc<Store>,
        authenticator: Arc<Authenticator>,
        callers: Callers,
        reports: Option<Arc<Reports>>,
        metrics: Metrics,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self {
            store,
            authenticator,
            callers,
            reports,
            metrics,
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
            opening: Arc::new(Semaphore::new(MAX_OPENING)),
            shutdown,
        }
    }

    async fn subject(&self, metadata: &MetadataMap) -> Result<Subject, Status> {
        let caller = self.authenticator.caller(metadata).await?;
        let account = caller.account.to_string();
        let subject = self.callers.subject(caller);
        subject.map_err(|error| self.refuse(error, &account))
    }

    fn refuse(&self, error: NotPermitted, account: &str) -> Status {
        let reason = match error {
            NotPermitted::Account => "xds_not_node_agent",
            NotPermitted::NoNode => "xds_no_node",
        };
        self.metrics
            .auth_refused
            .get_or_create(&Reason { reason })
            .inc();
        info!(reason, account, %error, "caller refused");
        Status::permission_denied(format!("{reason}: {error}"))
    }
}

impl Discovery {
    /// Opens a stream; returns what it says.
    async fn open(&self, request: http::Request<Body>) -> Result<Frames, Status> {
        let (parts, body) = request.into_parts();
        let metadata = MetadataMap::from_headers(parts.headers);
        let subject = self.subject(&metadata).await?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("xds_too_many_streams: try another controller")
        })?;
        let requests: Streaming<DeltaDiscoveryRequest> =
            Streaming::new_request(ProstDecoder::default(), body, None, Some(MAX_REQUEST_BYTES));
        let (responses, queue) = mpsc::channel(SEND_QUEUE);
        let stream = Stream::new(
            self.store.clone(),
            subject,
            self.metrics.clone(),
            responses.clone(),
        );
        let mut shutdown = self.shutdown.clone();
        let metrics = self.metrics.clone();
        let opening = self.opening.clone();
        tokio::spawn(async move {
            metrics.xds_streams.inc();
            let end = tokio::select! {
                end = stream.run(requests, &opening) => end,
                _ = shutdown.wait_for(|stop| *stop) => StreamEnd::Shutdown,
            };
            metrics.xds_streams.dec();
            let reason = end.reason();
            metrics.xds_ended.get_or_create(&Reason { reason }).inc();
            info!(reason, node = stream.subject.node(), proxy = stream.subject.proxy(), %end, "stream ended");
            if let Some(status) = end.status() {
                // The queue has a place, or the client is gone.
                let _ = responses.try_send(Err(status));
            }
            drop(place);
        });
        Ok(Frames::new(queue))
    }
}

/// The discovery service. What it sends is not encoded here but written once for all streams that are told it, which the
/// server that is generated from the protocol cannot do.
#[derive(Clone)]
pub struct DiscoveryServer(pub Discovery);

impl NamedService for DiscoveryServer {
    const NAME: &'static str = aggregated_discovery_service_server::SERVICE_NAME;
}

impl Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let discovery = self.0.clone();
        Box::pin(async move {
            let method = request.uri().path().strip_prefix('/');
            let method = method.and_then(|path| path.strip_prefix(Self::NAME));
            if method != Some(DELTA_METHOD) {
                return Ok(Status::unimplemented("").into_http());
            }
            Ok(match discovery.open(request).await {
                Ok(frames) => {
                    let mut response = http::Response::new(Body::new(frames));
                    let content = http::HeaderValue::from_static("application/grpc");
                    let headers = response.headers_mut();
                    headers.insert(http::header::CONTENT_TYPE, content);
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

#[tonic::async_trait]
impl NodeService for Discovery {
    async fn report_enrolment(
        &self,
        request: Request<ReportEnrolmentRequest>,
    ) -> Result<Response<ReportEnrolmentResponse>, Status> {
        let agent = match self.subject(request.metadata()).await? {
            Subject::Agent(agent) => agent,
            Subject::Proxy(proxy) => {
                return Err(self.refuse(NotPermitted::Account, &proxy.account.to_string()));
            }
        };
        let pod_uids = request.into_inner().pod_uids;
        if pod_uids.len() > MAX_REPORTED_PODS {
            return Err(Status::invalid_argument(format!(
                "node_report_too_large: a node may report {MAX_REPORTED_PODS} pods at most"
            )));
        }
        let known = self.store.report_enrolled(&agent.node, &pod_uids);
        if let Some(reports) = &self.reports {
            reports.reported(&agent.node, &pod_uids);
        }
        self.metrics.enrolment_reports.inc();
        info!(
            node = agent.node,
            reported = pod_uids.len(),
            known,
            "enrolment reported"
        );
        Ok(Response::new(ReportEnrolmentResponse {
            known_pods: u32::try_from(known).unwrap_or(u32::MAX),
        }))
    }
}
