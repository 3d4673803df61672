//! Where an outbound connection goes: from the address the application asked
//! for to the address and protocol to dial, past no waypoint that stands in between.

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
    /// What is to be connected to: an application's address and port, or for a waypoint
    /// what the client asked for.
    pub address: SocketAddr,
    /// The workload that is dialled; `None` outside the mesh.
    pub workload: Option<Arc<Workload>>,
    /// How it is dialled.
    pub way: Way,
}

/// How a target is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Plainly.
    Plain,
    /// Through the workload's own tunnel listener.
    Tunnel(SocketAddr),
    /// Through the tunnel listener of a waypoint, which connects to the application.
    Waypoint(SocketAddr),
}

impl Target {
    /// The tunnel listener, if there is one.
    pub fn hbone_addr(&self) -> Option<SocketAddr> {
        match self.way {
            Way::Plain => None,
            Way::Tunnel(address) | Way::Waypoint(address) => Some(address),
        }
    }
}

/// The pod that connects, and what its node knows.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The mesh.
    pub state: &'a MeshState,
    /// The pod.
    pub pod: &'a Pod,
}

impl Source<'_> {
    /// Finds what `original` stands for.
    pub fn destination(&self, original: SocketAddr) -> Result<Destination, Refused> {
        let ip = original.ip().to_canonical();
        let own = ip.is_loopback() || self.pod.addresses.contains(&ip);
        if own && is_own_port(original.port()) {
            return Err(Reason::SelfCall.into());
        }
        match self.state.lookup(ip) {
            Some(Address::Workload(workload)) => Ok(Destination::Workload(workload)),
            Some(Address::Service(service)) => match &service.spec.via {
                Via::Direct if service.spec.mode == LoadBalancingMode::Passthrough => {
                    Ok(Destination::External)
                }
                _ => Ok(Destination::Service(service)),
            },
            None => Ok(Destination::External),
        }
    }

    /// Chooses what to dial, leaving out workloads in `tried` (uids).
    pub fn target(
        &self,
        destination: &Destination,
        original: SocketAddr,
        tried: &[Arc<str>],
    ) -> Result<Target, Refused> {
        let original = SocketAddr::new(original.ip().to_canonical(), original.port());
        match destination {
            Destination::External => Ok(Target {
                address: original,
                workload: None,
                way: Way::Plain,
            }),
            Destination::Workload(workload) => self.to_workload(workload, original, tried),
            Destination::Service(service) => {
                let Some(endpoints) = service.ports.get(&original.port()) else {
                    return Err(Reason::ServicePortUnknown.into());
                };
                // The waypoint chooses the endpoint.
                if service.spec.via != Via::Direct {
                    return self.via(&service.spec.via, original, tried);
                }
                let Some(endpoint) = endpoints.choose(tried, now_ms()) else {
                    return Err(Reason::NoHealthyUpstream.into());
                };
                let Some(ip) = endpoint.workload.address_like(original.ip()) else {
                    return Err(Reason::NoHealthyUpstream.into());
                };
                let address = SocketAddr::new(ip, endpoint.target_port);
                self.to_workload(&endpoint.workload, address, tried)
            }
        }
    }

    fn to_workload(
        self,
        workload: &Arc<Workload>,
        address: SocketAddr,
        tried: &[Arc<str>],
    ) -> Result<Target, Refused> {
        if workload.via != Via::Direct {
            return self.via(&workload.via, address, tried);
        }
        let way = match workload.protocol {
            Protocol::Hbone => Way::Tunnel(SocketAddr::new(address.ip(), HBONE_PORT)),
            Protocol::Tcp => Way::Plain,
        };
        Ok(Target {
            address,
            workload: Some(Arc::clone(workload)),
            way,
        })
    }

    /// To `address` through what stands in between.
    fn via(self, via: &Via, address: SocketAddr, tried: &[Arc<str>]) -> Result<Target, Refused> {
        let waypoint = match via {
            Via::Waypoint(waypoint) => waypoint,
            Via::NetworkGateway => return Err(Reason::NetworkUnsupported.into()),
            Via::UnusableWaypoint | Via::Direct => {
                return Err(Reason::WaypointUnsupported.into());
            }
        };
        let source = &self.pod.workload_uid;
        let (workload, listener) = waypoint.choose(self.state, source, address.ip(), tried)?;
        Ok(Target {
            address,
            workload: Some(workload),
            way: Way::Waypoint(listener),
        })
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
