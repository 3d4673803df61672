//! Authorization policies that the agent enforces.

use crate::inspect::object::Object;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "policy",
    nothing: "no policies",
    columns: &[
        ("NAME", "/name"),
        ("SCOPE", "/scope"),
        ("ACTION", "/action"),
        ("RULES", "/rules"),
        ("DRY RUN", "/dry_run"),
        ("USABLE", "/usable"),
    ],
    keys: &[Key::Name],
    list: |place, _| place.list("/v1/policies"),
    ..Object::PLAIN
};
