//! Labels and annotations that mean something to the mesh.

use std::collections::BTreeMap;

use karst_api::OUTSIDE_NAMESPACES;

use crate::error::{Faults, ObjectError};

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

/// What the operator wants for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataplaneMode {
    /// Its connections are carried by the mesh.
    Ambient,
    /// It is left alone.
    None,
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

/// The value of the first of `keys` that is set.
pub(crate) fn first<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    keys.iter()
        .find_map(|key| labels.get(*key))
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}
