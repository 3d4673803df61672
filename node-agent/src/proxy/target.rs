//! Where an outbound connection goes: from the address the application asked
//! for to the address and protocol to dial.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connection::Refused;
use crate::pod::{HBONE_PORT, Pod, is_own_port};
use crate::reason::Reason;
use crate::state::endpoint::now_ms;
use crate::state::service::{LoadBalancingMode, Service};
use crate::state::workload::{Protocol, Via, Workload};
use crate::state::{Address, MeshState};

/// What an address stands for.
#[derive(Clone, Debug)]
pub enum Destination {
    /// One workload, by its own address.
    Workload(Arc<Workload>),
    /// Some endpoint of a service port.
    Service(Arc<Service>),
    /// Nothing the mesh knows.
    External,
}

/// One way to reach the destination.
#[derive(Clone, Debug)]
pub struct Target {
    /// The application's address and port.
    pub address: SocketAddr,
    /// The workload; `None` outside the mesh.
    pub workload: Option<Arc<Workload>>,
    /// How it is reached.
    pub protocol: Protocol,
}

impl Target {
    /// The tunnel listener of an HBONE workload.
    pub fn hbone_addr(&self) -> Option<SocketAddr> {
        (self.protocol == Protocol::Hbone).then(|| SocketAddr::new(self.address.ip(), HBONE_PORT))
    }
}

/// Finds what `original` stands for.
pub fn destination(
    state: &MeshState,
    pod: &Pod,
    original: SocketAddr,
) -> Result<Destination, Refused> {
    let ip = original.ip().to_canonical();
    let own = ip.is_loopback() || pod.addresses.contains(&ip);
    if own && is_own_port(original.port()) {
        return Err(Reason::SelfCall.into());
    }
    match state.lookup(ip) {
        Some(Address::Workload(workload)) => Ok(Destination::Workload(workload)),
        Some(Address::Service(service)) => match service.spec.via {
            _ if service.spec.mode == LoadBalancingMode::Passthrough => Ok(Destination::External),
            Via::Direct => Ok(Destination::Service(service)),
            via => Err(unsupported(via).into()),
        },
        None => Ok(Destination::External),
    }
}

/// Chooses what to dial, leaving out workloads in `tried` (uids).
pub fn target(
    destination: &Destination,
    original: SocketAddr,
    tried: &[Arc<str>],
) -> Result<Target, Refused> {
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    match destination {
        Destination::External => Ok(Target {
            address: original,
            workload: None,
            protocol: Protocol::Tcp,
        }),
        Destination::Workload(workload) => to_workload(workload, original),
        Destination::Service(service) => {
            let Some(endpoints) = service.ports.get(&original.port()) else {
                return Err(Reason::ServicePortUnknown.into());
            };
            let Some(endpoint) = endpoints.choose(tried, now_ms()) else {
                return Err(Reason::NoHealthyUpstream.into());
            };
            let Some(ip) = endpoint.workload.address_like(original.ip()) else {
                return Err(Reason::NoHealthyUpstream.into());
            };
            to_workload(
                &endpoint.workload,
                SocketAddr::new(ip, endpoint.target_port),
            )
        }
    }
}

fn to_workload(workload: &Arc<Workload>, address: SocketAddr) -> Result<Target, Refused> {
    if workload.via != Via::Direct {
        return Err(unsupported(workload.via).into());
    }
    Ok(Target {
        address,
        workload: Some(Arc::clone(workload)),
        protocol: workload.protocol,
    })
}

fn unsupported(via: Via) -> Reason {
    match via {
        Via::NetworkGateway => Reason::NetworkUnsupported,
        Via::Waypoint | Via::Direct => Reason::WaypointUnsupported,
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
