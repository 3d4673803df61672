//! Objects and questions in few words.

use karst_api::{
    ADDRESS_TYPE,
    node::NodePod,
    workload::{Address, Service, TunnelProtocol, Workload, address},
};
use serde_json::{Value, json};

use crate::{Changes, Index, MeshConfig, Object, ObjectError, ObjectKey, Rendered};

/// An index, and a shorter way to use it.
pub(crate) struct Mesh(pub(crate) Index);

pub(crate) const WEB: &str = "shop/web.shop.svc.cluster.local";

pub(crate) fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

pub(crate) fn object(value: Value) -> Object {
    Object::from_value(value).unwrap().unwrap()
}

pub(crate) fn error(value: Value) -> ObjectError {
    Object::from_value(value).unwrap_err()
}

/// Lays `over` over `base`; objects are merged, everything else replaced, null removes.
pub(crate) fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    let former = base.remove(&key).unwrap_or(Value::Null);
                    base.insert(key, merged(former, value));
                }
            }
        }
        (base, over) => *base = over,
    }
    base
}

pub(crate) fn namespace(mode: Option<&str>) -> Value {
    let labels = mode.map_or(json!({}), |mode| json!({"karst.dev/dataplane-mode": mode}));
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

/// A ready pod on `node-1` with the label `app: web` and the account `web`.
pub(crate) fn pod(name: &str, ip: &str, over: Value) -> Value {
    merged(
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
                "labels": {"app": "web"}},
            "spec": {"nodeName": "node-1", "serviceAccountName": "web",
                "containers": [{"name": "c", "ports": [
                    {"name": "http", "containerPort": 8080},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        }),
        over,
    )
}

/// The service `web` for pods with `app: web`.
pub(crate) fn service(over: Value) -> Value {
    merged(
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
        over,
    )
}

pub(crate) fn slice(name: &str, over: Value) -> Value {
    merged(
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 9090, "protocol": "TCP"}],
            "endpoints": [],
        }),
        over,
    )
}

pub(crate) fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
        "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": zone}}})
}

impl Mesh {
    pub(crate) fn new(objects: impl IntoIterator<Item = Value>) -> Self {
        let mut mesh = Self(Index::new(MeshConfig::default()));
        for value in objects {
            mesh.apply(value);
        }
        mesh
    }

    pub(crate) fn apply(&mut self, value: Value) -> Changes {
        self.0.apply(object(value)).unwrap()
    }

    /// Removes the object that `value` is.
    pub(crate) fn delete(&mut self, value: Value) -> Changes {
        let key: ObjectKey = object(value).key;
        self.0.delete(&key)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0
            .addresses()
            .map(|rendered| rendered.name.clone())
            .collect()
    }

    pub(crate) fn workload(&self, name: &str) -> Option<Workload> {
        self.workload_of(&uid(name))
    }

    pub(crate) fn workload_of(&self, uid: &str) -> Option<Workload> {
        match decode(self.0.address(uid)?) {
            address::Type::Workload(workload) => Some(workload),
            address::Type::Service(_) => panic!("{uid} is a service"),
        }
    }

    pub(crate) fn service(&self, name: &str) -> Option<Service> {
        match decode(self.0.address(name)?) {
            address::Type::Service(service) => Some(service),
            address::Type::Workload(_) => panic!("{name} is a workload"),
        }
    }

    pub(crate) fn tunnel(&self, name: &str) -> TunnelProtocol {
        self.workload(name).unwrap().tunnel_protocol()
    }

    /// Service port and target port of a pod in the service `web`; `None` when it is not in it.
    pub(crate) fn ports(&self, name: &str) -> Option<Vec<(u32, u32)>> {
        let workload = self.workload(name)?;
        let ports = workload.services.get(WEB)?;
        Some(
            ports
                .ports
                .iter()
                .map(|port| (port.service_port, port.target_port))
                .collect(),
        )
    }

    pub(crate) fn node_pod(&self, node: &str, name: &str) -> Option<NodePod> {
        let rendered = self.0.node_pod(node, &format!("uid-{name}"))?;
        Some(prost::Message::decode(rendered.bytes.as_slice()).unwrap())
    }
}

fn decode(rendered: &Rendered) -> address::Type {
    let address: Address = rendered
        .to_resource(ADDRESS_TYPE)
        .unpack(ADDRESS_TYPE)
        .unwrap();
    assert_eq!(
        address.resource_name().as_deref(),
        Some(rendered.name.as_str())
    );
    address.r#type.unwrap()
}
