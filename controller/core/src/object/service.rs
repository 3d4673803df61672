//! What the mesh needs of a Service.

use std::net::IpAddr;

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};
use karst_api::workload::AppProtocol;

use super::pod::{is_tcp, parse_ip, parse_port};
use crate::{
    error::{Faults, ObjectError},
    labels::{Labels, WaypointLabels},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) reach: Reach,
    pub(crate) vips: Vec<IpAddr>,
    pub(crate) families: Families,
    /// TCP ports.
    pub(crate) ports: Vec<ServicePort>,
    /// `None` when the endpoints come from EndpointSlices alone.
    pub(crate) selector: Option<Labels>,
    pub(crate) unready: Unready,
    pub(crate) preference: Preference,
    pub(crate) waypoint: WaypointLabels,
    /// Addresses and host names at which it can be reached from outside the cluster: those of load
    /// balancers, then `externalIPs`.
    pub(crate) published: Vec<String>,
}

/// Whether the service stands for endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It does.
    Endpoints,
    /// It is a DNS alias (ExternalName) and nothing to the mesh.
    DnsAlias,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    Unknown,
    V4,
    V6,
    Dual,
}

/// What happens with endpoints that are not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unready {
    Avoided,
    /// publishNotReadyAddresses.
    Published,
}

/// Which endpoints are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preference {
    Any,
    /// internalTrafficPolicy: Local. No other endpoint will do.
    OwnNode,
    SameZone,
    SameNode,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) target: TargetPort,
    pub(crate) app_protocol: AppProtocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    /// To be looked up in each pod.
    Name(String),
}

impl Service {
    pub(crate) fn new(
        object: &v1::Service,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Result<Self, ObjectError> {
        let default_spec = v1::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default_spec);
        if spec.session_affinity.as_deref() == Some("ClientIP") {
            findings.push(faults.error(
                "spec.sessionAffinity",
                "is \"ClientIP\", which the mesh does not keep",
                "connections of one client may reach different endpoints",
            ));
        }
        let selector = spec
            .selector
            .clone()
            .filter(|selector| !selector.is_empty());
        Ok(Self {
            reach: match spec.type_.as_deref() {
                Some("ExternalName") => Reach::DnsAlias,
                _ => Reach::Endpoints,
            },
            vips: vips(spec, faults)?,
            families: families(spec, faults)?,
            ports: ports(spec, faults)?,
            selector,
            unready: match spec.publish_not_ready_addresses {
                Some(true) => Unready::Published,
                _ => Unready::Avoided,
            },
            preference: preference(spec, faults, findings)?,
            waypoint: waypoint_labels(object, faults, findings),
            published: published(object),
        })
    }

    /// Whether the selector matches a pod with these labels.
    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.reach == Reach::Endpoints
            && self.selector.as_ref().is_some_and(|selector| {
                selector
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
            })
    }
}

fn waypoint_labels(
    object: &v1::Service,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> WaypointLabels {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let labels = object.metadata.labels.clone().unwrap_or_default();
    WaypointLabels::read(namespace, &labels, faults, findings)
}

fn published(object: &v1::Service) -> Vec<String> {
    let status = object.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    let ingress = ingress.into_iter().flatten();
    let balancers = ingress.filter_map(|entry| entry.ip.clone().or_else(|| entry.hostname.clone()));
    let external = object.spec.iter();
    let external = external.flat_map(|spec| spec.external_ips.iter().flatten().cloned());
    balancers.chain(external).collect()
}

fn vips(spec: &v1::ServiceSpec, faults: &Faults) -> Result<Vec<IpAddr>, ObjectError> {
    let mut vips = Vec::new();
    let first = spec
        .cluster_ip
        .iter()
        .map(|ip| ("spec.clusterIP".to_owned(), ip));
    let listed = spec.cluster_ips.iter().flatten().enumerate();
    let listed = listed.map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip));
    for (field, text) in first.chain(listed) {
        // "None" is a headless service; empty, one that has no address yet.
        if text.is_empty() || text == "None" {
            continue;
        }
        let ip = parse_ip(&field, text, faults)?;
        if !vips.contains(&ip) {
            vips.push(ip);
        }
    }
    Ok(vips)
}

fn families(spec: &v1::ServiceSpec, faults: &Faults) -> Result<Families, ObjectError> {
    let mut families = Families::Unknown;
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        families = match (families, family.as_str()) {
            (Families::Unknown | Families::V4, "IPv4") => Families::V4,
            (Families::Unknown | Families::V6, "IPv6") => Families::V6,
            (_, "IPv4" | "IPv6") => Families::Dual,
            (_, other) => {
                return Err(faults.error(
                    format!("spec.ipFamilies[{index}]"),
                    format!("is {other:?}"),
                    "use \"IPv4\" or \"IPv6\"",
                ));
            }
        };
    }
    Ok(families)
}

fn ports(spec: &v1::ServiceSpec, faults: &Faults) -> Result<Vec<ServicePort>, ObjectError> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, entry) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        if !is_tcp(entry.protocol.as_deref()) {
            if matches!(entry.protocol.as_deref(), Some("UDP" | "SCTP")) {
                continue;
            }
            return Err(faults.error(
                format!("{field}.protocol"),
                format!("is {:?}", entry.protocol.as_deref().unwrap_or_default()),
                "use \"TCP\", \"UDP\" or \"SCTP\"",
            ));
        }
        let port = parse_port(&format!("{field}.port"), entry.port, faults)?;
        if ports.iter().any(|other| other.port == port) {
            return Err(faults.error(
                format!("{field}.port"),
                format!("is {port}, which another TCP port of the service has"),
                "give each port of a service a number of its own",
            ));
        }
        let target = match &entry.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
            Some(IntOrString::Int(number)) => {
                TargetPort::Number(parse_port(&format!("{field}.targetPort"), *number, faults)?)
            }
            Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(port),
            Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
        };
        ports.push(ServicePort {
            name: entry.name.clone().filter(|name| !name.is_empty()),
            port,
            target,
            app_protocol: app_protocol(entry),
        });
    }
    Ok(ports)
}

/// The declared protocol: the field if it is set, else the first part of the port's name.
fn app_protocol(port: &v1::ServicePort) -> AppProtocol {
    let declared = port.app_protocol.as_deref().map(str::to_ascii_lowercase);
    let named = port.name.as_deref().map(|name| {
        let prefix = name.split('-').next().unwrap_or(name);
        prefix.to_ascii_lowercase()
    });
    match declared.or(named).as_deref() {
        Some("http" | "kubernetes.io/ws") => AppProtocol::Http11,
        Some("http2" | "kubernetes.io/h2c") => AppProtocol::Http2,
        Some("grpc") => AppProtocol::Grpc,
        Some("tcp") => AppProtocol::Tcp,
        Some("tls" | "https" | "kubernetes.io/wss") => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn preference(
    spec: &v1::ServiceSpec,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Result<Preference, ObjectError> {
    match spec.internal_traffic_policy.as_deref() {
        Some("Local") => return Ok(Preference::OwnNode),
        None | Some("" | "Cluster") => {}
        Some(other) => {
            return Err(faults.error(
                "spec.internalTrafficPolicy",
                format!("is {other:?}"),
                "use \"Cluster\" or \"Local\"",
            ));
        }
    }
    Ok(match spec.traffic_distribution.as_deref() {
        None | Some("") => Preference::Any,
        Some("PreferClose" | "PreferSameZone") => Preference::SameZone,
        Some("PreferSameNode") => Preference::SameNode,
        Some(other) => {
            // A hint by its nature, so the service itself still works.
            findings.push(faults.error(
                "spec.trafficDistribution",
                format!("is {other:?}, which is not known"),
                "use \"PreferClose\", \"PreferSameZone\" or \"PreferSameNode\"; until then all \
                 endpoints are equal",
            ));
            Preference::Any
        }
    })
}
