//! What the controller has sent, type by type, what was answered, and why something was rejected.

use serde_json::Value;

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "xds",
    nothing: "no resource types",
    columns: &[
        ("TYPE", "/name"),
        ("SYNCED", "/synced"),
        ("HELD", "/held"),
        ("NAMED", "/subscribed"),
        ("VERSION", "/version"),
        ("ACKS", "/acks"),
        ("LAST ACK", "/last_ack"),
        ("NACKS", "/nacks"),
        ("LAST NACK", "/last_nack/at"),
        ("OVER", "/last_nack/over"),
        ("REJECTED", "/last_nack/resources"),
    ],
    keys: &[Key::Name],
    of_waypoint: true,
    list,
    ..Object::PLAIN
};

fn list(place: &Place, _: &Inspect) -> Result<Vec<Value>, Failure> {
    let mut types = place.list("/v1/xds")?;
    types.iter_mut().for_each(name);
    Ok(types)
}

/// Adds `name`: the last word of the type's URL.
fn name(item: &mut Value) {
    let url = item.get("type").and_then(Value::as_str);
    let name = url.and_then(|url| url.rsplit(['.', '/']).next());
    let name = Value::from(name.unwrap_or_default());
    if let Some(fields) = item.as_object_mut() {
        fields.insert("name".to_owned(), name);
    }
}
