//! Where an outbound connection goes: from the address the application asked
//! for to the address and protocol to dial, past no waypoint that stands in between.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::connection::Refused;
use crate::egress::Egress;
use crate::pod::{HBONE_PORT, is_own_port};
use crate::reason::Reason;
use crate::state::endpoint::{EndpointSet, now_ms};
use crate::state::service::{LoadBalancingMode, Service};
use crate::state::workload::{Protocol, Via, Workload};
use crate::state::{Address, MeshState};

/// Endpoints of a ServiceEntry that are passed over for one try, because they cannot be connected
/// to at all. Choosing one takes a walk over all of them.
const MAX_SKIPPED_ENDPOINTS: usize = 16;

/// What an address stands for.
#[derive(Clone, Debug)]
pub enum Destination {
    /// One workload, by its own address.
    Workload(Arc<Workload>),
    /// Some endpoint of a service port.
    Service(Arc<Service>),
    /// A host that a service stands for; connected to at the address that was asked for.
    Outside(Arc<Service>),
    /// Nothing the mesh knows.
    External,
}

impl Destination {
    /// Whether it is one of the cluster's own, which every pod may connect to.
    pub fn is_inside(&self) -> bool {
        match self {
            Self::Workload(_) => true,
            Self::Service(service) => service.spec.outside.is_none(),
            Self::Outside(_) | Self::External => false,
        }
    }
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
    /// Uid of the pod's workload.
    pub workload_uid: &'a str,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Addresses of the pod.
    pub addresses: &'a [IpAddr],
    /// Where it may connect to.
    pub egress: Egress,
}

impl Source<'_> {
    /// Finds what `original` stands for; refuses what the pod may not connect to. What the cluster
    /// has itself comes first, then what a ServiceEntry has made known.
    pub fn destination(&self, original: SocketAddr) -> Result<Destination, Refused> {
        let ip = original.ip().to_canonical();
        let own = ip.is_loopback() || self.addresses.contains(&ip);
        if own && is_own_port(original.port()) {
            return Err(Reason::SelfCall.into());
        }
        match self.state.lookup(ip) {
            Some(Address::Workload(workload)) => Ok(Destination::Workload(workload)),
            Some(Address::Service(service)) => Ok(of_service(service)),
            None => self.not_inside(SocketAddr::new(ip, original.port()), own),
        }
    }

    fn not_inside(&self, original: SocketAddr, own: bool) -> Result<Destination, Refused> {
        let ip = original.ip();
        // A node's address is the cluster's own: no entry takes it away.
        if self.state.is_node_address(ip) {
            return Ok(Destination::External);
        }
        let namespace = self.namespace;
        if let Some(service) = self.state.outside(ip, original.port(), namespace) {
            return Ok(of_service(service));
        }
        if self.egress == Egress::RegistryOnly && !own {
            let error =
                format!("{original} is no workload, Service or ServiceEntry for {namespace}");
            return Err(Refused::because(Reason::EgressDenied, error));
        }
        Ok(Destination::External)
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
            Destination::External | Destination::Outside(_) => Ok(Target {
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
                if service.spec.outside.is_some() {
                    return self.to_service_outside(endpoints, original, tried);
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

    /// To one of the endpoints that a ServiceEntry has. One that cannot be connected to does not
    /// stand in the way of the others; nor does one behind which there is a workload in `tried`,
    /// which is there under its own name.
    fn to_service_outside(
        self,
        endpoints: &EndpointSet,
        original: SocketAddr,
        tried: &[Arc<str>],
    ) -> Result<Target, Refused> {
        let mut skipped = tried.to_vec();
        let mut last = Refused::from(Reason::NoHealthyUpstream);
        for _ in 0..MAX_SKIPPED_ENDPOINTS {
            let Some(endpoint) = endpoints.choose(&skipped, now_ms()) else {
                break;
            };
            skipped.push(Arc::clone(&endpoint.workload.uid));
            let Some(ip) = endpoint.workload.address_like(original.ip()) else {
                continue;
            };
            let address = SocketAddr::new(ip, endpoint.target_port);
            let is_tried = |target: &Target| {
                let workload = target.workload.as_ref();
                workload.is_some_and(|workload| tried.contains(&workload.uid))
            };
            match self.to_endpoint_outside(&endpoint.workload, address, tried) {
                Ok(target) if is_tried(&target) => {}
                Ok(target) => return Ok(target),
                Err(refused) => last = refused,
            }
        }
        Err(last)
    }

    /// To an endpoint that a ServiceEntry has. One that is of the cluster after all is connected to
    /// as the mesh would anyway: an entry is no way past it.
    fn to_endpoint_outside(
        self,
        endpoint: &Arc<Workload>,
        address: SocketAddr,
        tried: &[Arc<str>],
    ) -> Result<Target, Refused> {
        let ip = address.ip().to_canonical();
        let own = ip.is_loopback() || self.addresses.contains(&ip);
        if own && is_own_port(address.port()) {
            return Err(Reason::SelfCall.into());
        }
        match self.state.lookup(ip) {
            None => self.to_workload(endpoint, address, tried),
            Some(Address::Workload(workload)) => self.to_workload(&workload, address, tried),
            Some(Address::Service(service)) => {
                let error = format!("the endpoint {ip} is the address of {}", service.spec.key);
                Err(Refused::because(Reason::NoHealthyUpstream, error))
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
        let source = self.workload_uid;
        let (workload, listener) = waypoint.choose(self.state, source, address.ip(), tried)?;
        Ok(Target {
            address,
            workload: Some(workload),
            way: Way::Waypoint(listener),
        })
    }
}

/// A service, or what it passes on to without a choice.
fn of_service(service: Arc<Service>) -> Destination {
    match &service.spec.via {
        Via::Direct if service.spec.mode == LoadBalancingMode::Passthrough => {
            Destination::Outside(service)
        }
        _ => Destination::Service(service),
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
