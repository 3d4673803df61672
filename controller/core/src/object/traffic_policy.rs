//! What the mesh needs of a BackendTrafficPolicy.

use serde::Deserialize;

use super::{Body, gateway_api::Resource};
use crate::error::{Faults, ObjectError};

/// Balancing, ejection and limits of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TrafficPolicy {}

/// `spec` of a BackendTrafficPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TrafficPolicySpec {}

impl TrafficPolicy {
    pub(crate) fn body(
        _object: Resource<TrafficPolicySpec>,
        _faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        Ok(Body::BackendTrafficPolicy(Box::default()))
    }
}
