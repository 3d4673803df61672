//! What the mesh needs of a Pod.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use karst_api::workload::WorkloadType;

use crate::{
    error::{Faults, ObjectError},
    labels::{
        self, CANONICAL_NAME, CANONICAL_REVISION, CONFIG_HASH, CONFIG_MIRROR, DataplaneMode,
        Labels, POD_TEMPLATE_HASH, SIDECAR_CONTAINER, SIDECAR_STATUS, WaypointLabels,
    },
};

/// Service account of a pod that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// Revision of a pod without a version label.
const DEFAULT_REVISION: &str = "latest";

/// A CronJob's Jobs are named after it with the scheduled minute in digits; this many or more.
const MIN_CRONJOB_DIGITS: usize = 8;

/// Longest uid in bytes. Kubernetes makes UUIDs (36); it ends up in file names of the agent.
const MAX_UID_BYTES: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) uid: String,
    /// What a static pod's uid is on its node: this object is the API's copy of it, with another.
    pub(crate) config_hash: Option<String>,
    pub(crate) labels: Labels,
    pub(crate) node: Option<String>,
    pub(crate) service_account: String,
    pub(crate) network: PodNetwork,
    pub(crate) phase: PodPhase,
    pub(crate) ips: Vec<IpAddr>,
    /// TCP ports of the containers that have a name.
    pub(crate) named_ports: Vec<(String, u16)>,
    /// The pod's own label.
    pub(crate) mode: Option<DataplaneMode>,
    pub(crate) waypoint: WaypointLabels,
    pub(crate) has_sidecar: bool,
    pub(crate) canonical_name: String,
    pub(crate) canonical_revision: String,
    pub(crate) workload_type: WorkloadType,
    pub(crate) workload_name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodNetwork {
    Own,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodPhase {
    /// May receive traffic.
    Ready,
    /// Runs, or will, but is not ready.
    NotReady,
    /// Is being deleted, and still serves.
    Draining,
    /// Has ended for good.
    Terminal,
}

impl Pod {
    pub(crate) fn new(
        object: &v1::Pod,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Result<Self, ObjectError> {
        let metadata = &object.metadata;
        let labels = metadata.labels.clone().unwrap_or_default();
        let default_spec = v1::PodSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default_spec);
        let name = metadata.name.clone().unwrap_or_default();
        let (workload_type, workload_name) = owner(metadata, &labels, &name);
        let text = |value: Option<&str>| value.filter(|text| !text.is_empty()).map(str::to_owned);

        let service_account = text(spec.service_account_name.as_deref())
            .or_else(|| text(spec.service_account.as_deref()))
            .unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.to_owned());
        let service_account =
            super::checked_name("spec.serviceAccountName", Some(&service_account), faults)?;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let mode = labels::dataplane_mode(namespace, &labels, faults, findings);
        let network = if spec.host_network == Some(true) {
            PodNetwork::Host
        } else {
            PodNetwork::Own
        };
        if network == PodNetwork::Host && mode == Some(DataplaneMode::Ambient) {
            findings.push(faults.error(
                "spec.hostNetwork",
                "is true, so the pod cannot be in the mesh",
                "remove the pod's dataplane-mode label",
            ));
        }
        Ok(Self {
            uid: uid(metadata, &name, faults)?,
            config_hash: config_hash(metadata),
            node: text(spec.node_name.as_deref()),
            service_account,
            network,
            phase: phase(object),
            ips: ips(object, faults)?,
            named_ports: named_ports(spec, faults)?,
            mode,
            waypoint: WaypointLabels::read(namespace, &labels, faults, findings),
            has_sidecar: has_sidecar(object),
            canonical_name: labels::first(&labels, &CANONICAL_NAME)
                .unwrap_or(&workload_name)
                .to_owned(),
            canonical_revision: labels::first(&labels, &CANONICAL_REVISION)
                .unwrap_or(DEFAULT_REVISION)
                .to_owned(),
            workload_type,
            workload_name,
            labels,
        })
    }
}

/// Whether Istio's sidecar is in the pod: put there by its injector, which notes it, or written into
/// the manifest by hand; also as an init container that goes on running.
#[must_use]
pub fn has_sidecar(pod: &v1::Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let noted = annotations.is_some_and(|annotations| annotations.contains_key(SIDECAR_STATUS));
    noted
        || pod.spec.as_ref().is_some_and(|spec| {
            let init = spec.init_containers.iter().flatten();
            spec.containers
                .iter()
                .chain(init.filter(|container| goes_on_running(container)))
                .any(|container| container.name == SIDECAR_CONTAINER)
        })
}

/// Whether an init container runs beside the application: of them only the restartable ones do.
fn goes_on_running(container: &v1::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The Kubernetes uid. A manifest that nobody has run through an API server has none; its
/// namespace and name then stand for it (a namespace has no dot, so this is unambiguous).
fn uid(metadata: &ObjectMeta, name: &str, faults: &Faults) -> Result<String, ObjectError> {
    let Some(uid) = metadata.uid.as_deref().filter(|uid| !uid.is_empty()) else {
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        return Ok(format!("{namespace}.{name}"));
    };
    if !is_uid(uid) {
        return Err(faults.error(
            "metadata.uid",
            "is no valid uid",
            "use what the API server gave, or leave it out",
        ));
    }
    Ok(uid.to_owned())
}

fn is_uid(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_UID_BYTES).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(plain)
}

/// Kubelet and container runtime know a static pod by a hash of its manifest. The kubelet makes an
/// object for it that has a uid of its own, belongs to the node and bears the hash.
fn config_hash(metadata: &ObjectMeta) -> Option<String> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(CONFIG_MIRROR)?;
    let mut owners = metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true) && owner.kind == "Node")?;
    let hash = annotations.get(CONFIG_HASH)?;
    is_uid(hash).then(|| hash.clone())
}

fn phase(object: &v1::Pod) -> PodPhase {
    let status = object.status.as_ref();
    if matches!(
        status.and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    ) {
        return PodPhase::Terminal;
    }
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
    match (ready, object.metadata.deletion_timestamp.is_some()) {
        (true, false) => PodPhase::Ready,
        (true, true) => PodPhase::Draining,
        (false, _) => PodPhase::NotReady,
    }
}

fn ips(object: &v1::Pod, faults: &Faults) -> Result<Vec<IpAddr>, ObjectError> {
    let Some(status) = &object.status else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let listed = status.pod_ips.iter().flatten().enumerate();
    let listed = listed.map(|(index, entry)| (format!("status.podIPs[{index}].ip"), &entry.ip));
    let first = status
        .pod_ip
        .iter()
        .map(|ip| ("status.podIP".to_owned(), ip));
    for (field, text) in first.chain(listed).filter(|(_, text)| !text.is_empty()) {
        let ip = parse_ip(&field, text, faults)?;
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

/// Reads an address that a pod, service or endpoint may have.
pub(crate) fn parse_ip(field: &str, text: &str, faults: &Faults) -> Result<IpAddr, ObjectError> {
    let usable = text
        .parse::<IpAddr>()
        .ok()
        .map(|ip| ip.to_canonical())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
    usable.ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        faults.error(
            field,
            format!("is {shown:?}, which is no IP address that can be connected to"),
            "write a unicast IPv4 or IPv6 address",
        )
    })
}

/// Reads a port number.
pub(crate) fn parse_port(field: &str, number: i32, faults: &Faults) -> Result<u16, ObjectError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(faults.error(
            field,
            format!("is {number}, which is no port"),
            "use 1 to 65535",
        )),
    }
}

/// Whether a port's `protocol` is TCP, which it is when absent. The mesh carries nothing else.
pub(crate) fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

fn named_ports(spec: &v1::PodSpec, faults: &Faults) -> Result<Vec<(String, u16)>, ObjectError> {
    let mut ports = Vec::new();
    let lists = [
        ("containers", Some(&spec.containers)),
        ("initContainers", spec.init_containers.as_ref()),
    ];
    for (list, containers) in lists {
        for (at, container) in containers.into_iter().flatten().enumerate() {
            if list == "initContainers" && !goes_on_running(container) {
                continue;
            }
            for (index, port) in container.ports.iter().flatten().enumerate() {
                let field = format!("spec.{list}[{at}].ports[{index}].containerPort");
                let number = parse_port(&field, port.container_port, faults)?;
                if let Some(name) = &port.name
                    && is_tcp(port.protocol.as_deref())
                {
                    ports.push((name.clone(), number));
                }
            }
        }
    }
    Ok(ports)
}

/// Kind and name of what the pod belongs to.
fn owner(metadata: &ObjectMeta, labels: &Labels, pod: &str) -> (WorkloadType, String) {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let controller = |owner: &&OwnerReference| owner.controller == Some(true);
    let Some(owner) = owners.iter().find(controller).or(owners.first()) else {
        return (WorkloadType::Pod, pod.to_owned());
    };
    match owner.kind.as_str() {
        "Deployment" => (WorkloadType::Deployment, owner.name.clone()),
        "ReplicaSet" => {
            let stem = labels
                .get(POD_TEMPLATE_HASH)
                .and_then(|hash| owner.name.strip_suffix(hash.as_str()))
                .and_then(|stem| stem.strip_suffix('-'))
                .filter(|stem| !stem.is_empty());
            match stem {
                Some(deployment) => (WorkloadType::Deployment, deployment.to_owned()),
                None => (WorkloadType::Pod, owner.name.clone()),
            }
        }
        "CronJob" => (WorkloadType::Cronjob, owner.name.clone()),
        "Job" => match owner.name.rsplit_once('-') {
            Some((cron_job, minute))
                if minute.len() >= MIN_CRONJOB_DIGITS
                    && minute.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                (WorkloadType::Cronjob, cron_job.to_owned())
            }
            _ => (WorkloadType::Job, owner.name.clone()),
        },
        _ => (WorkloadType::Pod, owner.name.clone()),
    }
}
