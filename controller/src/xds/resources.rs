//! The resource types that are served, each as one stream sees it.

use std::sync::Arc;

use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, BACKEND_TYPE, LISTENER_TYPE,
    NODE_POD_TYPE, REQUEST_AUTHENTICATION_TYPE, ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_core::{GatewayName, Index, ProxyKind, Rendered};

use crate::store::Scope;

/// A resource type. They are in the order in which they are added: what others refer to comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceKind {
    /// `istio.security.Authorization`.
    Authorization,
    /// `istio.workload.Address`.
    Address,
    /// `karst.node.v1.NodePod`.
    NodePod,
    /// `karst.waypoint.v1.TlsSecret`.
    TlsSecret,
    /// `karst.waypoint.v1.Backend`.
    Backend,
    /// `karst.waypoint.v1.Route`.
    Route,
    /// `karst.waypoint.v1.AuthorizationPolicy`.
    AuthorizationPolicy,
    /// `karst.waypoint.v1.RequestAuthentication`.
    RequestAuthentication,
    /// `karst.waypoint.v1.Listener`.
    Listener,
}

impl ResourceKind {
    const ALL: [Self; 9] = [
        Self::Address,
        Self::Authorization,
        Self::NodePod,
        Self::TlsSecret,
        Self::Backend,
        Self::Route,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::Listener,
    ];

    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::NodePod => NODE_POD_TYPE,
            Self::TlsSecret => TLS_SECRET_TYPE,
            Self::Backend => BACKEND_TYPE,
            Self::Route => ROUTE_TYPE,
            Self::AuthorizationPolicy => AUTHORIZATION_POLICY_TYPE,
            Self::RequestAuthentication => REQUEST_AUTHENTICATION_TYPE,
            Self::Listener => LISTENER_TYPE,
        }
    }

    /// Name in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
            Self::NodePod => "node_pod",
            Self::TlsSecret => "tls_secret",
            Self::Backend => "backend",
            Self::Route => "route",
            Self::AuthorizationPolicy => "authorization_policy",
            Self::RequestAuthentication => "request_authentication",
            Self::Listener => "listener",
        }
    }

    /// The kind as the index knows it, if it is one of proxies.
    pub fn proxy(self) -> Option<ProxyKind> {
        match self {
            Self::Address | Self::Authorization | Self::NodePod => None,
            Self::TlsSecret => Some(ProxyKind::TlsSecret),
            Self::Backend => Some(ProxyKind::Backend),
            Self::Route => Some(ProxyKind::Route),
            Self::AuthorizationPolicy => Some(ProxyKind::AuthorizationPolicy),
            Self::RequestAuthentication => Some(ProxyKind::RequestAuthentication),
            Self::Listener => Some(ProxyKind::Listener),
        }
    }

    /// Whether it is served to whom that scope is of: to node agents and to proxies, each its own.
    pub fn is_served_to(self, scope: &Scope) -> bool {
        self.proxy().is_some() == matches!(scope, Scope::Proxy(_))
    }
}

/// The resources of one type, as one stream sees them.
pub struct View<'a> {
    index: &'a Index,
    kind: ResourceKind,
    of: Of<'a>,
}

enum Of<'a> {
    Node(&'a str),
    Gateways(ProxyKind, Vec<GatewayName>),
    /// A type that is not served to such clients.
    Nobody,
}

impl<'a> View<'a> {
    /// What the index has of a kind for a scope.
    pub fn new(index: &'a Index, scope: &'a Scope, kind: ResourceKind) -> Self {
        let of = match (scope, kind.proxy()) {
            (Scope::Node(node), None) => Of::Node(node),
            (Scope::Proxy(_), Some(proxy)) => Of::Gateways(proxy, scope.gateways(index)),
            _ => Of::Nobody,
        };
        Self { index, kind, of }
    }

    /// The resource of that primary name.
    pub fn get(&self, name: &str) -> Option<&'a Arc<Rendered>> {
        match (&self.of, self.kind) {
            (Of::Node(_), ResourceKind::Address) => self.index.address(name),
            (Of::Node(node), ResourceKind::NodePod) => self.index.node_pod(node, name),
            (Of::Gateways(kind, gateways), _) => gateways
                .iter()
                .find_map(|gateway| self.index.proxy_resource(gateway, *kind, name)),
            (Of::Node(_), ResourceKind::Authorization) => self.index.authorization(name),
            _ => None,
        }
    }

    /// All resources that go by a name.
    pub fn resolve(&self, name: &str) -> Vec<&'a Arc<Rendered>> {
        match (&self.of, self.kind) {
            (Of::Node(_), ResourceKind::Address) => {
                let mut found: Vec<&'a Arc<Rendered>> = self.index.aliased(name).collect();
                found.extend(self.index.address(name));
                found
            }
            _ => self.get(name).into_iter().collect(),
        }
    }

    /// All resources.
    pub fn all(&self) -> Vec<&'a Arc<Rendered>> {
        match (&self.of, self.kind) {
            (Of::Node(_), ResourceKind::Address) => self.index.addresses().collect(),
            (Of::Node(_), ResourceKind::Authorization) => self.index.authorizations().collect(),
            (Of::Node(node), ResourceKind::NodePod) => self.index.node_pods(node).collect(),
            (Of::Gateways(kind, gateways), _) => {
                let mut all = Vec::new();
                for gateway in gateways {
                    all.extend(self.index.proxy_resources(gateway, *kind));
                }
                all
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ServiceAccount;

    #[test]
    fn each_type_is_served_to_one_sort_of_clients() {
        let agent = Scope::Node("n".to_owned());
        let proxy = Scope::Proxy(ServiceAccount {
            namespace: "shop".to_owned(),
            name: "front".to_owned(),
        });
        for kind in ResourceKind::ALL {
            assert_eq!(ResourceKind::of(kind.type_url()), Some(kind));
            assert!(kind.is_served_to(&agent) != kind.is_served_to(&proxy));
        }
        assert!(ResourceKind::Address.is_served_to(&agent));
        assert!(ResourceKind::TlsSecret.is_served_to(&proxy));
        assert_eq!(ResourceKind::of("type.googleapis.com/other"), None);
    }

    #[test]
    fn what_others_refer_to_comes_first() {
        let mut kinds: Vec<_> = ResourceKind::ALL.into_iter().collect();
        kinds.sort();
        let proxies: Vec<_> = kinds.into_iter().filter_map(ResourceKind::proxy).collect();
        use ProxyKind::{
            AuthorizationPolicy, Backend, Listener, RequestAuthentication, Route, TlsSecret,
        };
        assert_eq!(
            proxies,
            [
                TlsSecret,
                Backend,
                Route,
                AuthorizationPolicy,
                RequestAuthentication,
                Listener
            ]
        );
    }
}
