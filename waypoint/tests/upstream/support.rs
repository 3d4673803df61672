//! An upstream with one backend, and requests to it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::BodyExt as _;
use karst_api::waypoint::{Backend, ConnectionLimits, Endpoint, Protocol, TrafficPolicy, Tunnel};
use karst_identity::WorkloadCertificate;
use karst_waypoint::balance::{Cluster, Clusters, PickRequest, Picked};
use karst_waypoint::body::{Body, BodyError};
use karst_waypoint::client::Client;
use karst_waypoint::upstream::{
    BackendTlsConfig, Upstream, UpstreamBody, UpstreamError, UpstreamSettings,
};
use tokio::sync::mpsc;

pub const NAME: &str = "test/shop.test.svc.cluster.local/80";

/// An upstream and a backend.
pub struct Proxy {
    pub upstream: Rc<Upstream>,
    pub clusters: Clusters,
    pub cluster: Arc<Cluster>,
    pub certificate: Rc<RefCell<Option<Arc<WorkloadCertificate>>>>,
}

impl Proxy {
    /// Applications on loopback, reached by TCP.
    pub fn plain(protocol: Protocol, apps: &[SocketAddr]) -> Self {
        Self::new(backend(protocol, apps), None, UpstreamSettings::default())
    }

    pub fn limited(protocol: Protocol, apps: &[SocketAddr], limits: ConnectionLimits) -> Self {
        let mut backend = backend(protocol, apps);
        backend.policy.get_or_insert_default().limits = Some(limits);
        Self::new(backend, None, UpstreamSettings::default())
    }

    pub fn new(
        backend: Backend,
        tls: Option<BackendTlsConfig>,
        settings: UpstreamSettings,
    ) -> Self {
        let certificate: Rc<RefCell<Option<Arc<WorkloadCertificate>>>> = Rc::default();
        let identity = Rc::clone(&certificate);
        let clusters = Clusters::default();
        clusters.update(&backend, tls.map(Arc::new)).unwrap();
        Self {
            upstream: Upstream::new(Rc::new(move || identity.borrow().clone()), settings),
            cluster: clusters.get(&backend.name),
            clusters,
            certificate,
        }
    }

    pub fn pick(&self) -> Picked {
        self.cluster.pick(&PickRequest::default()).unwrap()
    }

    pub async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let version = request.version();
        self.upstream.send(&self.pick(), version, request).await
    }

    /// Sends a GET and reads the whole answer.
    pub async fn get(&self, path: &str) -> Result<(Response<()>, String), UpstreamError> {
        let response = self.send(get(path)).await?;
        Ok(read(response).await)
    }

    pub async fn text(&self, path: &str) -> String {
        self.get(path).await.unwrap().1
    }

    pub async fn reason(&self, request: Request<Body>) -> (&'static str, bool) {
        match self.send(request).await {
            Ok(response) => panic!("answered with {}", response.status()),
            Err(error) => (error.reason(), error.is_safe_to_retry()),
        }
    }
}

pub fn backend(protocol: Protocol, apps: &[SocketAddr]) -> Backend {
    let endpoints = apps.iter().map(|app| Endpoint {
        uid: format!("Kubernetes//Pod/test/{app}"),
        address: karst_api::convert::address_bytes(app.ip()),
        port: app.port().into(),
        tunnel: Tunnel::None.into(),
        ..Endpoint::default()
    });
    Backend {
        name: NAME.to_owned(),
        namespace: "test".to_owned(),
        service: "shop".to_owned(),
        hostname: "shop.test.svc.cluster.local".to_owned(),
        port: 80,
        protocol: protocol.into(),
        endpoints: endpoints.collect(),
        policy: Some(TrafficPolicy::default()),
        ..Backend::default()
    }
}

/// A request as a client sends it by HTTP/1.1.
pub fn get(path: &str) -> Request<Body> {
    Request::builder()
        .uri(path)
        .header("host", "shop")
        .body(Body::Empty)
        .unwrap()
}

/// A request as a client sends it by HTTP/2.
pub fn get2(path: &str) -> Request<Body> {
    let uri = format!("http://shop{path}");
    Request::builder()
        .uri(uri)
        .version(Version::HTTP_2)
        .body(Body::Empty)
        .unwrap()
}

pub fn post(path: &str, body: Body) -> Request<Body> {
    Request::post(path)
        .header("host", "shop")
        .body(body)
        .unwrap()
}

pub async fn read(response: Response<UpstreamBody>) -> (Response<()>, String) {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.expect("the body is whole").to_bytes();
    (
        Response::from_parts(head, ()),
        String::from_utf8(bytes.to_vec()).unwrap(),
    )
}

pub fn client() -> Client {
    Client {
        destination: None,
        address: "10.9.8.7:4321".parse().unwrap(),
        identity: None,
        workload: None,
        trace: None,
    }
}

/// A request body that the test feeds; it ends when the sender is dropped.
pub fn channel() -> (mpsc::Sender<Result<Bytes, BodyError>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let frames = futures_util::StreamExt::map(frames, |bytes: Result<Bytes, BodyError>| {
        bytes.map(http_body::Frame::data)
    });
    (sender, Body::boxed(http_body_util::StreamBody::new(frames)))
}
