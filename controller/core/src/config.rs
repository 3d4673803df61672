//! What is the same for the whole mesh.

use crate::labels::Egress;

/// [`MeshConfig::root_namespace`] unless the operator says otherwise.
pub const ROOT_NAMESPACE: &str = "karst-system";

/// Names of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// First part of every workload uid.
    pub cluster_id: String,
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// DNS domain under which services are named.
    pub cluster_domain: String,
    /// Namespace whose security policies are for the whole mesh.
    pub root_namespace: String,
    /// Where pods may connect to whose namespace does not say.
    pub egress_default: Egress,
    /// Network on which all addresses are unique; empty for the only one.
    pub network: String,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".to_owned(),
            trust_domain: karst_api::DEFAULT_TRUST_DOMAIN.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: ROOT_NAMESPACE.to_owned(),
            egress_default: Egress::AllowAny,
            network: String::new(),
        }
    }
}

impl MeshConfig {
    /// Fully qualified name of a service.
    #[must_use]
    pub fn hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }

    /// Resource name of a pod's workload.
    #[must_use]
    pub fn pod_workload_uid(&self, namespace: &str, name: &str) -> String {
        format!("{}//Pod/{namespace}/{name}", self.cluster_id)
    }

    /// Resource name of an endpoint that is known from an EndpointSlice only.
    #[must_use]
    pub fn endpoint_workload_uid(
        &self,
        namespace: &str,
        slice: &str,
        ip: std::net::IpAddr,
    ) -> String {
        format!(
            "{}/discovery.k8s.io/EndpointSlice/{namespace}/{slice}/{ip}",
            self.cluster_id
        )
    }
}
