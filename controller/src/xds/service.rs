//! The gRPC services for discovery, of node agents and of proxies, and for node agents' reports.

use std::{pin::Pin, sync::Arc};

use karst_api::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    node::{ReportEnrolmentRequest, ReportEnrolmentResponse, node_service_server::NodeService},
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::info;

use super::stream::{SEND_QUEUE, Stream, StreamEnd};
use crate::{
    auth::{Authenticator, Callers, NotPermitted, Subject},
    cluster::reports::Reports,
    metrics::{Metrics, Reason},
    store::Store,
};

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

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let subject = self.subject(request.metadata()).await?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("xds_too_many_streams: try another controller")
        })?;
        let (responses, queue) = mpsc::channel(SEND_QUEUE);
        let stream = Stream::new(
            self.store.clone(),
            subject,
            self.metrics.clone(),
            responses.clone(),
        );
        let requests = request.into_inner();
        let mut shutdown = self.shutdown.clone();
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            metrics.xds_streams.inc();
            let end = tokio::select! {
                end = stream.run(requests) => end,
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
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
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
