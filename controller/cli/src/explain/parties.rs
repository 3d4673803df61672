//! Who connects, and to what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use karst_identity::SpiffeId;
use karst_node_agent::state::Address;
use karst_node_agent::state::service::Service;
use karst_node_agent::state::workload::Workload;
use serde::Serialize;

use super::world::World;
use crate::failure::Failure;

/// The address that a client outside is taken to have (TEST-NET-1, RFC 5737).
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A port that clients connect from; no policy asks for it.
pub const ANY_SOURCE: u16 = 40_000;

/// Who connects.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    /// As it was asked for.
    pub asked: String,
    /// Its address.
    pub address: IpAddr,
    /// The identity that its agent proves; none: it is not in the mesh, and connects in plain text.
    #[serde(serialize_with = "identity")]
    pub identity: Option<SpiffeId>,
    /// Where the identity comes from, or why there is none.
    pub because: String,
    /// Uid of its workload.
    #[serde(skip)]
    pub workload: Option<Arc<Workload>>,
}

/// An identity as policies write it.
pub fn identity<S: serde::Serializer>(id: &Option<SpiffeId>, s: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => s.serialize_str(id.principal()),
        None => s.serialize_none(),
    }
}

/// What is connected to.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A Service, and the address of it that is dialled; none of a headless one.
    Service(Arc<Service>, Option<IpAddr>),
    /// A workload by its own address.
    Workload(Arc<Workload>, IpAddr),
    /// Nothing that the mesh knows.
    Outside(IpAddr),
}

impl Client {
    /// Reads SRC.
    ///
    /// # Errors
    /// It is not there, or makes no sense.
    pub fn find(text: &str, world: &World) -> Result<Self, Failure> {
        if text == "outside" {
            return Ok(Self::outside(
                text,
                OUTSIDE,
                "it is outside the mesh; its address is taken for 192.0.2.1",
            ));
        }
        if let Ok(ip) = bare(text).parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return match world.state.workload_at(ip) {
                Some(workload) => Self::of_workload(text, ip, workload, world),
                None => Ok(Self::outside(
                    text,
                    ip,
                    "the mesh knows no workload of this address",
                )),
            };
        }
        let Some((namespace, name)) = text
            .split_once('/')
            .filter(|(a, b)| !a.is_empty() && !b.is_empty())
        else {
            return Err(Failure::usage(format!(
                "SRC is {text:?}, and must be NAMESPACE/POD, an IP address or outside"
            )));
        };
        let workload = workload(namespace, name, world)?;
        let ip = workload.addresses.first().copied();
        let ip = ip.ok_or_else(|| no_address(namespace, name))?;
        Self::of_workload(text, ip, workload, world)
    }

    fn outside(asked: &str, address: IpAddr, because: &str) -> Self {
        Self {
            asked: asked.to_owned(),
            address,
            identity: None,
            because: because.to_owned(),
            workload: None,
        }
    }

    fn of_workload(
        asked: &str,
        address: IpAddr,
        workload: Arc<Workload>,
        world: &World,
    ) -> Result<Self, Failure> {
        let pod = world.index.mesh_pod(&workload.namespace, &workload.name);
        let gateway = pod.as_ref().and_then(|pod| pod.proxy_of.clone());
        let (identity, because) = if world.enrolled(&workload)?.is_some() {
            let account = format!(
                "its service account {} is proven by its node's agent",
                workload.service_account
            );
            (workload.identity.clone(), account)
        } else if let Some(gateway) = gateway {
            (
                workload.identity.clone(),
                format!("it is a proxy of Gateway {gateway}"),
            )
        } else {
            (None, "its pod is not in the mesh: neither it nor its namespace has the label karst.dev/dataplane-mode=ambient, or it cannot be".to_owned())
        };
        Ok(Self {
            asked: asked.to_owned(),
            address,
            identity,
            because,
            workload: Some(workload),
        })
    }
}

impl Destination {
    /// Reads DST:PORT.
    ///
    /// # Errors
    /// It is not there, or makes no sense.
    pub fn find(text: &str, world: &World) -> Result<(Self, u16, String), Failure> {
        let usage = || {
            Failure::usage(format!(
                "DST:PORT is {text:?}, and must be NAMESPACE/POD:PORT, svc/NAME.NAMESPACE:PORT, HOSTNAME:PORT or IP:PORT"
            ))
        };
        let (name, port) = text.rsplit_once(':').ok_or_else(usage)?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(usage)?;
        if name.is_empty() {
            return Err(usage());
        }
        let found = if let Ok(ip) = bare(name).parse::<IpAddr>() {
            let ip = ip.to_canonical();
            match world.state.lookup(ip) {
                Some(Address::Workload(workload)) => Self::Workload(workload, ip),
                Some(Address::Service(service)) => Self::Service(service, Some(ip)),
                None => Self::Outside(ip),
            }
        } else if let Some(rest) = name.strip_prefix("svc/") {
            Self::service(rest, world)?
        } else if let Some((namespace, pod)) = name.split_once('/') {
            let workload = workload(namespace, pod, world)?;
            let ip = workload.addresses.first().copied();
            let ip = ip.ok_or_else(|| no_address(namespace, pod))?;
            Self::Workload(workload, ip)
        } else {
            Self::service(name, world)?
        };
        Ok((found, port, name.to_owned()))
    }

    /// `NAME.NAMESPACE`, with or without the rest of the name that the cluster's DNS has for it.
    fn service(name: &str, world: &World) -> Result<Self, Failure> {
        let config = world.index.config();
        let short = name.trim_end_matches('.');
        let short = short
            .strip_suffix(&format!(".{}", config.cluster_domain))
            .unwrap_or(short);
        let short = short.strip_suffix(".svc").unwrap_or(short);
        let Some((service, namespace)) = short.split_once('.') else {
            return Err(Failure::usage(format!(
                "{name:?} names no namespace; write NAME.NAMESPACE for a Service"
            )));
        };
        let key = format!("{namespace}/{}", config.hostname(namespace, service));
        let found = world.state.service(&key);
        let found = found.ok_or_else(|| {
            Failure::not_found(format!("there is no Service {namespace}/{service}"))
        })?;
        let ip = found.spec.vips.first().copied();
        Ok(Self::Service(found, ip))
    }
}

fn workload(namespace: &str, name: &str, world: &World) -> Result<Arc<Workload>, Failure> {
    world.workload_of_pod(namespace, name).ok_or_else(|| {
        let message = if world.index.has_pod(namespace, name) {
            format!("pod {namespace}/{name} has no address yet, or has ended")
        } else {
            format!("there is no pod {namespace}/{name}")
        };
        Failure::not_found(message)
    })
}

fn no_address(namespace: &str, name: &str) -> Failure {
    Failure::not_found(format!("pod {namespace}/{name} has no address"))
}

/// Without the brackets around an IPv6 address.
fn bare(text: &str) -> &str {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    inner.unwrap_or(text)
}

/// A client's socket.
pub fn socket(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, ANY_SOURCE)
}
