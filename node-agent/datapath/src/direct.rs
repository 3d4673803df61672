//! What lets connections between two pods of the node go past the agent: verdicts made in advance, services with their
//! endpoints here, and the connections that live.
//!
//! Everything here is an addition: without an entry a connection goes to the agent.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use karst_bpf_common::Endpoint;
use karst_bpf_common::layout::{EndpointKey, Flow, ServiceEndpoints, VerdictKey};

use crate::error::DatapathError;
use crate::map::Map;
use crate::node::Datapath;
use crate::sys;

/// Endpoints of one address and port of a service, as far as they are on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// Those on this node.
    pub local: Vec<SocketAddr>,
    /// How many there are, those elsewhere included.
    pub total: u32,
}

impl Datapath {
    /// The programs' clock, nanoseconds.
    pub fn now_ns(&self) -> u64 {
        sys::clock(libc::CLOCK_MONOTONIC)
    }

    /// Lets verdicts hold for so long from now on; zero ends that at once, and all new connections go to the agent.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn confirm_verdicts(&self, hold: Duration) -> Result<(), DatapathError> {
        let until = match hold.is_zero() {
            true => 0,
            false => sys::clock(libc::CLOCK_MONOTONIC)
                .saturating_add(hold.as_nanos().try_into().unwrap_or(u64::MAX)),
        };
        self.maps.verdicts_until.set(&0, &until)
    }

    /// Notes a verdict, `VERDICT_ALLOW` or `VERDICT_ASK`. Whether there was room for it.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_verdict(&self, key: &VerdictKey, verdict: u32) -> Result<bool, DatapathError> {
        put(&self.maps.verdicts, key, &verdict)
    }

    /// Takes a verdict back; from its return on no connection is authorised by it, and every one that was is among
    /// [`Datapath::flows`] until it closes. So who reads these then, and the sockets of the pod after that
    /// ([`crate::sock_diag::tcp_sockets`]), finds all that are to be ended.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn remove_verdict(&self, key: &VerdictKey) -> Result<(), DatapathError> {
        self.maps.verdicts.remove(key).map(drop)
    }

    /// All verdicts.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn verdicts(&self) -> Result<Vec<(VerdictKey, u32)>, DatapathError> {
        self.maps.verdicts.entries()
    }

    /// Notes the endpoints that an address and port of a service has here, under `set`, a number that was never used
    /// before. Whether there was room for all; if not, nothing is noted and what was before is gone.
    ///
    /// A program that has read the former set finds its endpoints or none: never those of another service.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn set_service(
        &self,
        address: SocketAddr,
        set: u64,
        endpoints: &LocalEndpoints,
    ) -> Result<bool, DatapathError> {
        let key = Endpoint::from(address);
        let local = u32::try_from(endpoints.local.len()).unwrap_or(u32::MAX);
        let value = ServiceEndpoints {
            set,
            local,
            total: endpoints.total.max(local),
        };
        let mut fits = true;
        for (slot, endpoint) in (0..local).zip(&endpoints.local) {
            fits &= put(
                &self.maps.endpoints,
                &slot_of(set, slot),
                &Endpoint::from(*endpoint),
            )?;
        }
        let former = self.maps.services.get(&key)?;
        if !(fits && put(&self.maps.services, &key, &value)?) {
            self.maps.services.remove(&key)?;
            self.forget_endpoints(&value)?;
            fits = false;
        }
        if let Some(former) = former {
            self.forget_endpoints(&former)?;
        }
        Ok(fits)
    }

    /// Forgets an address and port of a service.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn remove_service(&self, address: SocketAddr) -> Result<(), DatapathError> {
        let key = Endpoint::from(address);
        let Some(former) = self.maps.services.get(&key)? else {
            return Ok(());
        };
        self.maps.services.remove(&key)?;
        self.forget_endpoints(&former)
    }

    /// Forgets all services, and endpoints of sets that no service has.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn clear_services(&self) -> Result<(), DatapathError> {
        for (key, _) in self.maps.services.entries()? {
            self.maps.services.remove(&key)?;
        }
        for (key, _) in self.maps.endpoints.entries()? {
            self.maps.endpoints.remove(&key)?;
        }
        Ok(())
    }

    fn forget_endpoints(&self, of: &ServiceEndpoints) -> Result<(), DatapathError> {
        for slot in 0..of.local {
            self.maps.endpoints.remove(&slot_of(of.set, slot))?;
        }
        Ok(())
    }

    /// The live connections that went past the agent, by the cookies of their connecting sockets.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn flows(&self) -> Result<Vec<(u64, Flow)>, DatapathError> {
        self.maps.flows.entries()
    }

    /// Forgets a connection whose socket is gone without having said so.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn forget_flow(&self, socket: u64) -> Result<(), DatapathError> {
        self.maps.flows.remove(&socket).map(drop)
    }

    /// Says how many connections there are, after some were forgotten: what the programs count goes on from there.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn recount_flows(&self) -> Result<(), DatapathError> {
        let now = self.maps.flows.raw().count()?.unwrap_or_default();
        self.maps.flow_count.set(&0, &u64::from(now))
    }
}

#[doc(hidden)]
impl Datapath {
    /// Makes the programs believe in so many connections, for tests of what they do when there are too many.
    pub fn pretend_flows(&self, count: u64) -> Result<(), DatapathError> {
        self.maps.flow_count.set(&0, &count)
    }
}

fn slot_of(set: u64, slot: u32) -> EndpointKey {
    EndpointKey {
        set,
        slot,
        padding: 0,
    }
}

/// Whether there was room.
fn put<K: aya::Pod, V: aya::Pod>(
    map: &Map<K, V>,
    key: &K,
    value: &V,
) -> Result<bool, DatapathError> {
    match map.try_set(key, value) {
        Ok(()) => Ok(true),
        // The kernel says E2BIG when a hash is full, ENOMEM when it has no memory.
        Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM)) => Ok(false),
        Err(error) => Err(io_failed(map, error)),
    }
}

fn io_failed<K: aya::Pod, V: aya::Pod>(map: &Map<K, V>, error: io::Error) -> DatapathError {
    map.raw().spec.failed("write")(error)
}
