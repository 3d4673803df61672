//! Pinned links: programs attached to hooks.

use crate::inspect::object::Object;
use crate::inspect::selector::Key;
use crate::kernel;

/// See the module.
pub const OBJECT: Object = Object {
    name: "link",
    nothing: "no links",
    columns: &[
        ("ID", "/id"),
        ("NAME", "/name"),
        ("TYPE", "/type"),
        ("ATTACH TYPE", "/attach_type"),
        ("PROG", "/prog_id"),
        ("CGROUP", "/cgroup_id"),
        ("NETNS", "/netns_ino"),
        ("INTERFACE", "/ifindex"),
    ],
    keys: &[Key::Id, Key::Name, Key::Pinned],
    list: |place, _| {
        let (root, node) = place.here()?.pins()?;
        Ok(kernel::list(kernel::links(root, &node)?))
    },
    ..Object::PLAIN
};
