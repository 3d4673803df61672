//! What the controller says in a status.

use karst_core::{Condition, ConditionStatus, ObjectKey, StatusContent};

use super::world::World;

/// What of an object is not done as written, as its status says it.
pub fn narrowed(world: &World, key: &ObjectKey) -> Option<String> {
    let status = world.index.status(key)?;
    let StatusContent::Conditions(conditions) = status.content else {
        return None;
    };
    let not = |one: &&Condition| one.status == ConditionStatus::False && one.reason != "DryRun";
    let said: Vec<String> = conditions
        .iter()
        .filter(not)
        .map(|one| format!("{}=False, {}: {}", one.kind, one.reason, one.message))
        .collect();
    (!said.is_empty()).then(|| said.join("; "))
}
