//! Both ends of a tunnel in one process, for measuring with outside load.
//!
//! `tunnel_pair 127.0.0.1:8081=127.0.0.1:8080 ...` takes connections at the first address,
//! carries them through a client end and a server end, each one worker thread as in the node
//! agent, and connects to the second. Put `wrk` or `iperf3` in front, compare the process's CPU
//! time (`/proc/PID/stat`) before and after, and divide by what the load generator did. The
//! figures compare two states of this code on one machine, nothing else.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::{io, thread};

use anyhow::{Context, Result};
use http::HeaderMap;
use karst_identity::{SpiffeId, WorkloadCertificate};
use karst_tunnel::Counters;
use karst_tunnel::headers::Authority;
use karst_tunnel::pool::{Dialer, FirstBytes, OutboundRequest, Pool, PoolConfig, PoolKey};
use karst_tunnel::relay;
use karst_tunnel::server::{
    self, Accepted, Answer, ConnectRequest, Drain, InboundHandler, Refusal, RefusalStatus,
    ServerLimits,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

struct Handler;

impl InboundHandler for Handler {
    async fn connect(&self, request: ConnectRequest) -> Result<Answer, Refusal> {
        let Authority::Address(address) = request.authority else {
            return Err(Refusal {
                status: RefusalStatus::BadRequest,
                reason: "not_an_address",
            });
        };
        let upstream = TcpStream::connect(address)
            .await
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|_| Refusal {
                status: RefusalStatus::Unavailable,
                reason: "upstream_connect_failed",
            })?;
        Ok(Answer::Relay(Accepted {
            upstream,
            response_headers: HeaderMap::new(),
            counters: Arc::new(Counters::default()),
            cut: None,
            on_end: Box::new(|_| ()),
        }))
    }
}

struct Loopback;

impl Dialer for Loopback {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

fn main() -> Result<()> {
    let routes = std::env::args()
        .skip(1)
        .map(|arg| {
            let (listen, target) = arg.split_once('=').context("expected LISTEN=TARGET")?;
            Ok((listen.parse()?, target.parse()?))
        })
        .collect::<Result<Vec<(SocketAddr, SocketAddr)>>>()?;
    let ca = Ca::new()?;
    let (client, server) = (ca.issue("client")?, ca.issue("server")?);
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let tunnel = listener.local_addr()?;
    thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || on_worker(serve(listener, server)))?;
    on_worker(accept(routes, client, tunnel))
}

fn on_worker(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, work)
}

async fn serve(listener: std::net::TcpListener, cert: WorkloadCertificate) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let cert = Arc::new(cert);
    let drain = watch::Sender::new(Drain::Running);
    let limits = ServerLimits::new(10_000);
    loop {
        let (tcp, _) = listener.accept().await?;
        let (cert, shutdown, limits) = (Arc::clone(&cert), drain.subscribe(), limits.clone());
        spawn_local(async move {
            let end = server::serve(tcp, cert, &limits, shutdown, Rc::new(Handler)).await;
            eprintln!("tunnel connection: {end:?}");
        });
    }
}

async fn accept(
    routes: Vec<(SocketAddr, SocketAddr)>,
    cert: WorkloadCertificate,
    tunnel: SocketAddr,
) -> Result<()> {
    let pool = Pool::new(PoolConfig::default());
    let cert = Arc::new(cert);
    let key = PoolKey {
        source: cert.id().clone(),
        certificate_epoch: cert.epoch(),
        destination_uid: "server".into(),
        destination: identity("server")?,
        address: tunnel,
    };
    for (listen, target) in routes {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(4096)?;
        let request = OutboundRequest {
            authority: target.to_string().parse()?,
            headers: HeaderMap::new(),
        };
        let (pool, key, cert) = (pool.clone(), key.clone(), Arc::clone(&cert));
        spawn_local(async move {
            let dialer = Rc::new(Loopback);
            loop {
                let Ok((mut tcp, _)) = listener.accept().await else {
                    continue;
                };
                let (pool, key, cert) = (pool.clone(), key.clone(), Arc::clone(&cert));
                let (dialer, request) = (Rc::clone(&dialer), request.clone());
                spawn_local(async move {
                    // A socket that fails here is seen as closed by the relay.
                    let _ = tcp.set_nodelay(true);
                    let mut first = FirstBytes::of(&mut tcp);
                    let stream = pool.connect_with(key, &dialer, &cert, request, &mut first);
                    match stream.await {
                        Ok(stream) => {
                            relay::tcp_hbone(tcp, stream, &Counters::default()).await;
                        }
                        Err(error) => eprintln!("{}: {error}", error.reason()),
                    }
                });
            }
        });
    }
    std::future::pending().await
}

fn identity(account: &str) -> Result<SpiffeId> {
    Ok(SpiffeId::new("cluster.local", "bench", account)?)
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    fn issue(&self, account: &str) -> Result<WorkloadCertificate> {
        let id = identity(account)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let chain = params.signed_by(&key, &self.0)?.pem();
        let (key, roots) = (key.serialize_pem(), self.0.pem());
        Ok(WorkloadCertificate::from_pem(id, &chain, &key, &roots)?)
    }
}
