//! The admin API over a real Unix socket, with the enrolment task behind it.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use karst_process::http_server::serve_unix;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::{Admin, listen};
use crate::enrol::task::{Event, WorkerSet};
use crate::enrol::{Mode, NodePod};
use crate::testing::{FakeEnrolment, context};

struct Fixture {
    dir: tempfile::TempDir,
    events: mpsc::UnboundedSender<Event>,
}

impl Fixture {
    fn start() -> Self {
        let enrolment = FakeEnrolment::start(Duration::from_millis(200));
        let FakeEnrolment { dir, events, .. } = enrolment;
        let admin = Arc::new(Admin {
            node: "n1".to_owned(),
            controller: "127.0.0.1:1".to_owned(),
            started: Instant::now(),
            context: context(enrolment.kernel, enrolment.certificates),
            ads: enrolment.ads.status(),
            xds: enrolment.ads.clone(),
            pods: enrolment.pods,
            enrolment: events.clone(),
            workers: WorkerSet::default(),
            install: None,
        });
        let listener = listen(&dir.path().join("admin").join("agent.sock")).expect("listens");
        spawn_local(serve_unix(listener, move |request| {
            Arc::clone(&admin).handle(request)
        }));
        Self { dir, events }
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        let stream = UnixStream::connect(self.dir.path().join("admin").join("agent.sock")).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream.expect("connects")))
                .await
                .expect("handshake");
        spawn_local(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .expect("request");
        let response = sender.send_request(request).await.expect("response");
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("body")
            .to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, path, "").await
    }

    fn node_pod(&self, uid: &str, mode: Mode) {
        let pod = NodePod {
            namespace: Arc::from("ns"),
            name: Arc::from("p"),
            workload_uid: Arc::from("w"),
            identity: karst_identity::SpiffeId::new("cluster.local", "ns", "sa").expect("id"),
            addresses: vec!["10.0.0.1".parse().expect("address")],
            mode,
            waypoints: Arc::default(),
            egress: crate::egress::Egress::default(),
        };
        self.events
            .send(Event::NodePods(vec![(Arc::from(uid), Some(pod))]))
            .expect("sent");
    }
}

fn sandbox() -> String {
    json!({"namespace": "ns", "name": "p", "netns": "/proc/self/ns/net", "addresses": ["10.0.0.1"]})
        .to_string()
}

#[tokio::test]
async fn socket_is_for_root_alone() {
    LocalSet::new()
        .run_until(async {
            let f = Fixture::start();
            let mode = |path: &std::path::Path| {
                std::fs::metadata(path).expect("there").permissions().mode() & 0o777
            };
            assert_eq!(mode(&f.dir.path().join("admin")), 0o700);
            assert_eq!(mode(&f.dir.path().join("admin").join("agent.sock")), 0o600);
        })
        .await;
}

#[tokio::test]
async fn sandbox_is_recorded_shown_and_forgotten() {
    LocalSet::new()
        .run_until(async {
            let f = Fixture::start();
            f.node_pod("u-1", Mode::None);
            let (status, body) = f.ask(Method::PUT, "/v1/sandboxes/u-1", &sandbox()).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let (_, pods) = f.get("/v1/pods").await;
            assert_eq!(pods[0]["uid"], "u-1");
            assert_eq!(pods[0]["dataplane_mode"], "none");
            assert_eq!(pods[0]["enrolled"], false);
            for _ in 0..2 {
                let (status, _) = f.ask(Method::DELETE, "/v1/sandboxes/u-1", "").await;
                assert_eq!(status, StatusCode::OK, "idempotent");
            }
            assert_eq!(f.get("/v1/pods").await.1, json!([]));
        })
        .await;
}

#[tokio::test]
async fn registration_of_a_pod_nobody_knows_fails_in_time() {
    LocalSet::new()
        .run_until(async {
            let f = Fixture::start();
            let (status, body) = f.ask(Method::PUT, "/v1/sandboxes/u-1", &sandbox()).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(body["reason"], "pod_unknown");
            // Recorded all the same: it is enrolled as soon as it can be.
            assert_eq!(f.get("/v1/pods").await.1[0]["uid"], "u-1");
        })
        .await;
}

#[tokio::test]
async fn bad_requests_name_what_is_wrong() {
    LocalSet::new()
        .run_until(async {
            let f = Fixture::start();
            let put = async |path: &str, body: &str| f.ask(Method::PUT, path, body).await;
            let (status, body) = put("/v1/sandboxes/u-1", "{").await;
            assert_eq!(
                (status, &body["reason"]),
                (StatusCode::BAD_REQUEST, &json!("sandbox_invalid"))
            );
            let extra = sandbox().replace("\"name\"", "\"nmae\"");
            assert_eq!(
                put("/v1/sandboxes/u-1", &extra).await.0,
                StatusCode::BAD_REQUEST
            );
            assert_eq!(
                put("/v1/sandboxes/..%2f", &sandbox()).await.0,
                StatusCode::BAD_REQUEST
            );
            let gone = sandbox().replace("/proc/self/ns/net", "/nowhere");
            let (status, body) = put("/v1/sandboxes/u-1", &gone).await;
            assert_eq!(
                (status, &body["reason"]),
                (StatusCode::BAD_REQUEST, &json!("netns_unusable"))
            );
            let large = " ".repeat(20 << 10);
            assert_eq!(
                put("/v1/sandboxes/u-1", &large).await.0,
                StatusCode::BAD_REQUEST
            );
            assert_eq!(f.get("/v1/nothing").await.0, StatusCode::NOT_FOUND);
            assert_eq!(put("/v1/pods", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
        })
        .await;
}

#[tokio::test]
async fn status_and_lists_answer_without_a_controller() {
    LocalSet::new()
        .run_until(async {
            let f = Fixture::start();
            let (status, ready) = f.get("/v1/ready").await;
            assert_eq!(
                (status, &ready["reason"]),
                (StatusCode::SERVICE_UNAVAILABLE, &json!("state_not_ready"))
            );
            let (status, body) = f.get("/v1/status").await;
            assert_eq!(status, StatusCode::OK);
            assert_eq!(
                (&body["node"], &body["ready"]),
                (&json!("n1"), &json!(false))
            );
            assert_eq!(body["bpf_events"]["captured"], 3);
            for path in [
                "workloads",
                "services",
                "certificates",
                "connections",
                "tunnels",
                "endpoints",
            ] {
                assert_eq!(
                    f.get(&format!("/v1/{path}")).await,
                    (StatusCode::OK, json!([])),
                    "{path}"
                );
            }
        })
        .await;
}
