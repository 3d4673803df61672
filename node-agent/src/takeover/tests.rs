//! Both sides over a real socket, with real listeners; enrolment and workers only
//! remember.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::giver::{Giver, Lock};
use super::taker::{self, Offer};
use super::wire::{Channel, Hello, Kind, Label, Listener, Message};
use super::{MESSAGE_LIMIT, PROTOCOL, TakeoverError};
use crate::enrol::task::{Decision, Event, WorkerSet};
use crate::pod::{Pod, PodSpec};
use crate::process::lock_state_dir;
use crate::sockets::Listeners;
use crate::testing::{FakeCertificates, FakeKernel};
use crate::worker::Command;

/// Workers of the running agent.
const WORKERS: usize = 3;

type Told = Rc<RefCell<Vec<&'static str>>>;

/// A running agent that answers takeovers in `dir`.
struct Running {
    dir: tempfile::TempDir,
    told: Told,
    lock: Lock,
    certificates: Arc<FakeCertificates>,
    kernel: Arc<FakeKernel>,
    serving: JoinHandle<()>,
    ports: Vec<u16>,
}

fn id() -> SpiffeId {
    SpiffeId::new("cluster.local", "ns", "sa").expect("id")
}

fn pod() -> Arc<Pod> {
    let spec = PodSpec {
        uid: Arc::from("pod-uid"),
        namespace: Arc::from("ns"),
        name: Arc::from("pod"),
        workload_uid: Arc::from("w"),
        identity: id(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))],
        waypoints: Arc::default(),
        egress: crate::egress::Egress::default(),
    };
    let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
    Arc::new(Pod::new(spec, netns))
}

fn listener(ports: &mut Vec<u16>) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    ports.push(listener.local_addr().expect("address").port());
    listener
}

/// A worker with a pod, which hands out copies of its listeners.
fn worker(told: Told, ports: &mut Vec<u16>) -> mpsc::UnboundedSender<Command> {
    let (commands, mut received) = mpsc::unbounded_channel();
    let own = [listener(ports), listener(ports), listener(ports)];
    let pod = pod();
    spawn_local(async move {
        while let Some(command) = received.recv().await {
            match command {
                Command::Pause(reply) => {
                    told.borrow_mut().push("pause");
                    let [outbound, plaintext, hbone] =
                        own.each_ref().map(|l| l.try_clone().expect("copied"));
                    let listeners = Listeners {
                        outbound: vec![outbound],
                        plaintext: vec![(pod.addresses[0], plaintext)],
                        hbone: vec![hbone],
                    };
                    let _ = reply.send(vec![(Arc::clone(&pod), listeners)]);
                }
                Command::Resume => told.borrow_mut().push("resume"),
                Command::HandOver => told.borrow_mut().push("hand over"),
                other => panic!("{other:?}"),
            }
        }
    });
    commands
}

impl Running {
    fn start() -> Self {
        Self::of_user(nix::unistd::geteuid().as_raw())
    }

    fn of_user(user: u32) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let told = Told::default();
        let mut ports = Vec::new();
        let workers = (0..WORKERS)
            .map(|_| worker(Rc::clone(&told), &mut ports))
            .collect();
        let (enrolment, mut events) = mpsc::unbounded_channel();
        let enrolment_told = Rc::clone(&told);
        spawn_local(async move {
            while let Some(event) = events.recv().await {
                let Event::Freeze { frozen, decision } = event else {
                    panic!("{event:?}")
                };
                let _ = frozen.send(());
                let decided = match decision.await {
                    Ok(Decision::HandedOver) => "handed over",
                    Ok(Decision::Resumed) | Err(_) => "thawed",
                };
                enrolment_told.borrow_mut().push(decided);
            }
        });
        let file = lock_state_dir(dir.path()).expect("usable").expect("free");
        let lock: Lock = Rc::new(RefCell::new(Some(file)));
        let certificates = Arc::<FakeCertificates>::default();
        let kernel = Arc::<FakeKernel>::default();
        let giver = Giver {
            kernel: Arc::<FakeKernel>::clone(&kernel),
            lock: Rc::clone(&lock),
            layout: 7,
            user,
            workers: WorkerSet::new(workers),
            enrolment,
            certificates: Arc::<FakeCertificates>::clone(&certificates),
        };
        let listener = Listener::bind(&super::socket(dir.path())).expect("bound");
        Self {
            told,
            lock,
            certificates,
            kernel,
            serving: spawn_local(async move { giver.serve(listener).await }),
            ports,
            dir,
        }
    }

    async fn ask(&self, missing: &[&str]) -> Result<Offer, TakeoverError> {
        let missing = missing.iter().map(ToString::to_string).collect();
        taker::ask(&super::socket(self.dir.path()), missing).await
    }

    fn channel(&self) -> Channel {
        Channel::connect(&super::socket(self.dir.path())).expect("connected")
    }

    /// Waits until it has told somebody `what`, and gives all of it.
    async fn told(&self, what: &str) -> Vec<&'static str> {
        let found = async {
            while !self.told.borrow().contains(&what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), found).await;
        waited.unwrap_or_else(|_| panic!("not told {what:?}: {:?}", self.told.borrow()));
        self.told.take()
    }

    fn is_locked(&self) -> bool {
        lock_state_dir(self.dir.path()).expect("usable").is_none()
    }
}

async fn local<T>(test: impl AsyncFnOnce() -> T) -> T {
    LocalSet::new().run_until(test()).await
}

#[tokio::test]
async fn everything_changes_hands_and_nothing_is_lost() {
    local(async || {
        let running = Running::start();
        let offer = running.ask(&[]).await.expect("offered");
        assert_eq!(offer.layout, 7);
        // Waits in the queue of a listener that is on its way.
        let clients: Vec<_> = running
            .ports
            .iter()
            .map(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).expect("connected"))
            .collect();
        assert!(running.is_locked());
        let taken = offer.accept().await.expect("released");
        let told = running.told("handed over").await;
        assert_eq!(told.iter().filter(|t| **t == "pause").count(), WORKERS);
        assert_eq!(told.iter().filter(|t| **t == "hand over").count(), WORKERS);
        assert!(!told.contains(&"resume"), "{told:?}");
        assert!(running.lock.borrow().is_none());
        assert!(running.is_locked(), "the new agent has it");
        assert_eq!(running.kernel.claims.load(Ordering::Relaxed), 0);
        running.serving.await.expect("it answers nobody else");
        let listeners = &taken.listeners["pod-uid"];
        assert_eq!(listeners.len(), WORKERS);
        let mut ports = Vec::new();
        for worker in listeners {
            assert_eq!(worker.plaintext[0].0, pod().addresses[0]);
            for listener in [
                &worker.outbound[0],
                &worker.plaintext[0].1,
                &worker.hbone[0],
            ] {
                ports.push(listener.local_addr().expect("address").port());
                let (stream, _) = listener.accept().expect("the client that waited");
                assert!(clients.iter().any(|client| {
                    client.local_addr().expect("address") == stream.peer_addr().expect("peer")
                }));
            }
        }
        assert_eq!(ports, running.ports, "each is what it was");
        drop(taken);
        assert!(
            lock_state_dir(running.dir.path())
                .expect("usable")
                .is_some()
        );
    })
    .await;
}

#[tokio::test]
async fn a_new_agent_that_dies_changes_nothing() {
    local(async || {
        let running = Running::start();
        for attempt in 1..=2 {
            drop(running.ask(&[]).await.expect("offered"));
            let told = running.told("thawed").await;
            let claims = running.kernel.claims.load(Ordering::Relaxed);
            assert_eq!(claims, attempt, "the kernel must know who serves");
            assert_eq!(told.iter().filter(|t| **t == "resume").count(), WORKERS);
            assert!(!told.contains(&"hand over"), "{told:?}");
            assert!(running.lock.borrow().is_some() && running.is_locked());
        }
        // One that says nothing at all, and one that ends in the middle of it.
        drop(running.channel());
        let channel = running.channel();
        let hello = hello(PROTOCOL);
        channel
            .send(&hello, &[], MESSAGE_LIMIT)
            .await
            .expect("sent");
        channel.receive(MESSAGE_LIMIT).await.expect("a pod");
        drop(channel);
        running.told("thawed").await;
        let offer = running.ask(&[]).await.expect("offered");
        offer.accept().await.expect("and the next one takes over");
    })
    .await;
}

fn hello(protocol: u32) -> Message {
    Message::Hello(Hello {
        protocol,
        version: "test".to_owned(),
        missing: Vec::new(),
    })
}

#[tokio::test]
async fn another_version_is_refused_before_anything_changes() {
    local(async || {
        let running = Running::start();
        let channel = running.channel();
        let asked = channel.send(&hello(PROTOCOL + 1), &[], MESSAGE_LIMIT).await;
        asked.expect("sent");
        let (answer, files) = channel.receive(MESSAGE_LIMIT).await.expect("answered");
        assert!(
            matches!(&answer, Message::Refused { reason, .. } if reason == "takeover_version"),
            "{answer:?}"
        );
        assert!(files.is_empty());
        assert!(running.told.borrow().is_empty(), "nobody was disturbed");
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_lacks_a_certificate_is_refused_if_we_have_it() {
    local(async || {
        let running = Running::start();
        running.certificates.issue(&id());
        let lacks = id().to_string();
        let error = running.ask(&[&lacks]).await.expect_err("refused");
        assert_eq!(error.reason(), "takeover_not_prepared");
        assert!(running.told.borrow().is_empty(), "nobody was disturbed");
        // What nobody has is no reason to wait.
        let other = "spiffe://cluster.local/ns/ns/sa/other";
        running.ask(&[other]).await.expect("offered");
    })
    .await;
}

#[tokio::test]
async fn a_process_of_another_user_gets_nothing() {
    local(async || {
        let running = Running::of_user(nix::unistd::geteuid().as_raw() + 1);
        let error = running.ask(&[]).await.expect_err("refused");
        assert!(matches!(error, TakeoverError::Ended), "{error}");
        assert!(running.told.borrow().is_empty(), "nobody was disturbed");
        assert!(running.is_locked());
    })
    .await;
}

#[tokio::test]
async fn nonsense_ends_the_attempt_only() {
    local(async || {
        let running = Running::start();
        for nonsense in [Message::Taken, Message::Released] {
            let channel = running.channel();
            channel
                .send(&nonsense, &[], MESSAGE_LIMIT)
                .await
                .expect("sent");
            let error = channel.receive(MESSAGE_LIMIT).await.expect_err("ended");
            assert!(matches!(error, TakeoverError::Ended), "{error}");
        }
        let channel = running.channel();
        channel
            .send(&hello(PROTOCOL), &[], MESSAGE_LIMIT)
            .await
            .expect("sent");
        while !matches!(
            channel.receive(MESSAGE_LIMIT).await.expect("offered"),
            (Message::Complete { .. }, _)
        ) {}
        channel
            .send(&hello(PROTOCOL), &[], MESSAGE_LIMIT)
            .await
            .expect("sent");
        let told = running.told("thawed").await;
        assert!(told.contains(&"resume"), "{told:?}");
        assert!(running.lock.borrow().is_some());
    })
    .await;
}

/// What a running agent that goes wrong may say after the hello.
async fn taker_against(
    answer: impl AsyncFnOnce(&Channel) -> io::Result<()>,
) -> Result<Offer, TakeoverError> {
    let dir = tempfile::tempdir().expect("dir");
    let path = super::socket(dir.path());
    let listener = Listener::bind(&path).expect("bound");
    let both = async {
        let giver = async {
            let channel = listener.accept().await.expect("accepted");
            channel.receive(MESSAGE_LIMIT).await.expect("hello");
            answer(&channel).await.expect("answered");
        };
        tokio::join!(taker::ask(&path, Vec::new()), giver).0
    };
    both.await
}

async fn say(channel: &Channel, message: &Message, files: usize) -> io::Result<()> {
    let listeners: Vec<_> = (0..files)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<io::Result<_>>()?;
    let fds: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    channel
        .send(message, &fds, MESSAGE_LIMIT)
        .await
        .map_err(io::Error::other)
}

#[tokio::test]
async fn a_new_agent_takes_nothing_that_is_incomplete() {
    let label = |address| Label {
        kind: Kind::Plaintext,
        worker: 0,
        address,
    };
    let sockets = |labels| Message::Sockets {
        pod: "u".to_owned(),
        labels,
    };
    let complete = |sockets| Message::Complete { layout: 1, sockets };
    let address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let outcome =
        taker_against(async |c| say(c, &sockets(vec![label(address), label(address)]), 1).await);
    let error = outcome.await.expect_err("fewer sockets than labels");
    assert_eq!(error.reason(), "takeover_malformed", "{error}");
    let outcome = taker_against(async |c| say(c, &sockets(vec![label(None)]), 1).await);
    assert!(outcome.await.is_err(), "plaintext without address");
    let outcome = taker_against(async |c| {
        say(c, &sockets(vec![label(address)]), 1).await?;
        say(c, &complete(2), 1).await
    });
    assert!(outcome.await.is_err(), "a socket is missing");
    let outcome = taker_against(async |c| say(c, &complete(0), 0).await);
    assert!(outcome.await.is_err(), "no lock");
    let outcome = taker_against(async |c| say(c, &sockets(vec![label(address)]), 1).await);
    let error = outcome.await.expect_err("the running agent died");
    assert!(matches!(error, TakeoverError::Ended), "{error}");
    let outcome = taker_against(async |c| {
        say(c, &sockets(vec![label(address)]), 1).await?;
        say(c, &complete(1), 1).await
    });
    let offer = outcome.await.expect("complete");
    let error = offer.accept().await.expect_err("nobody confirms");
    assert!(matches!(error, TakeoverError::Ended), "{error}");
}

#[tokio::test]
async fn more_files_than_a_message_takes_are_not_sent() {
    let outcome = taker_against(async |c| {
        let label = Label {
            kind: Kind::Outbound,
            worker: 0,
            address: None,
        };
        let count = karst_datapath::passing::MAX_FILES + 1;
        let message = Message::Sockets {
            pod: "u".to_owned(),
            labels: vec![label; count],
        };
        let error = say(c, &message, count).await.expect_err("refused");
        assert!(error.to_string().contains("send"), "{error}");
        Ok(())
    });
    assert!(outcome.await.is_err());
}

#[test]
fn sockets_are_spread_over_any_number_of_workers() {
    let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
    let former = |count: usize| -> Vec<Listeners> {
        let one = || Listeners {
            outbound: vec![TcpListener::bind("127.0.0.1:0").expect("port")],
            ..Listeners::default()
        };
        (0..count).map(|_| one()).collect()
    };
    for (had, has, expected) in [(3, 2, vec![2, 1]), (2, 2, vec![1, 1]), (5, 1, vec![5])] {
        let spread = Listeners::spread(former(had), &netns, &[], has).expect("spread");
        let counts: Vec<_> = spread.iter().map(|l| l.outbound.len()).collect();
        assert_eq!(counts, expected, "{had} to {has}");
    }
}
