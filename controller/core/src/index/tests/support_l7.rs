//! Gateways, routes and policies in few words, and what comes of them.

use karst_api::waypoint::{self as wire, listener::Frontend};
use serde_json::{Value, json};

use super::support::{Mesh, merged, pod, service};
use crate::{Condition, ConditionStatus, GatewayName, Kind, ObjectKey, ProxyKind, StatusContent};

pub(crate) const WEB_80: &str = "shop/web.shop.svc.cluster.local/80";
pub(crate) const WP: &str = "wp";

/// An object of the Gateway API in the namespace `shop`.
pub(crate) fn gateway_api(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop", "generation": 1, "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec})
}

/// The Gateway `wp` of class karst-waypoint.
pub(crate) fn gateway(over: Value) -> Value {
    let spec = json!({"gatewayClassName": "karst-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]});
    merged(gateway_api("Gateway", WP, spec), over)
}

/// The Service of the Gateway `wp`.
pub(crate) fn gateway_service(over: Value) -> Value {
    let own = json!({"metadata": {"name": WP},
        "spec": {"clusterIP": "10.96.0.99",
            "selector": {"app": null, "gateway.networking.k8s.io/gateway-name": WP},
            "ports": [{"name": "mesh", "port": 15008, "appProtocol": "tcp"}]}});
    merged(service(own), over)
}

/// A pod of the Gateway `wp`.
pub(crate) fn gateway_pod(over: Value) -> Value {
    let labels = json!({"app": null, "gateway.networking.k8s.io/gateway-name": WP,
        "gateway.networking.k8s.io/gateway-class-name": "karst-waypoint"});
    let own = json!({"metadata": {"labels": labels}, "spec": {"serviceAccountName": WP}});
    merged(pod("wp-1", "10.0.9.9", own), over)
}

/// A waypoint that is ready.
pub(crate) fn waypoint() -> [Value; 3] {
    [
        gateway(json!({})),
        gateway_service(json!({})),
        gateway_pod(json!({})),
    ]
}

/// The namespace `shop` in the mesh, behind the waypoint `wp`.
pub(crate) fn bound_namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {
        "karst.dev/dataplane-mode": "ambient", "karst.dev/use-waypoint": WP}}})
}

/// A namespace of that name without labels.
pub(crate) fn other_namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {}}})
}

/// A route of a kind to the Service `web`, with one rule that sends everything back to its port 80.
pub(crate) fn route(kind: &str, name: &str, over: Value) -> Value {
    let spec = json!({
        "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
    });
    merged(gateway_api(kind, name, spec), over)
}

/// An HTTPRoute to the Service `web` with these rules.
pub(crate) fn http_route(rules: Value) -> Value {
    route("HTTPRoute", "r", json!({"spec": {"rules": rules}}))
}

/// Permits HTTPRoutes of namespace `from` to refer to Services of `shop`.
pub(crate) fn grant(from: &str) -> Value {
    gateway_api(
        "ReferenceGrant",
        "g",
        json!({
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": from}],
            "to": [{"group": "", "kind": "Service"}],
        }),
    )
}

pub(crate) fn name(namespace: &str, name: &str) -> GatewayName {
    GatewayName::new(namespace, name)
}

/// Objects of a kind in `shop`.
pub(crate) fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

/// `Type=Status/Reason`.
pub(crate) fn short(condition: &Condition) -> String {
    let status = match condition.status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Unknown => "Unknown",
    };
    format!("{}={status}/{}", condition.kind, condition.reason)
}

impl Mesh {
    /// The mesh with the namespace `shop` and the Service `web` behind a waypoint that is ready.
    pub(crate) fn bound(objects: impl IntoIterator<Item = Value>) -> Self {
        let first = [bound_namespace(), service(json!({}))];
        Self::new(first.into_iter().chain(waypoint()).chain(objects))
    }

    /// A resource of the waypoint `wp`.
    pub(crate) fn resource<T: prost::Message + Default>(
        &self,
        kind: ProxyKind,
        resource: &str,
    ) -> Option<T> {
        let rendered = self.0.proxy_resource(&name("shop", WP), kind, resource)?;
        assert_eq!(rendered.name, resource);
        Some(T::decode(rendered.bytes.as_slice()).unwrap())
    }

    /// Names of the resources of the waypoint `wp`.
    pub(crate) fn resources(&self, kind: ProxyKind) -> Vec<String> {
        let gateway = name("shop", WP);
        let resources = self.0.proxy_resources(&gateway, kind);
        resources.map(|rendered| rendered.name.clone()).collect()
    }

    /// The listener for port 80 of the Service `web`.
    pub(crate) fn frontend(&self) -> Option<wire::ServiceFrontend> {
        let listener = format!("service/{WEB_80}");
        let listener: wire::Listener = self.resource(ProxyKind::Listener, &listener)?;
        match listener.frontend.unwrap() {
            Frontend::Service(service) => Some(service),
            other => panic!("{other:?}"),
        }
    }

    /// The route sets at port 80 of the Service `web`: namespace of the clients, names of routes.
    pub(crate) fn sets(&self) -> Vec<(String, Vec<String>)> {
        let frontend = self.frontend().unwrap();
        let sets = frontend.route_sets.into_iter();
        sets.map(|set| {
            let routes = set.routes.into_iter().map(|attached| attached.route);
            (set.client_namespace, routes.collect())
        })
        .collect()
    }

    /// The HTTPRoute `r` as the waypoint has it.
    pub(crate) fn wire_route(&self) -> wire::Route {
        self.resource(ProxyKind::Route, "HTTPRoute/shop/r").unwrap()
    }

    /// The backend that is port 80 of the Service `web`.
    pub(crate) fn backend(&self) -> wire::Backend {
        self.resource(ProxyKind::Backend, WEB_80).unwrap()
    }

    /// Conditions of a route at its only parent, or of a policy at its only ancestor.
    pub(crate) fn conditions(&self, key: &ObjectKey) -> Vec<Condition> {
        match self.0.status(key).unwrap().content {
            StatusContent::Parents(parents) => {
                let [parent] = <[_; 1]>::try_from(parents).unwrap();
                parent.conditions
            }
            StatusContent::Ancestors(ancestors) => {
                let [ancestor] = <[_; 1]>::try_from(ancestors).unwrap();
                ancestor.conditions
            }
            StatusContent::Object { conditions, .. } | StatusContent::Conditions(conditions) => {
                conditions
            }
        }
    }

    /// The same in short form.
    pub(crate) fn said(&self, key: &ObjectKey) -> Vec<String> {
        self.conditions(key).iter().map(short).collect()
    }

    /// The condition of that type of the HTTPRoute `r`.
    pub(crate) fn condition(&self, kind: &str) -> Condition {
        let conditions = self.conditions(&key(Kind::HttpRoute, "r"));
        let mut conditions = conditions.into_iter();
        conditions.find(|condition| condition.kind == kind).unwrap()
    }
}
