//! Enrolled pods as the kernel has them. Names are the agent's: without it there are none.

use serde_json::Value;

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::Key;
use crate::kernel;

/// See the module.
pub const OBJECT: Object = Object {
    name: "pod",
    nothing: "no enrolled pods",
    columns: &[
        ("NAMESPACE", "/namespace"),
        ("NAME", "/name"),
        ("ADDRESSES", "/addresses"),
        ("NETNS", "/netns_ino"),
        ("LISTENING", "/listening"),
        ("IDENTITY", "/identity"),
        ("EGRESS", "/egress"),
        ("UID", "/uid"),
    ],
    keys: &[Key::Name, Key::Uid],
    list,
    ..Object::PLAIN
};

/// What the agent adds.
const OF_AGENT: [&str; 5] = ["namespace", "name", "identity", "egress", "connections"];

fn list(place: &Place, _: &Inspect) -> Result<Vec<Value>, Failure> {
    let (root, node) = place.here()?.pins()?;
    let mut pods = kernel::list(kernel::pods(root, &node)?);
    // The kernel's part is worth having alone.
    let known = place.list("/v1/pods").unwrap_or_default();
    for pod in &mut pods {
        let agent = known.iter().find(|k| k.get("uid") == pod.get("uid"));
        if let (Some(fields), Some(agent)) = (pod.as_object_mut(), agent) {
            for field in OF_AGENT {
                let value = agent.get(field).cloned().unwrap_or_default();
                fields.insert(field.to_owned(), value);
            }
        }
    }
    Ok(pods)
}
