//! An enrolled pod, as all workers share it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;

use crate::egress::Egress;
use crate::waypoints::Waypoints;

/// Most live connections of one pod, both directions together. A pod beyond it
/// gets refusals; its neighbours keep their share of file descriptors.
pub const MAX_CONNECTIONS: usize = 16_384;

/// Captured outbound connections arrive here, in the pod's namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Plaintext inbound connections are steered here.
pub const PLAINTEXT_PORT: u16 = 15006;
/// Tunnels from other agents.
pub const HBONE_PORT: u16 = karst_tunnel::settings::HBONE_PORT;

/// Whether the port is one of ours inside a pod.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | PLAINTEXT_PORT | HBONE_PORT)
}

/// An enrolled pod.
#[derive(Debug)]
pub struct Pod {
    /// Kubernetes uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Uid of its workload in the mesh state.
    pub workload_uid: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: Netns,
    /// What connections to it must satisfy when it begins to be served; see
    /// [`LocalPod::require`](crate::worker::LocalPod::require).
    pub waypoints: Arc<Waypoints>,
    /// Where it may connect to when it begins to be served, likewise.
    pub egress: Egress,
    connections: AtomicUsize,
}

/// What [`Pod::new`] needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Kubernetes uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Uid of its workload in the mesh state.
    pub workload_uid: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// What connections to it must satisfy.
    pub waypoints: Arc<Waypoints>,
    /// Where it may connect to.
    pub egress: Egress,
}

impl Pod {
    /// A pod without connections.
    pub fn new(spec: PodSpec, netns: Netns) -> Self {
        Self {
            uid: spec.uid,
            namespace: spec.namespace,
            name: spec.name,
            workload_uid: spec.workload_uid,
            identity: spec.identity,
            addresses: spec.addresses,
            netns,
            waypoints: spec.waypoints,
            egress: spec.egress,
            connections: AtomicUsize::new(0),
        }
    }

    /// Live connections, both directions.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The address other pods know the application by, for a connection it made
    /// towards `destination`: a captured one comes to us from the loopback.
    pub fn client_address(&self, accepted_from: SocketAddr, destination: IpAddr) -> SocketAddr {
        let from = accepted_from.ip().to_canonical();
        if self.addresses.contains(&from) {
            return SocketAddr::new(from, accepted_from.port());
        }
        let same = |a: &&IpAddr| a.is_ipv4() == destination.is_ipv4();
        let own = self
            .addresses
            .iter()
            .find(same)
            .or_else(|| self.addresses.first());
        SocketAddr::new(own.copied().unwrap_or(from), accepted_from.port())
    }
}

/// A place among the pod's connections, given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Pod>);

impl Permit {
    /// A place, unless the pod is at its limit.
    pub fn acquire(pod: &Arc<Pod>) -> Option<Self> {
        let before = pod.connections.fetch_add(1, Ordering::Relaxed);
        // The permit is made first so that its drop undoes the count.
        let permit = Self(Arc::clone(pod));
        (before < MAX_CONNECTIONS).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use karst_datapath::netns::Netns;
    use karst_identity::SpiffeId;

    use super::{MAX_CONNECTIONS, Permit, Pod, PodSpec};

    fn pod() -> Arc<Pod> {
        let spec = PodSpec {
            uid: Arc::from("u"),
            namespace: Arc::from("ns"),
            name: Arc::from("p"),
            workload_uid: Arc::from("w"),
            identity: SpiffeId::new("cluster.local", "ns", "sa").expect("id"),
            addresses: vec![
                "10.0.0.1".parse().expect("ip"),
                "fd00::1".parse().expect("ip"),
            ],
            waypoints: Arc::default(),
            egress: crate::egress::Egress::default(),
        };
        Arc::new(Pod::new(
            spec,
            Netns::open(Path::new("/proc/self/ns/net")).expect("netns"),
        ))
    }

    #[test]
    fn permits_are_limited_and_given_back() {
        let pod = pod();
        let held: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| Permit::acquire(&pod))
            .collect();
        assert!(held.iter().all(Option::is_some));
        assert!(Permit::acquire(&pod).is_none());
        assert_eq!(pod.connections(), MAX_CONNECTIONS);
        drop(held);
        assert_eq!(pod.connections(), 0);
        assert!(Permit::acquire(&pod).is_some());
    }

    #[test]
    fn client_is_shown_by_its_pod_address() {
        let pod = pod();
        let client = |from: &str, to: &str| {
            pod.client_address(from.parse().expect("addr"), to.parse().expect("ip"))
                .to_string()
        };
        assert_eq!(client("127.0.0.1:5", "10.0.0.9"), "10.0.0.1:5");
        assert_eq!(client("[::1]:5", "fd00::9"), "[fd00::1]:5");
        assert_eq!(client("10.0.0.1:5", "10.0.0.9"), "10.0.0.1:5");
    }
}
