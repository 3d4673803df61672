//! Stores with Gateways, for tests.

use karst_core::{Index, MeshConfig, Object};
use serde_json::{Value, json};

use super::{Store, Update};

/// A store with our two GatewayClasses and nothing else.
pub fn store() -> Store {
    let store = Store::new(Index::new(MeshConfig::default()));
    for (name, kind) in [("karst", "gateway"), ("karst-waypoint", "waypoint")] {
        apply(
            &store,
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
                "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 1},
                "spec": {"controllerName": format!("karst.dev/{kind}-controller")},
            }),
        );
    }
    store
}

/// Applies an object, which must be a good one.
pub fn apply(store: &Store, value: Value) {
    let object = Object::from_value(value).unwrap().unwrap();
    let refused = store.update(vec![Update::Apply(object)]);
    assert!(refused.is_empty(), "{:?}", refused[0].1);
}

/// A waypoint.
pub fn gateway(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"gatewayClassName": "karst-waypoint",
                 "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    })
}

/// Adds a waypoint.
pub fn apply_gateway(store: &Store, namespace: &str, name: &str) {
    apply(store, gateway(namespace, name));
}

/// Removes it.
pub fn delete_gateway(store: &Store, namespace: &str, name: &str) {
    let object = Object::from_value(gateway(namespace, name))
        .unwrap()
        .unwrap();
    store.update(vec![Update::Delete(object.key)]);
}
