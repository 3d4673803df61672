//! A controller of a newer version than its proxies, as they meet it in the middle of an upgrade.
//!
//! A controller checks routes as strictly as proxies of its own version do, so that these never reject one. What
//! stands here is between proxies and a real controller: it passes on what both say, and when it is told to, adds to
//! one route a rule of a kind that today's proxies do not know.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use karst_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use karst_api::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use karst_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use karst_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use karst_api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use karst_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use karst_api::node::node_service_client::NodeServiceClient;
use karst_api::node::node_service_server::{NodeService, NodeServiceServer};
use karst_api::node::{ReportEnrolmentRequest, ReportEnrolmentResponse};
use karst_api::{MAX_MESSAGE_BYTES, ROUTE_TYPE};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
};
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::{EndingAuthority, netns};

/// TCP and TLS with the real controller together must be done in this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Where such a controller stands.
pub struct Place {
    /// Network namespace, by its file.
    pub netns: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The real controller.
    pub controller: SocketAddr,
    /// The name in the certificates of both.
    pub name: String,
}

/// Such a controller. It is gone when this is dropped, also for those who are connected to it.
pub struct NewerController {
    address: SocketAddr,
    /// Resource name of the route that it has something newer in; its end ends everything.
    route: Option<watch::Sender<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl NewerController {
    /// Starts it. Proxies believe it by its certificate, which is of the mesh's authority.
    pub fn start(place: Place, authority: &EndingAuthority) -> Result<Self> {
        let (chain, key) = authority.serving(&place.name)?;
        let identity = Identity::from_pem(chain, key);
        let roots = Certificate::from_pem(&authority.root);
        let (route, routes) = watch::channel(None);
        let (started, outcome) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let failed = started.clone();
            if let Err(error) = run(&place, identity, roots, routes, started) {
                // Nobody hears it who has not waited for the start; those see a controller that is gone.
                let _ = failed.send(Err(error));
            }
        });
        let address = outcome.recv().context("it ended without a word")??;
        Ok(Self {
            address,
            route: Some(route),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the route (a resource name, `KIND/NAMESPACE/NAME`) has a rule of a newer kind. All streams end, as
    /// they do when a controller is replaced.
    pub fn renew(&self, route: &str) {
        self.tell(Some(route.to_owned()));
    }

    /// It says again what the real controller says. All streams end.
    pub fn take_back(&self) {
        self.tell(None);
    }

    fn tell(&self, newer: Option<String>) {
        if let Some(route) = &self.route {
            route.send_replace(newer);
        }
    }
}

impl Drop for NewerController {
    fn drop(&mut self) {
        self.route = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves until the sender of `route` is gone.
fn run(
    place: &Place,
    identity: Identity,
    roots: Certificate,
    mut route: watch::Receiver<Option<String>>,
    started: mpsc::Sender<Result<SocketAddr>>,
) -> Result<()> {
    netns::enter(&place.netns)?;
    // Everything is done by this one thread, which is in the namespace.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(place.listen).await?;
        let address = listener.local_addr()?;
        let controller = Endpoint::from_shared(format!("https://{}", place.controller))?
            .tls_config(
                ClientTlsConfig::new()
                    .ca_certificate(roots)
                    .domain_name(&place.name),
            )?
            .connect_timeout(CONNECT_LIMIT)
            .connect_lazy();
        let discovery = Discovery {
            controller: controller.clone(),
            route: route.clone(),
        };
        let others = Others { controller };
        let served = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))?
            .add_service(AggregatedDiscoveryServiceServer::new(discovery))
            .add_service(IstioCertificateServiceServer::new(others.clone()))
            .add_service(NodeServiceServer::new(others))
            .serve_with_incoming(TcpIncoming::from(listener));
        started
            .send(Ok(address))
            .map_err(|error| anyhow!("{error}"))?;
        tokio::select! {
            served = served => Ok(served?),
            () = async { while route.changed().await.is_ok() {} } => Ok(()),
        }
    })
}

/// Passes streams of configuration on.
struct Discovery {
    controller: Channel,
    route: watch::Receiver<Option<String>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream =
        BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut route = self.route.clone();
        let newer = route.borrow_and_update().clone();
        let forgotten = newer.clone();
        let (metadata, _, asked) = request.into_parts();
        // An error of the proxy's is the end of what it says.
        let asked = asked.filter_map(move |message| {
            let message = message.ok().map(|mut message| {
                // Of a route with something newer in it the proxy does not have the version of this controller.
                if let Some(route) = &forgotten {
                    message.initial_resource_versions.remove(route);
                }
                message
            });
            std::future::ready(message)
        });
        let answers = AggregatedDiscoveryServiceClient::new(self.controller.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .delta_aggregated_resources(Request::from_parts(metadata, Extensions::new(), asked))
            .await?
            .into_inner();
        let answers = answers.map(move |answer| {
            let mut answer = answer?;
            if let Some(route) = &newer {
                renew(&mut answer, route);
            }
            Ok(answer)
        });
        let over = async move {
            let _ = route.changed().await;
        };
        Ok(Response::new(answers.take_until(Box::pin(over)).boxed()))
    }
}

/// Passes requests for certificates and reports of agents on.
#[derive(Clone)]
struct Others {
    controller: Channel,
}

#[tonic::async_trait]
impl IstioCertificateService for Others {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        IstioCertificateServiceClient::new(self.controller.clone())
            .create_certificate(request)
            .await
    }
}

#[tonic::async_trait]
impl NodeService for Others {
    async fn report_enrolment(
        &self,
        request: Request<ReportEnrolmentRequest>,
    ) -> Result<Response<ReportEnrolmentResponse>, Status> {
        NodeServiceClient::new(self.controller.clone())
            .report_enrolment(request)
            .await
    }
}

/// Adds the rule to the route, if the answer has it.
fn renew(answer: &mut DeltaDiscoveryResponse, route: &str) {
    if answer.type_url != ROUTE_TYPE {
        return;
    }
    let found = answer.resources.iter_mut().find(|one| one.name == route);
    if let Some(found) = found
        && let Some(packed) = &mut found.resource
    {
        // One message behind another is a message with the lists of both.
        packed
            .value
            .extend(to_come::rule("/*/next").encode_to_vec());
        found.version.push_str("-newer");
    }
}

/// Routes of a version to come: as in `waypoint.proto`, with one more kind of path.
mod to_come {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Route {
        #[prost(message, repeated, tag = "4")]
        http_rules: Vec<HttpRule>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct HttpRule {
        #[prost(message, repeated, tag = "2")]
        matches: Vec<HttpMatch>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct HttpMatch {
        #[prost(message, optional, tag = "1")]
        path: Option<PathMatch>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct PathMatch {
        #[prost(string, tag = "4")]
        glob: String,
    }

    /// A route with nothing but a rule for paths that `glob` matches.
    pub(super) fn rule(glob: &str) -> Route {
        let path = Some(PathMatch {
            glob: glob.to_owned(),
        });
        let matches = vec![HttpMatch { path }];
        Route {
            http_rules: vec![HttpRule { matches }],
        }
    }
}
