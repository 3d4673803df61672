//! A plaintext connection from outside the mesh, steered to us in the kernel:
//! the local address of the accepted socket is the one the client dialled.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use karst_tunnel::{Counters, relay};
use tokio::net::TcpStream;

use super::Direction;
use super::connection::{Flow, Leg, Refused};
use super::inbound::{authorise, connect_to_application, still_authorised};
use crate::pod::{Permit, is_own_port};
use crate::reason::Reason;
use crate::sockets;
use crate::worker::LocalPod;

/// Serves one steered connection.
pub async fn serve(local: Rc<LocalPod>, stream: TcpStream, from: SocketAddr) {
    let mut flow = Flow::new(&local.pod, Direction::Inbound);
    let worker = Rc::clone(&local.worker);
    flow.source.addr = Some(from);
    flow.observe(&worker, None);
    let Some(permit) = Permit::acquire(&local.pod) else {
        flow.refuse(&worker, Reason::TooManyConnections.into());
        return sockets::reset(stream);
    };
    // Boxed: what opening needs is given back before the long part, the relay.
    let opened = Box::pin(open(&local, &stream, from, &mut flow)).await;
    let upstream = match opened {
        Ok(upstream) => upstream,
        Err(refused) => {
            flow.source.workload = worker.context.state.workload_at(from.ip());
            flow.refuse(&worker, refused);
            return sockets::reset(stream);
        }
    };
    let counters = Arc::new(Counters::default());
    let connection = flow.open(&worker, None, Arc::clone(&counters), (permit, None));
    let mut cut = connection.cut();
    tokio::select! {
        biased;
        end = relay::tcp_tcp(stream, upstream, &counters) => connection.finish(end),
        // The relay is dropped, which resets both ends.
        Ok(()) = &mut cut => {}
    }
}

async fn open(
    local: &Rc<LocalPod>,
    stream: &TcpStream,
    from: SocketAddr,
    flow: &mut Flow,
) -> Result<TcpStream, Refused> {
    let dialled = stream
        .local_addr()
        .map_err(|e| Refused::because(Reason::OriginalDestinationFailed, e))?;
    let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
    flow.destination.addr = Some(dialled);
    if is_own_port(dialled.port()) {
        return Err(Reason::SelfCall.into());
    }
    if !local.pod.addresses.contains(&dialled.ip()) {
        return Err(Reason::NotCaptured.into());
    }
    let waypoint = || local.waypoints().check(dialled.port(), None);
    waypoint()?;
    authorise(local, flow).await?;
    flow.source.workload = local.worker.context.state.workload_at(from.ip());
    let upstream = connect_to_application(local, dialled, from).await?;
    flow.legs.application = Leg::of(&upstream, dialled);
    flow.legs.network = Some(Leg {
        local: dialled,
        remote: from,
    });
    // What was required meanwhile cuts live connections, of which this is none yet.
    waypoint()?;
    still_authorised(local, flow)?;
    Ok(upstream)
}
