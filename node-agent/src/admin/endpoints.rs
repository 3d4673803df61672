//! The endpoints of services, in the order in which this node prefers them.
//!
//! The agent carries connections, not requests: it weighs by live connections and leaves out what it could not
//! connect to. A weight or a latency it does not have; those are a waypoint's.

use karst_process::http_server::Reply;
use serde_json::{Value, json};

use crate::state::MeshState;
use crate::state::endpoint::{Endpoint, now_ms};
use crate::state::service::Service;

/// The page: one item for each endpoint of each port.
pub(super) fn page(state: &MeshState) -> Reply {
    let mut services = state.all_services();
    services.sort_by(|a, b| a.spec.key.cmp(&b.spec.key));
    let now = now_ms();
    let items = services.iter().flat_map(|service| of(service, now));
    super::list(items.collect::<Vec<_>>())
}

fn of(service: &Service, now: u64) -> Vec<Value> {
    let mut ports: Vec<_> = service.ports.iter().collect();
    ports.sort_by_key(|(port, _)| **port);
    let mut items = Vec::new();
    for (port, set) in ports {
        let one = |(tier, endpoint)| view(service, *port, tier, endpoint, now);
        items.extend(set.tiered().map(one));
    }
    items
}

fn view(service: &Service, port: u16, tier: usize, endpoint: &Endpoint, now: u64) -> Value {
    let workload = &endpoint.workload;
    let stats = &workload.stats;
    json!({
        "service": &*service.spec.hostname,
        "namespace": &*service.spec.namespace,
        "port": port,
        "workload": &*workload.uid,
        "addresses": workload.addresses,
        "target_port": endpoint.target_port,
        "identity": workload.identity.as_ref().map(karst_identity::SpiffeId::as_str),
        "protocol": workload.protocol,
        "health": workload.health,
        "node": &*workload.locality.node,
        "zone": &*workload.locality.zone,
        "tier": tier,
        "connections": stats.live(),
        "failures": stats.failures(),
        "ejected": stats.is_ejected(now),
        "ejected_for_ms": stats.ejected_for_ms(now),
    })
}
