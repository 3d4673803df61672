//! What the mesh needs of a Namespace.

use k8s_openapi::api::core::v1;

use crate::{
    error::{Faults, ObjectError},
    labels::{self, DataplaneMode, Egress, Labels, WaypointLabels},
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) mode: Option<DataplaneMode>,
    pub(crate) waypoint: WaypointLabels,
    /// `None`: as the mesh's default says.
    pub(crate) egress: Option<Egress>,
    /// For selectors of namespaces.
    pub(crate) labels: Labels,
}

impl Namespace {
    pub(crate) fn new(
        object: &v1::Namespace,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Self {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let labels = object.metadata.labels.clone().unwrap_or_default();
        Self {
            mode: labels::dataplane_mode(name, &labels, faults, findings),
            waypoint: WaypointLabels::read(name, &labels, faults, findings),
            egress: labels::egress(&labels, faults, findings),
            labels,
        }
    }
}
