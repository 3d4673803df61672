//! Routes: HTTPRoute, GRPCRoute, TLSRoute and TCPRoute, in the one form that the index works on.

pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod l4;

use super::{Kind, gateway_api::ParentRef};

/// Kinds of routes, the one that wins a port of a Service first (GEP-1426).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RouteKind {
    Grpc,
    Http,
    Tls,
    Tcp,
}

impl RouteKind {
    pub(crate) const ALL: [Self; 4] = [Self::Grpc, Self::Http, Self::Tls, Self::Tcp];

    /// The kind of the objects.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Grpc => Kind::GrpcRoute,
            Self::Http => Kind::HttpRoute,
            Self::Tls => Kind::TlsRoute,
            Self::Tcp => Kind::TcpRoute,
        }
    }

    /// The routes of a kind of objects.
    pub(crate) fn of(kind: Kind) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.kind() == kind)
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) kind: RouteKind,
    pub(crate) parents: Vec<ParentRef>,
    /// Host names in lower case; of TLSRoutes and, at gateways, HTTPRoutes and GRPCRoutes.
    pub(crate) hostnames: Vec<String>,
}

/// Fields that all routes have.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CommonSpec {
    pub(crate) parent_refs: Vec<ParentRef>,
    pub(crate) hostnames: Vec<String>,
}

impl CommonSpec {
    pub(crate) fn route(self, kind: RouteKind) -> Route {
        let lower = |name: String| name.to_ascii_lowercase();
        Route {
            kind,
            parents: self.parent_refs,
            hostnames: self.hostnames.into_iter().map(lower).collect(),
        }
    }
}
