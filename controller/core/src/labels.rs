//! Labels and annotations that mean something to the mesh.

use std::collections::BTreeMap;

use karst_api::OUTSIDE_NAMESPACES;

use crate::{
    error::{Faults, ObjectError},
    proxy::GatewayName,
};

/// Puts a namespace or a pod into the mesh, or keeps it out.
pub(crate) const DATAPLANE_MODE: &str = "karst.dev/dataplane-mode";

/// Istio's name for the same, read when ours is absent.
pub(crate) const DATAPLANE_MODE_ALIAS: &str = "istio.io/dataplane-mode";

/// Set on pods that have an Istio sidecar, which does its own capture.
pub(crate) const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// Name of the container that Istio's sidecar runs in.
pub(crate) const SIDECAR_CONTAINER: &str = "istio-proxy";

pub(crate) const REGION: &str = "topology.kubernetes.io/region";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
pub(crate) const SUBZONE: &str = "topology.istio.io/subzone";

/// Names a pod's service in telemetry; the first that is set counts.
pub(crate) const CANONICAL_NAME: [&str; 3] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
];

/// Names a pod's version in telemetry; the first that is set counts.
pub(crate) const CANONICAL_REVISION: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

/// Set on pods by the ReplicaSet controller; ends the ReplicaSet's name.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Set on the object that stands for a static pod.
pub(crate) const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// What the kubelet calls a static pod by.
pub(crate) const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Names the Service of an EndpointSlice.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Names the waypoint of a service, a pod or all of a namespace; `none` for none.
pub(crate) const USE_WAYPOINT: [&str; 2] = ["karst.dev/use-waypoint", "istio.io/use-waypoint"];

/// Namespace of that waypoint, if it is another one.
pub(crate) const USE_WAYPOINT_NAMESPACE: [&str; 2] = [
    "karst.dev/use-waypoint-namespace",
    "istio.io/use-waypoint-namespace",
];

/// `disabled`: destinations take connections that do not come through their waypoint as well.
pub(crate) const WAYPOINT_ENFORCEMENT: &str = "karst.dev/waypoint-enforcement";

/// On a namespace: where its pods may connect to.
pub(crate) const EGRESS: &str = "karst.dev/egress";

/// On a Gateway: what it is a waypoint for.
pub(crate) const WAYPOINT_FOR: [&str; 2] = ["karst.dev/waypoint-for", "istio.io/waypoint-for"];

/// On a pod: the Gateway whose proxy it is (GEP-1762).
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// On a pod: the class of that Gateway.
pub(crate) const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";

/// What the operator wants for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataplaneMode {
    /// Its connections are carried by the mesh.
    Ambient,
    /// It is left alone.
    None,
}

/// Where pods may connect to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Egress {
    /// Anywhere.
    #[default]
    AllowAny,
    /// To what the mesh knows: workloads, Services and ServiceEntries.
    RegistryOnly,
}

pub(crate) type Labels = BTreeMap<String, String>;

/// Reads the mode from the labels of a namespace, or of an object in it. A value that is neither
/// `ambient` nor `none` counts as no label at all, and is reported: a typing mistake on a pod must not
/// take it out of the mesh. What is in one of [`OUTSIDE_NAMESPACES`] is never in the mesh.
pub(crate) fn dataplane_mode(
    namespace: &str,
    labels: &Labels,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Option<DataplaneMode> {
    let (key, mode) = labelled_mode(labels, faults, findings)?;
    if mode == DataplaneMode::Ambient && OUTSIDE_NAMESPACES.contains(&namespace) {
        findings.push(faults.error(
            format!("metadata.labels[{key:?}]"),
            format!("is \"ambient\", but the namespace {namespace} is always outside the mesh"),
            "remove the label, or run the pods in another namespace",
        ));
        return Some(DataplaneMode::None);
    }
    Some(mode)
}

/// Reads where pods of a namespace may connect to. A value that is not known was meant to limit
/// something: it counts as `REGISTRY_ONLY`, and is reported.
pub(crate) fn egress(
    labels: &Labels,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Option<Egress> {
    match labels.get(EGRESS)?.as_str() {
        "ALLOW_ANY" => Some(Egress::AllowAny),
        "REGISTRY_ONLY" => Some(Egress::RegistryOnly),
        other => {
            findings.push(faults.error(
                format!("metadata.labels[{EGRESS:?}]"),
                format!("is {other:?}, which is no egress mode"),
                "set it to \"ALLOW_ANY\" or \"REGISTRY_ONLY\"; until then it counts as \"REGISTRY_ONLY\"",
            ));
            Some(Egress::RegistryOnly)
        }
    }
}

fn labelled_mode(
    labels: &Labels,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Option<(&'static str, DataplaneMode)> {
    for key in [DATAPLANE_MODE, DATAPLANE_MODE_ALIAS] {
        match labels.get(key).map(String::as_str) {
            Some("ambient") => return Some((key, DataplaneMode::Ambient)),
            Some("none") => return Some((key, DataplaneMode::None)),
            Some(other) => findings.push(faults.error(
                format!("metadata.labels[{key:?}]"),
                format!("is {other:?}, which is no dataplane mode"),
                "set it to \"ambient\" or \"none\"; until then the label is as good as absent",
            )),
            None => {}
        }
    }
    None
}

/// What labels say of the waypoint of an object, or of those in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WaypointLabels {
    /// `None`: nothing said.
    pub(crate) choice: Option<WaypointChoice>,
    /// `None`: nothing said.
    pub(crate) enforcement: Option<Enforcement>,
}

/// A waypoint that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WaypointChoice {
    /// None, whatever the namespace says.
    Off,
    /// This one.
    Named(GatewayName),
}

/// Whether destinations refuse connections that do not come through their waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enforcement {
    Enabled,
    Disabled,
}

impl WaypointLabels {
    /// Reads the labels of an object in that namespace, or of the namespace itself.
    pub(crate) fn read(
        namespace: &str,
        labels: &Labels,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Self {
        let choice = first(labels, &USE_WAYPOINT).map(|name| match name {
            "none" => WaypointChoice::Off,
            name => {
                let namespace = first(labels, &USE_WAYPOINT_NAMESPACE).unwrap_or(namespace);
                WaypointChoice::Named(GatewayName::new(namespace, name))
            }
        });
        let enforcement = match labels.get(WAYPOINT_ENFORCEMENT).map(String::as_str) {
            Some("disabled") => Some(Enforcement::Disabled),
            Some("enabled") => Some(Enforcement::Enabled),
            Some(other) => {
                findings.push(faults.error(
                    format!("metadata.labels[{WAYPOINT_ENFORCEMENT:?}]"),
                    format!("is {other:?}"),
                    "set it to \"enabled\" or \"disabled\"; until then the label is as good as absent",
                ));
                None
            }
            None => None,
        };
        Self {
            choice,
            enforcement,
        }
    }
}

/// The value of the first of `keys` that is set.
pub(crate) fn first<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    keys.iter()
        .find_map(|key| labels.get(*key))
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}
