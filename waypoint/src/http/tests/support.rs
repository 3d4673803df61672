use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use karst_api::waypoint as wire;
use karst_api::{
    AUTHORIZATION_POLICY_TYPE, BACKEND_TYPE, LISTENER_TYPE, REQUEST_AUTHENTICATION_TYPE, ROUTE_TYPE,
};
use karst_client::{Resource, ResourceHandler as _};
use karst_identity::SpiffeId;
use karst_telemetry::export::Spans;
use karst_tunnel::server::Drain;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::access_log::AccessLog;
use crate::args::AccessLogFormat;
use crate::authn::fetch;
use crate::authn::source::Timing;
use crate::balance::{Clusters, OwnPlace};
use crate::body::{Body, BodyError};
use crate::client::Client;
use crate::config::Store;
use crate::http::{Entry, HttpLimits, HttpServer, serve};
use crate::metrics::Metrics;
use crate::observe::UpstreamTransport;
use crate::table::Tables;
use crate::telemetry::Recorder;
use crate::upstream::{Upstream, UpstreamSettings};

/// Longest time for anything in a test.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Keys are fetched again soon in tests.
const QUICK: Timing = Timing {
    refresh: Duration::from_secs(1200),
    pause: Duration::from_millis(50),
    backoff: Duration::from_millis(20),
    max_backoff: Duration::from_millis(100),
};

pub(super) const SERVICE: &str = "shop.test.svc.cluster.local";
pub(super) const ROUTE: &str = "HTTPRoute/test/shop";

/// Runs a test on one thread, as a worker does.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(10 * PATIENCE, test).await.expect("in time");
    });
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// A proxy with a service.
pub(super) struct Proxy {
    store: RefCell<Store>,
    pub(super) tables: Arc<Tables>,
    pub(super) server: Rc<HttpServer>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drain: watch::Sender<Drain>,
    versions: Cell<u64>,
    policies: RefCell<Vec<String>>,
    pub(super) authentications: RefCell<Vec<String>>,
    pub(super) telemetry: RefCell<Option<karst_api::telemetry::Reporting>>,
}

impl Proxy {
    pub(super) fn new() -> Self {
        Self::with(HttpLimits::default())
    }

    pub(super) fn with(limits: HttpLimits) -> Self {
        let clusters = Arc::new(Clusters::new(OwnPlace::default()));
        let tables = Arc::new(Tables::default());
        let metrics = Arc::new(Metrics::default());
        let log = AccessLog::start(AccessLogFormat::Off).unwrap();
        let upstream = Upstream::new(Rc::new(|| None), UpstreamSettings::default());
        let recorder = Recorder::new(Arc::clone(&metrics), log);
        recorder.export_by(Spans::new(
            UpstreamTransport::new(Arc::clone(&clusters), Rc::clone(&upstream)),
            karst_telemetry::span::Resource::new("test"),
            Arc::clone(&metrics.telemetry),
        ));
        let server = HttpServer::new(Arc::clone(&tables), upstream, recorder, limits);
        spawn_local(Rc::clone(server.rechecks()).run());
        let store = Store::new(clusters, Arc::clone(&tables));
        let mut store = store.with_key_timing(QUICK);
        let new = store.take_new_key_sources().unwrap();
        spawn_local(fetch::run_with(store.key_sources(), new, None));
        Self {
            store: RefCell::new(store),
            server,
            tables,
            metrics,
            drain: watch::Sender::default(),
            versions: Cell::new(0),
            policies: RefCell::default(),
            authentications: RefCell::default(),
            telemetry: RefCell::default(),
        }
    }

    /// A proxy whose service has one application.
    pub(super) async fn of<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + 'static,
        R: Future<Output = Response<Body>> + 'static,
    {
        let proxy = Self::new();
        proxy.service(&[application(answer).await]);
        proxy
    }

    fn apply(&self, kind: &str, name: &str, message: &impl Message) {
        self.versions.set(self.versions.get() + 1);
        let version = self.versions.get().to_string();
        let value = message.encode_to_vec();
        let resource = Resource::pack(name.to_owned(), Vec::new(), version, kind, value);
        let rejected = self
            .store
            .borrow_mut()
            .apply(kind, vec![resource], Vec::new());
        assert_eq!(rejected, []);
    }

    /// A policy, which frontends that are put from now on have attached.
    pub(super) fn policy(&self, policy: &wire::AuthorizationPolicy) {
        self.apply(AUTHORIZATION_POLICY_TYPE, &policy.name, policy);
        let mut policies = self.policies.borrow_mut();
        if !policies.contains(&policy.name) {
            policies.push(policy.name.clone());
        }
    }

    /// Whose tokens count at frontends that are put from now on.
    pub(super) fn authentication(&self, document: &wire::RequestAuthentication) {
        self.apply(REQUEST_AUTHENTICATION_TYPE, &document.name, document);
        let mut names = self.authentications.borrow_mut();
        if !names.contains(&document.name) {
            names.push(document.name.clone());
        }
    }

    pub(super) fn fetches(&self) -> Vec<(&'static str, u64)> {
        self.store.borrow().key_sources().fetches()
    }

    pub(super) fn backend(&self, backend: wire::Backend) {
        self.apply(BACKEND_TYPE, &backend.name, &backend);
    }

    /// The service itself, with these endpoints and no routes.
    pub(super) fn service(&self, endpoints: &[SocketAddr]) {
        self.backend(backend("shop", endpoints));
        self.listen(&[]);
    }

    /// The service's port with routes.
    pub(super) fn listen(&self, routes: &[&str]) {
        let attached = |route: &&str| wire::AttachedRoute {
            route: (*route).to_owned(),
            hostnames: Vec::new(),
        };
        let sets = if routes.is_empty() {
            Vec::new()
        } else {
            vec![wire::RouteSet {
                client_namespace: String::new(),
                routes: routes.iter().map(attached).collect(),
            }]
        };
        let name = format!("service/test/{SERVICE}/80");
        let frontend = wire::ServiceFrontend {
            namespace: "test".to_owned(),
            name: "shop".to_owned(),
            hostname: SERVICE.to_owned(),
            addresses: vec![vec![10, 96, 0, 1]],
            port: 80,
            protocol: wire::Protocol::Undeclared.into(),
            backend: name_of("shop"),
            route_sets: sets,
            policies: self.policies.borrow().clone(),
            authentications: self.authentications.borrow().clone(),
            telemetry: self.telemetry.borrow().clone(),
        };
        self.listener(&name, wire::listener::Frontend::Service(frontend));
    }

    pub(super) fn listener(&self, name: &str, frontend: wire::listener::Frontend) {
        let listener = wire::Listener {
            name: name.to_owned(),
            frontend: Some(frontend),
        };
        self.apply(LISTENER_TYPE, name, &listener);
    }

    /// An HTTPRoute for the service.
    pub(super) fn route(&self, rules: Vec<wire::HttpRule>) {
        self.route_of(wire::RouteKind::RouteHttp, rules);
    }

    pub(super) fn route_of(&self, kind: wire::RouteKind, rules: Vec<wire::HttpRule>) {
        self.route_named(ROUTE, kind, rules);
        self.listen(&[ROUTE]);
    }

    pub(super) fn route_named(
        &self,
        name: &str,
        kind: wire::RouteKind,
        rules: Vec<wire::HttpRule>,
    ) {
        let route = wire::Route {
            name: name.to_owned(),
            created: 1,
            kind: kind.into(),
            http_rules: rules,
            l4_rules: Vec::new(),
        };
        self.apply(ROUTE_TYPE, name, &route);
    }

    pub(super) fn entry(&self) -> Entry {
        let address: SocketAddr = "10.96.0.1:80".parse().unwrap();
        Entry::Service(Arc::clone(&self.tables.load().services[&address]))
    }

    /// A client's connection from the mesh.
    pub(super) fn connect(&self) -> DuplexStream {
        self.connect_to(self.entry())
    }

    pub(super) fn connect_to(&self, entry: Entry) -> DuplexStream {
        let (near, far) = duplex(256 << 10);
        let identity = SpiffeId::parse("spiffe://cluster.local/ns/client/sa/curl").unwrap();
        let client = Client::new((Ipv4Addr::new(10, 0, 0, 7), 4000).into(), Some(identity));
        let server = Rc::clone(&self.server);
        spawn_local(serve(far, server, entry, client, self.drain.subscribe()));
        near
    }

    pub(super) async fn http1(&self) -> http1::SendRequest<Body> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect()))
            .await
            .unwrap();
        spawn_local(connection.with_upgrades());
        sender
    }

    pub(super) async fn http2(&self) -> http2::SendRequest<Body> {
        self.http2_to(self.entry()).await
    }

    pub(super) async fn http2_to(&self, entry: Entry) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.connect_to(entry));
        let (sender, connection) = http2::handshake(Local, io).await.unwrap();
        spawn_local(connection);
        sender
    }

    /// Sends bytes and reads what comes back until the proxy closes.
    pub(super) async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        self.raw_to(self.entry(), request).await
    }

    pub(super) async fn raw_to(&self, entry: Entry, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect_to(entry);
        // The proxy may have closed before it took everything.
        let _ = stream.write_all(request.as_ref()).await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("closed");
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(super) fn refusals(&self, reason: &str) -> u64 {
        let counts = self.metrics.refusals.read();
        let count = counts.iter().find(|(name, _)| *name == reason);
        count.map_or(0, |(_, count)| *count)
    }

    /// Waits until a reason was counted so often.
    pub(super) async fn refused(&self, reason: &str, times: u64) {
        eventually(|| self.refusals(reason) >= times).await;
    }
}

/// Waits until something is so.
pub(super) async fn eventually(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it comes to be so");
}

pub(super) fn name_of(service: &str) -> String {
    format!("test/{service}.test.svc.cluster.local/80")
}

pub(super) fn backend(service: &str, endpoints: &[SocketAddr]) -> wire::Backend {
    let endpoint = |address: &SocketAddr| wire::Endpoint {
        uid: format!("cluster//Pod/test/{service}-{}", address.port()),
        address: match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        },
        port: address.port().into(),
        tunnel: wire::Tunnel::None.into(),
        ..wire::Endpoint::default()
    };
    wire::Backend {
        name: name_of(service),
        namespace: "test".to_owned(),
        service: service.to_owned(),
        hostname: format!("{service}.test.svc.cluster.local"),
        port: 80,
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..wire::Backend::default()
    }
}

/// A rule for everything, with backends and their weights.
pub(super) fn rule(backends: &[(&str, u32)]) -> wire::HttpRule {
    let weighted = |(service, weight): &(&str, u32)| wire::WeightedBackend {
        backend: name_of(service),
        weight: *weight,
        ..wire::WeightedBackend::default()
    };
    wire::HttpRule {
        name: "0".to_owned(),
        backends: backends.iter().map(weighted).collect(),
        ..wire::HttpRule::default()
    }
}

pub(super) fn prefix(prefix: &str) -> wire::HttpMatch {
    wire::HttpMatch {
        path: Some(wire::PathMatch {
            kind: Some(wire::path_match::Kind::Prefix(prefix.to_owned())),
        }),
        ..wire::HttpMatch::default()
    }
}

/// An application on a port of its own, for HTTP/1.1 and HTTP/2.
pub(super) async fn application<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Response<Body>> + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Rc::new(answer);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Rc::clone(&answer);
            spawn_local(async move {
                let service = service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let mut builder = auto::Builder::new(Local);
                builder.http1().timer(TokioTimer::new());
                let connection =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                let _ = connection.await;
            });
        }
    });
    address
}

/// An application that does with each connection what it likes.
pub(super) async fn listener<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream));
        }
    });
    address
}

/// Reads the head of a request from an HTTP/1 connection.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Where nothing listens.
pub(super) async fn nowhere() -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    // The port stays taken for as long as the test runs, so that nobody else opens it.
    spawn_local(async move {
        let _taken = socket;
        std::future::pending::<()>().await;
    });
    address
}

/// Answers with a text.
pub(super) async fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Body::full(text))
}

/// Answers with what came: the request line and headers, sorted.
pub(super) async fn echo(request: Request<Incoming>) -> Response<Body> {
    let mut lines: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    let authority = request
        .uri()
        .authority()
        .map(|authority| format!("authority: {authority}\n"));
    let path = request.uri().path_and_query().unwrap();
    let head = format!(
        "{} {path}\n{}",
        request.method(),
        authority.unwrap_or_default()
    );
    let body = request.into_body().collect().await.unwrap();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    text(format!("{head}{}\n\n{body}", lines.join("\n"))).await
}

/// A request without body.
pub(super) fn get(path: &str) -> Request<Body> {
    with_body(path, Body::Empty)
}

pub(super) fn with_body(path: &str, body: Body) -> Request<Body> {
    let method = if matches!(body, Body::Empty) {
        "GET"
    } else {
        "POST"
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "shop")
        .body(body)
        .unwrap()
}

/// For HTTP/2, where the host is part of the URI.
pub(super) fn get2(path: &str) -> Request<Body> {
    Request::builder()
        .uri(format!("http://shop{path}"))
        .body(Body::Empty)
        .unwrap()
}

pub(super) async fn body_of(response: Response<Incoming>) -> String {
    let body = timeout(PATIENCE, response.into_body().collect())
        .await
        .expect("it ends");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

/// A body that is sent from outside.
pub(super) fn channel() -> (Sender, Body) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    (Sender(sender), Body::boxed(Channel(receiver)))
}

type Sent = Result<http_body::Frame<Bytes>, BodyError>;

pub(super) struct Sender(tokio::sync::mpsc::UnboundedSender<Sent>);

impl Sender {
    pub(super) fn data(&self, data: &'static str) {
        let _ = self.0.send(Ok(http_body::Frame::data(Bytes::from_static(
            data.as_bytes(),
        ))));
    }

    pub(super) fn bytes(&self, data: Bytes) {
        let _ = self.0.send(Ok(http_body::Frame::data(data)));
    }

    pub(super) fn trailers(&self, name: &'static str, value: &'static str) {
        let mut trailers = http::HeaderMap::new();
        trailers.insert(name, value.parse().unwrap());
        let _ = self.0.send(Ok(http_body::Frame::trailers(trailers)));
    }

    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

struct Channel(tokio::sync::mpsc::UnboundedReceiver<Sent>);

impl http_body::Body for Channel {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Sent>> {
        self.get_mut().0.poll_recv(cx)
    }
}
