//! One connection from accept to its last byte: what is known about it, and
//! what is counted and logged when it is refused or ends.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_bpf_common::Ip;
use karst_bpf_common::policy::{Attributes, Identity};
use karst_process::tap::Feed;
use karst_process::tap::facts::Event;
use karst_tunnel::headers::TraceParent;
use karst_tunnel::relay::RelayEnd;
use karst_tunnel::{Counters, TlsInfo};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::Direction;
use super::target::Source;
use crate::access_log::{Party, Record};
use crate::metrics::policy::Mode;
use crate::metrics::traffic::{Parties, Reporter, Security, Series};
use crate::observe::Observed;
use crate::pod::{Permit, Pod};
use crate::reason::Reason;
use crate::state::endpoint::LiveGuard;
use crate::state::policy::{Denial, Effective};
use crate::state::service::Service;
use crate::tap;
use crate::waypoints::Waypoints;
use crate::worker::Worker;

/// Why a connection is refused, with details for the log.
#[derive(Debug)]
pub struct Refused {
    /// The label.
    pub reason: Reason,
    /// Details.
    pub error: Option<String>,
    /// The policy that refuses, if one does.
    pub denial: Option<Box<Denial>>,
}

impl Refused {
    /// A refusal with details.
    pub fn because(reason: Reason, error: impl ToString) -> Self {
        Self {
            reason,
            error: Some(error.to_string()),
            denial: None,
        }
    }

    /// The same once more, for the other end of a connection of which both ends are ours.
    pub fn copied(&self) -> Self {
        Self {
            reason: self.reason,
            error: self.error.clone(),
            denial: self.denial.clone(),
        }
    }
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Self {
            reason: denial.reason,
            error: Some(denial.to_string()),
            denial: Some(Box::new(denial)),
        }
    }
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            error: None,
            denial: None,
        }
    }
}

/// What is known about a connection so far.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The pod it belongs to.
    pub pod: Arc<Pod>,
    /// Which way it goes.
    pub direction: Direction,
    /// When it was accepted.
    pub started: Instant,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The tunnel's listener, when there is a tunnel.
    pub hbone_addr: Option<SocketAddr>,
    /// Service that was dialled.
    pub service: Option<Arc<Service>>,
    /// Port of that service, which its endpoints may have under another number.
    pub service_port: Option<u16>,
    /// Protection between the agents.
    pub security: Security,
    /// What a policy would have refused that only watches.
    pub dry_run: Option<Box<Denial>>,
    /// What the application asked for, if that is no address of the cluster's own. Boxed: most
    /// connections stay inside.
    pub outside: Option<Box<SocketAddr>>,
    /// The agent's sockets of it, for the admin socket. Boxed: a task holds it several times.
    pub legs: Box<Legs>,
    /// What is reported of it besides metrics; `None` for the default. Boxed: most have none.
    pub observed: Option<Box<Observed>>,
}

/// The agent's two sockets of a connection, in the pod's network namespace. What is known of them joins the
/// connection with what the kernel measures.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Legs {
    /// To the pod's application.
    pub application: Option<Leg>,
    /// To the other end: the tunnel that it shares with others, or a plain connection of its own.
    pub network: Option<Leg>,
}

/// A socket by its two ends.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Leg {
    /// The agent's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

impl Leg {
    /// Of a connection to `remote`.
    pub fn of(stream: &TcpStream, remote: SocketAddr) -> Option<Self> {
        let local = stream.local_addr().ok()?;
        Some(Self { local, remote })
    }
}

impl Flow {
    /// A connection just accepted.
    pub fn new(pod: &Arc<Pod>, direction: Direction) -> Self {
        Self {
            pod: Arc::clone(pod),
            direction,
            started: Instant::now(),
            source: Party::default(),
            destination: Party::default(),
            hbone_addr: None,
            service: None,
            service_port: None,
            security: Security::Unknown,
            dry_run: None,
            outside: None,
            legs: Box::default(),
            observed: None,
        }
    }

    /// Notes what is reported of it; `parent` is the trace that came with it.
    pub fn observe(&mut self, worker: &Worker, parent: Option<TraceParent>) {
        let reporting = &worker.context.state.reporting;
        let reporting = reporting.get(&self.pod.uid, self.direction);
        self.observed = reporting.map(|reporting| Observed::new(reporting, parent));
    }

    /// The connection as policies of its destination see it; `None` while its ends are not known.
    /// Only an identity that has been proven counts.
    pub fn attributes(&self) -> Option<Attributes<'_>> {
        let (source, destination) = (self.source.addr?, self.destination.addr?);
        let identity = self.source.identity.as_ref().map(|id| Identity {
            principal: id.principal(),
            namespace: id.namespace(),
            service_account: id.service_account(),
        });
        Some(Attributes {
            source: identity,
            source_ip: Ip::from(source.ip()),
            destination_ip: Ip::from(destination.ip()),
            destination_port: destination.port(),
        })
    }

    /// Whether the pod may connect to where this connection goes, as things are now.
    pub fn may_leave(&self, source: Source<'_>) -> Result<(), Refused> {
        match &self.outside {
            Some(original) => source.destination(**original).map(drop),
            None => Ok(()),
        }
    }

    /// Whom it connects, for metrics.
    pub fn parties(&self) -> Parties<'_> {
        let reporter = match self.direction {
            Direction::Outbound => Reporter::Source,
            Direction::Inbound => Reporter::Destination,
        };
        Parties {
            reporter,
            security: self.security,
            source: self.source.workload.as_deref(),
            source_identity: self.source.identity.as_ref(),
            destination: self.destination.workload.as_deref(),
            destination_identity: self.destination.identity.as_ref(),
            service: self.service.as_deref(),
        }
    }

    /// Counts and logs a refusal.
    pub fn refuse(self, worker: &Worker, refused: Refused) {
        let reason = refused.reason;
        let context = &worker.context;
        context.metrics.refusals.count(reason, self.direction);
        if let Some(denial) = &refused.denial {
            context.metrics.policies.denied(denial, Mode::Enforced);
        }
        worker
            .series(&self.parties())
            .failed(reason.response_flag());
        tracing::debug!(
            pod.name = &*self.pod.name,
            direction = self.direction.as_str(),
            reason = reason.as_str(),
            error = refused.error.as_deref(),
            "connection refused"
        );
        let tapped = context.tap.is_on();
        if tapped || worker.access_log.is_on() || self.observed.is_some() {
            let (duration, bytes) = (self.started.elapsed(), (0, 0));
            let end = Some(refused);
            let record = self.record(duration, bytes, None, end);
            if tapped {
                tap::publish(&context.tap, Event::Refused, &record);
            }
            worker.report(&record);
        }
    }

    /// Counts an established connection. `permit` and `load` are held until it ends.
    pub fn open(
        self,
        worker: &Rc<Worker>,
        tls: Option<Arc<TlsInfo>>,
        counters: Arc<Counters>,
        held: (Permit, Option<LiveGuard>),
    ) -> Connection {
        let series = worker.series(&self.parties());
        series.opened();
        let direction = self.direction;
        worker.established(direction, || self.started.elapsed());
        if let Some(denial) = &self.dry_run {
            worker.context.metrics.policies.denied(denial, Mode::DryRun);
        }
        let live = Rc::new(Live {
            flow: self,
            tls,
            counters,
            series,
            flushed: Cell::default(),
            cut: Cell::default(),
            cut_because: Cell::default(),
        });
        let id = worker.track(Rc::clone(&live));
        let tap = &worker.context.tap;
        if tap.is_on() {
            tap::publish(tap, Event::Opened, &live.record());
        }
        Connection {
            worker: Rc::clone(worker),
            live,
            id,
            ended: false,
            _held: held,
        }
    }

    /// For the admin socket: with the bytes of (requests, responses) so far.
    pub fn view(
        &self,
        (bytes_recv, bytes_sent): (u64, u64),
        tls: Option<Arc<TlsInfo>>,
        path: &'static str,
    ) -> ConnectionView {
        let millis = self.started.elapsed().as_millis();
        ConnectionView {
            pod_uid: Arc::clone(&self.pod.uid),
            pod: format!("{}/{}", self.pod.namespace, self.pod.name),
            direction: self.direction.as_str(),
            src: PartyView::new(&self.source),
            dst: PartyView::new(&self.destination),
            hbone_addr: self.hbone_addr,
            service: self.service.as_ref().map(|s| Arc::clone(&s.spec.hostname)),
            service_port: self.service_port,
            connection_security_policy: self.security.as_str(),
            tls,
            path,
            legs: *self.legs,
            bytes_sent,
            bytes_recv,
            duration_ms: u64::try_from(millis).unwrap_or(u64::MAX),
        }
    }

    /// What is logged of it. Only what a record needs is cloned: it is made for every connection where there is an
    /// access log.
    pub fn record(
        &self,
        duration: Duration,
        (bytes_recv, bytes_sent): (u64, u64),
        tls: Option<Arc<TlsInfo>>,
        end: Option<Refused>,
    ) -> Record {
        let (reason, error, denial) = match end {
            Some(end) => (Some(end.reason), end.error, end.denial),
            None => (None, None, None),
        };
        Record {
            direction: self.direction,
            source: self.source.clone(),
            destination: self.destination.clone(),
            hbone_addr: self.hbone_addr,
            service: self.service.clone(),
            service_port: self.service_port,
            bytes_sent,
            bytes_recv,
            duration,
            security: self.security,
            tls,
            reason,
            error,
            denial,
            dry_run: self.dry_run.clone(),
            observed: self.observed.clone(),
        }
    }
}

/// An established connection, as its worker tracks it.
pub struct Live {
    flow: Flow,
    tls: Option<Arc<TlsInfo>>,
    counters: Arc<Counters>,
    series: Arc<Series>,
    /// (requests, responses) already added to the series.
    flushed: Cell<(u64, u64)>,
    cut: Cell<Option<oneshot::Sender<()>>>,
    /// Boxed: most connections are never cut.
    cut_because: Cell<Option<Box<Refused>>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("flow", &self.flow)
            .finish_non_exhaustive()
    }
}

impl Live {
    /// Kubernetes uid of the pod it belongs to.
    pub fn pod_uid(&self) -> &str {
        &self.flow.pod.uid
    }

    /// Cuts a connection to the pod that does not satisfy `waypoints`.
    pub fn require(&self, waypoints: &Waypoints) {
        let flow = &self.flow;
        let (Direction::Inbound, Some(address)) = (flow.direction, flow.destination.addr) else {
            return;
        };
        if let Err(reason) = waypoints.check(address.port(), flow.source.identity.as_ref()) {
            self.cut(reason.into());
        }
    }

    /// Cuts a connection to the pod that `policies` do not allow any more.
    pub fn recheck(&self, policies: &Effective) {
        let attributes = match self.flow.direction {
            Direction::Inbound => self.flow.attributes(),
            Direction::Outbound => None,
        };
        if let Some(Err(denial)) = attributes.map(|connection| policies.decide(&connection)) {
            self.cut(denial.into());
        }
    }

    /// Cuts a connection of the pod to where it may not connect any more.
    pub fn hold_to_egress(&self, source: Source<'_>) {
        if let Err(refused) = self.flow.may_leave(source) {
            self.cut(refused);
        }
    }

    fn cut(&self, because: Refused) {
        if let Some(cut) = self.cut.take() {
            self.cut_because.set(Some(Box::new(because)));
            // A relay that has just ended needs no cutting.
            let _ = cut.send(());
        }
    }

    /// Bytes of (requests, responses) so far.
    fn bytes(&self) -> (u64, u64) {
        // The relay's first socket is the application's: the client's when the
        // connection goes out or came in plaintext, the server's in a tunnel.
        let (first, second) = (self.counters.sent(), self.counters.received());
        let server_first = self.flow.direction == Direction::Inbound && self.tls.is_some();
        if server_first {
            (second, first)
        } else {
            (first, second)
        }
    }

    /// Adds the bytes since the last call to the series.
    pub fn flush(&self) {
        let now = self.bytes();
        let before = self.flushed.replace(now);
        self.series.bytes(
            now.0.saturating_sub(before.0),
            now.1.saturating_sub(before.1),
        );
    }

    /// What is known so far.
    fn record(&self) -> Record {
        let duration = self.flow.started.elapsed();
        self.flow
            .record(duration, self.bytes(), self.tls.clone(), None)
    }

    /// Tells a subscriber of it.
    pub fn tap(&self, feed: &Feed) {
        let record = self.record();
        feed.offer(&tap::facts(Event::Live, &record), &record);
    }

    /// For the admin socket.
    pub fn view(&self) -> ConnectionView {
        let path = match self.tls.is_some() {
            true => "hbone",
            false => "plaintext",
        };
        self.flow.view(self.bytes(), self.tls.clone(), path)
    }
}

/// A live connection in `GET /v1/connections`.
#[derive(Debug, Serialize)]
pub struct ConnectionView {
    /// The pod's Kubernetes uid.
    pub pod_uid: Arc<str>,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// The client.
    pub src: PartyView,
    /// The server.
    pub dst: PartyView,
    /// The tunnel's listener.
    pub hbone_addr: Option<SocketAddr>,
    /// Host name of the service that was dialled.
    pub service: Option<Arc<str>>,
    /// Port of that service.
    pub service_port: Option<u16>,
    /// `mutual_tls`, `same_node` or `unknown`.
    pub connection_security_policy: &'static str,
    /// What was negotiated.
    pub tls: Option<Arc<TlsInfo>>,
    /// `hbone` in a tunnel, `same_node` past the agents, or `plaintext`.
    pub path: &'static str,
    /// The agent's sockets of it.
    pub legs: Legs,
    /// Bytes of responses.
    pub bytes_sent: u64,
    /// Bytes of requests.
    pub bytes_recv: u64,
    /// Age in milliseconds.
    pub duration_ms: u64,
}

/// One end of a live connection.
#[derive(Debug, Serialize)]
pub struct PartyView {
    /// Address and port.
    pub addr: Option<SocketAddr>,
    /// Pod name.
    pub workload: Option<Arc<str>>,
    /// Namespace.
    pub namespace: Option<Arc<str>>,
    /// Verified identity.
    pub identity: Option<String>,
}

impl PartyView {
    fn new(party: &Party) -> Self {
        let workload = party.workload.as_ref();
        Self {
            addr: party.addr,
            workload: workload.map(|w| Arc::clone(&w.name)),
            namespace: workload.map(|w| Arc::clone(&w.namespace)),
            identity: party.identity.as_ref().map(ToString::to_string),
        }
    }
}

/// An established connection. Ends when dropped at the latest, so that a task
/// that is cancelled is counted and logged too.
#[derive(Debug)]
pub struct Connection {
    worker: Rc<Worker>,
    live: Rc<Live>,
    id: u64,
    ended: bool,
    _held: (Permit, Option<LiveGuard>),
}

impl Connection {
    /// The byte counters, for the relay.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.live.counters)
    }

    /// Told when the connection must not go on; then its relay is to be dropped.
    pub fn cut(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.live.cut.set(Some(sender));
        receiver
    }

    /// Ends the connection as the relay did.
    pub fn finish(mut self, end: RelayEnd) {
        let reason = (end != RelayEnd::Closed).then(|| Reason::Other(end.reason()));
        self.end(reason);
    }

    fn end(&mut self, reason: Option<Reason>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let cut = self.live.cut_because.take();
        if let Some(denial) = cut.as_ref().and_then(|cut| cut.denial.as_ref()) {
            let policies = &self.worker.context.metrics.policies;
            policies.denied(denial, Mode::Enforced);
        }
        self.worker.untrack(self.id);
        let live = &self.live;
        live.flush();
        let now = Instant::now();
        live.series.closed(now);
        let duration = now.saturating_duration_since(live.flow.started);
        let trace = live.flow.observed.as_ref();
        let trace = trace.and_then(|observed| observed.context());
        self.worker.ended(live.flow.direction, duration, trace);
        let tap = &self.worker.context.tap;
        let tapped = tap.is_on();
        if tapped || self.worker.access_log.is_on() || live.flow.observed.is_some() {
            let end = cut.map(|cut| *cut).or_else(|| reason.map(Refused::from));
            let record = live
                .flow
                .record(duration, live.bytes(), live.tls.clone(), end);
            if tapped {
                tap::publish(tap, Event::Closed, &record);
            }
            self.worker.report(&record);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end(Some(Reason::Shutdown));
    }
}
