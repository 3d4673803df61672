//! The enrolment state machine against a kernel, certificates and workers that
//! only remember.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;

use super::registry::{Registration, Registry, Sandbox};
use super::{Enrolment, Mode, NodePod, Standing, Workers};
use crate::egress::Egress;
use crate::pod::Pod;
use crate::sockets::Listeners;
use crate::testing::{FakeCertificates, FakeKernel};
use crate::waypoints::{Others, Requirement, Waypoints};

#[derive(Clone, Default)]
pub(super) struct Calls(Rc<RefCell<Vec<String>>>);

impl Calls {
    fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

impl Workers for Calls {
    fn start(&mut self, pod: &Arc<Pod>, _: Vec<Listeners>) {
        self.0.borrow_mut().push(format!(
            "start {} {}",
            pod.uid,
            pod.identity.service_account()
        ));
    }

    fn release(&mut self, uid: &Arc<str>) {
        self.0.borrow_mut().push(format!("release {uid}"));
    }

    fn kill(&mut self, uid: &Arc<str>) {
        self.0.borrow_mut().push(format!("kill {uid}"));
    }

    fn require(&mut self, uid: &Arc<str>, waypoints: &Arc<Waypoints>, egress: Egress) {
        let count = waypoints.0.len();
        let narrow = match egress {
            Egress::AllowAny => "",
            Egress::RegistryOnly => " registry only",
        };
        let line = format!("require {uid} {count}{narrow}");
        self.0.borrow_mut().push(line);
    }

    fn listen(&self, _: &Netns, _: &[IpAddr]) -> io::Result<Vec<Listeners>> {
        Ok(vec![Listeners::default()])
    }

    fn inherit(
        &self,
        former: Vec<Listeners>,
        _: &Netns,
        _: &[IpAddr],
    ) -> io::Result<Vec<Listeners>> {
        self.0
            .borrow_mut()
            .push(format!("inherit {}", former.len()));
        Ok(former)
    }
}

pub(super) struct Fixture {
    pub(super) kernel: Arc<FakeKernel>,
    pub(super) certificates: Arc<FakeCertificates>,
    calls: Calls,
    pub(super) dir: tempfile::TempDir,
    pub(super) enrolment: Enrolment<Calls>,
    now: Instant,
}

pub(super) fn node_pod(account: &str, mode: Mode) -> NodePod {
    NodePod {
        namespace: Arc::from("ns"),
        name: Arc::from("pod"),
        workload_uid: Arc::from("w"),
        identity: id(account),
        addresses: vec!["10.0.0.1".parse().expect("address")],
        mode,
        waypoints: Arc::default(),
        egress: Egress::default(),
    }
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::after(Arc::default(), tempfile::tempdir().expect("dir"))
    }

    /// An agent that finds what a former one left.
    fn after(kernel: Arc<FakeKernel>, dir: tempfile::TempDir) -> Self {
        let (certificates, calls) = (Arc::<FakeCertificates>::default(), Calls::default());
        let enrolment = Enrolment::new(
            Arc::<FakeKernel>::clone(&kernel),
            Arc::<FakeCertificates>::clone(&certificates),
            calls.clone(),
            Registry::open(dir.path()).expect("registry"),
        )
        .expect("enrolment");
        Self {
            kernel,
            certificates,
            calls,
            dir,
            enrolment,
            now: Instant::now(),
        }
    }

    pub(super) fn restart(self) -> Self {
        Self::after(self.kernel, self.dir)
    }

    fn register(&mut self, uid: &str) {
        let registration = Registration {
            namespace: "ns".to_owned(),
            name: "pod".to_owned(),
            netns: PathBuf::from("/proc/self/ns/net"),
            addresses: vec!["10.0.0.1".parse().expect("address")],
            container_id: None,
            expected: None,
        };
        let sandbox = Sandbox::new(uid, registration).expect("valid");
        self.enrolment.register(sandbox).expect("registered");
    }

    pub(super) fn want(&mut self, uid: &str, account: &str, mode: Mode) {
        let pod = node_pod(account, mode);
        self.enrolment
            .update_node_pods(vec![(Arc::from(uid), Some(pod))]);
    }

    /// Reconciles and returns what the workers were told.
    pub(super) fn settle(&mut self) -> Vec<String> {
        self.enrolment.reconcile(self.now);
        self.calls.take()
    }

    /// A pod enrolled in the ordinary way.
    fn enrolled(uid: &str) -> Self {
        let mut f = Self::new();
        f.enrolment.set_synced();
        f.certificates.issue(&id("sa"));
        f.register(uid);
        f.want(uid, "sa", Mode::Ambient);
        assert_eq!(f.settle(), [format!("start {uid} sa")]);
        f
    }
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "ns", account).expect("id")
}

#[test]
fn enrols_only_with_a_certificate_and_reports_it() {
    let mut f = Fixture::new();
    f.enrolment.set_synced();
    f.register("u");
    f.want("u", "sa", Mode::Ambient);
    assert!(f.settle().is_empty());
    assert!(
        f.certificates
            .wanted
            .lock()
            .expect("lock")
            .contains(&id("sa"))
    );
    assert!(f.kernel.uids().is_empty());
    assert_eq!(f.enrolment.report(), Some(vec![]));
    let Standing::Unsettled(problem) = f.enrolment.standing("u") else {
        panic!("settled")
    };
    assert_eq!(problem.reason, "no_certificate");
    f.certificates.issue(&id("sa"));
    f.now += Duration::from_secs(1);
    assert_eq!(f.settle(), ["start u sa"]);
    assert_eq!(f.kernel.uids(), ["u"]);
    assert_eq!(f.enrolment.report(), Some(vec!["u".to_owned()]));
    assert_eq!(f.enrolment.standing("u"), Standing::Settled);
    assert!(f.settle().is_empty(), "nothing more to do");
}

#[test]
fn label_off_lets_go_of_new_connections_only() {
    let mut f = Fixture::enrolled("u");
    f.want("u", "sa", Mode::None);
    assert_eq!(f.settle(), ["release u"]);
    assert!(f.kernel.uids().is_empty());
    assert_eq!(f.enrolment.report(), Some(vec![]));
    f.want("u", "sa", Mode::Ambient);
    assert_eq!(f.settle(), ["start u sa"]);
}

#[test]
fn pod_deletion_is_immediate_and_forgets_the_identity() {
    let mut f = Fixture::enrolled("u");
    f.enrolment.unregister("u").expect("unregistered");
    assert_eq!(f.settle(), ["kill u"]);
    assert!(f.kernel.uids().is_empty());
    f.settle();
    assert!(f.certificates.wanted.lock().expect("lock").is_empty());
}

#[test]
fn deletion_after_unenrolment_ends_what_still_runs() {
    let mut f = Fixture::enrolled("u");
    f.want("u", "sa", Mode::None);
    assert_eq!(f.settle(), ["release u"]);
    f.enrolment.unregister("u").expect("unregistered");
    assert_eq!(f.settle(), ["kill u"]);
}

#[test]
fn another_identity_for_the_same_pod_starts_afresh() {
    let mut f = Fixture::enrolled("u");
    f.certificates.issue(&id("other"));
    f.want("u", "other", Mode::Ambient);
    assert_eq!(f.settle(), ["kill u", "start u other"]);
}

#[test]
fn where_a_pod_may_connect_to_changes_while_it_is_served() {
    let mut f = Fixture::enrolled("u");
    let update = |f: &mut Fixture, egress| {
        let pod = NodePod {
            egress,
            ..node_pod("sa", Mode::Ambient)
        };
        f.enrolment
            .update_node_pods(vec![(Arc::from("u"), Some(pod))]);
        f.settle()
    };
    let narrow = ["require u 0 registry only"];
    assert_eq!(update(&mut f, Egress::RegistryOnly), narrow);
    assert!(update(&mut f, Egress::RegistryOnly).is_empty());
    let view = f.enrolment.table().pods["u"].clone();
    assert_eq!(view.egress, Some(Egress::RegistryOnly));
    assert_eq!(update(&mut f, Egress::AllowAny), ["require u 0"]);
}

/// A waypoint in front of the pod that all connections must come through.
fn required() -> Arc<Waypoints> {
    let requirement = Requirement {
        ports: Vec::new(),
        identities: vec![id("wp")],
        others: Others::Refused,
    };
    Arc::new(Waypoints(vec![requirement]))
}

#[test]
fn what_connections_must_satisfy_changes_while_a_pod_is_served() {
    let mut f = Fixture::enrolled("u");
    let update = |f: &mut Fixture, mode, waypoints: &Arc<Waypoints>| {
        let pod = NodePod {
            waypoints: Arc::clone(waypoints),
            ..node_pod("sa", mode)
        };
        let change = (Arc::from("u"), Some(pod));
        f.enrolment.update_node_pods(vec![change]);
        f.settle()
    };
    let required = required();
    assert_eq!(update(&mut f, Mode::Ambient, &required), ["require u 1"]);
    assert!(update(&mut f, Mode::Ambient, &required).is_empty());
    assert_eq!(
        update(&mut f, Mode::Ambient, &Arc::default()),
        ["require u 0"]
    );
    // Let go of, its connections go on; started again, it comes with what is required.
    assert_eq!(update(&mut f, Mode::None, &required), ["release u"]);
    assert_eq!(update(&mut f, Mode::Ambient, &required), ["start u sa"]);
    let view = f.enrolment.table().pods["u"].clone();
    assert_eq!(view.waypoints, required);
    assert_eq!(view.connections.expect("running").waypoints, required);
}

#[test]
fn a_pod_that_vanishes_from_the_list_stays_captured() {
    let mut f = Fixture::enrolled("u");
    f.enrolment.update_node_pods(vec![(Arc::from("u"), None)]);
    assert!(f.settle().is_empty());
    assert_eq!(f.kernel.uids(), ["u"]);
    let Standing::Unsettled(problem) = f.enrolment.standing("u") else {
        panic!("settled")
    };
    assert_eq!(problem.reason, "pod_unknown");
}

#[test]
fn restart_keeps_pods_captured_until_the_controller_speaks() {
    let mut f = Fixture::enrolled("u").restart();
    assert!(f.settle().is_empty());
    assert_eq!(f.kernel.uids(), ["u"], "captured, and refused, meanwhile");
    assert_eq!(
        f.enrolment.report(),
        None,
        "an empty report would un-enrol it elsewhere"
    );
    assert!(!f.enrolment.table().settled);
    f.want("u", "sa", Mode::Ambient);
    f.enrolment.set_synced();
    assert!(f.settle().is_empty(), "its certificate is about to come");
    f.certificates.issue(&id("sa"));
    f.enrolment.note_certificates();
    assert_eq!(f.settle(), ["start u sa"]);
    assert!(f.enrolment.table().settled);
    assert_eq!(f.enrolment.report(), Some(vec!["u".to_owned()]));
}

#[test]
fn a_captured_pod_is_served_without_a_certificate_in_the_end() {
    let mut f = Fixture::enrolled("u").restart();
    f.want("u", "sa", Mode::Ambient);
    f.enrolment.set_synced();
    let began = f.now;
    let mut started = f.settle();
    while started.is_empty() {
        let retry = f.enrolment.reconcile(f.now).expect("a retry is due");
        f.now = retry;
        started = f.settle();
    }
    assert_eq!(started, ["start u sa"]);
    let waited = f.now - began;
    assert!(
        waited >= Duration::from_secs(1) && waited <= Duration::from_secs(10),
        "{waited:?}"
    );
}

#[test]
fn restart_lets_go_of_pods_that_are_gone() {
    let mut f = Fixture::enrolled("u");
    f.kernel.put("left-over");
    f.enrolment.unregister("u").expect("unregistered");
    let mut f = f.restart();
    assert!(f.settle().is_empty());
    assert_eq!(
        f.kernel.uids(),
        ["left-over", "u"],
        "nobody knows of them yet"
    );
    f.enrolment.set_synced();
    f.settle();
    assert!(f.kernel.uids().is_empty());
}

#[test]
fn failures_back_off_and_recover() {
    let mut f = Fixture::new();
    f.enrolment.set_synced();
    f.certificates.issue(&id("sa"));
    f.register("u");
    f.want("u", "sa", Mode::Ambient);
    f.kernel.fail(true);
    let mut last = Duration::ZERO;
    for attempt in 0..12 {
        let retry = f.enrolment.reconcile(f.now).expect("a retry is due") - f.now;
        assert!(
            retry >= last && retry <= Duration::from_secs(15),
            "attempt {attempt}: {retry:?}"
        );
        last = retry;
        // Asked too early, nothing is tried.
        f.enrolment.reconcile(f.now + retry / 2);
        f.now += retry;
    }
    assert_eq!(last, Duration::from_secs(15));
    assert!(f.calls.take().is_empty());
    f.kernel.fail(false);
    assert_eq!(f.settle(), ["start u sa"]);
    assert_eq!(f.enrolment.reconcile(f.now), None);
}

#[test]
fn a_failed_removal_is_tried_again() {
    let mut f = Fixture::enrolled("u");
    f.kernel.fail(true);
    f.enrolment.unregister("u").expect("unregistered");
    assert_eq!(f.settle(), ["kill u"]);
    assert_eq!(f.kernel.uids(), ["u"]);
    f.kernel.fail(false);
    f.now += Duration::from_secs(1);
    f.settle();
    assert!(f.kernel.uids().is_empty());
}

#[test]
fn emptied_kernel_maps_are_filled_again() {
    let mut f = Fixture::enrolled("u");
    f.kernel.clear();
    assert!(f.settle().is_empty());
    f.enrolment.refresh();
    assert_eq!(f.settle(), ["start u sa"]);
    assert_eq!(f.kernel.uids(), ["u"]);
}

#[test]
fn pods_not_wanted_are_recorded_and_left_alone() {
    let mut f = Fixture::new();
    f.register("u");
    f.want("u", "sa", Mode::None);
    assert!(f.settle().is_empty());
    assert_eq!(f.enrolment.standing("u"), Standing::Settled);
    assert!(f.certificates.wanted.lock().expect("lock").is_empty());
    f.enrolment.set_synced();
    let table = f.enrolment.table();
    assert!(table.settled && !table.pods["u"].enrolled);
    assert_eq!(table.counts(), (0, 0));
}

#[test]
fn a_pod_taken_over_is_served_through_the_listeners_handed_over() {
    let mut f = Fixture::enrolled("u").restart();
    let handed_over = vec![Listeners::default(), Listeners::default()];
    let inherited = [(Arc::from("u"), handed_over)].into();
    f.enrolment = f.enrolment.inheriting(inherited);
    assert!(f.settle().is_empty(), "not before it is known to be wanted");
    f.certificates.issue(&id("sa"));
    f.want("u", "sa", Mode::Ambient);
    f.enrolment.set_synced();
    f.now += Duration::from_secs(60);
    assert_eq!(f.settle(), ["inherit 2", "start u sa"]);
}

#[test]
fn listeners_of_a_pod_that_nobody_wants_are_closed() {
    let mut f = Fixture::enrolled("u").restart();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    let listeners = Listeners {
        outbound: vec![listener],
        ..Listeners::default()
    };
    f.enrolment = f
        .enrolment
        .inheriting([(Arc::from("u"), vec![listeners])].into());
    f.settle();
    let waits = std::net::TcpStream::connect(address);
    assert!(waits.is_ok(), "the controller has not said");
    f.want("u", "sa", Mode::None);
    f.enrolment.set_synced();
    f.settle();
    assert!(std::net::TcpStream::connect(address).is_err());
}
