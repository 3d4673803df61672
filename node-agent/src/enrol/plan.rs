//! The next step for one pod, from its situation alone.

use std::sync::Arc;

use super::NodePod;
use super::registry::Sandbox;
use crate::pod::Pod;

/// What the controller wants of a pod.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// It has not been heard yet.
    Unknown,
    /// Its complete list does not name the pod.
    Unlisted,
    /// Not in the mesh.
    No,
    /// In the mesh, as this.
    Yes(&'a NodePod),
}

/// Everything that decides about the next step.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The registered sandbox.
    pub sandbox: Option<&'a Sandbox>,
    /// The controller's wish.
    pub wanted: Wanted<'a>,
    /// The pod as the workers serve it.
    pub running: Option<&'a Arc<Pod>>,
    /// Whether the kernel captures its connections.
    pub in_kernel: bool,
    /// The kernel had it when this agent came, and nobody has said anything of its sandbox since.
    pub orphan: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// All is as it should be, or nothing can be done.
    Nothing,
    /// Serve it and let the kernel capture its connections.
    Enrol,
    /// Let go of its new connections; those there are go on.
    Release,
    /// It is gone, or somebody else now: end everything of it.
    Remove,
    /// The kernel captures what nobody serves or wants.
    LeaveKernel,
}

/// The next step.
pub fn plan(situation: &Situation<'_>) -> Action {
    let Some(sandbox) = situation.sandbox else {
        return match (situation.running, situation.wanted) {
            (Some(_), _) => Action::Remove,
            (None, _) if !situation.in_kernel => Action::Nothing,
            // The record of it was lost, perhaps not the pod: letting go would let it out in the
            // clear. Discovery finds it or finds it gone.
            (None, Wanted::Yes(_) | Wanted::Unknown) if situation.orphan => Action::Nothing,
            (None, _) => Action::LeaveKernel,
        };
    };
    match (situation.wanted, situation.running) {
        // Without a word of the controller nothing changes: what a former agent
        // captured stays captured, and refused, until we know what to do. A pod
        // that vanished from the list while its sandbox is still there is about
        // to be deleted; letting go of it would let its last traffic leak.
        (Wanted::Unknown | Wanted::Unlisted, _) => Action::Nothing,
        (Wanted::No, Some(_)) => Action::Release,
        (Wanted::No, None) if situation.in_kernel => Action::LeaveKernel,
        (Wanted::No, None) => Action::Nothing,
        (Wanted::Yes(_), None) => Action::Enrol,
        (Wanted::Yes(wanted), Some(pod)) if !is_same(sandbox, wanted, pod) => Action::Remove,
        // Somebody emptied our maps: put it back.
        (Wanted::Yes(_), Some(_)) if !situation.in_kernel => Action::Enrol,
        (Wanted::Yes(_), Some(_)) => Action::Nothing,
    }
}

fn is_same(sandbox: &Sandbox, wanted: &NodePod, pod: &Pod) -> bool {
    pod.identity == wanted.identity
        && pod.workload_uid == wanted.workload_uid
        && pod.addresses == sandbox.addresses
        && pod.netns.id() == sandbox.netns_id
}
