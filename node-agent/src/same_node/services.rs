//! Which endpoints of services are on this node, for the programs in the kernel: they choose one at random among all
//! of the best locality, as the agent does where no endpoint is busier than another.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use karst_datapath::LocalEndpoints;

use super::verdicts::LocalPod;
use crate::state::service::{LoadBalancingMode, Service};
use crate::state::workload::Via;
use crate::state::{Address, MeshState};

/// The services that have an endpoint among `pods`.
pub fn with_endpoints(pods: &[LocalPod], state: &MeshState) -> Vec<Arc<Service>> {
    let memberships = pods.iter().flat_map(|pod| pod.workload.services.iter());
    let keys: HashSet<&Arc<str>> = memberships.map(|one| &one.service).collect();
    let mut services: Vec<_> = keys
        .into_iter()
        .filter_map(|key| state.service(key))
        .collect();
    services.sort_by(|a, b| a.spec.key.cmp(&b.spec.key));
    services
}

/// The endpoints here of each address and port of `services`. What the agent has to look at is not in it: waypoints,
/// hosts outside, and addresses that are somebody else's.
pub fn all(
    services: &[Arc<Service>],
    pods: &[LocalPod],
    state: &MeshState,
) -> BTreeMap<SocketAddr, LocalEndpoints> {
    let here: BTreeMap<&str, &LocalPod> = pods
        .iter()
        .filter(|pod| pod.is_reachable())
        .map(|pod| (&*pod.workload.uid, pod))
        .collect();
    let mut all = BTreeMap::new();
    for service in services {
        let spec = &service.spec;
        let balanced = spec.via == Via::Direct
            && spec.outside.is_none()
            && spec.mode != LoadBalancingMode::Passthrough;
        if !balanced {
            continue;
        }
        let own = |vip: &&IpAddr| {
            let found = state.lookup(**vip);
            matches!(found, Some(Address::Service(it)) if it.spec.key == spec.key)
        };
        for vip in spec.vips.iter().filter(own) {
            for (port, endpoints) in &service.ports {
                let mut found = LocalEndpoints {
                    local: Vec::new(),
                    total: 0,
                };
                for (_, endpoint) in endpoints.tiered().take_while(|(tier, _)| *tier == 0) {
                    found.total += 1;
                    let uid = &*endpoint.workload.uid;
                    let pod = here.get(uid);
                    let like = |ip: &&IpAddr| ip.is_ipv4() == vip.is_ipv4();
                    let ip = pod.and_then(|pod| pod.pod.addresses.iter().find(like));
                    if let Some(ip) = ip {
                        found.local.push(SocketAddr::new(*ip, endpoint.target_port));
                    }
                }
                if !found.local.is_empty() {
                    found.local.sort();
                    all.insert(SocketAddr::new(*vip, *port), found);
                }
            }
        }
    }
    all
}
