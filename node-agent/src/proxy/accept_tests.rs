//! Accept loops where descriptors run out.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{BACKOFF, Gate, Stop, accept_loop, is_of_client};
use crate::pod::{Pod, PodSpec};
use crate::testing::context;
use crate::worker::{LocalPod, Worker};

/// Says to this test program that it is the process with few descriptors.
const CHILD: &str = "KARST_TEST_FEW_DESCRIPTORS";

/// Connections that wait, of which only some can be accepted.
const CLIENTS: usize = 20;
/// Descriptors that are left for accepted connections.
const LEFT: usize = 5;

#[test]
fn only_what_lasts_is_waited_for() {
    let of_client = |errno: Errno| is_of_client(&errno.into());
    assert!(of_client(Errno::ECONNABORTED));
    for lasting in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::EINVAL] {
        assert!(!of_client(lasting), "{lasting}");
    }
}

/// In a process of its own, because the limit is the whole process's.
#[test]
fn accepting_goes_on_when_descriptors_come_back() {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        return LocalSet::new().block_on(&runtime, starved());
    }
    let test = "proxy::accept::tests::accepting_goes_on_when_descriptors_come_back";
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .status()
        .expect("starts");
    assert!(status.success(), "{status}");
}

async fn starved() {
    let pod = pod();
    let failures = || pod.worker.context.metrics.accept_failures.get();
    let listener = Rc::new(TcpListener::bind("127.0.0.1:0").await.expect("listens"));
    let address = listener.local_addr().expect("address");
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(TcpStream::connect(address).await.expect("connects"));
    }
    let _taken = leave(LEFT);
    let accepted = Rc::new(Cell::new(0));
    let held = Rc::new(RefCell::new(Vec::new()));
    let (_gate, gate) = watch::channel(Gate::Open);
    let stop = Stop {
        token: CancellationToken::new(),
        gate,
    };
    let (count, keep) = (Rc::clone(&accepted), Rc::clone(&held));
    let accepting = accept_loop(listener, Rc::clone(&pod), stop, move |_, stream, _| {
        count.set(count.get() + 1);
        keep.borrow_mut().push(stream);
        async {}
    });
    let accepting = tokio::task::spawn_local(accepting);

    until("descriptors run out", || failures() > 0).await;
    assert_eq!(accepted.get(), LEFT, "all that there are descriptors for");
    // It waits between two tries instead of turning round and round.
    let (before, since) = (failures(), Instant::now());
    sleep(BACKOFF * 10).await;
    let tries = failures() - before;
    let most = since.elapsed().as_millis() / BACKOFF.as_millis() + 1;
    assert!(tries > 0, "it does not try again");
    assert!(u128::from(tries) <= most, "{tries} tries, not {most}");

    // As connections end, those that wait get their turn, each of them.
    while accepted.get() < CLIENTS {
        let before = accepted.get();
        assert!(held.borrow_mut().pop().is_some(), "nothing left to end");
        until("the next is accepted", || accepted.get() > before).await;
    }
    assert!(!accepting.is_finished(), "the loop has ended");
    accepting.abort();
}

/// Lowers the limit and takes descriptors, so that this many more can be opened as long as what is returned lives.
fn leave(count: usize) -> Vec<std::fs::File> {
    /// Far above what this program has open, so that there are enough to be taken.
    const LIMIT: u64 = 1024;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, hard).expect("lowers the limit");
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    assert!(files.len() > count, "only {} are left", files.len());
    files.truncate(files.len() - count);
    files
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.expect(what);
}

fn pod() -> Rc<LocalPod> {
    let spec = PodSpec {
        uid: Arc::from("u"),
        namespace: Arc::from("ns"),
        name: Arc::from("p"),
        workload_uid: Arc::from("w"),
        identity: SpiffeId::new("cluster.local", "ns", "sa").expect("id"),
        addresses: vec!["10.0.0.1".parse().expect("ip")],
        waypoints: Arc::default(),
        egress: crate::egress::Egress::default(),
    };
    let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
    let worker = Worker::new(context(Arc::default(), Arc::default()));
    LocalPod::new(Arc::new(Pod::new(spec, netns)), &worker)
}
