//! A connection the pod's application makes: found out where it wants to go,
//! connected there through a tunnel or plainly, relayed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use http::uri::Authority;
use karst_tunnel::headers::{Forwarded, SourceHeaders};
use karst_tunnel::pool::{Early, FirstBytes, OutboundRequest, PoolKey};
use karst_tunnel::{Counters, HboneStream, TunnelError, relay};
use tokio::net::TcpStream;

use super::Direction;
use super::connection::{Connection, Flow, Leg, Refused};
use super::target::{Destination, Target, Way};
use crate::metrics::traffic::Security;
use crate::pod::{OUTBOUND_PORT, Permit};
use crate::reason::Reason;
use crate::sockets::{self, End};
use crate::state::endpoint::{EndpointSet, LiveGuard, now_ms};
use crate::state::workload::Workload;
use crate::worker::LocalPod;

/// Endpoints of a service, or pods of a waypoint, that are tried for one connection.
const MAX_TRIES: usize = 3;

/// The way to the destination, open.
enum Upstream {
    /// Boxed: it is moved several times on its way into the relay.
    Tunnel(Box<HboneStream>),
    /// With what of the application's a tunnel that was tried before has not carried.
    Plain(TcpStream, Early),
}

/// Serves one captured connection.
pub fn serve(
    local: Rc<LocalPod>,
    stream: TcpStream,
    from: SocketAddr,
) -> impl Future<Output = ()> + 'static {
    // Boxed: what opening needs is given back before the long part, the relay.
    let opened = Box::pin(begin(local, stream, from));
    async move {
        if let Some(open) = opened.await {
            relay(open).await;
        }
    }
}

/// A connection whose both ends are connected.
struct Open {
    stream: TcpStream,
    upstream: Upstream,
    connection: Connection,
}

/// Opens the way to the destination; `None` when the connection is refused.
async fn begin(local: Rc<LocalPod>, mut stream: TcpStream, from: SocketAddr) -> Option<Box<Open>> {
    let mut flow = Flow::new(&local.pod, Direction::Outbound);
    let worker = &local.worker;
    flow.source.addr = Some(from);
    flow.observe(worker, None);
    let Some(permit) = Permit::acquire(&local.pod) else {
        flow.refuse(worker, Reason::TooManyConnections.into());
        sockets::reset(stream);
        return None;
    };
    let (upstream, load) = match open(&local, &mut stream, from, &mut flow).await {
        Ok(open) => open,
        Err(refused) => {
            flow.refuse(worker, refused);
            sockets::reset(stream);
            return None;
        }
    };
    let tls = match &upstream {
        Upstream::Tunnel(tunnel) => Some(Arc::clone(&tunnel.tls)),
        Upstream::Plain(..) => None,
    };
    let counters = Arc::new(Counters::default());
    Some(Box::new(Open {
        stream,
        upstream,
        connection: flow.open(worker, tls, counters, (permit, load)),
    }))
}

async fn relay(open: Box<Open>) {
    let Open {
        stream,
        upstream,
        connection,
    } = *open;
    let counters = connection.counters();
    let mut cut = connection.cut();
    // Written out twice: a future around both would hold everything twice, as long as the connection lasts.
    let end = match upstream {
        Upstream::Tunnel(tunnel) => tokio::select! {
            biased;
            end = relay::tcp_hbone(stream, *tunnel, &counters) => Some(end),
            Ok(()) = &mut cut => None,
        },
        Upstream::Plain(upstream, early) => {
            // Boxed: it is larger than that of the usual way.
            let plain = Box::pin(relay::tcp_tcp_after(early, stream, upstream, &counters));
            tokio::select! {
                biased;
                end = plain => Some(end),
                Ok(()) = &mut cut => None,
            }
        }
    };
    // One that was cut is ended by its drop; that of the relay has reset both ends.
    if let Some(end) = end {
        connection.finish(end);
    }
}

async fn open(
    local: &Rc<LocalPod>,
    stream: &mut TcpStream,
    from: SocketAddr,
    flow: &mut Flow,
) -> Result<(Upstream, Option<LiveGuard>), Refused> {
    let context = &local.worker.context;
    // The socket that was accepted: of the listener on the loopback of the family.
    let loopback = match from.is_ipv4() {
        true => IpAddr::from(Ipv4Addr::LOCALHOST),
        false => IpAddr::from(Ipv6Addr::LOCALHOST),
    };
    flow.legs.application = Some(Leg {
        local: SocketAddr::new(loopback, OUTBOUND_PORT),
        remote: from,
    });
    let original = context
        .kernel
        .original(stream.as_fd())
        .map_err(|e| Refused::because(Reason::OriginalDestinationFailed, e))?
        .ok_or(Reason::NotCaptured)?;
    let (original, elsewhere) = (original.address, original.elsewhere);
    flow.destination.addr = Some(original);
    flow.source.addr = Some(local.pod.client_address(from, original.ip().to_canonical()));
    if !context.state.wait_ready().await {
        return Err(Reason::StateNotReady.into());
    }
    flow.source.workload = context.state.workload(&local.pod.workload_uid);
    let found = local.source().destination(original)?;
    if let Destination::Service(service) | Destination::Outside(service) = &found {
        flow.service = Some(Arc::clone(service));
        flow.service_port = Some(original.port());
    }
    if !found.is_inside() {
        flow.outside = Some(Box::new(original));
    }
    let left_out = match elsewhere {
        true => reached_past_us(local, &found, original),
        false => Vec::new(),
    };
    let opened = connect(local, &found, original, (flow, left_out), stream).await?;
    // What was changed meanwhile cuts live connections, of which this is none yet.
    flow.may_leave(local.source())?;
    Ok(opened)
}

/// The endpoints that the kernel chooses for such connections by itself: this one had its turn at another, and would
/// they be chosen here too, they had more than their share.
fn reached_past_us(local: &LocalPod, found: &Destination, original: SocketAddr) -> Vec<Arc<str>> {
    let Destination::Service(service) = found else {
        return Vec::new();
    };
    let reachable = local.worker.context.reachable.load();
    let endpoints = service.ports.get(&original.port());
    let uids = endpoints.into_iter().flat_map(EndpointSet::iter);
    let uids = uids.map(|endpoint| &endpoint.workload.uid);
    uids.filter(|uid| reachable.contains(*uid))
        .cloned()
        .collect()
}

/// Connects, to another endpoint when one fails before a byte was passed; to one of those left out if there is no other.
async fn connect(
    local: &Rc<LocalPod>,
    found: &Destination,
    original: SocketAddr,
    (flow, left_out): (&mut Flow, Vec<Arc<str>>),
    stream: &mut TcpStream,
) -> Result<(Upstream, Option<LiveGuard>), Refused> {
    let mut first = FirstBytes::of(stream);
    let mut avoided = left_out.len();
    let mut tried = left_out;
    let mut last = None;
    while tried.len() < MAX_TRIES + avoided {
        let target = match local.source().target(found, original, &tried) {
            Ok(target) => target,
            Err(_) if avoided > 0 => {
                tried.drain(..avoided);
                avoided = 0;
                continue;
            }
            // No further endpoint: the failure of the last one says more.
            Err(refused) => return Err(last.unwrap_or(refused)),
        };
        describe(flow, local, &target);
        let stats = target.workload.as_ref().map(|w| Arc::clone(&w.stats));
        let load = stats.as_ref().map(LiveGuard::new);
        match dial(local, &target, flow, &mut first).await {
            Ok(upstream) => {
                flow.legs.network = match &upstream {
                    Upstream::Plain(stream, _) => Leg::of(stream, target.address),
                    Upstream::Tunnel(tunnel) => {
                        let ends = tunnel.tls.local_addr.zip(target.hbone_addr());
                        ends.map(|(local, remote)| Leg { local, remote })
                    }
                };
                if let Some(stats) = stats {
                    stats.succeeded();
                }
                return Ok((upstream, load));
            }
            Err(failure) => {
                // Where another can take its place.
                let chosen = matches!(found, Destination::Service(_))
                    || matches!(target.way, Way::Waypoint(_));
                let failed = chosen && failure.endpoint_is_to_blame;
                let retry = failure.again || failed;
                if let (Some(stats), true) = (stats, failed) {
                    stats.failed(now_ms());
                }
                let uid = target
                    .workload
                    .map_or_else(|| Arc::from(""), |w| Arc::clone(&w.uid));
                tried.push(uid);
                if !retry || first.is_spent() {
                    return Err(failure.refused);
                }
                last = Some(failure.refused);
            }
        }
    }
    Err(last.unwrap_or_else(|| Reason::NoHealthyUpstream.into()))
}

/// Notes in the flow where it goes now.
fn describe(flow: &mut Flow, local: &LocalPod, target: &Target) {
    flow.destination.addr = Some(target.address);
    flow.destination.workload = target.workload.clone();
    flow.hbone_addr = target.hbone_addr();
    if flow.hbone_addr.is_some() {
        flow.security = Security::MutualTls;
        flow.source.identity = Some(local.pod.identity.clone());
        flow.destination.identity = target.workload.as_ref().and_then(|w| w.identity.clone());
    } else {
        flow.security = Security::Unknown;
        flow.source.identity = None;
        flow.destination.identity = None;
    }
}

/// Why one try failed and what that means for the next.
struct Failure {
    refused: Refused,
    /// Another endpoint may do better.
    endpoint_is_to_blame: bool,
    /// The same endpoint may do better.
    again: bool,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self {
            refused: reason.into(),
            endpoint_is_to_blame: false,
            again: false,
        }
    }
}

impl Failure {
    /// This node lacks something: no endpoint is to blame, and another would find the same.
    fn of_shortage(error: impl ToString) -> Self {
        Self {
            refused: Refused::because(Reason::OutOfResources, error),
            endpoint_is_to_blame: false,
            again: false,
        }
    }

    fn of_tunnel(error: TunnelError, way: Way) -> Self {
        if let TunnelError::Dial { kind, .. } = &error
            && sockets::is_shortage(*kind)
        {
            return Self::of_shortage(error);
        }
        let endpoint_is_to_blame = match &error {
            // A waypoint that answered is well; what it says is about what is behind it.
            TunnelError::Refused { .. } if matches!(way, Way::Waypoint(_)) => false,
            // A peer that answered: only "cannot reach the application" is about the endpoint.
            TunnelError::Refused { status } => *status == http::StatusCode::SERVICE_UNAVAILABLE,
            TunnelError::NoCertificate { .. } | TunnelError::PoolClosed => false,
            _ => true,
        };
        let reason = Reason::Other(error.reason());
        Self {
            again: error.is_retryable(),
            refused: Refused::because(reason, &error),
            endpoint_is_to_blame,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if sockets::is_shortage(error.kind()) {
            return Self::of_shortage(error);
        }
        let refused = Refused::because(Reason::UpstreamConnectFailed, error);
        Self {
            refused,
            endpoint_is_to_blame: true,
            again: false,
        }
    }
}

async fn dial(
    local: &Rc<LocalPod>,
    target: &Target,
    flow: &Flow,
    first: &mut FirstBytes<'_>,
) -> Result<Upstream, Failure> {
    let (Some(address), Some(workload)) = (target.hbone_addr(), &target.workload) else {
        let to = (End::Network, target.address);
        let plain = sockets::connect(&local.pod.netns, to, |_| Ok(())).await?;
        return Ok(Upstream::Plain(plain, first.unsent()));
    };
    let certificates = &local.worker.context.certificates;
    let certificate = certificates
        .get(&local.pod.identity)
        .ok_or(Reason::NoCertificate)?;
    let key = PoolKey {
        source: local.pod.identity.clone(),
        certificate_epoch: certificate.epoch(),
        destination_uid: Arc::clone(&workload.uid),
        // Checked when the workload arrived: HBONE has an identity.
        destination: workload
            .identity
            .clone()
            .ok_or(Reason::Other("identity_unknown"))?,
        address,
    };
    let request = request(local, target.address, flow)?;
    let mut tunnel = local
        .pool
        .connect_with(key, &local.dialer, &certificate, request, first)
        .await
        .map_err(|error| Failure::of_tunnel(error, target.way))?;
    // They have been read; a relay may go on for days.
    tunnel.response_headers = HeaderMap::new();
    Ok(Upstream::Tunnel(Box::new(tunnel)))
}

/// The CONNECT for the application at `address`.
fn request(local: &LocalPod, address: SocketAddr, flow: &Flow) -> Result<OutboundRequest, Failure> {
    let authority = Authority::try_from(address.to_string())
        .map_err(|_| Failure::from(Reason::ConnectBadAuthority))?;
    let host = flow
        .service
        .as_ref()
        .map(|s| s.spec.hostname.to_string())
        .unwrap_or_default();
    let trace = flow
        .observed
        .as_ref()
        .and_then(|observed| observed.context());
    let source = SourceHeaders {
        baggage: None,
        forwarded: flow.source.addr.map(|client| Forwarded { client, host }),
        traceparent: Some(trace.unwrap_or_default()),
    };
    let mut headers = HeaderMap::with_capacity(3);
    source.write(&mut headers);
    if let Some(workload) = flow
        .source
        .workload
        .as_deref()
        .and_then(|w: &Workload| local.baggage(w))
    {
        headers.insert(karst_tunnel::headers::BAGGAGE, workload);
    }
    Ok(OutboundRequest { authority, headers })
}
