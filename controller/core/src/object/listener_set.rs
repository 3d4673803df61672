//! What the mesh needs of a ListenerSet.

use serde::Deserialize;

use super::{
    Body,
    gateway_api::{ParentRef, Resource},
};
use crate::error::{Faults, ObjectError};

/// Listeners besides those of the Gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerSet {
    pub(crate) parent: ParentRef,
}

/// `spec` of a ListenerSet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerSetSpec {
    parent_ref: ParentRef,
}

impl ListenerSet {
    pub(crate) fn body(
        object: Resource<ListenerSetSpec>,
        _faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        Ok(Body::ListenerSet(Box::new(Self {
            parent: object.spec.parent_ref,
        })))
    }
}
