//! What an operator sees: a page of JSON for each question, on loopback. Nothing can be changed here but the level of
//! the program's log (`PUT`), and keys are never shown.
//!
//! | GET | |
//! |---|---|
//! | `/v1/status` | the proxy as a whole |
//! | `/v1/ready` | whether it is ready, and why not |
//! | `/v1/config` | each resource: its version, its state, what is wrong with it |
//! | `/v1/ports` | a gateway's ports, and why one is not open |
//! | `/v1/clusters` | backends with their endpoints: weight, latency, requests, ejection |
//! | `/v1/routes` | the routes in force |
//! | `/v1/xds` | what the controller has sent, type by type, and what was answered |
//! | `/v1/pools` | connections to endpoints |
//! | `/v1/logging` | the level of the log; `PUT` with `?level=LEVEL[&for=DURATION]` sets it |
//! | `/v1/certificates` | the proxy's own certificate |
//! | `/v1/tap` | what happens from now on, a line of JSON each; see [`tap::query`] |

mod routes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use karst_client::{AdsStatus, DeltaAds};
use karst_identity::CertificateManager;
use karst_process::http_server::{self, Reply};
use karst_process::logging;
use karst_process::tap::{self, query::Sees};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::args::Config;
use crate::balance::Cluster;
use crate::config::Listing;
use crate::proxy;
use crate::readiness::Readiness;
use crate::shared::Shared;
use crate::worker::Command;

/// What the pages are made from.
pub struct Admin {
    /// What the process was started with.
    pub config: Config,
    /// When it was started.
    pub started: Instant,
    /// The data plane.
    pub shared: Arc<Shared>,
    /// Its threads.
    pub workers: Vec<mpsc::UnboundedSender<Command>>,
    /// The stream to the controller.
    pub ads: watch::Receiver<AdsStatus>,
    /// The same, type by type.
    pub xds: DeltaAds,
    /// What it has sent.
    pub listing: Listing,
    /// A gateway's ports.
    pub ports: watch::Receiver<Arc<BTreeMap<u16, Option<String>>>>,
    /// Our certificate.
    pub certificates: CertificateManager,
    /// Whether we are ready.
    pub readiness: Readiness,
}

impl Admin {
    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        if request.uri().path() == "/v1/logging" {
            return logging::page(request.method(), request.uri().query());
        }
        if request.method() != Method::GET {
            return problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
        }
        let page = match request.uri().path() {
            "/v1/status" => self.status(),
            "/v1/ready" => return self.ready(),
            "/v1/tap" => {
                let query = request.uri().query();
                return tap::answer(&self.shared.tap, Sees::Requests, query, drop);
            }
            "/v1/config" => json!(self.listing.items()),
            "/v1/ports" => self.ports(),
            "/v1/clusters" => self.clusters(),
            "/v1/routes" => {
                let table = self.shared.tables.load();
                json!(routes::page(&table, &self.listing.items()))
            }
            "/v1/xds" => json!(self.xds.types()),
            "/v1/pools" => json!(proxy::pools(&self.workers).await),
            "/v1/certificates" => json!(self.certificates.list()),
            _ => return problem(StatusCode::NOT_FOUND, "not_found"),
        };
        http_server::json(StatusCode::OK, &page)
    }

    /// `/v1/ready` and `/healthz/ready`.
    #[must_use]
    pub fn ready(&self) -> Reply {
        match self.readiness.check() {
            Ok(()) => http_server::json(StatusCode::OK, &json!({"ready": true})),
            Err(reason) => problem(StatusCode::SERVICE_UNAVAILABLE, reason),
        }
    }

    fn status(&self) -> Value {
        let ads = self.ads.borrow().clone();
        let table = self.shared.tables.load();
        let metrics = &self.shared.metrics;
        let config = &self.config;
        json!({
            "gateway": format!("{}/{}", config.gateway_namespace, config.gateway_name),
            "identity": config.identity.as_str(),
            "pod": config.pod_name,
            "node": config.node_name,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "ready": self.readiness.check().is_ok(),
            "not_ready_reason": self.readiness.check().err(),
            "controller": {
                "address": config.controller,
                "connected": ads.connected,
                "synced": ads.synced,
                "last_reason": ads.last_reason,
                "streams": ads.streams,
                "rejected": ads.rejected,
            },
            "services": table.services.len(),
            "workloads": table.workloads.len(),
            "ports": table.sockets.len(),
            "workers": self.workers.len(),
            "connections": {
                "mesh": metrics.mesh_connections.get(),
                "gateway": metrics.gateway_connections.get(),
                "limit": self.shared.max_connections,
            },
            "requests": metrics.requests_active.get(),
            "tap_subscribers": self.shared.tap.subscribers(),
            "access_log_dropped": self.shared.access_log.dropped(),
        })
    }

    fn ports(&self) -> Value {
        let ports = self.ports.borrow().clone();
        let port = |(port, problem): (&u16, &Option<String>)| json!({"port": port, "open": problem.is_none(), "problem": problem});
        ports.iter().map(port).collect()
    }

    fn clusters(&self) -> Value {
        let mut clusters = self.shared.clusters.list();
        clusters.sort_by(|a, b| a.name().cmp(b.name()));
        clusters.iter().map(|cluster| view(cluster)).collect()
    }
}

fn view(cluster: &Cluster) -> Value {
    let settings = cluster.settings();
    json!({
        "name": &**cluster.name(),
        "service": &*settings.hostname,
        "port": settings.port,
        "protocol": settings.protocol.as_str_name(),
        "invalid": settings.invalid.as_deref(),
        "tls": settings.tls.is_some(),
        "stats": cluster.stats(),
        "algorithm": settings.balancing.algorithm.as_str_name(),
        "endpoints": cluster.endpoint_statuses(),
    })
}

fn problem(status: StatusCode, reason: &str) -> Reply {
    http_server::json(status, &json!({"reason": reason}))
}
