//! Where a waypoint is, and which of its pods takes a connection.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::endpoint::now_ms;
use super::service::Service;
use super::workload::{Protocol, Via, Workload};
use super::{Address, MeshState};
use crate::reason::Reason;

/// A waypoint as the control plane names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waypoint {
    /// Where it is.
    pub place: Place,
    /// Its HBONE port: of the service, or of the workload at the address.
    pub port: u16,
}

/// Where a waypoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The service of this key, `namespace/hostname`.
    Service(Arc<str>),
    /// What has this address.
    Address(IpAddr),
}

impl Waypoint {
    /// A pod of the waypoint and its tunnel listener, leaving out workloads in `tried` (uids).
    /// Its address is of the family of `family_of` if it has one. `source` is the uid of the
    /// workload that connects.
    ///
    /// What the waypoint's own service or pods have in front of them does not count: a
    /// waypoint is reached directly.
    ///
    /// # Errors
    /// The reason to refuse the connection. There is no other way past a waypoint.
    pub fn choose(
        &self,
        state: &MeshState,
        source: &str,
        family_of: IpAddr,
        tried: &[Arc<str>],
    ) -> Result<(Arc<Workload>, SocketAddr), Reason> {
        let address = match &self.place {
            Place::Service(key) => state.service(key).map(Address::Service),
            Place::Address(ip) => state.lookup(*ip),
        };
        match address.ok_or(Reason::WaypointUnknown)? {
            Address::Service(service) => self.of_service(&service, source, family_of, tried),
            Address::Workload(workload) => {
                let ip = match self.place {
                    Place::Address(ip) => Some(ip),
                    Place::Service(_) => workload.address_like(family_of),
                };
                not_the_source(&workload, source)?;
                usable(&workload, ip, self.port)
            }
        }
    }

    fn of_service(
        &self,
        service: &Service,
        source: &str,
        family_of: IpAddr,
        tried: &[Arc<str>],
    ) -> Result<(Arc<Workload>, SocketAddr), Reason> {
        let endpoints = service
            .ports
            .get(&self.port)
            .ok_or(Reason::WaypointUnknown)?;
        for endpoint in endpoints.iter() {
            not_the_source(&endpoint.workload, source)?;
        }
        let mut left_out = Cow::Borrowed(tried);
        let mut refused = Reason::WaypointNoEndpoints;
        while let Some(endpoint) = endpoints.choose(&left_out, now_ms()) {
            let workload = &endpoint.workload;
            let ip = workload.address_like(family_of);
            match usable(workload, ip, endpoint.target_port) {
                Ok(found) => return Ok(found),
                Err(reason) => refused = reason,
            }
            left_out.to_mut().push(Arc::clone(&workload.uid));
        }
        Err(refused)
    }
}

/// A waypoint whose own connections were sent to it would ask itself for ever.
fn not_the_source(workload: &Workload, source: &str) -> Result<(), Reason> {
    if *workload.uid == *source {
        return Err(Reason::WaypointLoop);
    }
    Ok(())
}

fn usable(
    workload: &Arc<Workload>,
    ip: Option<IpAddr>,
    port: u16,
) -> Result<(Arc<Workload>, SocketAddr), Reason> {
    if workload.via == Via::NetworkGateway {
        return Err(Reason::NetworkUnsupported);
    }
    if workload.protocol != Protocol::Hbone {
        return Err(Reason::WaypointNotHbone);
    }
    let ip = ip.ok_or(Reason::WaypointNoEndpoints)?;
    Ok((Arc::clone(workload), SocketAddr::new(ip, port)))
}
