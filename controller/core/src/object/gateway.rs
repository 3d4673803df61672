//! What the mesh needs of a GatewayClass and a Gateway.

use serde::Deserialize;

use super::{Body, gateway_api::Resource};
use crate::error::{Faults, ObjectError};

/// A class of Gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayClass {
    pub(crate) controller: String,
}

/// `spec` of a GatewayClass.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClassSpec {
    controller_name: String,
}

impl GatewayClass {
    pub(crate) fn body(
        object: Resource<ClassSpec>,
        _faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        Ok(Body::GatewayClass(Self {
            controller: object.spec.controller_name,
        }))
    }
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) class: String,
}

/// `spec` of a Gateway.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    gateway_class_name: String,
}

impl Gateway {
    pub(crate) fn body(
        object: Resource<GatewaySpec>,
        _faults: &Faults,
        _findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        Ok(Body::Gateway(Box::new(Self {
            class: object.spec.gateway_class_name,
        })))
    }
}
