//! What a pod is a part of.

use karst_api::waypoint as wire;
use karst_tunnel::headers::Baggage;

/// What metrics, logs and spans call a workload by; never for decisions. Of a client its agent says it, of an endpoint
/// the controller. Empty means not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    /// Name of the Deployment, Job or Pod.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Canonical service.
    pub service: String,
    /// Its revision.
    pub version: String,
    /// Cluster.
    pub cluster: String,
}

impl From<&Baggage> for WorkloadLabels {
    fn from(baggage: &Baggage) -> Self {
        Self {
            name: baggage.workload_name.clone(),
            namespace: baggage.namespace.clone(),
            service: baggage.service_name.clone(),
            version: baggage.service_version.clone(),
            cluster: baggage.cluster.clone(),
        }
    }
}

impl From<&wire::Workload> for WorkloadLabels {
    fn from(workload: &wire::Workload) -> Self {
        Self {
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            service: workload.canonical_name.clone(),
            version: workload.canonical_revision.clone(),
            cluster: workload.cluster.clone(),
        }
    }
}
