//! The plugin's own client against the server, with the enrolment behind it.

use std::net::IpAddr;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karst_cni::client::{self, Answer, Limits};
use karst_cni::wire::{self, Attachment, NetnsInode};
use karst_identity::SpiffeId;
use karst_process::http_server::serve_root;
use tokio::task::{LocalSet, spawn_local};

use super::{CniServer, HostPaths, MAX_CALLS, listen};
use crate::enrol::task::Event;
use crate::enrol::{Mode, NodePod};
use crate::metrics::cni::CniMetrics;
use crate::testing::FakeEnrolment;

/// In place of the seconds a real node is given.
const PATIENCE: Duration = Duration::from_millis(300);

struct Fixture(FakeEnrolment);

impl Deref for Fixture {
    type Target = FakeEnrolment;

    fn deref(&self) -> &FakeEnrolment {
        &self.0
    }
}

fn identity() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "sa").expect("id")
}

impl Fixture {
    fn start() -> Self {
        let fixture = Self(FakeEnrolment::start(PATIENCE));
        let server = Arc::new(CniServer {
            enrolment: fixture.events.clone(),
            paths: HostPaths {
                proc: PathBuf::from("/proc"),
                netns_dir: None,
            },
            metrics: Arc::new(CniMetrics::default()),
        });
        let listener = listen(&fixture.socket()).expect("listens");
        let handler = move |request| Arc::clone(&server).handle(request);
        spawn_local(serve_root(listener, handler, MAX_CALLS));
        fixture
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("karst").join("cni.sock")
    }

    fn tell(&self, uid: &str, mode: Mode) {
        let pod = NodePod {
            namespace: Arc::from("shop"),
            name: Arc::from("web-0"),
            workload_uid: Arc::from("w"),
            identity: identity(),
            // As the API server has it while the sandbox is made.
            addresses: Vec::new(),
            mode,
            waypoints: Arc::default(),
            egress: crate::egress::Egress::default(),
        };
        let event = Event::NodePods(vec![(Arc::from(uid), Some(pod))]);
        self.events.send(event).expect("sent");
    }

    async fn ask(&self, path: &'static str, attachment: &Attachment) -> Result<String, String> {
        let (socket, attachment) = (self.socket(), attachment.clone());
        let limits = Limits {
            agent: Duration::ZERO,
            total: Duration::from_secs(10),
        };
        let asked =
            tokio::task::spawn_blocking(move || client::post(&socket, path, &attachment, limits));
        match asked.await.expect("joined").expect("answered") {
            Answer::Ok(body) => Ok(String::from_utf8(body).expect("text")),
            Answer::Refused(refused) => Err(refused.reason),
        }
    }

    fn registered(&self) -> Vec<String> {
        self.pods
            .borrow()
            .pods
            .keys()
            .map(ToString::to_string)
            .collect()
    }
}

fn attachment(container: &str) -> Attachment {
    let netns = Path::new("/proc/self/ns/net");
    let metadata = std::fs::metadata(netns).expect("there");
    Attachment {
        pod_uid: Some("u-1".to_owned()),
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        container_id: container.to_owned(),
        netns: Some(netns.to_owned()),
        netns_id: Some(NetnsInode {
            dev: metadata.dev(),
            ino: metadata.ino(),
        }),
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
    }
}

/// Runs a test as root's: the server answers nobody else.
async fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Fixture) -> F) {
    LocalSet::new()
        .run_until(async {
            let fixture = Fixture::start();
            test(fixture).await;
        })
        .await;
}

const ENROLLED: &str = "{\"enrolled\":true}";
const LEFT_ALONE: &str = "{\"enrolled\":false}";

#[tokio::test]
async fn the_socket_is_for_root_alone() {
    with_server(|f| async move {
        let mode =
            |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&f.dir.path().join("karst")), 0o700);
        assert_eq!(mode(&f.socket()), 0o600);
        // A second agent takes it over without a moment in which there is none.
        let _second = listen(&f.socket()).expect("taken over");
        let names: Vec<_> = std::fs::read_dir(f.dir.path().join("karst"))
            .expect("listed")
            .map(|e| e.expect("entry").file_name())
            .collect();
        assert_eq!(names, ["cni.sock"]);
    })
    .await;
}

#[tokio::test]
async fn a_pod_of_the_mesh_is_enrolled_before_the_answer() {
    with_server(|f| async move {
        f.certificates.issue(&identity());
        f.tell("u-1", Mode::Ambient);
        assert_eq!(
            f.ask(wire::ADD, &attachment("c-1")).await.as_deref(),
            Ok(ENROLLED)
        );
        assert_eq!(f.kernel.uids(), ["u-1"]);
        assert_eq!(
            f.ask(wire::CHECK, &attachment("c-1")).await.as_deref(),
            Ok(ENROLLED)
        );
        // The end of an earlier sandbox of the pod does not end this one.
        let earlier = Attachment {
            netns_id: None,
            ..attachment("c-0")
        };
        assert!(f.ask(wire::DEL, &earlier).await.is_ok());
        assert_eq!(f.kernel.uids(), ["u-1"]);
        assert!(f.ask(wire::DEL, &attachment("c-1")).await.is_ok());
        assert!(f.kernel.uids().is_empty() && f.registered().is_empty());
        assert!(
            f.ask(wire::DEL, &attachment("c-1")).await.is_ok(),
            "idempotent"
        );
        let unknown = f.ask(wire::CHECK, &attachment("c-1")).await;
        assert_eq!(unknown, Err("cni_sandbox_unknown".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_pod_outside_the_mesh_is_remembered_for_later() {
    with_server(|f| async move {
        f.tell("u-1", Mode::None);
        assert_eq!(
            f.ask(wire::ADD, &attachment("c-1")).await.as_deref(),
            Ok(LEFT_ALONE)
        );
        assert!(f.kernel.uids().is_empty());
        f.certificates.issue(&identity());
        f.tell("u-1", Mode::Ambient);
        let enrolled = f.ask(wire::CHECK, &attachment("c-1")).await;
        assert_eq!(enrolled.as_deref(), Ok(ENROLLED), "by the label alone");
    })
    .await;
}

#[tokio::test]
async fn a_pod_nobody_knows_is_waited_for_and_refused() {
    with_server(|f| async move {
        let refused = f.ask(wire::ADD, &attachment("c-1")).await;
        assert_eq!(refused, Err("cni_pod_unknown".to_owned()));
        let nameless = Attachment {
            pod_uid: None,
            ..attachment("c-2")
        };
        let refused = f.ask(wire::ADD, &nameless).await;
        assert_eq!(refused, Err("cni_pod_unknown".to_owned()));
        // Told while the runtime waits.
        f.certificates.issue(&identity());
        let (events, pod) = (f.events.clone(), attachment("c-3"));
        let late = async {
            tokio::time::sleep(PATIENCE / 3).await;
            f.tell("u-1", Mode::Ambient);
        };
        let (answer, ()) = tokio::join!(f.ask(wire::ADD, &pod), late);
        assert_eq!(answer.as_deref(), Ok(ENROLLED));
        drop(events);
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_that_goes_while_its_pod_is_waited_for_is_no_success() {
    with_server(|f| async move {
        let path = f.dir.path().join("netns");
        std::os::unix::fs::symlink("/proc/self/ns/net", &path).expect("linked");
        let pod = Attachment {
            netns: Some(path.clone()),
            ..attachment("c-1")
        };
        let registered = async {
            while f.registered() != ["u-1"] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = async {
            let waited = tokio::time::timeout(Duration::from_secs(10), registered).await;
            waited.expect("registered");
            std::fs::remove_file(&path).expect("gone");
            f.events.send(Event::Synced).expect("sent");
        };
        let (answer, ()) = tokio::join!(f.ask(wire::ADD, &pod), gone);
        assert_eq!(answer, Err("sandbox_deleted".to_owned()));
        assert!(f.registered().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_pod_known_by_name_only_is_found() {
    with_server(|f| async move {
        f.certificates.issue(&identity());
        f.tell("u-1", Mode::Ambient);
        let nameless = Attachment {
            pod_uid: None,
            ..attachment("c-1")
        };
        assert_eq!(f.ask(wire::ADD, &nameless).await.as_deref(), Ok(ENROLLED));
        assert_eq!(f.registered(), ["u-1"]);
        assert!(f.ask(wire::DEL, &nameless).await.is_ok());
        assert!(f.registered().is_empty());
        // Two of that name: the old one is about to go, and this is not its sandbox.
        f.tell("u-2", Mode::Ambient);
        let refused = f.ask(wire::ADD, &nameless).await;
        assert_eq!(refused, Err("cni_pod_unknown".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_enrolled_is_refused_with_the_reason() {
    with_server(|f| async move {
        f.tell("u-1", Mode::Ambient);
        let refused = f.ask(wire::ADD, &attachment("c-1")).await;
        assert_eq!(refused, Err("no_certificate".to_owned()));
        let check = |change: fn(&mut Attachment), reason: &str| {
            let mut bad = attachment("c-1");
            change(&mut bad);
            (bad, reason.to_owned())
        };
        for (bad, reason) in [
            check(|a| a.netns = None, "cni_request_invalid"),
            check(|a| a.netns = Some("relative".into()), "cni_request_invalid"),
            check(|a| a.netns_id = None, "cni_request_invalid"),
            check(|a| a.netns = Some("/nowhere".into()), "netns_unusable"),
            check(
                |a| a.netns_id = Some(NetnsInode { dev: 1, ino: 1 }),
                "netns_unusable",
            ),
            check(|a| a.addresses.clear(), "sandbox_invalid"),
            check(|a| a.pod_uid = Some("../x".to_owned()), "sandbox_invalid"),
            check(|a| a.container_id.clear(), "sandbox_invalid"),
            check(|a| a.name = "x".repeat(32 << 10), "cni_request_invalid"),
        ] {
            assert_eq!(
                f.ask(wire::ADD, &bad).await,
                Err(reason.clone()),
                "{reason}"
            );
        }
    })
    .await;
}
