//! A waypoint's recorders, with requests between workloads of the mesh.

use std::{rc::Rc, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use http::{HeaderValue, Uri};
use karst_identity::SpiffeId;
use karst_node_agent::access_log::AccessLog;
use karst_process::{args::AccessLogFormat, metrics::text};
use karst_waypoint::{
    access_log::{Destination, EndpointRecord, Reporter, RequestRecord},
    client::Client,
    metrics::{Metrics, encode},
    telemetry::Recorder,
    workload::WorkloadLabels,
};

use super::{Records, sum};

/// Clients that take turns, each of which has an endpoint of its own.
const CLIENTS: u32 = 64;

pub struct Waypoint {
    requests: Vec<RequestRecord>,
    settings: [Rc<Recorder>; super::SETTINGS],
    metrics: Arc<Metrics>,
}

impl Waypoint {
    pub fn new(log: &AccessLog) -> Result<Self> {
        let off = AccessLog::start(AccessLogFormat::Off)?;
        let uncounted = Arc::new(Metrics {
            without_traffic: true,
            ..Metrics::default()
        });
        let metrics = Arc::new(Metrics::default());
        let requests = (0..CLIENTS).map(request).collect::<Result<_>>()?;
        Ok(Self {
            requests,
            settings: [
                Recorder::new(uncounted, off.clone()),
                Recorder::new(Arc::clone(&metrics), off),
                Recorder::new(Arc::clone(&metrics), log.clone()),
            ],
            metrics,
        })
    }
}

impl Records for Waypoint {
    fn record(&mut self, setting: usize, call: u32) {
        let request = &self.requests[(call % CLIENTS) as usize];
        self.settings[setting].request_finished(request.clone());
    }

    fn counted(&self) -> Result<f64> {
        let text = text(&encode::registry(&self.metrics)).context("reading the metrics")?;
        sum(&text, "istio_requests_total{")
    }
}

/// What is known of a request to a pod of the mesh.
fn request(number: u32) -> Result<RequestRecord> {
    let [a, b] = [number / 256, number % 256];
    let workload = |kind: &str| {
        Arc::new(WorkloadLabels {
            name: format!("{kind}-{number}"),
            namespace: "observed".to_owned(),
            service: kind.to_owned(),
            version: "v1".to_owned(),
            cluster: "Kubernetes".to_owned(),
        })
    };
    let identity = |kind: &str| {
        let account = format!("{kind}-{number}");
        SpiffeId::new("cluster.local", "observed", &account)
    };
    let mut client = Client::new(
        format!("10.1.{a}.{b}:40000").parse()?,
        Some(identity("client")?),
    );
    client.workload = Some(workload("client"));
    Ok(RequestRecord {
        authority: HeaderValue::from_static("server.observed"),
        uri: Uri::from_static("/one?of=many"),
        route: Some(Arc::from("HTTPRoute/observed/server")),
        destination: Some(Arc::new(Destination {
            namespace: Arc::from("observed"),
            name: Arc::from("server"),
            hostname: Arc::from("server.observed.svc.cluster.local"),
            port: 80,
        })),
        endpoint: Some(EndpointRecord {
            uid: format!("Kubernetes//Pod/observed/server-{number}").into(),
            address: format!("10.2.{a}.{b}:8080").parse()?,
            identity: Some(identity("server")?),
            workload: Some(workload("server")),
        }),
        status: 200,
        bytes_sent: 33,
        duration: Duration::from_micros(700),
        response_head: Some(Duration::from_micros(600)),
        attempts: 1,
        request_id: Some(HeaderValue::from_static(
            "0b6f2f4c-3a55-4f0e-9f3d-7d1c55f0a3b1",
        )),
        ..RequestRecord::new(Reporter::Waypoint, client)
    })
}
