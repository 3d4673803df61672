//! `karst explain`: whether a client may connect, and which policy decides it and why.
//!
//! The objects go through the controller's index, its resources through the conversions of node agents and
//! proxies ([`world`]), and the connection to what decides there: [`agent`] for what is below HTTP at the
//! destination's node, [`proxy`] for waypoints and gateways on the way. Nothing here decides by itself.

mod agent;
mod conditions;
mod egress;
mod hop;
mod parties;
mod providers;
mod proxy;
#[cfg(test)]
mod tests;
mod token;
#[cfg(test)]
mod token_tests;
mod words;
mod world;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use karst_core::{GatewayName, ProxyClass};
use karst_node_agent::reason::Reason;
use karst_node_agent::state::Address;
use karst_node_agent::state::waypoint::{Place, Waypoint};
use karst_node_agent::state::workload::{Protocol, Via, Workload};
use karst_waypoint::authn::Refusal;
use serde::Serialize;

use self::agent::Seen;
use self::hop::Hop;
use self::parties::{Client, Destination, socket};
use self::proxy::{At, Next, Request};
pub use self::world::{World, type_url as proxy_type};
use crate::args::Explain;
use crate::cluster;
use crate::failure::{Failure, Kind};
use crate::source::{self, Input};

/// Waypoints that one connection is followed through: a gateway, and the waypoint behind it.
const MAX_PROXIES: usize = 3;

/// Everything that there is to say.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Who connects.
    pub source: Client,
    /// What it connects to, as it was asked for.
    pub destination: String,
    /// How it goes there.
    pub way: Vec<String>,
    /// Places that decide, in their order.
    pub hops: Vec<Hop>,
    /// Whether all of them let it pass.
    pub allowed: bool,
    /// The one sentence.
    pub verdict: String,
}

/// Explains.
///
/// # Errors
/// The objects cannot be had, a party is not there; or the answer is that it is denied.
pub fn run(args: &Explain) -> Result<String, Failure> {
    let input = match source::offline(&args.objects).map_err(as_failed)? {
        Some(input) => input,
        None => cluster::run(async {
            let client = cluster::client(&args.objects.kubernetes).await?;
            source::cluster(&args.objects, &client).await
        })?,
    };
    let explanation = explain(args, &input)?;
    let text = if args.output.is_json() {
        let value = serde_json::to_value(&explanation).unwrap_or_default();
        match args.output.pretty {
            true => format!("{value:#}\n"),
            false => format!("{value}\n"),
        }
    } else {
        words::text(&explanation)
    };
    if explanation.allowed {
        return Ok(text);
    }
    Err(Failure {
        kind: Kind::Denied,
        reason: "denied".to_owned(),
        message: text,
    })
}

/// 65 is `karst analyze`'s.
pub fn as_failed(failure: Failure) -> Failure {
    Failure {
        kind: Kind::Failed,
        ..failure
    }
}

/// Works the explanation out.
fn explain(args: &Explain, input: &Input) -> Result<Explanation, Failure> {
    let mut index = input.read().index;
    let providers = providers::find(args.mesh_config.as_deref(), input)?;
    let providers_known = providers.is_some();
    if let Some(providers) = providers {
        index.set_extension_providers(providers);
    }
    let mut world = World::new(index);
    world.keys = args.jwks.as_deref().map(token::keys).transpose()?;
    let jwt = args.jwt.as_deref().map(token::read).transpose()?;
    let source = Client::find(&args.client, &world)?;
    let (destination, port, name) = Destination::find(&args.destination, &world)?;
    let host = args
        .host
        .clone()
        .unwrap_or_else(|| default_host(&destination, &name, port));
    let of = |method: &str, path: &str| {
        let mut request = Request::new(method, path, &host, &args.headers)?;
        if let Some(token) = &jwt {
            request.headers.append(AUTHORIZATION, token.clone());
        }
        Ok::<_, Failure>(request)
    };
    let asked = args.method.is_some()
        || jwt.is_some()
        || args.path.is_some()
        || args.host.is_some()
        || !args.headers.is_empty();
    let method = args.method.as_deref().unwrap_or("GET");
    let assumed = of(method, args.path.as_deref().unwrap_or("/"))?;
    let mut walk = Walk {
        world: &world,
        source: &source,
        request: asked.then_some(&assumed),
        assumed: &assumed,
        providers_known,
        way: Vec::new(),
        hops: Vec::new(),
    };
    walk.start(&destination, port)?;
    let (way, hops) = (walk.way, walk.hops);
    let denied: Vec<&Hop> = hops.iter().filter(|hop| !hop.allowed).collect();
    let verdict = match denied.first() {
        None => {
            let last = hops
                .iter()
                .rev()
                .find(|hop| hop.policy.is_some())
                .or(hops.last());
            let asked = hops.iter().filter_map(|hop| hop.asks.as_ref());
            let asked: BTreeSet<&str> = asked.map(|asks| &*asks.provider).collect();
            let condition = match asked.is_empty() {
                true => String::new(),
                false => {
                    let names = asked.into_iter().collect::<Vec<_>>().join(" and ");
                    format!(" IF provider {names} allows it, which is not known here")
                }
            };
            format!(
                "ALLOWED{condition}: {}",
                last.map_or("nothing decides about it", |hop| hop.because.as_str())
            )
        }
        Some(first) => {
            let ends = hops
                .iter()
                .filter(|hop| hop.by == first.by)
                .map(|hop| 1 + hop.alike.len());
            let all: usize = ends.sum();
            let some: usize = denied
                .iter()
                .filter(|hop| hop.by == first.by)
                .map(|hop| 1 + hop.alike.len())
                .sum();
            let part = if some < all {
                format!(" at {some} of {all} endpoints")
            } else {
                String::new()
            };
            format!(
                "DENIED{part}: {} ({})",
                first.because,
                first.reason.unwrap_or("denied")
            )
        }
    };
    Ok(Explanation {
        allowed: denied.is_empty(),
        source,
        destination: args.destination.clone(),
        way,
        hops,
        verdict,
    })
}

/// The place of a waypoint that is not there: of a Service `NAMESPACE/NAME`, else the address.
fn place(waypoint: &Waypoint) -> String {
    match &waypoint.place {
        Place::Address(ip) => ip.to_string(),
        Place::Service(key) => match key.split_once('/') {
            Some((namespace, host)) => {
                let name = host.split('.').next().unwrap_or(host);
                format!("{namespace}/{name}")
            }
            None => key.to_string(),
        },
    }
}

/// The host that a client would name.
fn default_host(destination: &Destination, name: &str, port: u16) -> String {
    let host = match destination {
        Destination::Service(service, _) => service.spec.hostname.to_string(),
        Destination::Workload(_, ip) | Destination::Outside(ip) => match ip {
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            std::net::IpAddr::V4(ip) => ip.to_string(),
        },
    };
    let host = if host.is_empty() {
        name.to_owned()
    } else {
        host
    };
    if port == 80 {
        host
    } else {
        format!("{host}:{port}")
    }
}

/// A connection on its way.
struct Walk<'a> {
    world: &'a World,
    source: &'a Client,
    request: Option<&'a Request>,
    assumed: &'a Request,
    providers_known: bool,
    way: Vec<String>,
    hops: Vec<Hop>,
}

impl Walk<'_> {
    fn start(&mut self, destination: &Destination, port: u16) -> Result<(), Failure> {
        let in_mesh = self.source.identity.is_some();
        self.way.push(if in_mesh {
            "the client's agent carries it".to_owned()
        } else {
            "in plain text, as the client is not in the mesh".to_owned()
        });
        match destination {
            Destination::Outside(ip) => self.leave(SocketAddr::new(*ip, port)),
            Destination::Workload(workload, ip) => self.reach(workload, SocketAddr::new(*ip, port)),
            Destination::Service(service, ip) => {
                let name = GatewayName::new(&*service.spec.namespace, &*service.spec.name);
                if self.world.index.proxy_class(&name) == Some(ProxyClass::Gateway) {
                    let ip = ip.or_else(|| self.address_of(&name));
                    let ip = ip.ok_or_else(|| {
                        Failure::not_found(format!("Gateway {name} has no address"))
                    })?;
                    self.way.push(format!("through gateway {name}"));
                    return self.through(
                        &name,
                        ProxyClass::Gateway,
                        SocketAddr::new(ip, port),
                        &self.seen(),
                        MAX_PROXIES,
                    );
                }
                let Some(endpoints) = service.ports.get(&port) else {
                    self.refuse(
                        format!("Service {name}"),
                        "service_port_unknown",
                        format!("the Service has no port {port}"),
                    );
                    return Ok(());
                };
                if in_mesh
                    && service.spec.via != Via::Direct
                    && let Some(ip) = ip
                {
                    return self.via(&service.spec.via, SocketAddr::new(*ip, port));
                }
                let endpoints: Vec<(Arc<Workload>, u16)> = endpoints
                    .iter()
                    .map(|one| (Arc::clone(&one.workload), one.target_port))
                    .collect();
                if endpoints.is_empty() {
                    self.refuse(
                        format!("Service {name}"),
                        "no_healthy_upstream",
                        "the Service has no endpoint that is ready".to_owned(),
                    );
                }
                for (workload, target) in endpoints {
                    let Some(address) = workload.addresses.first() else {
                        continue;
                    };
                    let address = SocketAddr::new(*address, target);
                    self.reach(&workload, address)?;
                }
                Ok(())
            }
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            identity: self.source.identity.clone(),
            address: socket(self.source.address),
        }
    }

    fn refuse(&mut self, at: String, reason: &'static str, because: String) {
        self.decide(at, Some(reason), because);
    }

    /// What the client's own agent decides.
    fn decide(&mut self, at: String, reason: Option<&'static str>, because: String) {
        let identity = self.source.identity.clone();
        let mut hop = Hop::new("client_agent", at, identity, self.source.address);
        (hop.allowed, hop.reason) = (reason.is_none(), reason);
        hop.because = because;
        self.hops.push(hop);
    }

    fn say(&mut self, way: String) {
        if !self.way.contains(&way) {
            self.way.push(way);
        }
    }

    fn reach(&mut self, workload: &Arc<Workload>, address: SocketAddr) -> Result<(), Failure> {
        let mut seen = self.seen();
        if seen.identity.is_some() {
            if workload.via != Via::Direct {
                return self.via(&workload.via, address);
            }
            if workload.protocol == Protocol::Tcp {
                self.say("in plain text, as the destination's pod is not in the mesh".to_owned());
                seen.identity = None;
            } else {
                self.say("by mutual TLS, straight to the destination's agent".to_owned());
            }
        }
        let hop = agent::decide(self.world, workload, address, &seen)?;
        self.add(hop);
        Ok(())
    }

    /// Through what stands in front, as the client's agent finds it.
    fn via(&mut self, via: &Via, asked: SocketAddr) -> Result<(), Failure> {
        let waypoint = match via {
            Via::Waypoint(waypoint) => waypoint,
            Via::NetworkGateway => {
                self.refuse(
                    asked.to_string(),
                    "network_unsupported",
                    "it is on another network".to_owned(),
                );
                return Ok(());
            }
            Via::UnusableWaypoint | Via::Direct => {
                self.refuse(
                    asked.to_string(),
                    "waypoint_unsupported",
                    "its waypoint is described in a way that agents do not follow".to_owned(),
                );
                return Ok(());
            }
        };
        let name = self.gateway(waypoint);
        let shown = name
            .as_ref()
            .map_or_else(|| place(waypoint), ToString::to_string);
        self.say(format!("by mutual TLS through waypoint {shown}"));
        let source = self.source.workload.as_ref().map_or("", |one| &*one.uid);
        if let Err(reason) = waypoint.choose(&self.world.state, source, asked.ip(), &[]) {
            let because = match reason {
                Reason::WaypointUnknown => "is not there",
                Reason::WaypointNoEndpoints => "has no pod that is ready",
                _ => "cannot take it",
            };
            self.refuse(
                format!("waypoint {shown}"),
                reason.as_str(),
                format!("waypoint {shown} {because}, and nothing passes by it"),
            );
            return Ok(());
        }
        let Some(name) = name else {
            self.refuse(
                format!("waypoint {shown}"),
                "waypoint_unknown",
                "nothing is known of the waypoint".to_owned(),
            );
            return Ok(());
        };
        let seen = self.seen();
        self.through(&name, ProxyClass::Waypoint, asked, &seen, MAX_PROXIES)
    }

    /// The Gateway of a waypoint.
    fn gateway(&self, waypoint: &Waypoint) -> Option<GatewayName> {
        let address = match &waypoint.place {
            Place::Service(key) => self.world.state.service(key).map(Address::Service),
            Place::Address(ip) => self.world.state.lookup(*ip),
        };
        match address? {
            Address::Service(service) => Some(GatewayName::new(
                &*service.spec.namespace,
                &*service.spec.name,
            )),
            Address::Workload(workload) => {
                self.world
                    .index
                    .mesh_pod(&workload.namespace, &workload.name)?
                    .proxy_of
            }
        }
    }

    /// An address of a proxy's pods.
    fn address_of(&self, gateway: &GatewayName) -> Option<std::net::IpAddr> {
        let pods = self.world.index.pod_names();
        let mut own = pods.filter_map(|(namespace, name)| {
            let pod = self.world.index.mesh_pod(namespace, name)?;
            (pod.proxy_of.as_ref() == Some(gateway)).then_some(pod)
        });
        own.find_map(|pod| pod.addresses.first().copied())
    }

    fn through(
        &mut self,
        gateway: &GatewayName,
        class: ProxyClass,
        asked: SocketAddr,
        seen: &Seen,
        left: usize,
    ) -> Result<(), Failure> {
        let at = At {
            world: self.world,
            gateway,
            class,
            request: self.request,
            assumed: self.assumed,
            providers_known: self.providers_known,
        };
        let (hop, next) = at.decide(seen, asked);
        let secrets = self.world.index.object_count(karst_core::Kind::Secret);
        if hop.reason == Some("gateway_no_listener") && secrets == 0 {
            // It may be one that ends TLS, of which nothing is known without its certificate.
            return Err(Failure::failed(
                "listener_unknown",
                format!(
                    "{}; listeners that end TLS cannot be looked at without their Secrets, which are not read of a \
                     cluster: give manifests with -f",
                    hop.because
                ),
            ));
        }
        if hop.reason == Some(Refusal::NoKeys.reason()) && self.world.keys.is_none() {
            return Err(Failure::failed(
                "keys_unknown",
                format!(
                    "at {gateway} the keys of the token's issuer are fetched (jwksUri), which is not done here: give \
                     them with --jwks"
                ),
            ));
        }
        self.add(hop);
        for one in next {
            match one {
                Next::Pod(workload, address, identity) => {
                    let address_there =
                        self.seen_behind(gateway, &workload, identity.as_ref(), seen)?;
                    let seen = Seen {
                        identity,
                        address: address_there,
                    };
                    let hop = agent::decide(self.world, &workload, address, &seen)?;
                    self.add(hop);
                }
                Next::Waypoint(waypoint, asked) if left > 0 => {
                    self.say(format!("then through waypoint {waypoint}"));
                    let domain = &self.world.index.config().trust_domain;
                    let identity =
                        karst_identity::SpiffeId::new(domain, &gateway.namespace, &gateway.name)
                            .ok();
                    let seen = Seen {
                        identity,
                        address: seen.address,
                    };
                    self.through(&waypoint, ProxyClass::Waypoint, asked, &seen, left - 1)?;
                }
                Next::Waypoint(waypoint, _) => {
                    self.refuse(
                        format!("waypoint {waypoint}"),
                        "waypoint_loop",
                        format!("more than {MAX_PROXIES} proxies follow each other"),
                    );
                }
                Next::Plain(address) => {
                    self.say(format!("then in plain text to {address}, which is no pod"))
                }
            }
        }
        Ok(())
    }

    /// The client's address behind a proxy: the client's own where the agent believes the proxy.
    fn seen_behind(
        &self,
        gateway: &GatewayName,
        workload: &Workload,
        identity: Option<&karst_identity::SpiffeId>,
        seen: &Seen,
    ) -> Result<SocketAddr, Failure> {
        let enrolled = self.world.enrolled(workload)?;
        let believed = identity
            .zip(enrolled.as_ref())
            .is_some_and(|(identity, enrolled)| enrolled.waypoints.vouches(identity, seen.address));
        if believed {
            return Ok(seen.address);
        }
        Ok(self.address_of(gateway).map_or(seen.address, socket))
    }

    /// Adds a hop, unless another pod's says the same.
    fn add(&mut self, hop: Hop) {
        let same = self
            .hops
            .iter_mut()
            .find(|other| other.by == hop.by && other.is_like(&hop));
        match same {
            Some(other) => other.alike.push(hop.at),
            None => self.hops.push(hop),
        }
    }
}
