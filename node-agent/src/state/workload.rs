//! A workload as the data plane sees it: validated once when it arrives, then
//! immutable and shared.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use karst_identity::SpiffeId;
use serde::Serialize;

use super::endpoint::EndpointStats;
use super::waypoint::Waypoint;

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Plain TCP to the workload's own port.
    #[default]
    Tcp,
    /// HBONE to port 15008 of the workload's address.
    Hbone,
}

/// What stands between a client and the workload or service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// Nothing: connect to the workload itself.
    #[default]
    Direct,
    /// A waypoint.
    Waypoint(Waypoint),
    /// A waypoint that is described in a way this agent cannot follow.
    UnusableWaypoint,
    /// A gateway of another network, which this agent cannot use yet.
    NetworkGateway,
}

/// Whether the control plane holds the workload ready for new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready or terminating.
    Unhealthy,
}

/// Where a workload runs, from the widest part to the narrowest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// Network id; empty for the default network.
    pub network: Arc<str>,
    /// Cloud region.
    pub region: Arc<str>,
    /// Zone of the region.
    pub zone: Arc<str>,
    /// Part of the zone.
    pub subzone: Arc<str>,
    /// Node name.
    pub node: Arc<str>,
    /// Cluster id.
    pub cluster: Arc<str>,
}

/// Ports of one service this workload serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceMembership {
    /// `namespace/hostname` of the service.
    pub service: Arc<str>,
    /// (service port, port of the application on this workload).
    pub ports: Vec<(u16, u16)>,
}

/// One workload.
#[derive(Debug, Serialize)]
pub struct Workload {
    /// Number of this revision, unique in the process: a cheap cache key.
    #[serde(skip)]
    pub revision: u64,
    /// Unique id, `<cluster>//Pod/<namespace>/<name>` for pods.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account name; empty when it has none.
    pub service_account: Arc<str>,
    /// Identity to expect in its certificate; `None` for what has no service account.
    #[serde(serialize_with = "display_option")]
    pub identity: Option<SpiffeId>,
    /// Addresses, all of one interface.
    pub addresses: Vec<IpAddr>,
    /// How to reach it.
    pub protocol: Protocol,
    /// What stands in between.
    pub via: Via,
    /// Readiness.
    pub health: Health,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Whether it shares its node's addresses.
    pub host_network: bool,
    /// `app` of metrics: canonical service name.
    pub canonical_name: Arc<str>,
    /// `version` of metrics: canonical service revision.
    pub canonical_revision: Arc<str>,
    /// `deployment`, `pod`, `job` or `cronjob`.
    pub workload_type: &'static str,
    /// Name of the owner, for metrics and baggage.
    pub workload_name: Arc<str>,
    /// Services it belongs to.
    pub services: Arc<[ServiceMembership]>,
    /// Names of selector policies that apply to it (`namespace/name`).
    pub authorization_policies: Vec<Arc<str>>,
    /// Load and failures seen by this agent.
    #[serde(skip)]
    pub stats: Arc<EndpointStats>,
}

fn display_option<S: serde::Serializer>(id: &Option<SpiffeId>, s: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => s.collect_str(id),
        None => s.serialize_none(),
    }
}

/// A number not used before in this process.
pub fn next_revision() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Default for Workload {
    fn default() -> Self {
        let empty: Arc<str> = Arc::from("");
        Self {
            revision: next_revision(),
            uid: Arc::clone(&empty),
            name: Arc::clone(&empty),
            namespace: Arc::clone(&empty),
            service_account: Arc::clone(&empty),
            identity: None,
            addresses: Vec::new(),
            protocol: Protocol::default(),
            via: Via::default(),
            health: Health::default(),
            locality: Arc::default(),
            host_network: false,
            canonical_name: Arc::clone(&empty),
            canonical_revision: Arc::clone(&empty),
            workload_type: "pod",
            workload_name: empty,
            services: Arc::default(),
            authorization_policies: Vec::new(),
            stats: Arc::default(),
        }
    }
}

impl Workload {
    /// The address to dial: of the family the client used when there is one,
    /// else the first.
    pub fn address_like(&self, family_of: IpAddr) -> Option<IpAddr> {
        let same = |a: &&IpAddr| a.is_ipv4() == family_of.is_ipv4();
        self.addresses
            .iter()
            .find(same)
            .or_else(|| self.addresses.first())
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::Workload;

    #[test]
    fn address_prefers_the_family_of_the_client() {
        let v4: IpAddr = "10.0.0.1".parse().expect("address");
        let v6: IpAddr = "fd00::1".parse().expect("address");
        let both = Workload {
            addresses: vec![v4, v6],
            ..Workload::default()
        };
        assert_eq!(both.address_like(v6), Some(v6));
        assert_eq!(both.address_like(v4), Some(v4));
        let only_v6 = Workload {
            addresses: vec![v6],
            ..Workload::default()
        };
        assert_eq!(only_v6.address_like(v4), Some(v6));
        assert_eq!(Workload::default().address_like(v4), None);
    }
}
