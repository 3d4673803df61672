//! Workloads that the agent knows of.

use crate::inspect::object::Object;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "workload",
    nothing: "no workloads",
    columns: &[
        ("NAMESPACE", "/namespace"),
        ("NAME", "/name"),
        ("ADDRESSES", "/addresses"),
        ("NODE", "/locality/node"),
        ("PROTOCOL", "/protocol"),
        ("HEALTH", "/health"),
        ("IDENTITY", "/identity"),
    ],
    keys: &[Key::Name, Key::Uid],
    list: |place, _| place.list("/v1/workloads"),
    ..Object::PLAIN
};
