//! A proxy with a test CA, applications behind a tunnel, and clients.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::HeaderMap;
use karst_api::{
    AUTHORIZATION_POLICY_TYPE, BACKEND_TYPE, LISTENER_TYPE, REQUEST_AUTHENTICATION_TYPE,
    ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_client::{Resource, ResourceHandler};
use karst_identity::WorkloadCertificate;
use karst_process::tap::Tap;
use karst_tunnel::headers::{Authority, Forwarded, SourceHeaders};
use karst_tunnel::pool::{Dialer, OutboundRequest, Pool, PoolConfig, PoolKey};
use karst_tunnel::server::{
    self, Accepted, Answer, ConnectRequest, Drain, InboundHandler, Refusal, RefusalStatus,
    ServerLimits,
};
use karst_tunnel::{Counters, HboneIo, TunnelError};
use karst_waypoint::access_log::AccessLog;
use karst_waypoint::args::AccessLogFormat;
use karst_waypoint::authn::fetch;
use karst_waypoint::balance::Clusters;
use karst_waypoint::config::Store;
use karst_waypoint::metrics::Metrics;
use karst_waypoint::proxy::Proxy;
use karst_waypoint::shared::{Shared, Upstreams};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::ca::{TestCa, id};

/// Nothing in these tests takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The address that clients say they have.
pub const CLIENT: &str = "10.1.2.3:4567";

/// Runs a test on one thread.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        timeout(DEADLINE, test).await.expect("the test hangs");
    });
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A proxy that runs, and its configuration.
pub struct World {
    pub ca: TestCa,
    pub shared: Arc<Shared>,
    pub mesh: SocketAddr,
    store: Store,
    changed: watch::Sender<u64>,
    proxy: Option<Proxy>,
    version: u64,
    pool: Pool,
    certificate: Arc<WorkloadCertificate>,
}

impl World {
    pub async fn new() -> Self {
        let ca = TestCa::new();
        let tunnel_port = agent(Arc::new(ca.issue(&id("server")))).await.port();
        let own = Arc::new(ca.issue(&id("waypoint")));
        let shared = Arc::new(Shared {
            tables: Arc::default(),
            configured: AtomicBool::new(true),
            clusters: Arc::<Clusters>::default(),
            certificate: Box::new(move || Some(Arc::clone(&own))),
            metrics: Arc::<Metrics>::default(),
            access_log: AccessLog::start(AccessLogFormat::Off).unwrap(),
            tap: Tap::new(Vec::new()),
            resource: Default::default(),
            max_connections: 1000,
            trusted_hops: 0,
            baggage: None,
            tunnel_port,
            upstreams: Upstreams::default(),
        });
        let mut proxy = Proxy::start(&shared, 2).unwrap();
        proxy.listen(&[SocketAddr::new(LOOPBACK, 0)]).unwrap();
        let mut store = Store::new(Arc::clone(&shared.clusters), Arc::clone(&shared.tables));
        let new = store.take_new_key_sources().unwrap();
        spawn_local(fetch::run(store.key_sources(), new));
        let (changed, changes) = watch::channel(0);
        spawn_local(proxy.ports(vec![LOOPBACK]).run(changes));
        Self {
            mesh: proxy.mesh()[0],
            certificate: Arc::new(ca.issue(&id("client"))),
            ca,
            shared,
            store,
            changed,
            proxy: Some(proxy),
            version: 0,
            pool: Pool::new(PoolConfig::default()),
        }
    }

    fn apply(&mut self, type_url: &str, updates: Vec<Resource>, removed: Vec<String>) {
        let rejected = self.store.apply(type_url, updates, removed);
        assert_eq!(rejected, [], "rejected");
        self.changed.send_modify(|count| *count += 1);
    }

    fn put<M: Message>(&mut self, type_url: &str, name: &str, message: &M) {
        self.version += 1;
        let version = self.version.to_string();
        let encoded = message.encode_to_vec();
        let resource = Resource::pack(name.to_owned(), Vec::new(), version, type_url, encoded);
        self.apply(type_url, vec![resource], Vec::new());
    }

    pub fn listener(&mut self, listener: &karst_api::waypoint::Listener) {
        self.put(LISTENER_TYPE, &listener.name, listener);
    }

    pub fn backend(&mut self, backend: &karst_api::waypoint::Backend) {
        self.put(BACKEND_TYPE, &backend.name, backend);
    }

    pub fn route(&mut self, route: &karst_api::waypoint::Route) {
        self.put(ROUTE_TYPE, &route.name, route);
    }

    pub fn secret(&mut self, secret: &karst_api::waypoint::TlsSecret) {
        self.put(TLS_SECRET_TYPE, &secret.name, secret);
    }

    pub fn policy(&mut self, policy: &karst_api::waypoint::AuthorizationPolicy) {
        self.put(AUTHORIZATION_POLICY_TYPE, &policy.name, policy);
    }

    pub fn authentication(&mut self, document: &karst_api::waypoint::RequestAuthentication) {
        self.put(REQUEST_AUTHENTICATION_TYPE, &document.name, document);
    }

    pub fn remove_listener(&mut self, name: &str) {
        self.apply(LISTENER_TYPE, Vec::new(), vec![name.to_owned()]);
    }

    /// How often something was refused for that reason.
    pub fn refused(&self, reason: &str) -> u64 {
        let all = self.shared.metrics.refusals.read();
        let found = all.iter().find(|(label, _)| *label == reason);
        found.map_or(0, |(_, count)| *count)
    }

    /// A stream through the waypoint, as the client's agent opens it.
    pub async fn open(&self, authority: &str) -> Result<HboneIo, TunnelError> {
        self.open_as(&self.certificate, authority).await
    }

    /// Likewise, with another certificate.
    pub async fn open_as(
        &self,
        certificate: &Arc<WorkloadCertificate>,
        authority: &str,
    ) -> Result<HboneIo, TunnelError> {
        let source = SourceHeaders {
            forwarded: Some(Forwarded {
                client: CLIENT.parse().unwrap(),
                host: String::new(),
            }),
            ..SourceHeaders::default()
        };
        let mut headers = HeaderMap::new();
        source.write(&mut headers);
        let key = PoolKey {
            source: certificate.id().clone(),
            certificate_epoch: certificate.epoch(),
            destination_uid: "test//Pod/test/waypoint".into(),
            destination: id("waypoint"),
            address: self.mesh,
        };
        let request = OutboundRequest {
            authority: authority.parse().unwrap(),
            headers,
        };
        let opened = self
            .pool
            .connect(key, &Rc::new(Loopback), certificate, request)
            .await;
        opened.map(HboneIo::new)
    }

    /// Connects to a gateway's port, as soon as it is open.
    pub async fn dial(&self, port: u16) -> TcpStream {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match TcpStream::connect((LOOPBACK, port)).await {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "port {port}: {error}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the proxy; this blocks, so that it is done on a thread of its own.
    pub fn stop(&mut self, deadline: Duration) -> std::thread::JoinHandle<()> {
        let proxy = self.proxy.take().expect("it runs");
        std::thread::spawn(move || proxy.stop(deadline))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            proxy.stop(Duration::ZERO);
        }
    }
}

struct Loopback;

impl Dialer for Loopback {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// The agent of the applications' node: a tunnel server that connects where the authority says.
struct Agent;

impl InboundHandler for Agent {
    async fn connect(&self, request: ConnectRequest) -> Result<Answer, Refusal> {
        let unavailable = |reason| Refusal {
            status: RefusalStatus::Unavailable,
            reason,
        };
        assert_eq!(request.peer, id("waypoint"));
        let Authority::Address(address) = request.authority else {
            return Err(unavailable("test_not_an_address"));
        };
        let upstream = TcpStream::connect(address)
            .await
            .map_err(|_| unavailable("upstream_connect_failed"))?;
        Ok(Answer::Relay(Accepted {
            upstream,
            response_headers: HeaderMap::new(),
            counters: Arc::new(Counters::default()),
            cut: None,
            on_end: Box::new(|_| {}),
        }))
    }
}

async fn agent(certificate: Arc<WorkloadCertificate>) -> SocketAddr {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let drain = watch::Sender::new(Drain::Running);
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (certificate, shutdown) = (Arc::clone(&certificate), drain.subscribe());
            spawn_local(async move {
                let limits = ServerLimits::new(100);
                let handler = Rc::new(Agent);
                let _ = server::serve(tcp, certificate, &limits, shutdown, handler).await;
            });
        }
    });
    address
}

/// An application: runs `serve` for each connection.
pub async fn application<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            spawn_local(serve(tcp));
        }
    });
    address
}

/// Sends back what it gets, to the end, and then says goodbye.
pub async fn echo(mut tcp: TcpStream) {
    let (mut read, mut write) = tcp.split();
    let copied = tokio::io::copy(&mut read, &mut write).await;
    if copied.is_ok() {
        let _ = write.write_all(b"bye").await;
        let _ = write.shutdown().await;
    }
}

/// Answers each request with its own head, in lower case.
pub async fn mirror(mut tcp: TcpStream) {
    let mut head = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        match tcp.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend_from_slice(&bytes[..count]),
        }
        if head.ends_with(b"\r\n\r\n") {
            let body = String::from_utf8(std::mem::take(&mut head))
                .unwrap()
                .to_lowercase();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            if tcp.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Speaks first.
pub async fn greeter(mut tcp: TcpStream) {
    tcp.write_all(b"220 hello\r\n").await.unwrap();
    echo(tcp).await;
}

/// Sends a request and reads until the end.
pub async fn get<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, host: &str) -> String {
    let request = format!("GET /path HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Sends bytes, ends, and reads until the end.
pub async fn talk<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut IO,
    text: &str,
) -> io::Result<String> {
    io.write_all(text.as_bytes()).await?;
    io.shutdown().await?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).await?;
    Ok(answer)
}
