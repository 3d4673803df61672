//! Live connections of the agent, and what the kernel measures on their sockets.

use crate::inspect::object::Object;
use crate::inspect::selector::Key;
use crate::inspect_conn::{COLUMNS, list};

/// See the module.
pub const OBJECT: Object = Object {
    name: "connection",
    nothing: "no connections",
    columns: COLUMNS,
    keys: &[Key::Name, Key::Uid],
    list: |place, _| list(&|path| place.page(path)),
    ..Object::PLAIN
};
