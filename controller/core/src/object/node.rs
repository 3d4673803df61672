//! What the mesh needs of a Node.

use k8s_openapi::api::core::v1;
use karst_api::workload::Locality;

use crate::labels::{REGION, SUBZONE, ZONE};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// `None` when the node has no topology labels.
    pub(crate) locality: Option<Locality>,
}

impl Node {
    pub(crate) fn new(object: &v1::Node) -> Self {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let locality = Locality {
            region: label(REGION),
            zone: label(ZONE),
            subzone: label(SUBZONE),
        };
        Self {
            locality: (locality != Locality::default()).then_some(locality),
        }
    }
}
