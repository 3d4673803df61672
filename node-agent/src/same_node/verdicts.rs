//! What the policies say of every pair of pods of this node, made in advance for the programs in the kernel.
//!
//! A decision depends on the two pods and on the port alone. Of the ports only those that a policy or a waypoint's
//! requirement names can differ from the others, so that a pair has one entry for all ports, and one more for each
//! port that differs. What is here is what [`Effective::decide`] says: nothing is decided twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use karst_bpf_common::Ip;
use karst_bpf_common::layout::{ANY_PORT, NetnsCookie, VERDICT_ALLOW, VERDICT_ASK, VerdictKey};
use karst_bpf_common::policy::{Attributes, Identity};

use crate::pod::{Pod, is_own_port};
use crate::proxy::connection::Refused;
use crate::state::policy::Effective;
use crate::state::workload::Workload;
use crate::waypoints::Waypoints;

/// Ports that policies and waypoints of one pod may name for the pod to be reached past the agent: each costs an entry
/// with every other pod of the node. Whoever names more has the agent decide.
const MAX_PORTS: usize = 64;

/// An enrolled pod of this node, and what is known of it.
#[derive(Clone, Debug)]
pub struct LocalPod {
    /// Cookie of its network namespace.
    pub cookie: NetnsCookie,
    /// Whether handshakes that go to it past the agent are checked.
    pub guarded: bool,
    /// Whether nothing about it asks for the agent: no waypoint, no doubt about who it is.
    pub plain: bool,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its workload.
    pub workload: Arc<Workload>,
    /// What connections to it must satisfy.
    pub waypoints: Arc<Waypoints>,
    /// The policies that apply to it.
    pub policies: Arc<Effective>,
}

impl LocalPod {
    /// Whether it may be reached past the agent, by those whom policies allow it.
    pub fn is_reachable(&self) -> bool {
        self.guarded && self.plain
    }

    /// Whether it is the same as `other` in all that verdicts depend on.
    pub fn is(&self, other: &Self) -> bool {
        (self.guarded, self.plain) == (other.guarded, other.plain)
            && Arc::ptr_eq(&self.pod, &other.pod)
            && self.workload.revision == other.workload.revision
            && self.waypoints == other.waypoints
            && Arc::ptr_eq(&self.policies, &other.policies)
    }
}

/// What becomes of a connection between two pods of the node.
#[derive(Debug)]
pub enum Decision {
    /// It may go past the agent.
    Past,
    /// The agent has to look at it: something is not known, or a policy on trial would refuse it.
    Agent,
    /// A policy that applies has not come; so far nothing says that it may not.
    Incomplete,
    /// It is refused.
    Refused(Box<Refused>),
}

impl Decision {
    fn is_past(&self) -> bool {
        matches!(self, Self::Past)
    }
}

/// Decides about connections from an address of `source` to one of `destination`.
pub fn decide(
    source: &LocalPod,
    destination: &LocalPod,
    (from, to): (IpAddr, IpAddr),
    port: u16,
) -> Decision {
    let refused = |refused: Refused| Decision::Refused(Box::new(refused));
    if is_own_port(port) {
        return Decision::Agent;
    }
    let id = &source.pod.identity;
    if let Err(reason) = destination.waypoints.check(port, Some(id)) {
        return refused(reason.into());
    }
    if destination.policies.is_incomplete() {
        return Decision::Incomplete;
    }
    let connection = Attributes {
        source: Some(Identity {
            principal: id.principal(),
            namespace: id.namespace(),
            service_account: id.service_account(),
        }),
        source_ip: Ip::from(from),
        destination_ip: Ip::from(to),
        destination_port: port,
    };
    if let Err(denial) = destination.policies.decide(&connection) {
        return refused(denial.into());
    }
    match destination.policies.would_deny(&connection) {
        // The agent says of each connection what would have refused it.
        Some(_) => Decision::Agent,
        None => Decision::Past,
    }
}

/// The verdicts of all pairs.
pub fn all(pods: &[LocalPod]) -> BTreeMap<VerdictKey, u32> {
    let mut verdicts = BTreeMap::new();
    for destination in pods.iter().filter(|pod| pod.is_reachable()) {
        let Some(ports) = named_ports(destination) else {
            continue;
        };
        let others = pods.iter().filter(|pod| pod.cookie != destination.cookie);
        for source in others.filter(|pod| pod.plain) {
            pair(source, destination, &ports, &mut verdicts);
        }
    }
    verdicts
}

fn pair(
    source: &LocalPod,
    destination: &LocalPod,
    ports: &BTreeSet<u16>,
    verdicts: &mut BTreeMap<VerdictKey, u32>,
) {
    let key = |port: u16| VerdictKey {
        source: source.cookie,
        destination: destination.cookie,
        port: port.into(),
        padding: 0,
    };
    let past = |port| may_pass(source, destination, port);
    let others = past(port_beside(ports));
    if others {
        let any = VerdictKey {
            port: ANY_PORT,
            ..key(0)
        };
        verdicts.insert(any, VERDICT_ALLOW);
    }
    for &port in ports {
        match (past(port), others) {
            (true, false) => verdicts.insert(key(port), VERDICT_ALLOW),
            (false, true) => verdicts.insert(key(port), VERDICT_ASK),
            _ => None,
        };
    }
}

/// Whether connections of every family that both pods have may pass.
fn may_pass(source: &LocalPod, destination: &LocalPod, port: u16) -> bool {
    let mut families = 0;
    for to in &destination.pod.addresses {
        let from = source.pod.addresses.iter();
        for from in from.filter(|from| from.is_ipv4() == to.is_ipv4()) {
            families += 1;
            if !decide(source, destination, (*from, *to), port).is_past() {
                return false;
            }
        }
    }
    families > 0
}

/// The ports about which something is said that does not hold for all; `None` if there are too many.
fn named_ports(pod: &LocalPod) -> Option<BTreeSet<u16>> {
    let required = pod.waypoints.0.iter().flat_map(|one| &one.ports);
    let mut ports: BTreeSet<u16> = required.copied().collect();
    ports.extend(pod.policies.named_ports());
    ports.remove(&0);
    (ports.len() <= MAX_PORTS).then_some(ports)
}

/// A port that stands for all that are not named.
fn port_beside(ports: &BTreeSet<u16>) -> u16 {
    let free = |port: &u16| !ports.contains(port) && !is_own_port(*port);
    // There is one: far fewer are named than there are.
    (1..=u16::MAX).find(free).unwrap_or_default()
}
