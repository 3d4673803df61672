//! A service as the data plane sees it, with the endpoints of each port in the
//! order in which this node prefers them.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::Serialize;

use super::endpoint::{Endpoint, EndpointSet};
use super::outside::Outside;
use super::workload::{Health, Locality, Via, Workload};

/// One step of a routing preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Same network.
    Network,
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
}

/// What to do with endpoints that match only a part of the preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancingMode {
    /// All endpoints alike.
    #[default]
    Any,
    /// Only endpoints that match every scope.
    Strict,
    /// Those that match more scopes first.
    Failover,
    /// Not balanced: connect to the address the application asked for.
    Passthrough,
}

/// Whether endpoints that are not ready get connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthPolicy {
    /// Only ready ones.
    #[default]
    OnlyHealthy,
    /// All (`publishNotReadyAddresses`).
    AllowAll,
}

/// A service as received, without its endpoints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServiceSpec {
    /// `namespace/hostname`.
    pub key: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Host name.
    pub hostname: Arc<str>,
    /// Virtual addresses in this agent's network.
    pub vips: Vec<IpAddr>,
    /// (service port, default target port; 0 when it differs by workload).
    pub ports: Vec<(u16, u16)>,
    /// What stands in between.
    pub via: Via,
    /// Order of preference of endpoints.
    pub routing_preference: Vec<Scope>,
    /// Meaning of the order.
    pub mode: LoadBalancingMode,
    /// Use of endpoints that are not ready.
    pub health_policy: HealthPolicy,
    /// What it has besides, if it is for hosts outside.
    pub outside: Option<Outside>,
}

/// A service with its endpoints: what a connection reads.
#[derive(Debug)]
pub struct Service {
    /// Number of this revision, unique in the process: a cheap cache key.
    pub revision: u64,
    /// The service as received.
    pub spec: ServiceSpec,
    /// Endpoints by service port. A port without endpoints is present and empty.
    pub ports: HashMap<u16, EndpointSet>,
}

impl Service {
    /// Joins a service with its workloads. `local` is this node's locality.
    pub fn assemble(spec: ServiceSpec, members: &[Arc<Workload>], local: &Locality) -> Self {
        let mut ranked: HashMap<u16, Vec<(usize, Endpoint)>> = spec
            .ports
            .iter()
            .map(|(port, _)| (*port, Vec::new()))
            .collect();
        for workload in members {
            let Some(rank) = rank(&spec, workload, local) else {
                continue;
            };
            let Some(membership) = workload.services.iter().find(|m| m.service == spec.key) else {
                continue;
            };
            for (port, target_port) in &membership.ports {
                if let Some(list) = ranked.get_mut(port) {
                    let workload = Arc::clone(workload);
                    list.push((
                        rank,
                        Endpoint {
                            workload,
                            target_port: *target_port,
                        },
                    ));
                }
            }
        }
        let ports = ranked
            .into_iter()
            .map(|(p, list)| (p, EndpointSet::new(list)))
            .collect();
        Self {
            revision: super::workload::next_revision(),
            spec,
            ports,
        }
    }
}

/// How well a workload fits the preference; `None` when it may not be used.
fn rank(spec: &ServiceSpec, workload: &Workload, local: &Locality) -> Option<usize> {
    if workload.health == Health::Unhealthy && spec.health_policy == HealthPolicy::OnlyHealthy {
        return None;
    }
    if workload.addresses.is_empty() {
        return None;
    }
    if matches!(
        spec.mode,
        LoadBalancingMode::Any | LoadBalancingMode::Passthrough
    ) {
        return Some(0);
    }
    let matching = spec
        .routing_preference
        .iter()
        .take_while(|scope| scope_matches(**scope, &workload.locality, local))
        .count();
    let complete = matching == spec.routing_preference.len();
    (spec.mode == LoadBalancingMode::Failover || complete).then_some(matching)
}

fn scope_matches(scope: Scope, theirs: &Locality, ours: &Locality) -> bool {
    match scope {
        Scope::Network => theirs.network == ours.network,
        Scope::Region => theirs.region == ours.region,
        Scope::Zone => theirs.zone == ours.zone,
        Scope::Subzone => theirs.subzone == ours.subzone,
        Scope::Node => theirs.node == ours.node,
        Scope::Cluster => theirs.cluster == ours.cluster,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{HealthPolicy, LoadBalancingMode, Scope, Service, ServiceSpec};
    use crate::state::workload::{Health, Locality, ServiceMembership, Via, Workload};

    fn spec(mode: LoadBalancingMode, routing_preference: Vec<Scope>) -> ServiceSpec {
        ServiceSpec {
            key: Arc::from("ns/svc"),
            name: Arc::from("svc"),
            namespace: Arc::from("ns"),
            hostname: Arc::from("svc"),
            vips: Vec::new(),
            ports: vec![(80, 0)],
            via: Via::Direct,
            routing_preference,
            mode,
            health_policy: HealthPolicy::OnlyHealthy,
            outside: None,
        }
    }

    fn locality(zone: &str, node: &str) -> Locality {
        Locality {
            zone: Arc::from(zone),
            node: Arc::from(node),
            ..Locality::default()
        }
    }

    fn workload(uid: &str, locality: Locality, health: Health) -> Arc<Workload> {
        let membership = ServiceMembership {
            service: Arc::from("ns/svc"),
            ports: vec![(80, 8080)],
        };
        Arc::new(Workload {
            uid: Arc::from(uid),
            addresses: vec![std::net::IpAddr::from([10, 0, 0, 1])],
            locality: Arc::new(locality),
            health,
            services: Arc::from([membership]),
            ..Workload::default()
        })
    }

    fn uids(service: &Service) -> Vec<String> {
        service.ports[&80]
            .iter()
            .map(|e| e.workload.uid.to_string())
            .collect()
    }

    #[test]
    fn strict_keeps_only_full_matches() {
        let members = [
            workload("here", locality("z", "n1"), Health::Healthy),
            workload("there", locality("z", "n2"), Health::Healthy),
        ];
        let spec = spec(LoadBalancingMode::Strict, vec![Scope::Node]);
        let service = Service::assemble(spec, &members, &locality("z", "n1"));
        assert_eq!(uids(&service), ["here"]);
    }

    #[test]
    fn failover_orders_by_matching_prefix() {
        let members = [
            workload("far", locality("y", "n1"), Health::Healthy),
            workload("zone", locality("z", "n2"), Health::Healthy),
            workload("node", locality("z", "n1"), Health::Healthy),
        ];
        let spec = spec(LoadBalancingMode::Failover, vec![Scope::Zone, Scope::Node]);
        let service = Service::assemble(spec, &members, &locality("z", "n1"));
        // "far" matches the node but not the zone, which comes first.
        assert_eq!(uids(&service), ["node", "zone", "far"]);
    }

    #[test]
    fn unhealthy_needs_allow_all() {
        let members = [workload("sick", Locality::default(), Health::Unhealthy)];
        let mut spec = spec(LoadBalancingMode::Any, Vec::new());
        let service = Service::assemble(spec.clone(), &members, &Locality::default());
        assert!(uids(&service).is_empty());
        spec.health_policy = HealthPolicy::AllowAll;
        let service = Service::assemble(spec, &members, &Locality::default());
        assert_eq!(uids(&service), ["sick"]);
    }

    #[test]
    fn a_port_without_endpoints_is_known() {
        let service = Service::assemble(
            spec(LoadBalancingMode::Any, Vec::new()),
            &[],
            &Locality::default(),
        );
        assert!(
            service
                .ports
                .get(&80)
                .is_some_and(super::EndpointSet::is_empty)
        );
        assert!(!service.ports.contains_key(&81));
    }
}
