//! Connections that went past the agent: counted, logged and shown like those that did not.
//!
//! The kernel tells of their beginnings and ends; nothing is asked of it while they last, but for a scrape or a list of
//! live connections.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_bpf_common::layout::{FLOW_CLOSED, FLOW_OPENED, Flow as Noted, FlowEvent};
use karst_datapath::sock_diag::TcpSocket;
use karst_process::tap::Feed;
use karst_process::tap::facts::Event;

use super::verdicts::LocalPod;
use crate::access_log::{Party, Record};
use crate::metrics::policy::Mode;
use crate::metrics::traffic::{Security, Series};
use crate::pod::Pod;
use crate::proxy::Direction;
use crate::proxy::connection::{ConnectionView, Flow, Refused};
use crate::reason::Reason;
use crate::state::endpoint::LiveGuard;
use crate::state::{Address, MeshState};
use crate::tap;
use crate::worker::Worker;

/// `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_FIN_WAIT1` and `TCP_CLOSE_WAIT` of include/net/tcp_states.h.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const FIN_WAIT1: u32 = 4;
const CLOSE_WAIT: u32 = 8;

/// Bytes of (requests, responses).
type Bytes = (u64, u64);

/// A connection as both of its ends report it.
struct Ends {
    client: Flow,
    server: Flow,
}

impl Ends {
    fn both(&self) -> [&Flow; 2] {
        [&self.client, &self.server]
    }
}

struct Live {
    ends: Ends,
    series: [Arc<Series>; 2],
    bytes: Bytes,
    /// What of `bytes` the series have already.
    flushed: Bytes,
    /// Looks in a row that have not found it in the kernel.
    unseen: u32,
    _load: LiveGuard,
}

impl Live {
    fn flush(&mut self) {
        let before = std::mem::replace(&mut self.flushed, self.bytes);
        let (requests, responses) = (
            self.bytes.0.saturating_sub(before.0),
            self.bytes.1.saturating_sub(before.1),
        );
        for series in &self.series {
            series.bytes(requests, responses);
        }
    }
}

/// All live ones.
pub struct Flows {
    worker: Rc<Worker>,
    live: HashMap<u64, Live>,
    /// Why connections that were reset had to be, until the kernel says that they have ended.
    cut: HashMap<u64, Box<Refused>>,
}

impl Flows {
    /// None yet; they are reported by `worker`.
    pub fn new(worker: Rc<Worker>) -> Self {
        Self {
            worker,
            live: HashMap::new(),
            cut: HashMap::new(),
        }
    }

    /// Takes what the kernel tells. `now_ns` is its clock.
    pub fn take(&mut self, event: &FlowEvent, pods: &HashMap<u64, LocalPod>, now_ns: u64) {
        match event.kind {
            FLOW_OPENED => self.opened(event, pods, now_ns),
            FLOW_CLOSED => self.closed(event, pods, now_ns),
            kind => tracing::debug!(kind, "the kernel tells of a flow what is not known"),
        }
    }

    fn opened(&mut self, event: &FlowEvent, pods: &HashMap<u64, LocalPod>, now_ns: u64) {
        let Some(ends) = self.ends(&event.flow, pods, now_ns) else {
            return;
        };
        if event.kind == FLOW_OPENED {
            let after = event.at_ns.saturating_sub(event.flow.started_ns);
            for flow in ends.both() {
                self.worker
                    .established(flow.direction, || Duration::from_nanos(after));
            }
        }
        self.add(event.socket, ends, pods, &event.flow);
    }

    fn add(&mut self, socket: u64, ends: Ends, pods: &HashMap<u64, LocalPod>, flow: &Noted) {
        let Some(destination) = pods.get(&flow.destination) else {
            return;
        };
        let series = ends.both().map(|flow| self.worker.series(&flow.parties()));
        for series in &series {
            series.opened();
        }
        let tap = &self.worker.context.tap;
        if tap.is_on() {
            for flow in ends.both() {
                let record = flow.record(flow.started.elapsed(), (0, 0), None, None);
                tap::publish(tap, Event::Opened, &record);
            }
        }
        let live = Live {
            ends,
            series,
            bytes: (0, 0),
            flushed: (0, 0),
            unseen: 0,
            _load: LiveGuard::new(&destination.workload.stats),
        };
        self.live.insert(socket, live);
    }

    fn closed(&mut self, event: &FlowEvent, pods: &HashMap<u64, LocalPod>, now_ns: u64) {
        let cut = self.cut.remove(&event.socket);
        if event.old_state == SYN_SENT {
            return self.never_opened(event, pods, now_ns, cut);
        }
        if !self.live.contains_key(&event.socket) {
            // It began before this agent did, or the record of its beginning found no room.
            self.opened(event, pods, now_ns);
        }
        let Some(mut live) = self.live.remove(&event.socket) else {
            return;
        };
        live.bytes = (event.sent, event.received);
        let lasted = event.at_ns.saturating_sub(event.flow.started_ns);
        self.end(
            live,
            Duration::from_nanos(lasted),
            cut,
            abrupt(event.old_state),
        );
    }

    fn end(
        &self,
        mut live: Live,
        lasted: Duration,
        cut: Option<Box<Refused>>,
        reason: Option<Reason>,
    ) {
        let context = &self.worker.context;
        live.flush();
        if let Some(denial) = cut.as_ref().and_then(|cut| cut.denial.as_ref()) {
            context.metrics.policies.denied(denial, Mode::Enforced);
        }
        let now = Instant::now();
        let tapped = context.tap.is_on();
        let mut end = cut.map(|cut| *cut).or_else(|| reason.map(Refused::from));
        for (flow, series) in live.ends.both().into_iter().zip(&live.series) {
            series.closed(now);
            let observed = flow.observed.as_ref();
            let trace = observed.and_then(|observed| observed.context());
            self.worker.ended(flow.direction, lasted, trace);
            if tapped || self.worker.access_log.is_on() || observed.is_some() {
                let why = match flow.direction {
                    Direction::Outbound => end.as_ref().map(Refused::copied),
                    Direction::Inbound => end.take(),
                };
                let record = flow.record(lasted, live.bytes, None, why);
                if tapped {
                    tap::publish(&context.tap, Event::Closed, &record);
                }
                self.worker.report(&record);
            }
        }
    }

    fn never_opened(
        &self,
        event: &FlowEvent,
        pods: &HashMap<u64, LocalPod>,
        now_ns: u64,
        cut: Option<Box<Refused>>,
    ) {
        let Some(ends) = self.ends(&event.flow, pods, now_ns) else {
            return;
        };
        match cut {
            Some(refused) => ends.server.refuse(&self.worker, *refused),
            None => {
                let error = "the application did not take the connection";
                let refused = Refused::because(Reason::UpstreamConnectFailed, error);
                ends.client.refuse(&self.worker, refused);
            }
        }
    }

    /// Both ends of a connection; `None` if one of the pods is gone.
    fn ends(&self, flow: &Noted, pods: &HashMap<u64, LocalPod>, now_ns: u64) -> Option<Ends> {
        let (source, destination) = (pods.get(&flow.source)?, pods.get(&flow.destination)?);
        let age = Duration::from_nanos(now_ns.saturating_sub(flow.started_ns));
        let started = Instant::now().checked_sub(age);
        let asked = flow.original.to_socket_addr();
        let service = service(&self.worker.context.state, asked);
        let side = |pod: &Arc<Pod>, direction| {
            let mut side = Flow::new(pod, direction);
            side.started = started.unwrap_or(side.started);
            side.security = Security::SameNode;
            side.source = party(source, flow.tuple.source.to_socket_addr());
            side.destination = party(destination, flow.tuple.destination.to_socket_addr());
            side
        };
        let mut client = side(&source.pod, Direction::Outbound);
        if let Some(service) = service {
            client.service = Some(service);
            client.service_port = Some(asked.port());
        }
        client.observe(&self.worker, None);
        let mut server = side(&destination.pod, Direction::Inbound);
        let trace = client.observed.as_ref().and_then(|it| it.context());
        server.observe(&self.worker, trace);
        Some(Ends { client, server })
    }

    /// Remembers why a connection is reset.
    pub fn cut(&mut self, socket: u64, why: Box<Refused>) {
        self.cut.insert(socket, why);
    }

    /// Takes over what lives in the kernel and is not known, as after a restart of the agent, and ends what is known and
    /// has not been there for two looks: a record of it was lost.
    pub fn compare(&mut self, noted: &[(u64, Noted)], pods: &HashMap<u64, LocalPod>, now_ns: u64) {
        for (socket, flow) in noted {
            if is_young(flow, now_ns) || self.live.contains_key(socket) {
                continue;
            }
            if let Some(ends) = self.ends(flow, pods, now_ns) {
                self.add(*socket, ends, pods, flow);
            }
        }
        let noted: HashSet<u64> = noted.iter().map(|(socket, _)| *socket).collect();
        let mut lost = Vec::new();
        for (socket, live) in &mut self.live {
            live.unseen = match noted.contains(socket) {
                true => 0,
                false => live.unseen + 1,
            };
            if live.unseen > 1 {
                lost.push(*socket);
            }
        }
        self.cut.retain(|socket, _| noted.contains(socket));
        for socket in lost {
            if let Some(live) = self.live.remove(&socket) {
                let lasted = live.ends.client.started.elapsed();
                self.end(live, lasted, None, None);
            }
        }
    }

    /// Takes over what was measured of sockets, and adds it to the metrics.
    pub fn measured(&mut self, sockets: &[TcpSocket]) {
        for socket in sockets {
            let Some(live) = self.live.get_mut(&socket.cookie) else {
                continue;
            };
            let Some(tcp) = &socket.tcp else { continue };
            // The SYN counts as a byte, and so does the other end's FIN.
            let ended = matches!(socket.state, "close_wait" | "last_ack" | "closing");
            let received = tcp.bytes_received.saturating_sub(u64::from(ended));
            live.bytes = (tcp.bytes_acked.saturating_sub(1), received);
            live.flush();
        }
    }

    /// For the admin socket.
    pub fn views(&self) -> Vec<ConnectionView> {
        let views = |live: &Live| {
            let bytes = live.bytes;
            live.ends
                .both()
                .map(|flow| flow.view(bytes, None, "same_node"))
        };
        self.live.values().flat_map(views).collect()
    }

    /// Forgets cached metric series.
    pub fn forget_series(&self) {
        self.worker.forget_series();
    }

    /// Tells a subscriber of them.
    pub fn tap(&self, feed: &Feed) {
        for live in self.live.values() {
            for flow in live.ends.both() {
                let record: Record = flow.record(flow.started.elapsed(), live.bytes, None, None);
                feed.offer(&tap::facts(Event::Live, &record), &record);
            }
        }
    }
}

/// Whether a handshake may still be under way, or the record of its end.
pub fn is_young(flow: &Noted, now_ns: u64) -> bool {
    const YOUNG_NS: u64 = 10_000_000_000;
    now_ns.saturating_sub(flow.started_ns) < YOUNG_NS
}

fn party(pod: &LocalPod, addr: SocketAddr) -> Party {
    Party {
        addr: Some(SocketAddr::new(addr.ip().to_canonical(), addr.port())),
        workload: Some(Arc::clone(&pod.workload)),
        identity: Some(pod.pod.identity.clone()),
    }
}

fn service(state: &MeshState, asked: SocketAddr) -> Option<Arc<crate::state::service::Service>> {
    match state.lookup(asked.ip())? {
        Address::Service(service) => Some(service),
        Address::Workload(_) => None,
    }
}

/// Why a connection ended that did not end in order.
fn abrupt(old_state: u32) -> Option<Reason> {
    matches!(old_state, ESTABLISHED | FIN_WAIT1 | CLOSE_WAIT)
        .then_some(Reason::Other("connection_reset"))
}
