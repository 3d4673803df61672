//! Metrics of the controller. Labels have few values, all of them constants of this program.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// A reason label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The stable label.
    pub reason: &'static str,
}

/// A resource type label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResourceType {
    /// Short name of the type.
    pub r#type: &'static str,
}

/// A kind of watched object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Watched {
    /// Name of the kind, or of what is watched of it.
    pub kind: &'static str,
}

/// What was asked of the API server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Verb {
    /// The verb, as roles spell it.
    pub verb: &'static str,
}

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// The outcome.
    pub result: &'static str,
}

/// Bounds of [`Propagation`] in seconds: from what a change takes on one machine to what a client that is not
/// answering has until its stream ends.
const PROPAGATION_BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// How long changes take until clients say that they are in force, by resource type.
#[derive(Debug)]
pub struct Propagation(Family<ResourceType, Histogram, fn() -> Histogram>);

impl Default for Propagation {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| {
            Histogram::new(PROPAGATION_BOUNDS)
        }))
    }
}

impl Propagation {
    /// A client has what changed `took` ago.
    pub fn observe(&self, r#type: &'static str, took: Duration) {
        let label = ResourceType { r#type };
        self.0.get_or_create(&label).observe(took.as_secs_f64());
    }
}

/// All metrics; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

/// The metrics themselves.
#[derive(Debug, Default)]
pub struct Inner {
    /// Responses sent.
    pub xds_pushes: Family<ResourceType, Counter>,
    /// Resources sent.
    pub xds_resources: Family<ResourceType, Counter>,
    /// Responses that clients rejected, at least in part.
    pub xds_nacks: Family<ResourceType, Counter>,
    /// Time until changes are in force, on this process's clock.
    pub xds_propagation: Propagation,
    /// Open discovery streams.
    pub xds_streams: Gauge,
    /// Streams that the controller ended, by reason.
    pub xds_ended: Family<Reason, Counter>,
    /// Requests that were not authenticated, by reason.
    pub auth_refused: Family<Reason, Counter>,
    /// Certificates issued.
    pub ca_issued: Counter,
    /// Certificate requests refused, by reason.
    pub ca_refused: Family<Reason, Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// TLS handshakes that failed, by reason.
    pub handshakes_failed: Family<Reason, Counter>,
    /// Faults in the source now.
    pub source_faulty: Gauge,
    /// Faults found in the source so far.
    pub source_faults: Counter,
    /// Reports of enrolled pods.
    pub enrolment_reports: Counter,
    /// Whether a kind of object is followed now.
    pub watch_synced: Family<Watched, Gauge>,
    /// When the last complete list of a kind came, in seconds since 1970.
    pub watch_last_list: Family<Watched, Gauge>,
    /// Watches that ended, for whatever reason.
    pub watch_restarts: Family<Watched, Counter>,
    /// Calls to the API server that failed.
    pub api_errors: Family<Verb, Counter>,
    /// Token reviews, and answers from their cache.
    pub token_reviews: Family<Outcome, Counter>,
    /// Writes of statuses, by result.
    pub status_writes: Family<Outcome, Counter>,
    /// Writes of what runs for Gateways, by result.
    pub proxy_writes: Family<Outcome, Counter>,
    /// Whether this replica is the one that writes.
    pub leader: Gauge,
    /// Whether the authority's Secret has changed in a way that needs a restart.
    pub ca_restart_needed: Gauge,
}

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Metrics {
    /// Everything, under the names that the documentation lists.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("karst_controller");
        let r = &mut registry;
        r.register(
            "xds_pushes",
            "Discovery responses sent",
            self.xds_pushes.clone(),
        );
        r.register(
            "xds_resources",
            "Resources sent",
            self.xds_resources.clone(),
        );
        r.register(
            "xds_nacks",
            "Discovery responses rejected by clients",
            self.xds_nacks.clone(),
        );
        r.register(
            "xds_propagation_seconds",
            "Time from a change of objects until a client says that what follows from it is in force",
            self.xds_propagation.0.clone(),
        );
        r.register(
            "xds_streams",
            "Open discovery streams",
            self.xds_streams.clone(),
        );
        r.register(
            "xds_streams_ended",
            "Discovery streams ended by the controller",
            self.xds_ended.clone(),
        );
        r.register(
            "auth_refused",
            "Requests not authenticated",
            self.auth_refused.clone(),
        );
        r.register("ca_issued", "Certificates issued", self.ca_issued.clone());
        r.register(
            "ca_refused",
            "Certificate requests refused",
            self.ca_refused.clone(),
        );
        r.register("connections", "Open connections", self.connections.clone());
        r.register(
            "handshakes_failed",
            "TLS handshakes that failed",
            self.handshakes_failed.clone(),
        );
        r.register(
            "source_faulty",
            "Faults in the source now",
            self.source_faulty.clone(),
        );
        r.register(
            "source_faults",
            "Faults found in the source",
            self.source_faults.clone(),
        );
        r.register(
            "enrolment_reports",
            "Reports of enrolled pods",
            self.enrolment_reports.clone(),
        );
        self.register_cluster(r);
        registry
    }

    fn register_cluster(&self, r: &mut Registry) {
        r.register(
            "watch_synced",
            "Whether a kind of object is followed now",
            self.watch_synced.clone(),
        );
        r.register(
            "watch_last_list_timestamp_seconds",
            "When the last complete list of a kind came",
            self.watch_last_list.clone(),
        );
        r.register(
            "watch_restarts",
            "Watches that ended and were taken up again",
            self.watch_restarts.clone(),
        );
        r.register(
            "api_errors",
            "Calls to the API server that failed",
            self.api_errors.clone(),
        );
        r.register(
            "token_reviews",
            "Token reviews by result",
            self.token_reviews.clone(),
        );
        r.register(
            "status_writes",
            "Writes of statuses by result",
            self.status_writes.clone(),
        );
        r.register(
            "proxy_writes",
            "Writes of what runs for Gateways by result",
            self.proxy_writes.clone(),
        );
        r.register(
            "leader",
            "Whether this replica is the one that writes",
            self.leader.clone(),
        );
        r.register(
            "ca_restart_needed",
            "Whether the authority has changed in a way that needs a restart",
            self.ca_restart_needed.clone(),
        );
    }
}
