//! Endpoints: of a service at an agent, which weighs by live connections, and of a backend at a waypoint, which
//! weighs by latency and requests under way.

use serde_json::Value;

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "endpoint",
    nothing: "no endpoints",
    columns: &[
        ("SERVICE", "/service"),
        ("PORT", "/port"),
        ("WORKLOAD", "/workload"),
        ("ADDRESSES", "/addresses"),
        ("TARGET", "/target_port"),
        ("WEIGHT", "/weight"),
        ("LATENCY MS", "/latency_ms"),
        ("IN FLIGHT", "/in_flight"),
        ("CONNECTIONS", "/connections"),
        ("TIER", "/tier"),
        ("FAILURES", "/failures"),
        ("EJECTED", "/ejected"),
        ("FOR MS", "/ejected_for_ms"),
    ],
    keys: &[Key::Name, Key::Uid],
    of_waypoint: true,
    list,
    ..Object::PLAIN
};

fn list(place: &Place, _: &Inspect) -> Result<Vec<Value>, Failure> {
    if !place.is_waypoint() {
        return place.list("/v1/endpoints");
    }
    let clusters = place.list("/v1/clusters")?;
    Ok(clusters.into_iter().flat_map(flatten).collect())
}

/// A backend's endpoints, each with what it is an endpoint of.
fn flatten(cluster: Value) -> Vec<Value> {
    let of = |field: &str| cluster.get(field).cloned().unwrap_or_default();
    let (backend, service, port) = (of("name"), of("service"), of("port"));
    let algorithm = of("algorithm");
    let endpoints = cluster.get("endpoints").and_then(Value::as_array);
    let one = |endpoint: &Value| {
        let mut endpoint = endpoint.clone();
        if let Some(fields) = endpoint.as_object_mut() {
            let target = fields.insert("port".to_owned(), port.clone());
            let address = fields.remove("address").unwrap_or_default();
            fields.insert("addresses".to_owned(), Value::Array(vec![address]));
            fields.insert("target_port".to_owned(), target.unwrap_or_default());
            fields.insert("backend".to_owned(), backend.clone());
            fields.insert("service".to_owned(), service.clone());
            fields.insert("algorithm".to_owned(), algorithm.clone());
        }
        endpoint
    };
    endpoints.into_iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn an_endpoint_says_what_it_is_of() {
        let cluster = json!({"name": "shop/web/80", "service": "web.shop", "port": 80, "algorithm": "PEAK_EWMA",
            "endpoints": [{"workload": "c//Pod/shop/web-0", "address": "10.1.0.2", "port": 8080}]});
        assert_eq!(
            super::flatten(cluster),
            [
                json!({"backend": "shop/web/80", "service": "web.shop", "port": 80, "algorithm": "PEAK_EWMA",
                "workload": "c//Pod/shop/web-0", "addresses": ["10.1.0.2"], "target_port": 8080})
            ]
        );
    }
}
