//! What the mesh needs of a ListenerSet.

use serde::Deserialize;

use super::{
    Body,
    gateway_api::{ParentRef, Resource},
    listener::{self, Listener, ListenerSpec},
};
use crate::error::{Faults, ObjectError};

/// Listeners besides those of the Gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerSet {
    pub(crate) parent: ParentRef,
    pub(crate) listeners: Vec<Listener>,
}

/// `spec` of a ListenerSet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerSetSpec {
    parent_ref: ParentRef,
    listeners: Vec<ListenerSpec>,
}

impl ListenerSet {
    pub(crate) fn body(
        object: Resource<ListenerSetSpec>,
        faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        if object.spec.parent_ref.name.is_empty() {
            return Err(faults.error(
                "spec.parentRef.name",
                "is missing",
                "name the Gateway that the listeners are for",
            ));
        }
        Ok(Body::ListenerSet(Box::new(Self {
            listeners: listener::read(&object.spec.listeners, faults)?,
            parent: object.spec.parent_ref,
        })))
    }
}
