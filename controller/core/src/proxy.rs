//! Proxies: waypoints and gateways, as their Gateways want them.

use std::{collections::BTreeMap, fmt};

/// Port on which a waypoint takes HBONE.
pub const WAYPOINT_PORT: u16 = 15008;

/// A Gateway of one of our classes. Its proxies run as the service account of the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl GatewayName {
    /// The Gateway of that name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl GatewayName {
    /// Whether its account is every pod's that names no other: its pods' identity would be theirs, and what is
    /// served to its proxies would be served to them.
    pub(crate) fn shares_its_account(&self) -> bool {
        self.name == "default"
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Types of resources (`karst.waypoint.v1`) that proxies are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyKind {
    /// Where traffic comes in.
    Listener,
    /// How it is routed.
    Route,
    /// Where it goes.
    Backend,
    /// Who may.
    AuthorizationPolicy,
    /// Whose tokens count.
    RequestAuthentication,
    /// Certificates and authorities.
    TlsSecret,
}

/// A resource of a proxy that is new, changed or gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyChange {
    /// Whose.
    pub gateway: GatewayName,
    /// Type.
    pub kind: ProxyKind,
    /// Name of the resource.
    pub name: String,
}

/// What a Gateway is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyClass {
    /// Traffic inside the mesh, by HBONE.
    Waypoint,
    /// Traffic from outside.
    Gateway,
}

impl ProxyClass {
    /// Name of the GatewayClass that there always is.
    #[must_use]
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Waypoint => "karst-waypoint",
            Self::Gateway => "karst",
        }
    }

    /// `controllerName` of GatewayClasses of this kind.
    #[must_use]
    pub fn controller(self) -> &'static str {
        match self {
            Self::Waypoint => "karst.dev/waypoint-controller",
            Self::Gateway => "karst.dev/gateway-controller",
        }
    }
}

/// A port that a proxy's Service opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyPort {
    /// Name, unique in the Service.
    pub name: String,
    /// Number.
    pub port: u16,
}

/// What shall run for a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyWanted {
    /// For which.
    pub gateway: GatewayName,
    /// The Gateway's uid, for owner references.
    pub uid: String,
    /// Generation of the Gateway that this follows from.
    pub generation: i64,
    /// What it is for.
    pub class: ProxyClass,
    /// What it runs as.
    pub service_account: String,
    /// Ports of its Service.
    pub ports: Vec<ProxyPort>,
    /// Labels for everything that is made (`spec.infrastructure`).
    pub labels: BTreeMap<String, String>,
    /// Annotations for everything that is made (`spec.infrastructure`).
    pub annotations: BTreeMap<String, String>,
    /// Addresses that the author asks for (`spec.addresses`).
    pub addresses: Vec<String>,
}
