//! Certificates that are held; keys are never shown.

use crate::inspect::object::Object;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "cert",
    nothing: "no certificates",
    columns: &[
        ("IDENTITY", "/id"),
        ("STATE", "/state"),
        ("SERIAL", "/serial"),
        ("NOT BEFORE", "/not_before"),
        ("NOT AFTER", "/not_after"),
        ("PROBLEM", "/message"),
    ],
    keys: &[Key::Name],
    of_waypoint: true,
    list: |place, _| place.list("/v1/certificates"),
    ..Object::PLAIN
};
