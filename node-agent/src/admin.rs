//! The admin socket: what the CNI plugin and the CLI talk to. Root only.
//!
//! | method | path | |
//! |---|---|---|
//! | PUT | `/v1/sandboxes/{pod uid}` | register a sandbox; answered when the pod is in the wanted state |
//! | DELETE | `/v1/sandboxes/{pod uid}` | it is gone |
//! | GET | `/v1/status`, `/v1/ready` | the agent |
//! | GET | `/v1/pods`, `/v1/workloads`, `/v1/services`, `/v1/policies` | what it knows |
//! | GET, PUT | `/v1/logging` | the level of the program's log; `?level=LEVEL[&for=DURATION]` sets it |
//! | GET | `/v1/certificates`, `/v1/tunnels`, `/v1/connections` | what it holds |
//! | GET | `/v1/endpoints` | the endpoints of services, and what it knows of how they do |
//! | GET | `/v1/xds` | what the controller has sent, type by type, and what was answered |
//! | GET | `/v1/rejected` | resources of the controller's whose newest version is not in force, and why |
//! | GET | `/v1/datapath` | what it has loaded into the kernel and told its programs |
//! | GET | `/v1/tap` | what happens from now on, a line of JSON each; see [`tap::query`] |
//!
//! Errors are `{"reason": LABEL, "error": TEXT}`.

mod endpoints;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use karst_client::{AdsStatus, DeltaAds, RejectedResource};
use karst_process::http_server::{Reply, json};
use karst_process::logging;
use karst_process::tap::{self, query::Sees};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cni::install::InstallStatus;
use crate::context::Context;
use crate::enrol::task::{Event, Patience, WorkerSet};
use crate::enrol::{PodTable, Problem};
use crate::state::endpoint::{Endpoint, EndpointSet};
use crate::state::service::Service;
use crate::worker::{Command, Snapshot};

/// Largest request body: a registration has a few hundred bytes.
const MAX_BODY: usize = 16 << 10;

/// Longest wait for a worker to list its connections.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(2);

/// What the API reads and writes.
pub struct Admin {
    /// Node name.
    pub node: String,
    /// Controller address.
    pub controller: String,
    /// When the agent started.
    pub started: Instant,
    /// State, kernel, certificates.
    pub context: Arc<Context>,
    /// The control-plane session.
    pub ads: watch::Receiver<AdsStatus>,
    /// The same, type by type.
    pub xds: DeltaAds,
    /// Enrolment.
    pub pods: watch::Receiver<Arc<PodTable>>,
    /// Where sandboxes are registered.
    pub enrolment: mpsc::UnboundedSender<Event>,
    /// The data plane.
    pub workers: WorkerSet,
    /// The CNI plugin on this node, if the agent looks after it.
    pub install: Option<Arc<InstallStatus>>,
}

/// Opens the socket: its directory is for root alone, and so is the socket.
///
/// # Errors
/// The path cannot be used.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    bind_private(path, |path| UnixListener::bind(path))
}

/// Binds a Unix socket that only root may open. Whoever connects meanwhile reaches
/// the former one or this one: the path changes hands in one step.
///
/// # Errors
/// Those of `bind`, and the path cannot be used.
pub fn bind_private<T>(path: &Path, bind: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    // Made in a folder that others cannot enter: a chmod of the socket alone would come too late, and the umask
    // is that of all threads.
    let folder = Path::new(&name);
    // Ours alone, if there is one: the lock on the state directory says that no other agent serves.
    let _ = fs::remove_file(folder);
    let _ = fs::remove_dir_all(folder);
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    let unnamed = folder.join("s");
    let listener = bind(&unnamed)?;
    fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o600))?;
    fs::rename(&unnamed, path)?;
    fs::remove_dir(folder)?;
    Ok(listener)
}

impl Admin {
    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        if let Some(uid) = path.strip_prefix("/v1/sandboxes/") {
            return match method {
                Method::PUT => self.register(uid, request).await,
                Method::DELETE => self.unregister(uid).await,
                _ => method_not_allowed(),
            };
        }
        if path == "/v1/logging" {
            return logging::page(&method, request.uri().query());
        }
        if method != Method::GET {
            return method_not_allowed();
        }
        match path.as_str() {
            "/v1/ready" => self.ready(),
            "/v1/status" => json(StatusCode::OK, &self.status()),
            "/v1/pods" => {
                let table = self.pods.borrow().clone();
                list(table.pods.values().collect::<Vec<_>>())
            }
            "/v1/workloads" => self.workloads(),
            "/v1/services" => self.services(),
            "/v1/endpoints" => endpoints::page(&self.context.state),
            "/v1/xds" => list(self.xds.types()),
            "/v1/policies" => {
                let policies = self.context.state.policies.all();
                list(policies.iter().map(|p| p.view()).collect::<Vec<_>>())
            }
            "/v1/rejected" => self.rejected(),
            "/v1/datapath" => self.datapath(),
            "/v1/certificates" => list(self.context.certificates.list()),
            "/v1/tap" => self.tap(request.uri().query()),
            "/v1/connections" => list(self.snapshot().await.connections),
            "/v1/tunnels" => {
                let tunnels = self.snapshot().await.tunnels;
                list(
                    tunnels
                        .into_iter()
                        .map(|(pod, t)| tunnel(&pod, &t))
                        .collect::<Vec<_>>(),
                )
            }
            _ => problem(StatusCode::NOT_FOUND, "not_found", "no such path"),
        }
    }

    fn tap(&self, query: Option<&str>) -> Reply {
        tap::answer(&self.context.tap, Sees::Connections, query, |feed| {
            // A worker that is ending has nothing to tell.
            self.workers.broadcast(|| Command::Tap(feed.clone()));
        })
    }

    async fn register(&self, uid: &str, request: Request<Incoming>) -> Reply {
        let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                return problem(
                    StatusCode::BAD_REQUEST,
                    "body_unreadable",
                    &error.to_string(),
                );
            }
        };
        let registration = match serde_json::from_slice(&body) {
            Ok(registration) => registration,
            Err(error) => {
                return problem(
                    StatusCode::BAD_REQUEST,
                    "sandbox_invalid",
                    &error.to_string(),
                );
            }
        };
        let (reply, answer) = oneshot::channel();
        self.ask(
            Event::Register {
                uid: Some(uid.to_owned()),
                registration,
                patience: Patience::default(),
                reply,
            },
            answer,
        )
        .await
    }

    async fn unregister(&self, uid: &str) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.ask(
            Event::Unregister {
                uid: uid.to_owned(),
                reply,
            },
            answer,
        )
        .await
    }

    async fn ask<T>(&self, event: Event, answer: oneshot::Receiver<Result<T, Problem>>) -> Reply {
        let sent = self.enrolment.send(event).is_ok();
        match answer.await {
            Ok(Ok(_)) => json(StatusCode::OK, &json!({})),
            Ok(Err(p)) => {
                let invalid = matches!(p.reason, "sandbox_invalid" | "netns_unusable");
                let status = if invalid {
                    StatusCode::BAD_REQUEST
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                problem(status, p.reason, &p.message)
            }
            Err(_) => {
                let text = if sent {
                    "the request was dropped"
                } else {
                    "the agent is ending"
                };
                problem(StatusCode::SERVICE_UNAVAILABLE, "shutdown", text)
            }
        }
    }

    /// Whether the agent does what it is there for; the reason if not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if !self.ads.borrow().synced {
            return Err("state_not_ready");
        }
        if !self.pods.borrow().settled {
            return Err("pods_not_settled");
        }
        match self.install.as_ref().and_then(|install| install.problem()) {
            Some(problem) => Err(problem.reason),
            None => Ok(()),
        }
    }

    /// `/v1/ready` and `/healthz/ready`.
    pub fn ready(&self) -> Reply {
        match self.readiness() {
            Ok(()) => json(StatusCode::OK, &json!({"ready": true})),
            Err(reason) => not_ready(reason),
        }
    }

    fn status(&self) -> Value {
        let ads = self.ads.borrow().clone();
        let pods = self.pods.borrow().clone();
        let (wanted, enrolled) = pods.counts();
        let (workloads, services) = self.context.state.counts();
        let kernel = &self.context.kernel;
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "ready": self.readiness().is_ok(),
            "not_ready_reason": self.readiness().err(),
            "controller": {
                "address": self.controller,
                "connected": ads.connected,
                "synced": ads.synced,
                "last_reason": ads.last_reason,
                "streams": ads.streams,
                "rejected": ads.rejected,
            },
            "resources": { "workloads": workloads, "services": services },
            "pods": { "registered": pods.pods.len(), "wanted": wanted, "enrolled": enrolled },
            "pods_discovered": pods.discovered,
            "cni": self.install.as_ref().map(|install| json!({
                "installed": install.problem().is_none(),
                "problem": install.problem(),
                "changes": install.read().1,
            })),
            "workers": self.workers.workers().len(),
            "tap_subscribers": self.context.tap.subscribers(),
            "access_log_dropped": self.context.access_log.dropped(),
            "bpf_events": kernel.counters().map(|list| {
                list.into_iter().map(|c| (c.reason.to_owned(), Value::from(c.value))).collect::<serde_json::Map<_, _>>()
            }).unwrap_or_default(),
        })
    }

    fn workloads(&self) -> Reply {
        let mut all = self.context.state.all_workloads();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        let view = |w: &Arc<crate::state::workload::Workload>| {
            let mut value = serde_json::to_value(&**w).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                object.insert("connections".to_owned(), w.stats.live().into());
                let ejected = w.stats.is_ejected(crate::state::endpoint::now_ms());
                object.insert("ejected".to_owned(), ejected.into());
            }
            value
        };
        list(all.iter().map(view).collect::<Vec<_>>())
    }

    fn rejected(&self) -> Reply {
        let rejected = Arc::clone(&self.ads.borrow().rejected_now);
        let view = |one: &RejectedResource| json!({"type_url": one.type_url, "name": one.name, "error": one.error});
        list(rejected.iter().map(view).collect::<Vec<_>>())
    }

    fn datapath(&self) -> Reply {
        match self.context.kernel.loaded() {
            Ok(loaded) => json(StatusCode::OK, &loaded),
            Err(error) => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                error.reason(),
                &error.to_string(),
            ),
        }
    }

    fn services(&self) -> Reply {
        let mut all = self.context.state.all_services();
        all.sort_by(|a, b| a.spec.key.cmp(&b.spec.key));
        list(all.iter().map(|s| service_view(s)).collect::<Vec<_>>())
    }

    async fn snapshot(&self) -> Snapshot {
        let mut answers = Vec::new();
        for worker in self.workers.all() {
            let (reply, answer) = oneshot::channel();
            if worker.send(Command::Snapshot(reply)).is_ok() {
                answers.push(answer);
            }
        }
        let mut all = Snapshot::default();
        for answer in answers {
            if let Ok(Ok(one)) = tokio::time::timeout(SNAPSHOT_WAIT, answer).await {
                all.connections.extend(one.connections);
                all.tunnels.extend(one.tunnels);
            }
        }
        all
    }
}

/// A service in `GET /v1/services`.
pub fn service_view(service: &Service) -> Value {
    let mut value = serde_json::to_value(&service.spec).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        let mut ports: Vec<_> = service.ports.iter().collect();
        ports.sort_by_key(|(port, _)| **port);
        let endpoints = |set: &EndpointSet| {
            let one = |e: &Endpoint| json!({"workload": e.workload.uid, "addresses": e.workload.addresses, "port": e.target_port});
            set.iter().map(one).collect::<Vec<_>>()
        };
        let ports = ports
            .into_iter()
            .map(|(port, set)| json!({"port": port, "endpoints": endpoints(set)}))
            .collect::<Vec<_>>();
        object.insert("ports".to_owned(), ports.into());
    }
    value
}

fn tunnel(pod: &crate::pod::Pod, tunnel: &karst_tunnel::pool::PoolConnection) -> Value {
    let mut value = serde_json::to_value(tunnel).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("pod_uid".to_owned(), Value::from(&*pod.uid));
        object.insert(
            "pod".to_owned(),
            format!("{}/{}", pod.namespace, pod.name).into(),
        );
    }
    value
}

fn list<T: Serialize>(items: T) -> Reply {
    json(StatusCode::OK, &items)
}

fn problem(status: StatusCode, reason: &str, error: &str) -> Reply {
    json(status, &json!({"reason": reason, "error": error}))
}

/// The answer of an agent that is not ready.
pub fn not_ready(reason: &'static str) -> Reply {
    let text = "the agent is not ready";
    problem(StatusCode::SERVICE_UNAVAILABLE, reason, text)
}

fn method_not_allowed() -> Reply {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "not this method here",
    )
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
