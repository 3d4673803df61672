//! Services that the agent knows of.

use serde_json::Value;

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "service",
    nothing: "no services",
    columns: &[
        ("NAMESPACE", "/namespace"),
        ("NAME", "/name"),
        ("VIPS", "/vips"),
        ("PORTS->ENDPOINTS", "/port_summary"),
        ("MODE", "/mode"),
    ],
    keys: &[Key::Name],
    list,
    ..Object::PLAIN
};

fn list(place: &Place, _: &Inspect) -> Result<Vec<Value>, Failure> {
    let mut services = place.list("/v1/services")?;
    services.iter_mut().for_each(summarise_ports);
    Ok(services)
}

/// Adds `port_summary`, e.g. `80->2` for two endpoints behind port 80.
fn summarise_ports(service: &mut Value) {
    let Some(ports) = service.get("ports").and_then(Value::as_array) else {
        return;
    };
    let one = |port: &Value| {
        let endpoints = port
            .get("endpoints")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        Value::from(format!(
            "{}->{endpoints}",
            port.get("port").unwrap_or(&Value::Null)
        ))
    };
    let summary = Value::Array(ports.iter().map(one).collect());
    if let Some(object) = service.as_object_mut() {
        object.insert("port_summary".to_owned(), summary);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::summarise_ports;

    #[test]
    fn ports_are_summed_up() {
        let mut service =
            json!({"ports": [{"port": 80, "endpoints": [{}, {}]}, {"port": 81, "endpoints": []}]});
        summarise_ports(&mut service);
        assert_eq!(service["port_summary"], json!(["80->2", "81->0"]));
    }
}
