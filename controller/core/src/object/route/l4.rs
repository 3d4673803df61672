//! TLSRoutes and TCPRoutes.

use super::{CommonSpec, RouteKind};
use crate::{
    error::{Faults, ObjectError},
    object::{Body, gateway_api::Resource},
};

pub(crate) fn tls_body(
    object: Resource<CommonSpec>,
    _faults: &Faults,
    _findings: &mut Vec<ObjectError>,
) -> Result<Body, ObjectError> {
    Ok(Body::Route(Box::new(object.spec.route(RouteKind::Tls))))
}

pub(crate) fn tcp_body(
    object: Resource<CommonSpec>,
    _faults: &Faults,
    _findings: &mut Vec<ObjectError>,
) -> Result<Body, ObjectError> {
    Ok(Body::Route(Box::new(object.spec.route(RouteKind::Tcp))))
}
