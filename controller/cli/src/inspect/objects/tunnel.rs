//! The pool of tunnels: to whom, how many streams they carry, and how many they may.

use serde_json::Value;

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "tunnel",
    nothing: "no tunnels",
    columns: &[
        ("POD", "/pod"),
        ("PEER", "/address"),
        ("PEER IDENTITY", "/destination"),
        ("STREAMS", "/streams"),
        ("LOAD %", "/load_percent"),
        ("TOTAL", "/streams_total"),
        ("DRAINING", "/draining"),
        ("CIPHER", "/tls/cipher"),
        ("KEY EXCHANGE", "/tls/key_exchange"),
    ],
    keys: &[Key::Name, Key::Uid],
    of_waypoint: true,
    list,
    ..Object::PLAIN
};

fn list(place: &Place, _: &Inspect) -> Result<Vec<Value>, Failure> {
    let mut items = if place.is_waypoint() {
        // A worker each.
        let pools = place.list("/v1/pools")?;
        let tunnels = |pool: &Value| pool.get("tunnels").and_then(Value::as_array).cloned();
        pools.iter().filter_map(tunnels).flatten().collect()
    } else {
        place.list("/v1/tunnels")?
    };
    items.iter_mut().for_each(load);
    Ok(items)
}

/// Adds `load_percent`: streams open of those that it may carry at once.
fn load(tunnel: &mut Value) {
    let number = |field: &str| tunnel.get(field).and_then(Value::as_u64);
    let percent = match (number("streams"), number("stream_limit")) {
        (Some(open), Some(limit)) if limit > 0 => Value::from(open * 100 / limit),
        _ => Value::Null,
    };
    if let Some(fields) = tunnel.as_object_mut() {
        fields.insert("load_percent".to_owned(), percent);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn load_is_a_share_of_the_limit() {
        let mut tunnel = json!({"streams": 25, "stream_limit": 100});
        super::load(&mut tunnel);
        assert_eq!(tunnel["load_percent"], 25);
        let mut closed = json!({"streams": 1, "stream_limit": 0});
        super::load(&mut closed);
        assert!(closed["load_percent"].is_null());
    }
}
