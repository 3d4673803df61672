//! Connections to a pod behind a waypoint: who may make them, who is believed, and what
//! becomes of them when more is required. Tunnel requests are made up; the sockets are real.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;
use karst_tunnel::TlsInfo;
use karst_tunnel::headers::{Authority, Forwarded};
use karst_tunnel::server::{Accepted, Answer, ConnectRequest, InboundHandler, RefusalStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::super::plaintext;
use super::Handler;
use crate::pod::{Pod, PodSpec};
use crate::state::store::{Change, Store};
use crate::state::workload::{Locality, Workload};
use crate::testing::context;
use crate::waypoints::{Others, Requirement, Waypoints};
use crate::worker::{Command, LocalPod, Worker, run};

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "ns", account).expect("id")
}

fn workload(account: &str, ip: &str) -> Change {
    Change::Workload(Workload {
        uid: Arc::from(account),
        identity: Some(id(account)),
        addresses: vec![ip.parse().expect("ip")],
        ..Workload::default()
    })
}

/// All ports, through `wp`.
fn waypoints(others: Others) -> Arc<Waypoints> {
    Arc::new(Waypoints(vec![Requirement {
        ports: Vec::new(),
        identities: vec![id("wp")],
        others,
    }]))
}

/// A pod at 127.0.0.1 with an application.
struct Fixture {
    local: Rc<LocalPod>,
    application: TcpListener,
    address: SocketAddr,
    commands: mpsc::UnboundedSender<Command>,
}

impl Fixture {
    async fn new(waypoints: Arc<Waypoints>) -> Self {
        let spec = PodSpec {
            uid: Arc::from("u"),
            namespace: Arc::from("ns"),
            name: Arc::from("p"),
            workload_uid: Arc::from("server"),
            identity: id("server"),
            addresses: vec!["127.0.0.1".parse().expect("ip")],
            waypoints,
        };
        let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
        let context = context(Arc::default(), Arc::default());
        Store::new(Arc::clone(&context.state), Locality::default()).apply(vec![
            workload("server", "127.0.0.1"),
            workload("client", "10.0.0.1"),
            workload("wp", "10.0.0.9"),
        ]);
        let worker = Worker::new(context);
        let pod = Arc::new(Pod::new(spec, netns));
        let (commands, received) = mpsc::unbounded_channel();
        spawn_local(run(Rc::clone(&worker), received));
        let application = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        Self {
            local: LocalPod::new(pod, &worker),
            address: application.local_addr().expect("address"),
            application,
            commands,
        }
    }

    /// A connection that must be accepted.
    async fn accepted(&self, peer: &str, client: &str) -> Accepted {
        match self.connect(peer, client).await {
            Ok(accepted) => accepted,
            Err(refused) => panic!("refused: {refused:?}"),
        }
    }

    /// A CONNECT to the application by `peer`, whose tunnel comes from its workload's address.
    async fn connect(&self, peer: &str, client: &str) -> Result<Accepted, (u16, &'static str)> {
        let handler = Handler {
            local: Rc::clone(&self.local),
        };
        let from = if peer == "wp" { "10.0.0.9" } else { "10.0.0.1" };
        let tls = TlsInfo {
            version: "TLSv1_3".into(),
            cipher: "".into(),
            key_exchange: "".into(),
            resumed: false,
        };
        let request = ConnectRequest {
            peer: id(peer),
            tls: Arc::new(tls),
            authority: Authority::Address(self.address),
            baggage: None,
            forwarded: Some(Forwarded {
                client: client.parse().expect("address"),
                host: String::new(),
            }),
            traceparent: None,
            peer_addr: SocketAddr::new(from.parse().expect("ip"), 4711),
            local_addr: SocketAddr::new(self.address.ip(), 15008),
        };
        match handler.connect(request).await {
            Ok(Answer::Relay(accepted)) => Ok(accepted),
            Ok(Answer::Take(_)) => panic!("the agent takes no streams"),
            Err(refusal) => Err((refusal.status.code().as_u16(), refusal.reason)),
        }
    }

    /// A plaintext connection: the client's end, and the application's if it came through. To be
    /// called before tunnels connect, which nobody accepts.
    async fn plaintext(&self) -> (TcpStream, Option<TcpStream>) {
        let client = TcpStream::connect(self.address).await.expect("connects");
        // Steered to the agent, as the kernel would do it.
        let (steered, from) = self.application.accept().await.expect("accepts");
        let serving = spawn_local(plaintext::serve(Rc::clone(&self.local), steered, from));
        tokio::select! {
            accepted = self.application.accept() => (client, Some(accepted.expect("accepts").0)),
            _ = serving => (client, None),
        }
    }

    /// Clients of the live connections: address, and workload as the log has it.
    async fn clients(&self) -> Vec<(String, Option<String>)> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.commands.send(Command::Snapshot(reply)).expect("runs");
        let connections = answer.await.expect("answers").connections;
        let views = connections.into_iter().map(|c| c.src);
        views
            .map(|src| {
                let addr = src.addr.expect("address").to_string();
                (addr, src.identity)
            })
            .collect()
    }
}

async fn is_reset(tcp: &mut TcpStream) -> bool {
    let read = tcp.read(&mut [0; 1]).await;
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

async fn passes(client: &mut TcpStream, application: &mut TcpStream) {
    client.write_all(b"x").await.expect("writes");
    application.read_exact(&mut [0; 1]).await.expect("reads");
}

fn test(f: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    LocalSet::new().block_on(&runtime, f());
}

#[test]
fn only_the_waypoint_may_connect_where_it_is_required() {
    test(async || {
        let f = Fixture::new(waypoints(Others::Refused)).await;
        let (mut client, application) = f.plaintext().await;
        assert!(application.is_none() && is_reset(&mut client).await);
        assert!(f.connect("wp", "10.0.0.1:5").await.is_ok());
        let denied = RefusalStatus::Denied.code().as_u16();
        let refused = f.connect("client", "10.0.0.1:5").await.err();
        assert_eq!(refused, Some((denied, "waypoint_required")));
        // Nobody at all, when nobody is named.
        let mut nobody = Waypoints::clone(&waypoints(Others::Refused));
        nobody.0[0].identities.clear();
        f.local.require(&Arc::new(nobody));
        let refused = f.connect("wp", "10.0.0.1:5").await.err();
        assert_eq!(refused, Some((denied, "waypoint_required")));
    });
}

#[test]
fn others_pass_where_it_is_not_required() {
    test(async || {
        let f = Fixture::new(waypoints(Others::Pass)).await;
        let (mut client, application) = f.plaintext().await;
        passes(&mut client, &mut application.expect("passes")).await;
        assert!(f.connect("client", "10.0.0.1:5").await.is_ok());
    });
}

#[test]
fn a_waypoint_is_believed_about_the_client() {
    test(async || {
        let f = Fixture::new(waypoints(Others::Pass)).await;
        let wp = Some(id("wp").to_string());
        for (client, shown) in [
            ("10.0.0.1:5", "10.0.0.1:5"),
            ("203.0.113.7:5", "203.0.113.7:5"),
            ("127.0.0.1:5", "10.0.0.9:4711"),
        ] {
            let accepted = f.accepted("wp", client).await;
            assert_eq!(f.clients().await, [(shown.to_owned(), wp.clone())]);
            drop(accepted);
        }
        // Without a word of the controller's it is like any other.
        f.local.require(&Arc::default());
        let accepted = f.accepted("wp", "10.0.0.1:5").await;
        assert_eq!(f.clients().await, [("10.0.0.9:4711".to_owned(), wp)]);
        drop(accepted);
    });
}

#[test]
fn live_connections_end_when_they_no_longer_satisfy() {
    test(async || {
        let f = Fixture::new(Arc::default()).await;
        let (mut client, application) = f.plaintext().await;
        let mut application = application.expect("passes");
        let mut direct = f.accepted("client", "10.0.0.1:5").await;
        let mut through = f.accepted("wp", "10.0.0.1:5").await;
        f.local.require(&waypoints(Others::Pass));
        assert_eq!(f.clients().await.len(), 3);
        passes(&mut client, &mut application).await;
        f.local.require(&waypoints(Others::Refused));
        assert!(is_reset(&mut client).await);
        assert!(is_reset(&mut application).await);
        // What the tunnel server is told.
        let cut = direct.cut.take().expect("can be cut");
        cut.await.expect("told to end");
        drop(direct);
        let clients = f.clients().await;
        assert_eq!(clients.len(), 1, "{clients:?}");
        let mut goes_on = through.cut.take().expect("can be cut");
        assert!(goes_on.try_recv().is_err());
        // New ones are held to it as well.
        assert!(f.connect("client", "10.0.0.1:5").await.is_err());
    });
}
