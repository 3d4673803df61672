//! What the mesh needs of an EndpointSlice.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1;

use super::pod::{is_tcp, parse_ip, parse_port};
use crate::{
    error::{Faults, ObjectError},
    labels::SERVICE_NAME,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointSlice {
    /// `None` for a slice that belongs to no Service and is nothing to the mesh.
    pub(crate) service: Option<String>,
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// A TCP port, matched to the service's port by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
    /// It is about to end, and still serves.
    pub(crate) draining: bool,
    /// Name of the pod, in the slice's namespace, that the endpoint is.
    pub(crate) pod: Option<String>,
    pub(crate) node: Option<String>,
}

impl EndpointSlice {
    pub(crate) fn new(object: &v1::EndpointSlice, faults: &Faults) -> Result<Self, ObjectError> {
        let service = object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME))
            .filter(|name| !name.is_empty())
            .cloned();
        match object.address_type.as_str() {
            "IPv4" | "IPv6" => {}
            // Names are not addresses; Kubernetes itself has deprecated them here.
            "FQDN" => {
                return Ok(Self {
                    service: None,
                    ports: Vec::new(),
                    endpoints: Vec::new(),
                });
            }
            other => {
                return Err(faults.error(
                    "addressType",
                    format!("is {other:?}"),
                    "use \"IPv4\" or \"IPv6\"",
                ));
            }
        }
        Ok(Self {
            service,
            ports: ports(object, faults)?,
            endpoints: object
                .endpoints
                .iter()
                .enumerate()
                .map(|(index, endpoint)| one(index, endpoint, faults))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn ports(object: &v1::EndpointSlice, faults: &Faults) -> Result<Vec<SlicePort>, ObjectError> {
    let mut ports = Vec::new();
    for (index, entry) in object.ports.iter().flatten().enumerate() {
        // No number means every port, which no service port can be mapped to.
        let Some(number) = entry.port else { continue };
        let port = parse_port(&format!("ports[{index}].port"), number, faults)?;
        if is_tcp(entry.protocol.as_deref()) {
            ports.push(SlicePort {
                name: entry.name.clone().filter(|name| !name.is_empty()),
                port,
            });
        }
    }
    Ok(ports)
}

fn one(index: usize, endpoint: &v1::Endpoint, faults: &Faults) -> Result<Endpoint, ObjectError> {
    let ips = endpoint
        .addresses
        .iter()
        .enumerate()
        .map(|(at, text)| parse_ip(&format!("endpoints[{index}].addresses[{at}]"), text, faults))
        .collect::<Result<_, _>>()?;
    let conditions = endpoint.conditions.as_ref();
    let draining = conditions.is_some_and(|conditions| {
        conditions.terminating == Some(true) && conditions.serving == Some(true)
    });
    Ok(Endpoint {
        ips,
        draining,
        ready: endpoint
            .conditions
            .as_ref()
            .and_then(|conditions| conditions.ready)
            .unwrap_or(true),
        pod: endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| target.name.clone()),
        node: endpoint.node_name.clone(),
    })
}
