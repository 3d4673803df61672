//! What the mesh needs of a BackendTLSPolicy.

use serde::Deserialize;

use super::{Body, gateway_api::Resource};
use crate::error::{Faults, ObjectError};

/// TLS towards an application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BackendTlsPolicy {}

/// `spec` of a BackendTLSPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BackendTlsPolicySpec {}

impl BackendTlsPolicy {
    pub(crate) fn body(
        _object: Resource<BackendTlsPolicySpec>,
        _faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        Ok(Body::BackendTlsPolicy(Box::default()))
    }
}
