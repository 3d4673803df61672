//! A backend's endpoints in numbers, for listings.

use std::sync::Arc;

use hashbrown::HashSet;
use serde::Serialize;

use super::cluster::Cluster;
use super::endpoint::{Endpoint, Via};

/// One endpoint, as the balancer sees it now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointStatus {
    /// `UID:PORT`.
    pub key: String,
    /// Uid of the workload.
    pub workload: String,
    /// Its address.
    pub address: std::net::IpAddr,
    /// Port of the application; 0 where each request names one.
    pub port: u16,
    /// Whom it must prove to be; `None` where it is reached in plain text.
    pub identity: Option<String>,
    /// Node it runs on; empty if unknown.
    pub node: String,
    /// Zone it is in; empty if unknown.
    pub zone: String,
    /// It is about to end and gets nothing new.
    pub draining: bool,
    /// It is among those that are chosen from.
    pub active: bool,
    /// Share of what a warm endpoint gets, 0 to 1: less than 1 while it is new and the backend has a slow start.
    pub weight: f64,
    /// Latency it is taken to have, milliseconds; `None` before the first answer that counts.
    pub latency_ms: Option<f64>,
    /// Requests under way.
    pub in_flight: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Left out because of failures. It is `active` all the same when too many others are.
    pub ejected: bool,
    /// How long still, milliseconds; 0 when it is not.
    pub ejected_for_ms: u64,
}

impl Cluster {
    /// Its endpoints, in their order.
    #[must_use]
    pub fn endpoint_statuses(&self) -> Vec<EndpointStatus> {
        let (view, now) = (self.view(), self.now_millis());
        let active: HashSet<u64> = view.active.iter().map(|e| e.serial()).collect();
        let slow_start = view.settings.balancing.slow_start;
        let status = |endpoint: &Arc<Endpoint>| {
            let state = endpoint.state();
            let identity = match endpoint.via() {
                Via::Plain => None,
                Via::Hbone { identity, .. } => Some(identity.as_str().to_owned()),
            };
            EndpointStatus {
                key: endpoint.key().to_string(),
                workload: endpoint.uid().to_string(),
                address: endpoint.address(),
                port: endpoint.port(),
                identity,
                node: endpoint.node().to_owned(),
                zone: endpoint.zone().to_owned(),
                draining: endpoint.is_draining(),
                active: active.contains(&endpoint.serial()),
                weight: slow_start.map_or(1.0, |time| state.share(time, now)),
                latency_ms: state.latency.estimate_ms(now),
                in_flight: endpoint.in_flight(),
                failures: state.health.failures(),
                ejected: state.health.is_ejected(now),
                ejected_for_ms: state.health.ejected_until().saturating_sub(now),
            }
        };
        view.members.all.iter().map(status).collect()
    }
}
