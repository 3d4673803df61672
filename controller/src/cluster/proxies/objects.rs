//! The objects that are made for a Gateway.

use std::{collections::BTreeMap, net::IpAddr};

use karst_core::{ProxyClass, ProxyWanted};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{CLASS_LABEL, GATEWAY_LABEL, Proxies, ServiceType};

/// The annotation in a Gateway's `spec.infrastructure` that chooses the type of its Service.
pub const SERVICE_TYPE: &str = "karst.dev/service-type";

/// The annotation that says what we have applied last, so that a field that is wanted no more is noticed.
pub const APPLIED: &str = "karst.dev/applied";

/// Where a proxy says whether it is ready; see `karst-waypoint --readiness-listen`.
const READINESS_PORT: u16 = 15021;

/// Where a proxy has its metrics; see `karst-waypoint --metrics-listen`.
const METRICS_PORT: u16 = 15020;

/// User and group of the proxy, which are nobody's.
const USER: u32 = 65532;

/// Ports below are those that only a privileged process may open, unless the pod says otherwise.
const PRIVILEGED_BELOW: u16 = 1024;

/// Time a proxy gets to end, seconds: what `karst-waypoint --drain-deadline` takes, and a little.
const GRACE_SECONDS: u32 = 30;

/// Name of a port, the API's limit in bytes.
const MAX_PORT_NAME: usize = 63;

/// What is made for each Gateway, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What it runs as.
    ServiceAccount,
    /// How it is reached.
    Service,
    /// How many may be gone at a time.
    DisruptionBudget,
    /// What runs.
    Deployment,
    /// How many run.
    Autoscaler,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ServiceAccount,
        Self::Service,
        Self::DisruptionBudget,
        Self::Deployment,
        Self::Autoscaler,
    ];

    /// Its kind, as Kubernetes names it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::DisruptionBudget => "PodDisruptionBudget",
            Self::Deployment => "Deployment",
            Self::Autoscaler => "HorizontalPodAutoscaler",
        }
    }

    /// Name in metrics of what is watched of it.
    pub fn label(self) -> &'static str {
        match self {
            Self::ServiceAccount => "proxy_service_account",
            Self::Service => "proxy_service",
            Self::DisruptionBudget => "proxy_disruption_budget",
            Self::Deployment => "proxy_deployment",
            Self::Autoscaler => "proxy_autoscaler",
        }
    }

    /// Group, version and plural.
    pub fn resource(self) -> ApiResource {
        let (group, version) = match self {
            Self::ServiceAccount | Self::Service => ("", "v1"),
            Self::DisruptionBudget => ("policy", "v1"),
            Self::Deployment => ("apps", "v1"),
            Self::Autoscaler => ("autoscaling", "v2"),
        };
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, self.kind()))
    }
}

/// An object as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// Which.
    pub part: Part,
    /// All that we say of it.
    pub object: Value,
}

/// Everything that should be there for a Gateway.
pub fn of(wanted: &ProxyWanted, proxies: &Proxies) -> Vec<Made> {
    let made = |part: Part, body: Value| Made {
        part,
        object: object(part, wanted, body),
    };
    let own = own_pods(wanted);
    vec![
        made(
            Part::ServiceAccount,
            json!({"automountServiceAccountToken": false}),
        ),
        made(Part::Service, json!({"spec": service(wanted, proxies)})),
        made(
            Part::DisruptionBudget,
            // And not minAvailable: with one replica that would forbid every drain.
            json!({"spec": {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow",
                            "selector": {"matchLabels": own}}}),
        ),
        made(
            Part::Deployment,
            json!({"spec": deployment(wanted, proxies)}),
        ),
        made(
            Part::Autoscaler,
            json!({"spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": wanted.gateway.name},
                "minReplicas": proxies.settings.min_replicas,
                "maxReplicas": proxies.settings.max_replicas,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {
                    "type": "Utilization", "averageUtilization": proxies.settings.cpu_utilization}}}],
            }}),
        ),
    ]
}

/// What an object has besides its body.
fn object(part: Part, wanted: &ProxyWanted, body: Value) -> Value {
    let resource = part.resource();
    let mut metadata = json!({
        "name": wanted.gateway.name,
        "namespace": wanted.gateway.namespace,
        "labels": labels(wanted),
        "annotations": wanted.annotations,
    });
    if !wanted.uid.is_empty() {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "name": wanted.gateway.name, "uid": wanted.uid, "controller": true,
        }]);
    }
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), resource.api_version.into());
    object.insert("kind".to_owned(), resource.kind.into());
    object.insert("metadata".to_owned(), metadata);
    if let Value::Object(body) = body {
        object.extend(body);
    }
    let mut object = Value::Object(object);
    // Maps are ordered, so equal objects have equal texts.
    let digest = Sha256::digest(object.to_string());
    let digest = digest.iter().take(12).map(|byte| format!("{byte:02x}"));
    object["metadata"]["annotations"][APPLIED] = digest.collect::<String>().into();
    object
}

/// Labels of everything; those that we need count before those that the author wants.
fn labels(wanted: &ProxyWanted) -> BTreeMap<String, String> {
    let mut labels = wanted.labels.clone();
    labels.extend(crate::cluster::labels());
    labels.extend(own_pods(wanted));
    labels.insert(CLASS_LABEL.to_owned(), wanted.class.class_name().to_owned());
    labels
}

/// What tells the proxies of one Gateway of a namespace from others.
fn own_pods(wanted: &ProxyWanted) -> BTreeMap<String, String> {
    BTreeMap::from([(GATEWAY_LABEL.to_owned(), wanted.gateway.name.clone())])
}

fn service(wanted: &ProxyWanted, proxies: &Proxies) -> Value {
    let asked = wanted.annotations.get(SERVICE_TYPE);
    let kind = match wanted.class {
        ProxyClass::Waypoint => ServiceType::ClusterIp,
        ProxyClass::Gateway => asked
            .and_then(|text| ServiceType::parse(text))
            .unwrap_or(proxies.service_type),
    };
    let mut ports: Vec<Value> = wanted
        .ports
        .iter()
        .map(|port| {
            let name: String = port.name.chars().take(MAX_PORT_NAME).collect();
            json!({"name": name, "port": port.port, "targetPort": port.port, "protocol": "TCP"})
        })
        .collect();
    if ports.is_empty() {
        // A Service must have one, and one that went would lose the address that a load balancer gave it.
        ports.push(json!({"name": "status-port", "port": READINESS_PORT,
                          "targetPort": READINESS_PORT, "protocol": "TCP"}));
    }
    let mut spec = json!({
        "type": kind.to_string(),
        "selector": own_pods(wanted),
        "ports": ports,
        "ipFamilyPolicy": "PreferDualStack",
    });
    let address = wanted
        .addresses
        .iter()
        .find(|text| text.parse::<IpAddr>().is_ok());
    if let (ServiceType::LoadBalancer, Some(address)) = (kind, address) {
        spec["loadBalancerIP"] = address.as_str().into();
    }
    spec
}

fn deployment(wanted: &ProxyWanted, proxies: &Proxies) -> Value {
    let mut labels = labels(wanted);
    // Proxies speak HBONE themselves.
    labels.insert("karst.dev/dataplane-mode".to_owned(), "none".to_owned());
    let mut annotations = wanted.annotations.clone();
    for (key, value) in [
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", METRICS_PORT.to_string()),
    ] {
        annotations.entry(key.to_owned()).or_insert(value);
    }
    json!({
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": own_pods(wanted)},
        // How many there are is the autoscaler's to say.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": pod(wanted, proxies),
        },
    })
}

fn pod(wanted: &ProxyWanted, proxies: &Proxies) -> Value {
    let settings = &proxies.settings;
    let mut security = json!({
        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if wanted.ports.iter().any(|port| port.port < PRIVILEGED_BELOW) {
        // A capability would not reach a process that is not root's; this is one of the safe sysctls.
        security["sysctls"] =
            json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
    }
    let mut pod = json!({
        "serviceAccountName": wanted.service_account,
        // No access to the Kubernetes API: its only token is for Karst's own authority.
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": security,
        "topologySpreadConstraints": [
            spread("kubernetes.io/hostname", wanted),
            spread("topology.kubernetes.io/zone", wanted),
        ],
        "containers": [container(wanted, proxies)],
        "volumes": [
            {"name": "token", "projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": {
                "audience": proxies.audience, "expirationSeconds": 3600, "path": "token"}}]}},
            {"name": "root", "configMap": {"name": crate::cluster::roots::NAME, "defaultMode": 0o444}},
        ],
    });
    if !settings.priority_class_name.is_empty() {
        pod["priorityClassName"] = settings.priority_class_name.as_str().into();
    }
    if !settings.node_selector.is_empty() {
        pod["nodeSelector"] = json!(settings.node_selector);
    }
    if !settings.tolerations.is_empty() {
        pod["tolerations"] = json!(settings.tolerations);
    }
    if !proxies.pull_secrets.is_empty() {
        let secrets = proxies.pull_secrets.iter();
        let secrets: Vec<Value> = secrets.map(|name| json!({"name": name})).collect();
        pod["imagePullSecrets"] = secrets.into();
    }
    pod
}

fn spread(key: &str, wanted: &ProxyWanted) -> Value {
    json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway",
           "labelSelector": {"matchLabels": own_pods(wanted)}})
}

fn container(wanted: &ProxyWanted, proxies: &Proxies) -> Value {
    let settings = &proxies.settings;
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    json!({
        "name": "proxy",
        "image": proxies.image,
        "imagePullPolicy": proxies.pull_policy,
        "env": [
            value("KARST_GATEWAY_NAMESPACE", &wanted.gateway.namespace),
            value("KARST_GATEWAY_NAME", &wanted.gateway.name),
            value("KARST_CONTROLLER", &proxies.controller),
            value("KARST_ROOT_CERT", "/var/run/secrets/karst-root/root-cert.pem"),
            value("KARST_TOKEN", "/var/run/secrets/karst/token"),
            value("KARST_TRUST_DOMAIN", &proxies.trust_domain),
            value("KARST_CLUSTER_ID", &proxies.cluster_id),
            field("KARST_NODE_NAME", "spec.nodeName"),
            // A cluster that does not copy nodes' zones to pods leaves it empty.
            field("KARST_ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
            field("KARST_POD_NAME", "metadata.name"),
            value("KARST_LOG_FORMAT", &settings.log_format),
            value("KARST_LOG_LEVEL", &settings.log_level),
            value("KARST_ACCESS_LOG", &settings.access_log),
        ],
        "ports": [
            {"name": "http-metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
            {"name": "http-ready", "containerPort": READINESS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": READINESS_PORT, "scheme": "HTTP"},
            "periodSeconds": 2, "failureThreshold": 3, "timeoutSeconds": 2, "successThreshold": 1,
        },
        // Of the process alone: a proxy that cannot reach the controller serves what it has.
        "livenessProbe": {
            "httpGet": {"path": "/healthz/live", "port": READINESS_PORT, "scheme": "HTTP"},
            "initialDelaySeconds": 10, "periodSeconds": 10, "failureThreshold": 6,
            "timeoutSeconds": 2, "successThreshold": 1,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": settings.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "token", "mountPath": "/var/run/secrets/karst", "readOnly": true},
            {"name": "root", "mountPath": "/var/run/secrets/karst-root", "readOnly": true},
        ],
    })
}

#[cfg(test)]
pub(super) mod tests;
