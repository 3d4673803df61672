//! How proxies are run, as the controller was told.

use std::{collections::BTreeMap, fmt};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;

/// What is the same for the proxies of all Gateways.
#[derive(Debug, Clone)]
pub struct Proxies {
    /// Image of `karst-waypoint`.
    pub image: String,
    /// When it is pulled: `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// Secrets with credentials for its registry, in the Gateways' own namespaces.
    pub pull_secrets: Vec<String>,
    /// Type of the Services of gateways that do not say themselves.
    pub service_type: ServiceType,
    /// Where proxies reach the controller, HOST:PORT.
    pub controller: String,
    /// Audience of their tokens.
    pub audience: String,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Id of the cluster.
    pub cluster_id: String,
    /// The rest.
    pub settings: ProxySettings,
}

/// Type of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServiceType {
    /// Reached inside the cluster only.
    #[value(name = "ClusterIP")]
    ClusterIp,
    /// At a port of every node.
    #[value(name = "NodePort")]
    NodePort,
    /// By a load balancer.
    #[value(name = "LoadBalancer")]
    LoadBalancer,
}

impl ServiceType {
    /// As it is written; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_str(text, false).ok()
    }
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        })
    }
}

/// The value `proxy` of the chart.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ProxySettings {
    /// How many there are at least.
    pub min_replicas: u32,
    /// How many there are at most.
    pub max_replicas: u32,
    /// Use of the requested CPU in percent above which there are more.
    pub cpu_utilization: u32,
    /// `text` or `json`.
    pub log_format: String,
    /// A filter as in `info,karst_waypoint=debug`.
    pub log_level: String,
    /// `off`, `text` or `json`.
    pub access_log: String,
    /// Priority class of the pods; none when empty.
    pub priority_class_name: String,
    /// Labels of the nodes that may run them.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that they tolerate.
    pub tolerations: Vec<Value>,
    /// Requests and limits of the container, as in a pod.
    pub resources: Value,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            min_replicas: 2,
            max_replicas: 10,
            cpu_utilization: 80,
            log_format: "json".to_owned(),
            log_level: "info".to_owned(),
            access_log: "json".to_owned(),
            priority_class_name: String::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            resources: serde_json::json!({
                "requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1Gi"},
            }),
        }
    }
}

impl ProxySettings {
    /// Reads them.
    ///
    /// # Errors
    /// What is wrong, with the field's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut settings: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if settings.min_replicas == 0 || settings.cpu_utilization == 0 {
            return Err("minReplicas and cpuUtilization must be at least 1".to_owned());
        }
        if settings.max_replicas < settings.min_replicas {
            return Err(format!(
                "maxReplicas is {}, below minReplicas, {}",
                settings.max_replicas, settings.min_replicas
            ));
        }
        if settings.resources.is_null() {
            settings.resources = serde_json::json!({});
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_defaults_and_mistakes_are_named() {
        let settings = ProxySettings::parse(r#"{"minReplicas": 1}"#).unwrap();
        assert_eq!((settings.min_replicas, settings.max_replicas), (1, 10));
        for (text, words) in [
            (r#"{"minReplica": 1}"#, "minReplica"),
            (r#"{"minReplicas": 0}"#, "at least 1"),
            (r#"{"minReplicas": 20}"#, "below minReplicas"),
            (r#"{"tolerations": 1}"#, "expected"),
            ("{", "EOF"),
        ] {
            let problem = ProxySettings::parse(text).unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
        }
    }

    #[test]
    fn service_types_are_written_as_kubernetes_does() {
        for kind in ServiceType::value_variants() {
            assert_eq!(ServiceType::parse(&kind.to_string()), Some(*kind));
        }
        assert_eq!(ServiceType::parse("ExternalName"), None);
        assert_eq!(ServiceType::parse("clusterip"), None);
    }
}
