//! Which pods are enrolled: brings the kernel, the workers and the certificates
//! into line with what is registered on this node and what the operator wants.
//!
//! Level-triggered: [`Enrolment::reconcile`] looks at the present situation of
//! each pod, does the next step ([`plan::plan`]) and is simply called again
//! when something changed or failed. Nothing in it waits.

pub mod attach;
pub mod plan;
pub mod registry;
pub mod task;
pub mod wishes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_datapath::PodAttachment;
use karst_datapath::netns::{self, Netns};
use karst_identity::SpiffeId;
use serde::Serialize;

use crate::context::{Certificates, Kernel};
use crate::egress::Egress;
use crate::pod::{Pod, PodSpec};
use crate::sockets::Listeners;
use crate::waypoints::Waypoints;
use plan::{Action, Situation, Wanted, plan};
use registry::{Registry, Sandbox};

/// Wait after the first failed step of a pod, doubled with each further one.
const BACKOFF_INITIAL: Duration = Duration::from_millis(250);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Looks for the certificate of a captured pod before it is served without one:
/// with the back-off between them about as many seconds as issuing takes at worst.
const CERTIFICATE_ATTEMPTS: u32 = 4;

/// Label of a pod that waits for its certificate.
const NO_CERTIFICATE: &str = "no_certificate";

/// Label of a pod that the controller has not told of.
pub const POD_UNKNOWN: &str = "pod_unknown";

/// Label of a sandbox that has no record (any more).
const SANDBOX_DELETED: &str = "sandbox_deleted";

/// What the controller says of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Uid of its workload in the mesh state.
    pub workload_uid: Arc<str>,
    /// Its identity.
    pub identity: SpiffeId,
    /// Its addresses; none until the API server knows some.
    pub addresses: Vec<IpAddr>,
    /// Whether the operator wants it in the mesh.
    pub mode: Mode,
    /// What connections to it must satisfy.
    pub waypoints: Arc<Waypoints>,
    /// Where it may connect to.
    pub egress: Egress,
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Left alone.
    None,
    /// In the mesh.
    Ambient,
}

/// Serves pods on all workers.
pub trait Workers {
    /// Starts to serve. There is one set of listeners for each worker.
    fn start(&mut self, pod: &Arc<Pod>, listeners: Vec<Listeners>);
    /// Takes no new connections.
    fn release(&mut self, uid: &Arc<str>);
    /// Ends everything.
    fn kill(&mut self, uid: &Arc<str>);
    /// Holds connections of the pod to these requirements, new and live ones.
    fn require(&mut self, uid: &Arc<str>, waypoints: &Arc<Waypoints>, egress: Egress);
    /// Opens the listeners of a pod, one set for each worker.
    ///
    /// # Errors
    /// A port is taken, or there are no file descriptors.
    fn listen(&self, netns: &Netns, addresses: &[IpAddr]) -> io::Result<Vec<Listeners>>;
    /// The same with the listeners that a former agent had, of which none may be closed.
    ///
    /// # Errors
    /// As [`Self::listen`].
    fn inherit(
        &self,
        former: Vec<Listeners>,
        netns: &Netns,
        addresses: &[IpAddr],
    ) -> io::Result<Vec<Listeners>>;
}

/// Why a pod is not in the wanted state, for the admin socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable label.
    pub reason: &'static str,
    /// Details.
    pub message: String,
}

/// One pod, for the admin socket and metrics.
#[derive(Clone, Debug, Serialize)]
pub struct PodView {
    /// Kubernetes uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Path of its network namespace.
    pub netns: std::path::PathBuf,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// What the operator wants; `None` while the controller has not said.
    pub dataplane_mode: Option<Mode>,
    /// Its identity, once known.
    pub identity: Option<String>,
    /// Whether it is captured and served.
    pub enrolled: bool,
    /// What connections to it must satisfy.
    pub waypoints: Arc<Waypoints>,
    /// Where it may connect to; `None` while the controller has not said, or for a pod outside the mesh.
    pub egress: Option<Egress>,
    /// What stands in the way.
    pub problem: Option<Problem>,
    /// Live connections, counted when it is read.
    #[serde(serialize_with = "count_connections")]
    pub connections: Option<Arc<Pod>>,
}

fn count_connections<S: serde::Serializer>(
    pod: &Option<Arc<Pod>>,
    s: S,
) -> Result<S::Ok, S::Error> {
    s.serialize_u64(pod.as_ref().map_or(0, |p| p.connections() as u64))
}

/// All pods registered on this node.
#[derive(Debug, Default)]
pub struct PodTable {
    /// By uid.
    pub pods: BTreeMap<Arc<str>, PodView>,
    /// Whether the controller has told which pods it wants, and everything
    /// taken over from a former agent is settled.
    pub settled: bool,
    /// Sandboxes found without the container runtime's word, since the start.
    pub discovered: u64,
}

impl PodTable {
    /// (pods wanted in the mesh, pods in it).
    pub fn counts(&self) -> (usize, usize) {
        let wanted = self
            .pods
            .values()
            .filter(|p| p.dataplane_mode == Some(Mode::Ambient));
        (
            wanted.count(),
            self.pods.values().filter(|p| p.enrolled).count(),
        )
    }
}

struct Failing {
    problem: Problem,
    attempts: u32,
    retry_at: Instant,
}

/// The state machine.
pub struct Enrolment<W> {
    kernel: Arc<dyn Kernel>,
    certificates: Arc<dyn Certificates>,
    workers: W,
    registry: Registry,
    /// `None` until the controller has sent the first complete list.
    node_pods: Option<HashMap<Arc<str>, NodePod>>,
    early: HashMap<Arc<str>, NodePod>,
    running: HashMap<Arc<str>, Arc<Pod>>,
    in_kernel: HashSet<Arc<str>>,
    failing: HashMap<Arc<str>, Failing>,
    /// Pods whose recorded namespace is not there any more.
    stale: HashSet<Arc<str>>,
    /// Pods that a former agent left in the kernel without a record.
    orphans: HashSet<Arc<str>>,
    wanted_identities: HashSet<SpiffeId>,
    inherited: Inherited,
}

/// Listeners that another agent handed over, by pod, one set for each of its workers.
pub type Inherited = HashMap<Arc<str>, Vec<Listeners>>;

impl<W: Workers> Enrolment<W> {
    /// Takes over what the kernel and the registry have from a former agent.
    ///
    /// # Errors
    /// The kernel maps cannot be read.
    pub fn new(
        kernel: Arc<dyn Kernel>,
        certificates: Arc<dyn Certificates>,
        workers: W,
        registry: Registry,
    ) -> Result<Self, karst_datapath::DatapathError> {
        let in_kernel: HashSet<Arc<str>> = kernel
            .enrolled()?
            .into_iter()
            .map(|p| Arc::from(p.uid))
            .collect();
        // What was got ready for a hand-over is wanted until we know better.
        let wanted_identities = certificates.list().into_iter().map(|c| c.id).collect();
        let recorded: HashSet<Arc<str>> = registry.uids().collect();
        let orphans = in_kernel.difference(&recorded).cloned().collect();
        Ok(Self {
            kernel,
            certificates,
            workers,
            registry,
            node_pods: None,
            early: HashMap::new(),
            running: HashMap::new(),
            in_kernel,
            failing: HashMap::new(),
            stale: HashSet::new(),
            orphans,
            wanted_identities,
            inherited: Inherited::new(),
        })
    }

    /// The same with listeners that the former agent handed over: connections wait in
    /// them, and the pods they belong to are served through them.
    pub fn inheriting(mut self, inherited: Inherited) -> Self {
        self.inherited = inherited;
        self
    }

    /// Records a sandbox.
    ///
    /// # Errors
    /// The record cannot be written; then nothing has changed.
    pub fn register(&mut self, sandbox: Sandbox) -> Result<(), registry::RegistryError> {
        let uid = Arc::clone(&sandbox.pod_uid);
        let former = self.registry.get(&uid);
        let moved = former.is_some_and(|f| f.netns_id != sandbox.netns_id);
        // First of all: a captured pod without a record that is no orphan any more would be let
        // go, out into the clear.
        self.registry.put(sandbox)?;
        self.failing.remove(&uid);
        self.stale.remove(&uid);
        self.orphans.remove(&uid);
        if moved && !self.running.contains_key(&uid) {
            // Un-enrolled before: what still runs of the former sandbox ends now.
            self.workers.kill(&uid);
        }
        Ok(())
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// The record cannot be deleted.
    pub fn unregister(&mut self, uid: &str) -> Result<(), registry::RegistryError> {
        self.orphans.remove(uid);
        if !self.running.contains_key(uid) && self.registry.get(uid).is_some() {
            // Un-enrolled before: what still runs of it ends now.
            self.workers.kill(&Arc::from(uid));
        }
        self.registry.remove(uid)
    }

    /// Takes over changes of what the controller wants.
    pub fn update_node_pods(&mut self, changes: Vec<(Arc<str>, Option<NodePod>)>) {
        let pods = self.node_pods.as_mut().unwrap_or(&mut self.early);
        for (uid, pod) in changes {
            self.failing.remove(&uid);
            let Some(pod) = pod else {
                pods.remove(&uid);
                continue;
            };
            let same = |old: &NodePod| {
                old.waypoints == pod.waypoints && old.egress == pod.egress && old.mode == pod.mode
            };
            let differs = !pods.get(&uid).is_some_and(same);
            if differs && pod.mode == Mode::Ambient && self.running.contains_key(&uid) {
                self.workers.require(&uid, &pod.waypoints, pod.egress);
            }
            pods.insert(uid, pod);
        }
    }

    /// A certificate was issued: pods that wait for one need not wait longer.
    pub fn note_certificates(&mut self) {
        self.failing
            .retain(|_, f| f.problem.reason != NO_CERTIFICATE);
    }

    /// The controller's list is complete: what is not in it is not wanted.
    pub fn set_synced(&mut self) {
        if self.node_pods.is_none() {
            self.node_pods = Some(std::mem::take(&mut self.early));
        }
    }

    /// Looks again at what others change without telling us: the kernel maps,
    /// which the next reconciliation repairs, and the namespaces of pods the
    /// controller no longer lists, whose end we may have missed.
    pub fn refresh(&mut self) {
        self.look_for_namespaces();
        match self.kernel.enrolled() {
            Ok(pods) => self.in_kernel = pods.into_iter().map(|p| Arc::from(p.uid)).collect(),
            Err(error) => {
                tracing::warn!(%error, reason = error.reason(), "kernel maps cannot be read")
            }
        }
    }

    fn wanted(&self, uid: &str) -> Wanted<'_> {
        let known = self.node_pods.as_ref().unwrap_or(&self.early).get(uid);
        match known {
            Some(pod) if pod.mode == Mode::Ambient => Wanted::Yes(pod),
            // Before the first complete list a NONE is as sure as later.
            Some(_) => Wanted::No,
            None if self.node_pods.is_some() => Wanted::Unlisted,
            None => Wanted::Unknown,
        }
    }

    fn situation(&self, uid: &str) -> Situation<'_> {
        Situation {
            sandbox: self.registry.get(uid),
            wanted: self.wanted(uid),
            running: self.running.get(uid),
            in_kernel: self.in_kernel.contains(uid),
            orphan: self.orphans.contains(uid),
        }
    }

    /// Does the next steps of every pod. Returns when to call again at the
    /// latest, if a step failed.
    pub fn reconcile(&mut self, now: Instant) -> Option<Instant> {
        let uids: HashSet<Arc<str>> = self
            .registry
            .uids()
            .chain(self.running.keys().cloned())
            .chain(self.in_kernel.iter().cloned())
            .collect();
        self.update_identities();
        for uid in &uids {
            // Replacing is two steps; a pod that needs more is looked at next time.
            for _ in 0..3 {
                if self.failing.get(uid).is_some_and(|f| f.retry_at > now) {
                    break;
                }
                match self.step(uid) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.failing.remove(uid);
                        break;
                    }
                    Err(problem) => {
                        self.note_failure(uid, problem, now);
                        break;
                    }
                }
            }
        }
        self.failing.retain(|uid, _| uids.contains(uid));
        self.drop_unneeded_listeners();
        self.failing.values().map(|f| f.retry_at).min()
    }

    /// Listeners nobody will serve are closed: what waits in them is refused, and does
    /// not wait for ever.
    fn drop_unneeded_listeners(&mut self) {
        let mut inherited = std::mem::take(&mut self.inherited);
        inherited.retain(|uid, _| {
            let wanted = matches!(self.wanted(uid), Wanted::Yes(_) | Wanted::Unknown);
            wanted && self.registry.get(uid).is_some()
        });
        self.inherited = inherited;
    }

    fn note_failure(&mut self, uid: &Arc<str>, problem: Problem, now: Instant) {
        let attempts = self.failing.get(uid).map_or(0, |f| f.attempts);
        let wait = BACKOFF_INITIAL
            .saturating_mul(1 << attempts.min(10))
            .min(BACKOFF_MAX);
        // The first look for a certificate always comes too early.
        let expected = attempts == 0 && problem.reason == NO_CERTIFICATE;
        if !expected
            && self
                .failing
                .get(uid)
                .is_none_or(|f| f.problem != problem || attempts == 1)
        {
            tracing::warn!(
                pod.uid = &**uid,
                reason = problem.reason,
                error = problem.message,
                "pod cannot be brought into the wanted state yet"
            );
        }
        let failing = Failing {
            problem,
            attempts: attempts + 1,
            retry_at: now + wait,
        };
        self.failing.insert(Arc::clone(uid), failing);
    }

    /// Wants certificates for the identities of pods to be served, no others.
    fn update_identities(&mut self) {
        let wanted: HashSet<SpiffeId> = self
            .registry
            .uids()
            .filter_map(|uid| match self.wanted(&uid) {
                Wanted::Yes(pod) => Some(pod.identity.clone()),
                _ => None,
            })
            // Served until released, whatever the controller says meanwhile.
            .chain(self.running.values().map(|p| p.identity.clone()))
            .collect();
        for id in wanted.difference(&self.wanted_identities) {
            if let Err(error) = self.certificates.want(id) {
                tracing::warn!(%error, identity = %id, "certificate cannot be wanted");
            }
        }
        for id in self.wanted_identities.difference(&wanted) {
            self.certificates.forget(id);
        }
        self.wanted_identities = wanted;
    }

    /// Does one step of one pod; says whether there may be another.
    fn step(&mut self, uid: &Arc<str>) -> Result<bool, Problem> {
        match plan(&self.situation(uid)) {
            Action::Nothing => Ok(false),
            Action::Enrol => self.enrol(uid).map(|()| false),
            Action::Release => {
                self.leave_kernel(uid)?;
                self.running.remove(uid);
                self.workers.release(uid);
                tracing::info!(pod.uid = &**uid, "pod un-enrolled");
                Ok(true)
            }
            Action::Remove => {
                // The workers first: nothing of a pod that is gone may go on
                // while the kernel is asked.
                self.running.remove(uid);
                self.workers.kill(uid);
                self.leave_kernel(uid)?;
                tracing::info!(pod.uid = &**uid, "pod removed");
                Ok(true)
            }
            Action::LeaveKernel => {
                self.leave_kernel(uid)?;
                tracing::info!(pod.uid = &**uid, "pod of a former agent un-enrolled");
                Ok(true)
            }
        }
    }

    fn leave_kernel(&mut self, uid: &Arc<str>) -> Result<(), Problem> {
        self.kernel.unenrol(uid).map_err(|e| Problem {
            reason: e.reason(),
            message: chain(&e),
        })?;
        self.in_kernel.remove(uid);
        // Released and killed pods may still be known to a worker as released.
        Ok(())
    }

    /// A pod that is captured already is better served without a certificate (with
    /// a reason in the log) than not at all, but not before the certificate had time
    /// to come: what connects in between would be reset.
    fn goes_without_certificate(&self, uid: &Arc<str>) -> bool {
        let waited = self.failing.get(uid).is_some_and(|failing| {
            failing.problem.reason == NO_CERTIFICATE && failing.attempts >= CERTIFICATE_ATTEMPTS
        });
        waited && self.in_kernel.contains(uid)
    }

    fn enrol(&mut self, uid: &Arc<str>) -> Result<(), Problem> {
        let (Some(sandbox), Wanted::Yes(wanted)) = (self.registry.get(uid), self.wanted(uid))
        else {
            return Ok(());
        };
        let identity = wanted.identity.clone();
        if !self.certificates.has(&identity) && !self.goes_without_certificate(uid) {
            let known = self
                .certificates
                .list()
                .into_iter()
                .find(|c| c.id == identity);
            let message = known.map(|c| c.message).filter(|m| !m.is_empty());
            let message = message.unwrap_or_else(|| "waiting for the certificate".to_owned());
            return Err(Problem {
                reason: NO_CERTIFICATE,
                message,
            });
        }
        let netns = match open_netns(sandbox) {
            Namespace::There(netns) => netns,
            Namespace::Gone(problem) => {
                self.stale.insert(Arc::clone(uid));
                return Err(problem);
            }
            Namespace::Unseen(problem) => return Err(problem),
        };
        let spec = PodSpec {
            uid: Arc::clone(uid),
            namespace: Arc::clone(&wanted.namespace),
            name: Arc::clone(&wanted.name),
            workload_uid: Arc::clone(&wanted.workload_uid),
            identity,
            addresses: sandbox.addresses.clone(),
            waypoints: Arc::clone(&wanted.waypoints),
            egress: wanted.egress,
        };
        let former = self.inherited.remove(uid).unwrap_or_default();
        let fits = |one: &Listeners| {
            let mut addresses = one.plaintext.iter().map(|(ip, _)| ip);
            addresses.all(|ip| spec.addresses.contains(ip))
        };
        let listeners = if former.is_empty() || !former.iter().all(fits) {
            self.workers.listen(&netns, &spec.addresses)
        } else {
            self.workers.inherit(former, &netns, &spec.addresses)
        };
        let listeners = listeners.map_err(|e| Problem {
            reason: "listen_failed",
            message: e.to_string(),
        })?;
        let pod = Arc::new(Pod::new(spec, netns));
        let first = listeners.first().map_or(&[][..], |l| &l.plaintext);
        let plaintext: Vec<_> = first
            .iter()
            .map(|(ip, listener)| (*ip, listener.as_fd()))
            .collect();
        let attachment = PodAttachment {
            uid,
            netns: &pod.netns,
            addresses: &pod.addresses,
            plaintext_listeners: &plaintext,
        };
        self.kernel.enrol(&attachment).map_err(|e| Problem {
            reason: e.reason(),
            message: chain(&e),
        })?;
        self.workers.start(&pod, listeners);
        let (namespace, name, identity) = (&*pod.namespace, &*pod.name, pod.identity.to_string());
        tracing::info!(
            pod.uid = &**uid,
            pod.namespace = namespace,
            pod.name = name,
            identity,
            "pod enrolled"
        );
        self.in_kernel.insert(Arc::clone(uid));
        self.running.insert(Arc::clone(uid), pod);
        Ok(())
    }

    /// Uids of enrolled pods, for the controller; `None` while the list is not
    /// yet to be believed.
    pub fn report(&self) -> Option<Vec<String>> {
        self.node_pods.as_ref()?;
        let enrolled = self
            .running
            .keys()
            .filter(|uid| self.in_kernel.contains(*uid));
        Some(enrolled.map(ToString::to_string).collect())
    }

    /// How a pod stands: settled well, waiting, or failing. One without a record is never settled:
    /// nobody knows whether it is as it should be.
    pub fn standing(&self, uid: &str) -> Standing {
        if self.registry.get(uid).is_none() {
            return Standing::Unsettled(deleted());
        }
        let problem = self.failing.get(uid).map(|f| f.problem.clone());
        match (plan(&self.situation(uid)), self.wanted(uid), problem) {
            (_, Wanted::Unknown | Wanted::Unlisted, _) => Standing::Unsettled(Problem {
                reason: POD_UNKNOWN,
                message: "the controller has not told this node of the pod yet".to_owned(),
            }),
            (Action::Nothing, ..) => Standing::Settled,
            (_, _, Some(problem)) => Standing::Unsettled(problem),
            (..) => Standing::Unsettled(Problem {
                reason: "in_progress",
                message: "the pod is being enrolled".to_owned(),
            }),
        }
    }

    /// The table for the admin socket.
    pub fn table(&self) -> PodTable {
        let view = |sandbox: &Sandbox| {
            let uid = &sandbox.pod_uid;
            let running = self.running.get(uid);
            let (mode, known) = match self.wanted(uid) {
                Wanted::Yes(pod) => (Some(Mode::Ambient), Some(pod)),
                Wanted::No => (Some(Mode::None), None),
                Wanted::Unknown | Wanted::Unlisted => (None, None),
            };
            PodView {
                uid: Arc::clone(uid),
                namespace: Arc::clone(&sandbox.namespace),
                name: Arc::clone(&sandbox.name),
                netns: sandbox.netns.clone(),
                addresses: sandbox.addresses.clone(),
                dataplane_mode: mode,
                identity: known.map(|pod| pod.identity.to_string()),
                waypoints: known
                    .map(|pod| Arc::clone(&pod.waypoints))
                    .unwrap_or_default(),
                egress: known.map(|pod| pod.egress),
                enrolled: running.is_some() && self.in_kernel.contains(uid),
                problem: self.failing.get(uid).map(|f| f.problem.clone()),
                connections: running.cloned(),
            }
        };
        let pods = self
            .registry
            .iter()
            .map(|s| (Arc::clone(&s.pod_uid), view(s)))
            .collect();
        // What was captured when we came must be served again before we are ready.
        let adopted = self.in_kernel.iter().all(|uid| {
            self.running.contains_key(uid) || matches!(self.wanted(uid), Wanted::Unlisted)
        });
        PodTable {
            pods,
            settled: self.node_pods.is_some() && adopted,
            discovered: 0,
        }
    }
}

/// Whether a pod is in the state it should be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Settled,
    /// Not yet, and why.
    Unsettled(Problem),
}

/// What became of a registered namespace.
enum Namespace {
    /// The very one.
    There(Netns),
    /// It is not there any more, or another one is in its place.
    Gone(Problem),
    /// It cannot be looked at now, which says nothing of it.
    Unseen(Problem),
}

/// The namespace that was registered, and no other.
fn open_netns(sandbox: &Sandbox) -> Namespace {
    let path = sandbox.netns.display();
    match Netns::open(&sandbox.netns) {
        Ok(netns) if netns.id() == sandbox.netns_id => Namespace::There(netns),
        Ok(_) => Namespace::Gone(Problem {
            reason: "netns_changed",
            message: format!("{path} is another namespace now"),
        }),
        Err(error) => {
            let problem = Problem {
                reason: "netns_unusable",
                message: format!("{path}: {error}"),
            };
            if netns::is_gone(&error) {
                Namespace::Gone(problem)
            } else {
                Namespace::Unseen(problem)
            }
        }
    }
}

/// Said of a sandbox whose record went while somebody waited for its pod.
fn deleted() -> Problem {
    Problem {
        reason: SANDBOX_DELETED,
        message: "the sandbox was deleted meanwhile".to_owned(),
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "enrol/tests.rs"]
mod tests;
