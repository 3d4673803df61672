//! What the mesh needs of a ReferenceGrant.

use serde::Deserialize;

use super::{Body, gateway_api::Resource};
use crate::error::{Faults, ObjectError};

/// Who of other namespaces may refer to what is in the grant's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ReferenceGrant {
    pub(crate) from: Vec<GrantFrom>,
    pub(crate) to: Vec<GrantTo>,
}

/// Who may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

/// To what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    /// `None`: any.
    pub(crate) name: Option<String>,
}

impl ReferenceGrant {
    pub(crate) fn body(
        object: Resource<Self>,
        _faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        Ok(Body::ReferenceGrant(object.spec))
    }
}
