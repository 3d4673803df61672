//! Servers, applications and clients for the tests.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use karst_identity::{SpiffeId, WorkloadCertificate};
use karst_tunnel::headers::{Authority, SourceHeaders};
use karst_tunnel::pool::{Dialer, OutboundRequest, Pool, PoolConfig, PoolKey};
use karst_tunnel::relay::{self, RelayEnd};
use karst_tunnel::server::{
    self, Accepted, Answer, ConnectRequest, Drain, InboundHandler, Refusal, RefusalStatus,
    ServeEnd, ServerLimits, Taken,
};
use karst_tunnel::{Counters, HboneIo, HboneStream, TunnelError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::ca::{TestCa, id};

/// Nothing in these tests takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test as a worker thread of the node agent runs the tunnel.
pub fn on_worker<F: Future<Output = ()>>(test: F) {
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
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Connects where the authority says.
#[derive(Default)]
pub struct Handler {
    pub requests: RefCell<Vec<ConnectRequest>>,
    pub refused: RefCell<Vec<&'static str>>,
    pub ends: RefCell<Vec<RelayEnd>>,
    pub answer: Cell<Option<Refusal>>,
    /// Ends the connection accepted last.
    pub cut: RefCell<Option<oneshot::Sender<()>>>,
    /// Gets the streams, which are then not relayed.
    pub taken: RefCell<Option<mpsc::UnboundedSender<HboneIo>>>,
    /// Makes requests wait for ever; `waiting` counts those that do.
    pub hang: Cell<bool>,
    pub waiting: Rc<Cell<usize>>,
    pub counters: RefCell<Vec<Arc<Counters>>>,
    pub open: Rc<Cell<usize>>,
}

impl Handler {
    fn cut(&self) -> Option<oneshot::Receiver<()>> {
        let (sender, receiver) = oneshot::channel();
        self.cut.replace(Some(sender));
        Some(receiver)
    }
}

/// The handler as the server takes it.
pub struct Shared(pub Rc<Handler>);

impl InboundHandler for Shared {
    async fn connect(&self, request: ConnectRequest) -> Result<Answer, Refusal> {
        let authority = request.authority.clone();
        let keep = self.0.requests.borrow().len() < 100;
        if keep {
            self.0.requests.borrow_mut().push(request);
        }
        if let Some(refusal) = self.0.answer.get() {
            return Err(refusal);
        }
        if self.0.hang.get() {
            let _waiting = Waiting::new(&self.0.waiting);
            std::future::pending::<()>().await;
        }
        let mut response_headers = HeaderMap::new();
        response_headers.insert("baggage", "k8s.cluster.name=test".parse().unwrap());
        if let Some(takers) = self.0.taken.borrow().clone() {
            let take = Box::new(move |stream| {
                // The test that wanted it may be over.
                let _ = takers.send(HboneIo::new(stream));
            });
            return Ok(Answer::Take(Taken {
                response_headers,
                take,
            }));
        }
        let Authority::Address(address) = authority else {
            return Err(Refusal {
                status: RefusalStatus::BadRequest,
                reason: "test_not_an_address",
            });
        };
        let upstream = TcpStream::connect(address).await.map_err(|_| Refusal {
            status: RefusalStatus::Unavailable,
            reason: "upstream_connect_failed",
        })?;
        upstream.set_nodelay(true).unwrap();
        let counters = Arc::new(Counters::default());
        if keep {
            self.0.counters.borrow_mut().push(Arc::clone(&counters));
        }
        let handler = Rc::clone(&self.0);
        handler.open.set(handler.open.get() + 1);
        Ok(Answer::Relay(Accepted {
            upstream,
            response_headers,
            counters,
            cut: self.0.cut(),
            on_end: Box::new(move |end| {
                handler.open.set(handler.open.get() - 1);
                if handler.ends.borrow().len() < 2000 {
                    handler.ends.borrow_mut().push(end);
                }
            }),
        }))
    }

    fn refused(&self, _peer: &SpiffeId, _peer_addr: SocketAddr, error: &TunnelError) {
        self.0.refused.borrow_mut().push(error.reason());
    }
}

/// Counts a request that waits, until it is given up.
struct Waiting(Rc<Cell<usize>>);

impl Waiting {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An HBONE server on loopback.
pub struct Server {
    pub address: SocketAddr,
    pub handler: Rc<Handler>,
    /// Drains the connections accepted so far; see [`Server::restart`].
    pub drain: Rc<RefCell<watch::Sender<Drain>>>,
    /// How tunnel connections ended.
    pub outcomes: Rc<RefCell<Vec<Result<ServeEnd, TunnelError>>>>,
    /// Tunnel connections accepted.
    pub accepted: Rc<Cell<usize>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub async fn start(cert: WorkloadCertificate) -> Self {
        Self::with_limits(cert, ServerLimits::new(1000)).await
    }

    pub async fn with_limits(cert: WorkloadCertificate, limits: ServerLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, cert, limits)
    }

    pub fn on(listener: TcpListener, cert: WorkloadCertificate, limits: ServerLimits) -> Self {
        let address = listener.local_addr().unwrap();
        let handler = Rc::new(Handler::default());
        let outcomes = Rc::new(RefCell::new(Vec::new()));
        let accepted = Rc::new(Cell::new(0));
        let drain = Rc::new(RefCell::new(watch::Sender::new(Drain::Running)));
        let cert = Arc::new(cert);
        let accepting = spawn_local({
            let (handler, outcomes) = (Rc::clone(&handler), Rc::clone(&outcomes));
            let (drain, limits, accepted) = (Rc::clone(&drain), limits, Rc::clone(&accepted));
            async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    accepted.set(accepted.get() + 1);
                    let (outcomes, limits) = (Rc::clone(&outcomes), limits.clone());
                    let handler = Rc::new(Shared(Rc::clone(&handler)));
                    let (cert, shutdown) = (Arc::clone(&cert), drain.borrow().subscribe());
                    spawn_local(async move {
                        let end = server::serve(tcp, cert, &limits, shutdown, handler).await;
                        outcomes.borrow_mut().push(end);
                    });
                }
            }
        });
        Self {
            address,
            handler,
            drain,
            outcomes,
            accepted,
            accepting,
        }
    }

    /// Ends the connections accepted so far as `mode` says; later ones are served.
    pub fn restart(&self, mode: Drain) {
        let old = self.drain.replace(watch::Sender::new(Drain::Running));
        old.send(mode).unwrap();
        // Kept: the connections watch it until they have ended.
        std::mem::forget(old);
    }

    /// Reasons of the tunnel connections that failed.
    pub fn failures(&self) -> Vec<&'static str> {
        let outcomes = self.outcomes.borrow();
        let failed = outcomes.iter().filter_map(|end| end.as_ref().err());
        failed.map(TunnelError::reason).collect()
    }

    pub fn ends(&self) -> Vec<RelayEnd> {
        self.handler.ends.borrow().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Dials loopback and counts.
#[derive(Default)]
pub struct Loopback {
    pub dials: Cell<usize>,
}

impl Dialer for Loopback {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dials.set(self.dials.get() + 1);
        TcpStream::connect(address).await
    }
}

/// A pool with one source identity.
pub struct Client {
    pub pool: Pool,
    pub cert: Arc<WorkloadCertificate>,
    pub dialer: Rc<Loopback>,
    pub destination: SpiffeId,
    pub address: SocketAddr,
}

impl Client {
    pub fn new(cert: WorkloadCertificate, server: &Server) -> Self {
        Self::with_config(cert, server, PoolConfig::default())
    }

    pub fn with_config(cert: WorkloadCertificate, server: &Server, config: PoolConfig) -> Self {
        Self {
            pool: Pool::new(config),
            cert: Arc::new(cert),
            dialer: Rc::new(Loopback::default()),
            destination: id("server"),
            address: server.address,
        }
    }

    pub fn key(&self) -> PoolKey {
        PoolKey {
            source: self.cert.id().clone(),
            certificate_epoch: self.cert.epoch(),
            destination_uid: "Kubernetes//Pod/test/server".into(),
            destination: self.destination.clone(),
            address: self.address,
        }
    }

    pub async fn stream(&self, to: SocketAddr) -> Result<HboneStream, TunnelError> {
        self.stream_to(&to.to_string(), &SourceHeaders::default())
            .await
    }

    pub async fn stream_to(
        &self,
        authority: &str,
        source: &SourceHeaders,
    ) -> Result<HboneStream, TunnelError> {
        let mut headers = HeaderMap::new();
        source.write(&mut headers);
        let request = OutboundRequest {
            authority: authority.parse().unwrap(),
            headers,
        };
        self.pool
            .connect(self.key(), &self.dialer, &self.cert, request)
            .await
    }

    /// Opens a stream to an application and relays one end of a socket pair over it; returns the
    /// other end, which is as if connected to the application directly.
    pub async fn open(&self, to: SocketAddr) -> Relayed {
        let stream = self.stream(to).await.unwrap();
        let (near, far) = socket_pair().await;
        let counters = Arc::new(Counters::default());
        let relay = spawn_local({
            let counters = Arc::clone(&counters);
            async move { relay::tcp_hbone(far, stream, &counters).await }
        });
        Relayed {
            tcp: near,
            relay,
            counters,
        }
    }
}

/// A client application's socket whose other end is relayed.
pub struct Relayed {
    pub tcp: TcpStream,
    pub relay: JoinHandle<RelayEnd>,
    pub counters: Arc<Counters>,
}

/// A connected pair of loopback sockets.
pub async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// An application: runs `serve` for each connection.
pub async fn app<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            spawn_local(serve(tcp));
        }
    });
    address
}

/// An application that sends back what it gets.
pub async fn echo_app() -> SocketAddr {
    app(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        // A reset is what some tests are about.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// The usual pair: a CA, a server `server` and a client `client`.
pub async fn pair() -> (TestCa, Server, Client) {
    let ca = TestCa::new();
    let server = Server::start(ca.issue(&id("server"))).await;
    let client = Client::new(ca.issue(&id("client")), &server);
    (ca, server, client)
}
