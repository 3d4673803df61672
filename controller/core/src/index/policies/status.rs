//! What is said of security policies: whether they are taken, and what is not enforced as written.

use super::{Held, NsName};
use crate::{
    object::{
        authorization::AuthorizationPolicy, peer_authentication::PeerAuthentication, policy::listed,
    },
    status::{Condition, ObjectStatus, StatusContent},
};

/// Whether the policy was taken.
pub(super) const ACCEPTED: &str = "Accepted";

/// Our own condition, there where it does not hold: whether all of it is enforced as written.
pub(super) const FULLY_ENFORCED: &str = "karst.dev/FullyEnforced";

/// What comes of a policy with mistakes.
pub(super) fn invalid(faults: &[String], effect: &str) -> Condition {
    let faults = listed(faults, "; ");
    Condition::no(ACCEPTED, "Invalid", format!("{faults}. {effect}"))
}

pub(super) const FORMER: &str = "The last version without mistakes stays in force";

pub(super) fn status<T>(held: &Held<T>, conditions: Vec<Condition>) -> ObjectStatus {
    ObjectStatus {
        generation: held.meta.generation,
        content: StatusContent::Conditions(conditions),
    }
}

pub(super) fn of_authorization(
    key: &NsName,
    held: &Held<AuthorizationPolicy>,
    root: &str,
) -> ObjectStatus {
    let policy = &held.in_force;
    let accepted = if !held.faults.is_empty() {
        let effect = if held.is_former {
            FORMER
        } else if policy.action.is_none() {
            "It is not enforced"
        } else {
            "What could not be understood is left out so that less is allowed, and more refused, than written"
        };
        invalid(&held.faults, effect)
    } else if let Some(problem) = &policy.unsupported {
        let message = format!("The policy {problem}");
        Condition::no(ACCEPTED, "UnsupportedValue", message)
    } else {
        let whom = whom(key, !policy.selector.is_empty(), root);
        let message = format!("Node agents enforce the policy {whom}");
        Condition::yes(ACCEPTED, "Accepted", message)
    };
    let mut conditions = vec![accepted];
    let is_enforced = policy.action.is_some();
    if let Some(narrowed) = policy.narrowed.as_ref().filter(|_| is_enforced) {
        let narrowed = narrowed.as_str();
        conditions.push(Condition::no(FULLY_ENFORCED, "UnsupportedValue", narrowed));
    } else if policy.dry_run && is_enforced {
        let message =
            "The annotation istio.io/dry-run is true: what the policy would do is logged only";
        conditions.push(Condition::no(FULLY_ENFORCED, "DryRun", message));
    }
    status(held, conditions)
}

/// How a PeerAuthentication stands; `winner` is one for the same pods that counts instead.
pub(super) fn of_peer(
    key: &NsName,
    held: &Held<PeerAuthentication>,
    winner: Option<&NsName>,
    root: &str,
) -> ObjectStatus {
    let policy = &held.in_force;
    let has_selector = !policy.selector.is_empty();
    let accepted = if !held.faults.is_empty() {
        let effect = match held.is_former {
            true => FORMER,
            false => "Until they are corrected it counts as STRICT, for all ports",
        };
        invalid(&held.faults, effect)
    } else if let Some(winner) = winner {
        let message = format!(
            "PeerAuthentication {}/{} is older and for the same pods, so this one has no effect",
            winner.namespace, winner.name
        );
        Condition::no(ACCEPTED, "Conflicted", message)
    } else {
        let whom = match has_selector && key.namespace == root {
            // Istio takes no notice of these at all.
            true => format!("for the pods of namespace {root} that it selects, and of no other"),
            false => whom(key, has_selector, root),
        };
        let message = format!("Node agents enforce the policy {whom}");
        Condition::yes(ACCEPTED, "Accepted", message)
    };
    let mut conditions = vec![accepted];
    if let Some(narrowed) = &policy.narrowed {
        let narrowed = narrowed.as_str();
        conditions.push(Condition::no(FULLY_ENFORCED, "UnsupportedValue", narrowed));
    }
    status(held, conditions)
}

pub(super) fn whom(key: &NsName, has_selector: bool, root: &str) -> String {
    match (has_selector, key.namespace == root) {
        (false, true) => "in the whole mesh".to_owned(),
        (true, true) => "for the pods of the whole mesh that it selects".to_owned(),
        (false, false) => format!("in namespace {}", key.namespace),
        (true, false) => format!(
            "for the pods of namespace {} that it selects",
            key.namespace
        ),
    }
}
