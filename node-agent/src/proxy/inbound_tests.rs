//! Connections to a pod behind a waypoint: who may make them, who is believed, and what
//! becomes of them when more is required. Tunnel requests are made up; the sockets are real.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use karst_bpf_common::policy::model::{self, Action, Clause, Match, Rule, StringMatch};
use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;
use karst_tunnel::TlsInfo;
use karst_tunnel::headers::{Authority, Forwarded};
use karst_tunnel::server::{Accepted, Answer, ConnectRequest, InboundHandler, RefusalStatus};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::super::plaintext;
use super::Handler;
use crate::pod::{Pod, PodSpec};
use crate::state::READY_WAIT;
use crate::state::policy::{Policy, PolicyScope};
use crate::state::store::{Change, Store};
use crate::state::workload::{Locality, Workload, next_revision};
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
            egress: crate::egress::Egress::default(),
        };
        let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
        let context = context(Arc::default(), Arc::default());
        Store::new(Arc::clone(&context.state), Locality::default()).apply(vec![
            workload("server", "127.0.0.1"),
            workload("client", "10.0.0.1"),
            workload("wp", "10.0.0.9"),
        ]);
        context.state.set_ready();
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

    /// Puts these policies in force, and holds live connections to them.
    fn policies(&self, policies: &[(&str, Action, &[&str])]) {
        let policy = |(name, action, accounts): &(&str, Action, &[&str])| {
            let matches = accounts.iter().map(|account| Match {
                principals: vec![StringMatch::Exact(id(account).principal().to_owned())],
                ..Match::default()
            });
            let clause = Clause {
                matches: matches.collect(),
            };
            let name: Arc<str> = Arc::from(*name);
            let policy = Policy {
                name: Arc::clone(&name),
                scope: PolicyScope::Global,
                dry_run: name.ends_with("dry"),
                rules: Some(model::Policy {
                    name: name.to_string(),
                    action: *action,
                    rules: vec![Rule {
                        clauses: vec![clause],
                    }],
                }),
            };
            (name, Arc::new(policy))
        };
        let state = &self.local.worker.context.state;
        state.publish_policies(&policies.iter().map(policy).collect());
        self.local.recheck();
    }

    /// Denials by policy, as a scrape has them.
    fn denials(&self) -> String {
        let mut registry = Registry::default();
        let metrics = Arc::clone(&self.local.worker.context.metrics.policies);
        registry.register_collector(Box::new(metrics));
        let text = karst_process::metrics::text(&registry).expect("encodes");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.collect::<Vec<_>>().join("\n")
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
            local_addr: None,
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
        f.local.require(&Arc::new(nobody), f.local.pod.egress);
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
        f.local.require(&Arc::default(), f.local.pod.egress);
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
        f.local
            .require(&waypoints(Others::Pass), f.local.pod.egress);
        assert_eq!(f.clients().await.len(), 3);
        passes(&mut client, &mut application).await;
        f.local
            .require(&waypoints(Others::Refused), f.local.pod.egress);
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

#[test]
fn policies_decide_by_the_identity_that_was_proven() {
    test(async || {
        let f = Fixture::new(Arc::default()).await;
        f.policies(&[("root/allow", Action::Allow, &["client"])]);
        // Plain text proves nothing, whatever address it comes from.
        let (mut plain, application) = f.plaintext().await;
        assert!(application.is_none() && is_reset(&mut plain).await);
        assert!(f.connect("client", "10.0.0.1:5").await.is_ok());
        let denied = RefusalStatus::Denied.code().as_u16();
        // Nor does what it says of its client.
        let refused = f.connect("other", "10.0.0.1:5").await.err();
        assert_eq!(refused, Some((denied, "policy_denied")));
        f.policies(&[
            ("root/allow", Action::Allow, &["client", "other"]),
            ("root/deny", Action::Deny, &["other"]),
        ]);
        let refused = f.connect("other", "10.0.0.1:5").await.err();
        assert_eq!(refused, Some((denied, "policy_denied")));
        let denials = f.denials();
        for line in [
            "karst_policy_denials_total{policy=\"implicit_deny\",rule=\"\",mode=\"enforced\"} 2",
            "karst_policy_denials_total{policy=\"root/deny\",rule=\"0\",mode=\"enforced\"} 1",
        ] {
            assert!(denials.contains(line), "{denials}");
        }
    });
}

#[test]
fn live_connections_end_when_a_policy_refuses_them() {
    test(async || {
        let f = Fixture::new(Arc::default()).await;
        let (mut plain, application) = f.plaintext().await;
        let mut application = application.expect("passes");
        let mut goes = f.accepted("client", "10.0.0.1:5").await;
        let mut stays = f.accepted("wp", "10.0.0.9:5").await;
        f.policies(&[("root/watch-dry", Action::Deny, &["client"])]);
        assert_eq!(f.clients().await.len(), 3);
        f.policies(&[("root/deny", Action::Deny, &["client"])]);
        goes.cut
            .take()
            .expect("can be cut")
            .await
            .expect("told to end");
        drop(goes);
        passes(&mut plain, &mut application).await;
        let mut goes_on = stays.cut.take().expect("can be cut");
        assert!(goes_on.try_recv().is_err());
        let denials = f.denials();
        let line =
            "karst_policy_denials_total{policy=\"root/deny\",rule=\"0\",mode=\"enforced\"} 1";
        assert_eq!(denials, line);
        // What mTLS alone may do, plain text may not.
        f.policies(&[("root/allow", Action::Allow, &["wp"])]);
        assert!(is_reset(&mut plain).await);
        assert!(is_reset(&mut application).await);
        assert!(goes_on.try_recv().is_err());
    });
}

#[test]
fn a_dry_run_lets_pass_and_counts() {
    test(async || {
        let f = Fixture::new(Arc::default()).await;
        f.policies(&[("root/watch-dry", Action::Deny, &["client"])]);
        let accepted = f.accepted("client", "10.0.0.1:5").await;
        let line =
            "karst_policy_denials_total{policy=\"root/watch-dry\",rule=\"0\",mode=\"dry_run\"} 1";
        assert_eq!(f.denials(), line);
        drop(accepted);
    });
}

#[test]
fn what_applies_and_has_not_come_is_waited_for() {
    test(async || {
        tokio::time::pause();
        let f = Fixture::new(Arc::default()).await;
        let mut live = f.accepted("client", "10.0.0.1:5").await;
        let mut cut = live.cut.take().expect("can be cut");
        // The workload lists a policy before anybody has heard of that.
        let listing = Workload {
            revision: next_revision(),
            uid: Arc::from("server"),
            identity: Some(id("server")),
            addresses: vec!["127.0.0.1".parse().expect("ip")],
            authorization_policies: vec![Arc::from("ns/p")],
            ..Workload::default()
        };
        let state = Arc::clone(&f.local.worker.context.state);
        let mut store = Store::new(Arc::clone(&state), Locality::default());
        let effect = store.apply(vec![
            Change::Workload(listing),
            workload("client", "10.0.0.1"),
        ]);
        assert_eq!(effect.retired, Vec::<Arc<str>>::new());
        f.local.recheck();
        let started = tokio::time::Instant::now();
        let denied = RefusalStatus::Denied.code().as_u16();
        let refused = f.connect("client", "10.0.0.1:5").await.err();
        assert_eq!(refused, Some((denied, "policy_unknown")));
        assert!(started.elapsed() >= READY_WAIT);
        // Those that live have waited as long.
        tokio::time::sleep(READY_WAIT / 5).await;
        assert_eq!(cut.try_recv(), Ok(()));
        drop(live);
        let connects = f.connect("client", "10.0.0.1:5");
        let comes = async {
            tokio::time::sleep(READY_WAIT / 2).await;
            f.policies(&[("ns/p", Action::Allow, &["client"])]);
        };
        let (connected, ()) = tokio::join!(connects, comes);
        assert!(connected.is_ok());
    });
}
