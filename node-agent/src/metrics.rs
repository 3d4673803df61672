//! All metrics of the agent, and how they are gathered for a scrape.

pub mod cni;
pub mod connections;
pub mod node;
pub mod policy;
pub mod refusals;
pub mod traffic;

use std::sync::Arc;

use karst_telemetry::metrics::TelemetryCollector;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use cni::{CniCollector, CniMetrics};
use connections::Connections;
use karst_process::metrics::handshakes::Handshakes;
use karst_tunnel::Observer;
use node::NodeMetrics;
use policy::PolicyMetrics;
use refusals::Refusals;
use traffic::TrafficMetrics;

use crate::state::MeshState;
use crate::state::endpoint::now_ms;

/// Counters the data plane writes.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Workers do not count connections and requests in [`Self::traffic`] and the histograms beside it: for
    /// measuring what that costs.
    pub without_traffic: bool,
    /// Istio's TCP metrics.
    pub traffic: Arc<TrafficMetrics>,
    /// Refusals by reason.
    pub refusals: Arc<Refusals>,
    /// Times of connections, and pools of tunnels, by worker.
    pub connections: Arc<Connections>,
    /// TLS handshakes of tunnels.
    pub handshakes: Arc<Handshakes>,
    /// Denials by policy.
    pub policies: Arc<PolicyMetrics>,
    /// What was not logged, and what became of spans.
    pub telemetry: Arc<karst_telemetry::metrics::Metrics>,
    /// Accepts that failed for lack of file descriptors or memory.
    pub accept_failures: Counter,
    /// Certificates issued.
    pub certificates_issued: Counter,
    /// Certificate requests that failed.
    pub certificates_failed: Counter,
    /// Calls of the CNI plugin.
    pub cni: Arc<CniMetrics>,
}

impl Metrics {
    /// A registry with everything in it. `node` reads the rest at each scrape.
    pub fn registry(&self, node: NodeMetrics) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&self.traffic)));
        registry.register_collector(Box::new(Arc::clone(&self.connections)));
        registry.register_collector(Box::new(Arc::clone(&self.refusals)));
        registry.register_collector(Box::new(Arc::clone(&self.policies)));
        registry.register_collector(Box::new(node));
        let telemetry = TelemetryCollector(Arc::clone(&self.telemetry));
        registry.register_collector(Box::new(telemetry));
        registry.register_collector(Box::new(CniCollector(Arc::clone(&self.cni))));
        let help = "Accepts that failed for lack of file descriptors or memory";
        registry.register("karst_accept_failures", help, self.accept_failures.clone());
        let help = "Certificates issued to this node's pods";
        registry.register(
            "karst_certificates_issued",
            help,
            self.certificates_issued.clone(),
        );
        let help = "Certificate requests that failed";
        registry.register(
            "karst_certificates_failed",
            help,
            self.certificates_failed.clone(),
        );
        registry
    }

    /// Ends the series of what `state` no longer knows and of which nothing has been heard for a while; whether
    /// workers must forget what they cached of them. Called from time to time.
    pub fn expire(&self, state: &MeshState) -> bool {
        self.expire_at(now_ms(), state)
    }

    fn expire_at(&self, now_ms: u64, state: &MeshState) -> bool {
        let has_rule = |policy: &str, rule| state.policies.has_rule(policy, rule);
        self.policies.expire_at(now_ms, has_rule);
        let exists = |uid: &str| state.workload(uid).is_some();
        self.traffic.expire_at(now_ms, exists) > 0
    }

    /// Tells [`Self::handshakes`].
    pub fn observer(&self) -> Observer {
        let handshakes = Arc::clone(&self.handshakes);
        Observer::new(move |one| handshakes.count(one.side.as_str(), one.outcome, one.took))
    }
}
