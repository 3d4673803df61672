//! Routes as a listener names them.

use std::sync::Arc;

use karst_api::waypoint as wire;

use super::ConfigError;
use super::routes::{Routes, Usable};
use super::secret::Lookup;
use crate::route::{Attached, CompiledRoute, HttpRouter, L4Router};
use crate::table::{self, Hostname};

/// Host names of one attached route. The Gateway API allows 16 of route and listener, so there are at most 256.
const MAX_HOSTNAMES: usize = 1024;

/// A route that is attached to something, by name.
pub(super) struct AttachedName {
    pub(super) route: String,
    hostnames: Vec<Hostname>,
}

/// What is spoken where routes are attached.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layer {
    /// HTTP.
    Http,
    /// Bytes.
    L4,
}

/// What putting together found out.
#[derive(Default)]
pub(super) struct Findings {
    /// Something has not come yet.
    pub(super) incomplete: bool,
    pub(super) problems: Vec<String>,
}

impl Findings {
    pub(super) fn missing(&mut self, what: &str, name: &str) {
        self.incomplete = true;
        self.problems.push(format!("waits for {what} {name:?}"));
    }
}

impl AttachedName {
    pub(super) fn list(wire: &[wire::AttachedRoute]) -> Result<Vec<Self>, ConfigError> {
        let attached = |(index, wire): (usize, &wire::AttachedRoute)| {
            Self::new(wire).map_err(|error| error.within(format_args!("routes[{index}]")))
        };
        wire.iter().enumerate().map(attached).collect()
    }

    fn new(wire: &wire::AttachedRoute) -> Result<Self, ConfigError> {
        if wire.route.is_empty() {
            return Err(ConfigError::new("route", "is empty"));
        }
        super::at_most("hostnames", wire.hostnames.len(), MAX_HOSTNAMES)?;
        let hostname = |(index, name): (usize, &String)| {
            Hostname::parse(name)
                .map_err(|problem| ConfigError::new(format!("hostnames[{index}]"), problem))
        };
        let hostnames = wire.hostnames.iter().enumerate().map(hostname);
        Ok(Self {
            route: wire.route.clone(),
            hostnames: hostnames.collect::<Result<_, _>>()?,
        })
    }

    /// `KIND/NAMESPACE/NAME` tells the kind even of a route that is not there.
    fn layer(&self) -> Option<Layer> {
        match self.route.split_once('/')?.0 {
            "HTTPRoute" | "GRPCRoute" => Some(Layer::Http),
            "TLSRoute" | "TCPRoute" => Some(Layer::L4),
            _ => None,
        }
    }
}

/// Routes of a service for one set of clients: of whichever kind there is, HTTP first.
pub(super) fn of_service(
    names: &[AttachedName],
    declared: Layer,
    routes: &Routes,
    findings: &mut Findings,
) -> table::Routes {
    let has = |layer: Layer| names.iter().any(|name| name.layer() == Some(layer));
    let layer = match (has(Layer::Http), has(Layer::L4)) {
        (true, _) => Layer::Http,
        (false, true) => Layer::L4,
        (false, false) => declared,
    };
    put_together(names, layer, routes, findings)
}

/// The router for routes of one layer.
pub(super) fn put_together(
    names: &[AttachedName],
    layer: Layer,
    routes: &Routes,
    findings: &mut Findings,
) -> table::Routes {
    let held: Vec<(&[Hostname], Option<Arc<CompiledRoute>>)> = names
        .iter()
        .map(|name| {
            (
                name.hostnames.as_slice(),
                look_up(&name.route, routes, findings),
            )
        })
        .collect();
    let attached = held.iter().map(|(hostnames, route)| Attached {
        hostnames,
        route: route.as_deref(),
    });
    match layer {
        Layer::Http => table::Routes::Http(Arc::new(HttpRouter::new(attached))),
        Layer::L4 => table::Routes::L4(Arc::new(L4Router::new(attached))),
    }
}

fn look_up(name: &str, routes: &Routes, findings: &mut Findings) -> Option<Arc<CompiledRoute>> {
    match routes.get(name) {
        Lookup::Found(Usable { route, complete }) => {
            if !complete {
                findings.missing("backends of route", name);
            }
            Some(Arc::clone(route))
        }
        Lookup::Missing => {
            findings.missing("route", name);
            None
        }
        Lookup::Rejected => {
            let problem = format!("route {name:?} is invalid, what it is for is refused");
            findings.problems.push(problem);
            None
        }
    }
}
