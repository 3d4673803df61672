//! Objects of the Gateway API and questions about their statuses in few words.

use std::sync::OnceLock;

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use crate::{
    Condition, GatewayName, Index, Kind, MeshConfig, ObjectKey, StatusContent,
    index::tests::support::{merged, object},
};

/// Generation of all objects made here.
pub(super) const GENERATION: i64 = 7;

/// An index with the namespaces `shop` and `infra` (label `tier: infra`).
pub(super) struct Edge(pub(super) Index);

/// PEM of a certificate and its key.
pub(super) struct Pem {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A certificate; the second one is another.
pub(super) fn pem(which: usize) -> &'static Pem {
    static MADE: OnceLock<[Pem; 2]> = OnceLock::new();
    let make = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        Pem {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    };
    &MADE.get_or_init(|| [make("example.com"), make("other.com")])[which]
}

/// `namespace/name`, or a name in `shop`.
fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("shop", name))
}

fn gateway_api(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = split(name);
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "generation": GENERATION,
            "uid": format!("uid-{name}")},
        "spec": spec})
}

pub(super) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A Gateway of class `karst` in `shop`.
pub(super) fn gateway(name: &str, listeners: Value) -> Value {
    gateway_api(
        "Gateway",
        name,
        json!({"gatewayClassName": "karst", "listeners": listeners}),
    )
}

pub(super) fn waypoint(name: &str, listeners: Value) -> Value {
    let spec = json!({"gatewayClassName": "karst-waypoint", "listeners": listeners});
    gateway_api("Gateway", name, spec)
}

/// An HTTP listener named `http` on port 80 for all names.
pub(super) fn http(over: Value) -> Value {
    merged(
        json!({"name": "http", "port": 80, "protocol": "HTTP"}),
        over,
    )
}

/// An HTTPS listener named `https` on port 443 with the certificate `cert`.
pub(super) fn https(over: Value) -> Value {
    let base = json!({"name": "https", "port": 443, "protocol": "HTTPS",
        "tls": {"certificateRefs": [{"name": "cert"}]}});
    merged(base, over)
}

/// A TLS listener named `tls` on port 443.
pub(super) fn tls(mode: &str, over: Value) -> Value {
    let base = json!({"name": "tls", "port": 443, "protocol": "TLS",
        "tls": {"mode": mode, "certificateRefs": [{"name": "cert"}]}});
    merged(base, over)
}

pub(super) fn listener_set(name: &str, gateway: &str, listeners: Value) -> Value {
    let (namespace, parent) = split(gateway);
    let spec =
        json!({"parentRef": {"namespace": namespace, "name": parent}, "listeners": listeners});
    gateway_api("ListenerSet", name, spec)
}

/// A route of `kind` with one parent and no rules of interest.
pub(super) fn route(kind: &str, name: &str, parent: Value) -> Value {
    routes(kind, name, json!([parent]))
}

pub(super) fn routes(kind: &str, name: &str, parents: Value) -> Value {
    let spec =
        json!({"parentRefs": parents, "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]});
    gateway_api(kind, name, spec)
}

pub(super) fn secret(name: &str, which: usize) -> Value {
    let pem = pem(which);
    let (namespace, name) = split(name);
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {"tls.crt": pem.certificate, "tls.key": pem.key}})
}

pub(super) fn config_map(name: &str, authorities: &str) -> Value {
    let (namespace, name) = split(name);
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace}, "data": {"ca.crt": authorities}})
}

/// A grant in `infra` for objects of `kind` in `namespace`.
pub(super) fn grant(kind: &str, namespace: &str, to: Value) -> Value {
    let group = "gateway.networking.k8s.io";
    let from = json!([{"group": group, "kind": kind, "namespace": namespace}]);
    gateway_api(
        "ReferenceGrant",
        "infra/grant",
        json!({"from": from, "to": [to]}),
    )
}

/// The Service of a Gateway.
pub(super) fn service(name: &str, over: Value) -> Value {
    let base = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.80", "ports": [{"port": 80}]}});
    merged(base, over)
}

/// A pod of the proxy of a Gateway in `shop`.
pub(super) fn proxy_pod(gateway: &str, class: &str, ready: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{gateway}-x"), "namespace": "shop", "uid": "uid-x", "labels": {
            "gateway.networking.k8s.io/gateway-name": gateway,
            "gateway.networking.k8s.io/gateway-class-name": class}},
        "spec": {"nodeName": "node-1", "serviceAccountName": gateway, "containers": []},
        "status": {"phase": "Running", "podIP": "10.0.9.9",
            "conditions": [{"type": "Ready", "status": ready}]}})
}

impl Edge {
    pub(super) fn new(objects: impl IntoIterator<Item = Value>) -> Self {
        let mut edge = Self(Index::new(MeshConfig::default()));
        edge.apply(namespace("shop", json!({"tier": "shop"})));
        edge.apply(namespace("infra", json!({"tier": "infra"})));
        for value in objects {
            edge.apply(value);
        }
        edge
    }

    pub(super) fn apply(&mut self, value: Value) -> crate::Changes {
        self.0.apply(object(value)).unwrap()
    }

    pub(super) fn delete(&mut self, value: Value) -> crate::Changes {
        let key = object(value).key;
        self.0.delete(&key)
    }

    /// Conditions and other fields of the status of an object.
    pub(super) fn status(&self, kind: Kind, name: &str) -> Option<(Vec<Condition>, Value)> {
        let (namespace, name) = split(name);
        let key = ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let status = self.0.status(&key)?;
        assert_eq!(status.generation, GENERATION, "{key}");
        match status.content {
            StatusContent::Object { conditions, fields } => Some((conditions, fields)),
            other => panic!("{other:?}"),
        }
    }

    /// Status and reason of a condition, as `True Accepted`; `-` if there is none.
    pub(super) fn condition(&self, kind: Kind, name: &str, condition: &str) -> String {
        let Some((conditions, _)) = self.status(kind, name) else {
            return "-".to_owned();
        };
        let mut found = conditions.iter().filter(|each| each.kind == condition);
        let text = found.next().map(|found| {
            assert!(!found.message.is_empty());
            format!("{} {}", found.status.as_str(), found.reason)
        });
        assert!(found.next().is_none(), "{condition} is there twice");
        text.unwrap_or_else(|| "-".to_owned())
    }

    /// Status of a listener.
    pub(super) fn listener(&self, kind: Kind, name: &str, listener: &str) -> Value {
        let (_, fields) = self.status(kind, name).unwrap();
        let listeners = fields["listeners"].as_array().unwrap();
        let mut found = listeners.iter().filter(|each| each["name"] == listener);
        found.next().cloned().unwrap()
    }

    /// Like [`Edge::condition`], of a listener of a Gateway.
    pub(super) fn of_listener(&self, gateway: &str, listener: &str, condition: &str) -> String {
        listener_condition(&self.listener(Kind::Gateway, gateway, listener), condition)
    }

    /// Like [`Edge::condition`], of a listener of a ListenerSet.
    pub(super) fn of_set_listener(&self, set: &str, listener: &str, condition: &str) -> String {
        listener_condition(&self.listener(Kind::ListenerSet, set, listener), condition)
    }

    /// Number of routes at a listener of a Gateway.
    pub(super) fn attached(&self, gateway: &str, listener: &str) -> Value {
        self.listener(Kind::Gateway, gateway, listener)["attachedRoutes"].clone()
    }

    /// The kinds of routes that a listener of a Gateway takes.
    pub(super) fn kinds(&self, gateway: &str, listener: &str) -> Vec<String> {
        let listener = self.listener(Kind::Gateway, gateway, listener);
        let kinds = listener["supportedKinds"].as_array().unwrap().iter();
        kinds
            .map(|kind| {
                assert_eq!(kind["group"], "gateway.networking.k8s.io");
                kind["kind"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    /// `Accepted` of a route at one of its parents, as the parent decides it.
    pub(super) fn accepted(&self, kind: Kind, name: &str, parent: usize) -> Option<String> {
        let (namespace, name) = split(name);
        let key = crate::index::l7::RouteKey {
            kind: crate::object::route::RouteKind::of(kind).unwrap(),
            name: crate::index::NsName::new(namespace, name),
        };
        let parent = self.0.l7.routes[&key].body.parents[parent].clone();
        let accepted = self.0.attach_to_gateway(&key, &parent)?.accepted;
        assert!(!accepted.message.is_empty());
        Some(format!("{} {}", accepted.status.as_str(), accepted.reason))
    }

    /// What a Gateway in `shop` serves on its ports, by port.
    pub(super) fn sockets(&self, gateway: &str) -> Vec<(u32, Vec<wire::GatewayListener>)> {
        let sockets = self.0.gateway_sockets(&GatewayName::new("shop", gateway));
        let listeners = sockets.listeners.into_iter();
        listeners
            .map(|listener| match listener.frontend {
                Some(wire::listener::Frontend::Socket(socket)) => {
                    assert_eq!(listener.name, format!("socket/{}", socket.port));
                    (socket.port, socket.listeners)
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// What a Gateway serves as the listener `section`, if it does.
    pub(super) fn served(&self, gateway: &str, section: &str) -> Option<wire::GatewayListener> {
        let name = format!("shop/{gateway}/{section}");
        let sockets = self.sockets(gateway).into_iter();
        let mut listeners = sockets.flat_map(|(_, listeners)| listeners);
        listeners.find(|listener| listener.name == name)
    }
}

fn listener_condition(listener: &Value, condition: &str) -> String {
    let conditions = listener["conditions"].as_array().unwrap();
    let mut found = conditions.iter().filter(|each| each["type"] == condition);
    let text = found.next().map(|found| {
        assert_eq!(found["observedGeneration"], GENERATION);
        assert!(!found["message"].as_str().unwrap().is_empty());
        let text = |field: &str| found[field].as_str().unwrap();
        format!("{} {}", text("status"), text("reason"))
    });
    assert!(found.next().is_none(), "{condition} is there twice");
    text.unwrap_or_else(|| "-".to_owned())
}
