//! Resources as the controller sends them.

use std::net::{IpAddr, SocketAddr};

use karst_api::waypoint::{
    AttachedRoute, Backend, Endpoint, GatewayListener, L4Rule, Listener, ListenerProtocol,
    Protocol, Route, RouteKind, RouteSet, ServiceFrontend, SocketFrontend, TlsSecret, Tunnel,
    WeightedBackend, WorkloadFrontend, listener,
};

use crate::ca::id;

pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An application that is reached through its agent's tunnel.
pub fn endpoint(application: SocketAddr) -> Endpoint {
    Endpoint {
        uid: format!("test//Pod/test/{}", application.port()),
        address: octets(application.ip()),
        port: u32::from(application.port()),
        tunnel: Tunnel::Hbone.into(),
        identity: id("server").to_string(),
        ..Endpoint::default()
    }
}

pub fn backend(name: &str, applications: &[SocketAddr]) -> Backend {
    Backend {
        name: name.to_owned(),
        namespace: "test".to_owned(),
        service: name.to_owned(),
        hostname: format!("{name}.test.svc.cluster.local"),
        port: 80,
        endpoints: applications.iter().copied().map(endpoint).collect(),
        ..Backend::default()
    }
}

/// A service at 10.96.0.1:80.
pub fn service(protocol: Protocol, backend: &str, route_sets: Vec<RouteSet>) -> Listener {
    Listener {
        name: "service/test/echo.test.svc.cluster.local/80".to_owned(),
        frontend: Some(listener::Frontend::Service(ServiceFrontend {
            namespace: "test".to_owned(),
            name: "echo".to_owned(),
            hostname: "echo.test.svc.cluster.local".to_owned(),
            addresses: vec![vec![10, 96, 0, 1]],
            port: 80,
            protocol: protocol.into(),
            backend: backend.to_owned(),
            route_sets,
            policies: Vec::new(),
            authentications: Vec::new(),
            telemetry: None,
        })),
    }
}

pub fn workload(application: SocketAddr) -> Listener {
    Listener {
        name: "workload/test//Pod/test/own".to_owned(),
        frontend: Some(listener::Frontend::Workload(WorkloadFrontend {
            addresses: vec![octets(application.ip())],
            endpoint: Some(endpoint(application)),
            ports: Vec::new(),
            policies: Vec::new(),
            authentications: Vec::new(),
            telemetry: None,
            workload: None,
        })),
    }
}

/// Routes for everybody.
pub fn routes(names: &[&str]) -> Vec<RouteSet> {
    vec![RouteSet {
        client_namespace: String::new(),
        routes: names.iter().map(|name| attached(name, &[])).collect(),
    }]
}

pub fn attached(route: &str, hostnames: &[&str]) -> AttachedRoute {
    AttachedRoute {
        route: route.to_owned(),
        hostnames: hostnames.iter().map(ToString::to_string).collect(),
    }
}

pub fn weighted(backend: &str) -> WeightedBackend {
    WeightedBackend {
        backend: backend.to_owned(),
        weight: 1,
        ..WeightedBackend::default()
    }
}

pub fn l4_route(name: &str, kind: RouteKind, backends: Vec<WeightedBackend>) -> Route {
    Route {
        name: name.to_owned(),
        created: 1,
        kind: kind.into(),
        l4_rules: vec![L4Rule {
            name: "0".to_owned(),
            backends,
        }],
        ..Route::default()
    }
}

pub fn http_route(name: &str, backend: &str) -> Route {
    Route {
        name: name.to_owned(),
        created: 1,
        kind: RouteKind::RouteHttp.into(),
        http_rules: vec![karst_api::waypoint::HttpRule {
            backends: vec![weighted(backend)],
            ..karst_api::waypoint::HttpRule::default()
        }],
        ..Route::default()
    }
}

pub fn socket(port: u16, listeners: Vec<GatewayListener>) -> Listener {
    Listener {
        name: format!("socket/{port}"),
        frontend: Some(listener::Frontend::Socket(SocketFrontend {
            port: u32::from(port),
            listeners,
        })),
    }
}

pub fn gateway_listener(
    name: &str,
    protocol: ListenerProtocol,
    hostname: &str,
    routes: Vec<AttachedRoute>,
) -> GatewayListener {
    GatewayListener {
        name: format!("test/front/{name}"),
        hostname: hostname.to_owned(),
        protocol: protocol.into(),
        routes,
        ..GatewayListener::default()
    }
}

pub fn secret(name: &str, (chain, key): (String, String)) -> TlsSecret {
    TlsSecret {
        name: name.to_owned(),
        certificate_chain: chain,
        private_key: key.into_bytes(),
        ..TlsSecret::default()
    }
}
