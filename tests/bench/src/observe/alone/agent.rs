//! An agent's recorders, with connections between pods of the mesh: what `Flow::open` and the end of its `Connection`
//! (`karst_node_agent::proxy`) call of them, in the same order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use karst_identity::SpiffeId;
use karst_node_agent::{
    access_log::{AccessLog, Party, Record},
    metrics::{
        connections::{Connections, WorkerMetrics},
        traffic::{Parties, Reporter, Security, Series, SeriesCache, TrafficMetrics},
    },
    proxy::Direction,
    state::{
        service::{Service, ServiceSpec},
        workload::Workload,
    },
};
use karst_process::{args::AccessLogFormat, metrics::text};
use karst_tunnel::TlsInfo;
use prometheus_client::registry::Registry;

use super::{Records, sum};

/// Clients that take turns, each of which has a server of its own.
const CLIENTS: u32 = 64;

pub struct Agent {
    ends: Vec<End>,
    unseen: Arc<Series>,
    cache: SeriesCache,
    traffic: Arc<TrafficMetrics>,
    worker: Arc<WorkerMetrics>,
    logs: [AccessLog; super::SETTINGS],
}

/// One end of a connection.
struct End {
    source: Party,
    destination: Party,
    service: Arc<Service>,
    tls: Arc<TlsInfo>,
}

impl Agent {
    pub fn new(log: &AccessLog) -> Result<Self> {
        let off = AccessLog::start(AccessLogFormat::Off)?;
        let traffic = Arc::new(TrafficMetrics::default());
        Ok(Self {
            ends: (0..CLIENTS).map(End::new).collect::<Result<_>>()?,
            unseen: Series::unseen(),
            cache: SeriesCache::new(Arc::clone(&traffic)),
            traffic,
            worker: Connections::default().worker(),
            logs: [off.clone(), off, log.clone()],
        })
    }
}

impl Records for Agent {
    fn record(&mut self, setting: usize, call: u32) {
        let end = &self.ends[(call % CLIENTS) as usize];
        let (is_counted, log) = (setting > 0, &self.logs[setting]);
        let started = Instant::now();
        let series = if is_counted {
            self.cache.get(&end.parties())
        } else {
            Arc::clone(&self.unseen)
        };
        series.opened();
        if is_counted {
            self.worker
                .established(Direction::Outbound, started.elapsed());
        }
        series.bytes(80, 200);
        let now = Instant::now();
        series.closed(now);
        let duration = now.saturating_duration_since(started);
        if is_counted {
            self.worker.ended(Direction::Outbound, duration, None);
        }
        if log.is_on() {
            log.record(&end.record(duration));
        }
    }

    fn counted(&self) -> Result<f64> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&self.traffic)));
        let text = text(&registry).context("reading the metrics")?;
        sum(&text, "istio_tcp_connections_closed_total{")
    }
}

impl End {
    fn new(number: u32) -> Result<Self> {
        let party = |kind: &str, address: String| -> Result<Party> {
            let identity = SpiffeId::new("cluster.local", "observed", &format!("{kind}-{number}"))?;
            let name = format!("{kind}-{number}");
            let workload = Workload {
                revision: u64::from(number) * 2 + u64::from(kind == "client") + 1,
                uid: Arc::from(format!("Kubernetes//Pod/observed/{name}")),
                name: Arc::from(name.as_str()),
                namespace: Arc::from("observed"),
                identity: Some(identity.clone()),
                canonical_name: Arc::from(kind),
                canonical_revision: Arc::from("v1"),
                workload_name: Arc::from(name.as_str()),
                ..Workload::default()
            };
            Ok(Party {
                addr: Some(address.parse()?),
                workload: Some(Arc::new(workload)),
                identity: Some(identity),
            })
        };
        let spec = ServiceSpec {
            key: Arc::from("observed/server.observed.svc.cluster.local"),
            name: Arc::from("server"),
            namespace: Arc::from("observed"),
            hostname: Arc::from("server.observed.svc.cluster.local"),
            ..ServiceSpec::default()
        };
        Ok(Self {
            source: party("client", format!("10.1.0.{number}:40000"))?,
            destination: party("server", format!("10.2.0.{number}:8080"))?,
            service: Arc::new(Service::assemble(spec, &[], &Default::default())),
            tls: Arc::new(TlsInfo {
                version: Arc::from("TLSv1_3"),
                cipher: Arc::from("TLS13_AES_128_GCM_SHA256"),
                key_exchange: Arc::from("X25519MLKEM768"),
                resumed: false,
                local_addr: None,
            }),
        })
    }

    fn parties(&self) -> Parties<'_> {
        Parties {
            reporter: Reporter::Source,
            security: Security::MutualTls,
            source: self.source.workload.as_deref(),
            source_identity: self.source.identity.as_ref(),
            destination: self.destination.workload.as_deref(),
            destination_identity: self.destination.identity.as_ref(),
            service: Some(&self.service),
        }
    }

    fn record(&self, duration: Duration) -> Record {
        Record {
            direction: Direction::Outbound,
            source: self.source.clone(),
            destination: self.destination.clone(),
            hbone_addr: self.destination.addr,
            service: Some(Arc::clone(&self.service)),
            service_port: Some(80),
            bytes_sent: 200,
            bytes_recv: 80,
            duration,
            security: Security::MutualTls,
            tls: Some(Arc::clone(&self.tls)),
            reason: None,
            error: None,
            denial: None,
            dry_run: None,
            observed: None,
        }
    }
}
