//! A connection that arrives through a tunnel: checked, connected to the
//! application, relayed by the tunnel server.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use karst_identity::SpiffeId;
use karst_tunnel::headers::{Authority, BAGGAGE};
use karst_tunnel::relay::RelayEnd;
use karst_tunnel::server::{
    Accepted, Answer, ConnectRequest, InboundHandler, Refusal, RefusalStatus,
};
use karst_tunnel::{Counters, TunnelError, server};
use tokio::net::TcpStream;

use super::Direction;
use super::connection::{Flow, Leg, Refused};
use crate::metrics::traffic::Security;
use crate::pod::{Permit, is_own_port};
use crate::reason::Reason;
use crate::sockets::{self, End};
use crate::state::workload::Workload;
use crate::worker::LocalPod;

/// Serves one tunnel connection: many application connections, one after the
/// other and side by side.
pub async fn serve(local: Rc<LocalPod>, stream: TcpStream, from: SocketAddr) {
    let worker = Rc::clone(&local.worker);
    let mut flow = tunnel_flow(&local);
    flow.source.addr = Some(from);
    flow.destination.addr = stream.local_addr().ok();
    let Some(certificate) = worker.context.certificates.get(&local.pod.identity) else {
        flow.refuse(&worker, Reason::NoCertificate.into());
        return sockets::reset(stream);
    };
    let handler = Rc::new(Handler {
        local: Rc::clone(&local),
    });
    let shutdown = local.drain.subscribe();
    let served = server::serve(stream, certificate, &local.limits, shutdown, handler).await;
    match served {
        Ok(end) => {
            let requests = end.requests;
            tracing::debug!(peer = %end.peer, cause = ?end.cause, requests, "tunnel ended");
        }
        // Connections come and go, scanners look in: the network's business.
        Err(error @ (TunnelError::Io { .. } | TunnelError::PingTimeout { .. })) => {
            tracing::debug!(%error, reason = error.reason(), src.addr = %from, "tunnel broke");
        }
        Err(error) => {
            flow.refuse(
                &worker,
                Refused::because(Reason::Other(error.reason()), &error),
            );
        }
    }
}

/// What is known of anything that comes to a pod's tunnel listener.
fn tunnel_flow(local: &LocalPod) -> Flow {
    let mut flow = Flow::new(&local.pod, Direction::Inbound);
    flow.security = Security::MutualTls;
    flow.destination.identity = Some(local.pod.identity.clone());
    flow.destination.workload = local.worker.context.state.workload(&local.pod.workload_uid);
    flow
}

struct Handler {
    local: Rc<LocalPod>,
}

impl InboundHandler for Handler {
    async fn connect(&self, request: ConnectRequest) -> Result<Answer, Refusal> {
        let local = &self.local;
        let mut flow = tunnel_flow(local);
        flow.hbone_addr = Some(request.local_addr);
        flow.source.addr = Some(client(local, &request));
        flow.source.identity = Some(request.peer.clone());
        flow.observe(&local.worker, request.traceparent);
        // Boxed: the tunnel server keeps the relay in the same task.
        match Box::pin(open(local, &request, &mut flow)).await {
            Ok((upstream, permit)) => {
                let accepted = accept(local, request, flow, upstream, permit);
                Ok(Answer::Relay(accepted))
            }
            Err(refused) => {
                let reason = refused.reason;
                flow.source.workload = source(local, &request, &flow);
                flow.refuse(&local.worker, refused);
                Err(Refusal {
                    status: status(reason),
                    reason: reason.as_str(),
                })
            }
        }
    }

    fn refused(&self, peer: &SpiffeId, peer_addr: SocketAddr, error: &TunnelError) {
        let mut flow = tunnel_flow(&self.local);
        flow.source.addr = Some(peer_addr);
        flow.source.identity = Some(peer.clone());
        flow.refuse(
            &self.local.worker,
            Refused::because(Reason::Other(error.reason()), error),
        );
    }
}

/// The client's address: what the other agent says, if the identity it speaks
/// for is that of the workload at the address it names, or what a waypoint of this
/// pod says. Otherwise any workload could appear to the application as any other.
fn client(local: &LocalPod, request: &ConnectRequest) -> SocketAddr {
    let Some(forwarded) = &request.forwarded else {
        return request.peer_addr;
    };
    let claimed = forwarded.client;
    let owner = local.worker.context.state.workload_at(claimed.ip());
    let trusted = owner.is_some_and(|w| w.identity.as_ref() == Some(&request.peer))
        || local.waypoints().vouches(&request.peer, claimed);
    if trusted { claimed } else { request.peer_addr }
}

/// The workload that stands in the log. Only one whose identity the peer has proven may: the client's, or
/// the waypoint's that speaks for it.
fn source(local: &LocalPod, request: &ConnectRequest, flow: &Flow) -> Option<Arc<Workload>> {
    let proven = |ip| {
        let workload = local.worker.context.state.workload_at(ip);
        workload.filter(|w| w.identity.as_ref() == Some(&request.peer))
    };
    let client = flow.source.addr.unwrap_or(request.peer_addr);
    proven(client.ip()).or_else(|| proven(request.peer_addr.ip()))
}

async fn open(
    local: &Rc<LocalPod>,
    request: &ConnectRequest,
    flow: &mut Flow,
) -> Result<(TcpStream, Permit), Refused> {
    let Authority::Address(address) = &request.authority else {
        let error = format!("{} is not an address", request.authority);
        return Err(Refused::because(Reason::ConnectBadAuthority, error));
    };
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    flow.destination.addr = Some(address);
    // The address the tunnel came to is the pod's own: a pod is no relay.
    if address.ip() != request.local_addr.ip().to_canonical() {
        let error = format!("{address} asked for at {}", request.local_addr);
        return Err(Refused::because(Reason::ConnectNotOwnAddress, error));
    }
    if is_own_port(address.port()) {
        return Err(Reason::ConnectIllegalPort.into());
    }
    let waypoint = || {
        let waypoints = local.waypoints();
        waypoints.check(address.port(), Some(&request.peer))
    };
    waypoint()?;
    authorise(local, flow).await?;
    let client = flow.source.addr.unwrap_or(request.peer_addr);
    flow.source.workload = source(local, request, flow);
    let permit = Permit::acquire(&local.pod).ok_or(Reason::TooManyConnections)?;
    let upstream = connect_to_application(local, address, client).await?;
    flow.legs.application = Leg::of(&upstream, address);
    flow.legs.network = Some(Leg {
        local: request.local_addr,
        remote: request.peer_addr,
    });
    // What was required meanwhile cuts live connections, of which this is none yet.
    waypoint()?;
    still_authorised(local, flow)?;
    Ok((upstream, permit))
}

fn accept(
    local: &Rc<LocalPod>,
    request: ConnectRequest,
    flow: Flow,
    upstream: TcpStream,
    permit: Permit,
) -> Accepted {
    let mut response_headers = HeaderMap::new();
    if let Some(value) = flow
        .destination
        .workload
        .as_deref()
        .and_then(|w| local.baggage(w))
    {
        response_headers.insert(BAGGAGE, value);
    }
    let counters = Arc::new(Counters::default());
    let held = (permit, None);
    let connection = flow.open(
        &local.worker,
        Some(request.tls),
        Arc::clone(&counters),
        held,
    );
    let cut = Some(connection.cut());
    let on_end = Box::new(move |end: RelayEnd| connection.finish(end));
    Accepted {
        upstream,
        response_headers,
        counters,
        cut,
        on_end,
    }
}

fn status(reason: Reason) -> RefusalStatus {
    match reason {
        Reason::ConnectBadAuthority | Reason::ConnectNotOwnAddress | Reason::ConnectIllegalPort => {
            RefusalStatus::BadRequest
        }
        Reason::PolicyDenied
        | Reason::PolicyUnknown
        | Reason::PolicyUnusable
        | Reason::WaypointRequired => RefusalStatus::Denied,
        _ => RefusalStatus::Unavailable,
    }
}

/// The place where policy decides. It needs the pod's own workload, because without it nobody
/// knows which policies select it, and all policies that it names; what has not come is waited
/// for as long as [`READY_WAIT`](crate::state::READY_WAIT), and then nothing passes.
pub async fn authorise(local: &LocalPod, flow: &mut Flow) -> Result<(), Refused> {
    let state = &local.worker.context.state;
    if !state.wait_ready().await {
        return Err(Reason::StateNotReady.into());
    }
    let uid = &local.pod.workload_uid;
    let Some(workload) = state.wait_for_workload(uid).await else {
        return Err(Reason::StateNotReady.into());
    };
    flow.destination.workload = Some(workload);
    let complete = || {
        let workload = state.workload(uid)?;
        (!local.policies(&workload).is_incomplete()).then_some(())
    };
    // In the time that is left, `still_authorised` says what is missing.
    let _ = state.wait_for(complete).await;
    still_authorised(local, flow)
}

/// Decides by the policies in force now; to be asked once more when anything was waited for.
pub fn still_authorised(local: &LocalPod, flow: &mut Flow) -> Result<(), Refused> {
    let state = &local.worker.context.state;
    let workload = state.workload(&local.pod.workload_uid);
    let workload = workload.ok_or(Reason::StateNotReady)?;
    let policies = local.policies(&workload);
    let connection = flow.attributes().ok_or(Reason::StateNotReady)?;
    policies.decide(&connection)?;
    flow.dry_run = policies.would_deny(&connection).map(Box::new);
    flow.destination.workload = Some(workload);
    Ok(())
}

/// Connects to the application so that it sees `client` as its peer.
pub async fn connect_to_application(
    local: &LocalPod,
    address: SocketAddr,
    client: SocketAddr,
) -> Result<TcpStream, Refused> {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let mut source_failed = None;
    let prepare = |socket: BorrowedFd<'_>| {
        // An IPv6 client cannot be shown on an IPv4 socket, nor the other way
        // round; the application then sees the pod's own address.
        if client.is_ipv4() != address.is_ipv4() {
            return Ok(());
        }
        local
            .worker
            .context
            .kernel
            .set_source(socket, client)
            .map_err(|error| {
                let text = error.to_string();
                source_failed = Some(text.clone());
                io::Error::other(text)
            })
    };
    let to = (End::Application, address);
    let connected = sockets::connect(&local.pod.netns, to, prepare).await;
    match (connected, source_failed) {
        (Ok(stream), _) => Ok(stream),
        (Err(_), Some(error)) => Err(Refused::because(Reason::SourceAddressFailed, error)),
        (Err(error), None) => {
            let reason = match sockets::is_shortage(error.kind()) {
                true => Reason::OutOfResources,
                false => Reason::UpstreamConnectFailed,
            };
            Err(Refused::because(reason, error))
        }
    }
}

#[cfg(test)]
#[path = "inbound_tests.rs"]
mod tests;
