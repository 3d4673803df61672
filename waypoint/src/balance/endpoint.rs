//! One endpoint of a backend: where it is, and what is known of how it does.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::uri::Authority;
use karst_api::waypoint::{self as wire, Health as WireHealth, Tunnel};
use karst_api::{FieldError, convert};
use karst_identity::SpiffeId;

use super::latency::Latency;
use super::limits::Gauge;
use super::outlier::Health;
use crate::workload::WorkloadLabels;

/// Share that a new endpoint starts with, so that it gets anything at all.
const FIRST_SHARE: f64 = 0.05;

/// Where requests may go.
#[derive(Debug)]
pub struct Endpoint {
    serial: u64,
    key: Arc<str>,
    uid: Arc<str>,
    address: IpAddr,
    port: u16,
    via: Via,
    zone: String,
    node: String,
    workload: Option<Arc<WorkloadLabels>>,
    health: WireHealth,
    state: Arc<State>,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// Plain TCP.
    Plain,
    /// Through the tunnel.
    Hbone {
        /// Whom the other end must prove to be.
        identity: SpiffeId,
        /// `:authority` of the CONNECT where it is not `address:port`.
        authority: Option<Authority>,
    },
}

/// What is known of an endpoint. It stays while an endpoint of the same key does.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) in_flight: Gauge,
    pub(super) latency: Latency,
    pub(super) health: Health,
    /// When its share begins to grow, milliseconds of the cluster's clock. `None`: it has it all.
    pub(super) born: Option<u64>,
}

impl State {
    pub(super) fn new(born: Option<u64>) -> Self {
        Self {
            born,
            ..Self::default()
        }
    }

    /// Its share of what a warm endpoint gets, 0 to 1.
    pub(super) fn share(&self, slow_start: Duration, now_millis: u64) -> f64 {
        let Some(born) = self.born else {
            return 1.0;
        };
        let age = Duration::from_millis(now_millis.saturating_sub(born));
        (age.as_secs_f64() / slow_start.as_secs_f64()).clamp(FIRST_SHARE, 1.0)
    }
}

/// What the wire says of an endpoint, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Description {
    key: Arc<str>,
    uid: Arc<str>,
    address: IpAddr,
    port: u16,
    via: Via,
    zone: String,
    node: String,
    workload: Option<Arc<WorkloadLabels>>,
    health: WireHealth,
}

/// Whether an endpoint has a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortOf {
    /// It has.
    Endpoint,
    /// Each request names one.
    Request,
}

impl Description {
    /// `workload` is what the endpoint is a part of.
    pub(super) fn from_wire(
        wire: &wire::Endpoint,
        port_of: PortOf,
        workload: Option<Arc<WorkloadLabels>>,
    ) -> Result<Self, FieldError> {
        if wire.uid.is_empty() {
            return Err(FieldError::new("endpoints.uid", "is empty"));
        }
        let port = match port_of {
            PortOf::Request if wire.port == 0 => 0,
            _ => convert::port("endpoints.port", wire.port)?,
        };
        let health = WireHealth::try_from(wire.health).map_err(|_| {
            FieldError::new("endpoints.health", format!("{} is unknown", wire.health))
        })?;
        let zone = wire.locality.as_ref().map(|locality| locality.zone.clone());
        Ok(Self {
            key: format!("{}:{}", wire.uid, port).into(),
            uid: wire.uid.as_str().into(),
            address: convert::ip_address("endpoints.address", &wire.address)?,
            port,
            via: via(wire)?,
            zone: zone.unwrap_or_default(),
            node: wire.node.clone(),
            workload,
            health,
        })
    }

    pub(super) fn key(&self) -> &Arc<str> {
        &self.key
    }

    fn describes(&self, endpoint: &Endpoint) -> bool {
        self.address == endpoint.address
            && self.via == endpoint.via
            && self.zone == endpoint.zone
            && self.node == endpoint.node
            && self.workload == endpoint.workload
            && self.health == endpoint.health
    }
}

fn via(wire: &wire::Endpoint) -> Result<Via, FieldError> {
    let tunnel = Tunnel::try_from(wire.tunnel)
        .map_err(|_| FieldError::new("endpoints.tunnel", format!("{} is unknown", wire.tunnel)))?;
    match tunnel {
        Tunnel::None => Ok(Via::Plain),
        Tunnel::Hbone => {
            let identity = SpiffeId::parse(&wire.identity)
                .map_err(|error| FieldError::new("endpoints.identity", error.to_string()))?;
            let authority = if wire.authority.is_empty() {
                None
            } else {
                let authority = wire.authority.parse().map_err(|_| {
                    let problem = format!("{:?} is no host and port", wire.authority);
                    FieldError::new("endpoints.authority", problem)
                })?;
                Some(authority)
            };
            Ok(Via::Hbone {
                identity,
                authority,
            })
        }
    }
}

impl Endpoint {
    /// The endpoint that a description is of: the `former` one if nothing of it changed, else a new one
    /// with the former one's state.
    pub(super) fn of(
        description: Description,
        former: Option<&Arc<Self>>,
        born: Option<u64>,
    ) -> Arc<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        if let Some(former) = former
            && description.describes(former)
        {
            return Arc::clone(former);
        }
        let state = match former {
            Some(former) => Arc::clone(&former.state),
            None => Arc::new(State::new(born)),
        };
        Arc::new(Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            key: description.key,
            uid: description.uid,
            address: description.address,
            port: description.port,
            via: description.via,
            zone: description.zone,
            node: description.node,
            workload: description.workload,
            health: description.health,
            state,
        })
    }

    /// Unique in this process; another one whenever something of the endpoint changes. What is kept for an
    /// endpoint, such as its connections, is kept by it.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// `UID:PORT`: what makes it the same endpoint after an update.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Uid of the workload.
    #[must_use]
    pub fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// Address of the workload.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Port of the application; 0 where each request names one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How it is reached.
    #[must_use]
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// Zone it is in; empty if unknown.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Node it runs on; empty if unknown.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What it is a part of, as far as that is known.
    #[must_use]
    pub fn workload(&self) -> Option<&Arc<WorkloadLabels>> {
        self.workload.as_ref()
    }

    /// Whether it is about to end.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.health == WireHealth::Draining
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.state.in_flight.get()
    }

    pub(super) fn state(&self) -> &Arc<State> {
        &self.state
    }
}
