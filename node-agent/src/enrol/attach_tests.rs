//! Sandboxes by container and namespace, and pods found running.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karst_datapath::netns::Netns;

use super::super::Mode;
use super::super::registry::{Registration, Sandbox};
use super::super::tests::Fixture;
use super::{Finding, SandboxName};

const OWN: &str = "/proc/self/ns/net";

fn registration(netns: &Path, container: Option<&str>) -> Registration {
    Registration {
        namespace: "ns".to_owned(),
        name: "pod".to_owned(),
        netns: netns.to_owned(),
        addresses: vec!["10.0.0.1".parse().expect("address")],
        container_id: container.map(str::to_owned),
        expected: None,
    }
}

fn put(f: &mut Fixture, container: Option<&str>) {
    let sandbox = Sandbox::new("u", registration(Path::new(OWN), container)).expect("valid");
    f.enrolment.register(sandbox).expect("registered");
}

fn named(container: &str, netns: bool, uid: Option<&str>) -> SandboxName {
    SandboxName {
        pod_uid: uid.map(str::to_owned),
        namespace: "ns".to_owned(),
        name: "pod".to_owned(),
        container_id: container.to_owned(),
        netns_id: netns.then(|| Netns::open(Path::new(OWN)).expect("netns").id()),
    }
}

fn missing(f: &Fixture) -> Vec<Arc<str>> {
    f.enrolment.missing().into_iter().map(|m| m.uid).collect()
}

/// A pod enrolled by way of a path that can be made to lead elsewhere.
fn enrolled_by(path: &Path) -> Fixture {
    let mut f = Fixture::new();
    f.enrolment.set_synced();
    f.certificates.issue(&super::super::tests::id("sa"));
    std::os::unix::fs::symlink(OWN, path).expect("linked");
    let sandbox = Sandbox::new("u", registration(path, Some("c-1"))).expect("valid");
    f.enrolment.register(sandbox).expect("registered");
    f.want("u", "sa", Mode::Ambient);
    assert_eq!(f.settle(), ["start u sa"]);
    f
}

#[test]
fn a_sandbox_is_known_by_its_container_or_its_namespace() {
    let check = |recorded: Option<&str>, asked: SandboxName, expected: bool| {
        let mut f = Fixture::new();
        put(&mut f, recorded);
        let found = f.enrolment.recorded(&asked);
        assert_eq!(found.is_some(), expected, "{recorded:?} {asked:?}");
    };
    for uid in [Some("u"), None] {
        check(Some("c-1"), named("c-1", false, uid), true);
        check(Some("c-1"), named("c-1", true, uid), true);
        check(Some("c-1"), named("c-0", true, uid), false);
        check(Some("c-1"), named("c-0", false, uid), false);
        // Found running: only the namespace can tell.
        check(None, named("c-1", true, uid), true);
        check(None, named("c-1", false, uid), false);
    }
    check(Some("c-1"), named("c-1", true, Some("other")), false);
}

#[test]
fn a_listed_pod_with_an_address_and_no_sandbox_is_missing() {
    let mut f = Fixture::new();
    f.want("u", "sa", Mode::None);
    assert_eq!(
        missing(&f),
        [Arc::from("u")],
        "also before the list is complete"
    );
    put(&mut f, None);
    assert!(missing(&f).is_empty());
    f.enrolment.unregister("u").expect("gone");
    f.want_without_address("u", "sa");
    assert!(missing(&f).is_empty(), "its sandbox is just being made");
}

#[test]
fn a_running_pod_that_is_found_is_enrolled() {
    let mut f = Fixture::new();
    f.enrolment.set_synced();
    f.certificates.issue(&super::super::tests::id("sa"));
    f.want("u", "sa", Mode::Ambient);
    assert!(f.settle().is_empty());
    let found = Finding::Sandbox(registration(Path::new(OWN), None));
    assert_eq!(
        f.enrolment
            .discovered(vec![(Arc::from("u"), found.clone())]),
        1
    );
    assert_eq!(f.settle(), ["start u sa"]);
    assert!(missing(&f).is_empty());
    // What comes late changes nothing.
    assert_eq!(f.enrolment.discovered(vec![(Arc::from("u"), found)]), 0);
    f.enrolment
        .discovered(vec![(Arc::from("u"), Finding::Nothing)]);
    assert!(f.settle().is_empty());
}

#[test]
fn a_namespace_that_changed_is_enrolled_anew() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("netns");
    let mut f = enrolled_by(&path);
    assert!(missing(&f).is_empty());
    fs::remove_file(&path).expect("gone");
    f.enrolment.refresh();
    assert!(
        f.settle().is_empty(),
        "nothing is let go before it is known to be gone"
    );
    assert_eq!(missing(&f), [Arc::from("u")]);
    // The same namespace under another path: nothing happens to its connections.
    let found = Finding::Sandbox(registration(Path::new(OWN), None));
    f.enrolment.discovered(vec![(Arc::from("u"), found)]);
    assert!(f.settle().is_empty() && missing(&f).is_empty());
    assert_eq!(f.kernel.uids(), ["u"]);
    // Another namespace: the former one ends, the new one begins.
    let other = f.other_netns();
    let sandbox = Sandbox::new("u", registration(&other, Some("c-2"))).expect("valid");
    f.enrolment.register(sandbox).expect("registered");
    assert_eq!(f.settle(), ["kill u", "start u sa"]);
}

#[test]
fn a_sandbox_without_processes_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("netns");
    let mut f = enrolled_by(&path);
    f.enrolment
        .discovered(vec![(Arc::from("u"), Finding::Nothing)]);
    assert!(f.settle().is_empty(), "its namespace is still there");
    fs::remove_file(&path).expect("gone");
    f.enrolment.refresh();
    f.enrolment
        .discovered(vec![(Arc::from("u"), Finding::Nothing)]);
    assert_eq!(f.settle(), ["kill u"]);
    assert!(f.kernel.uids().is_empty());
}

/// An agent has started that finds the pod captured and wanted, and no record of its sandbox.
fn captured_without_record() -> Fixture {
    let mut f = Fixture::new();
    f.kernel.put("u");
    f = f.restart();
    f.certificates.issue(&super::super::tests::id("sa"));
    f.want("u", "sa", Mode::Ambient);
    f.enrolment.set_synced();
    f
}

#[test]
fn a_captured_pod_whose_record_is_lost_stays_captured_until_it_is_found() {
    let lost = || {
        let mut f = captured_without_record();
        assert!(f.settle().is_empty());
        assert_eq!(f.kernel.uids(), ["u"], "captured, and refused");
        assert_eq!(missing(&f), [Arc::from("u")]);
        f
    };
    let mut f = lost();
    let found = Finding::Sandbox(registration(Path::new(OWN), None));
    f.enrolment.discovered(vec![(Arc::from("u"), found)]);
    assert_eq!(f.settle(), ["start u sa"]);
    let mut f = lost();
    f.enrolment
        .discovered(vec![(Arc::from("u"), Finding::Nothing)]);
    f.settle();
    assert!(f.kernel.uids().is_empty(), "no process of it is left");
    let mut f = lost();
    f.want("u", "sa", Mode::None);
    f.settle();
    assert!(f.kernel.uids().is_empty(), "not wanted any more");
}

#[test]
fn a_captured_pod_whose_record_cannot_be_written_stays_captured() {
    let mut f = captured_without_record();
    // A folder in the way is what a full disk is: nothing can be written.
    let in_the_way = f.dir.path().join("sandboxes/u.new");
    fs::create_dir(&in_the_way).expect("made");
    let register = |f: &mut Fixture| {
        let sandbox = Sandbox::new("u", registration(Path::new(OWN), Some("c-1"))).expect("valid");
        f.enrolment.register(sandbox)
    };
    let error = register(&mut f).expect_err("not written");
    assert_eq!(error.reason(), "state_dir_unusable");
    assert!(f.settle().is_empty());
    assert_eq!(f.kernel.uids(), ["u"], "captured, and refused");
    fs::remove_dir(in_the_way).expect("room again");
    register(&mut f).expect("written");
    assert_eq!(f.settle(), ["start u sa"]);
}

#[test]
fn a_namespace_that_cannot_be_looked_at_is_not_gone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("netns");
    let mut f = enrolled_by(&path);
    // A link to itself: it is there, and cannot be opened.
    fs::remove_file(&path).expect("gone");
    std::os::unix::fs::symlink(&path, &path).expect("linked");
    let nothing = || vec![(Arc::from("u"), Finding::Nothing)];
    f.enrolment.refresh();
    assert!(missing(&f).is_empty());
    f.enrolment.discovered(nothing());
    assert!(f.settle().is_empty());
    // Nor when it is to be enrolled anew.
    f.kernel.clear();
    f.enrolment.refresh();
    assert!(f.settle().is_empty());
    assert!(missing(&f).is_empty());
    f.enrolment.discovered(nothing());
    assert!(f.enrolment.table().pods.contains_key("u"));
    // Nor of a pod that is not listed any more.
    f.enrolment.update_node_pods(vec![(Arc::from("u"), None)]);
    f.enrolment.refresh();
    assert!(f.enrolment.table().pods.contains_key("u"));
    fs::remove_file(&path).expect("gone");
    f.enrolment.refresh();
    assert!(f.enrolment.table().pods.is_empty());
}

impl Fixture {
    fn want_without_address(&mut self, uid: &str, account: &str) {
        let pod = super::super::NodePod {
            addresses: Vec::new(),
            ..super::super::tests::node_pod(account, Mode::Ambient)
        };
        self.enrolment
            .update_node_pods(vec![(Arc::from(uid), Some(pod))]);
    }

    /// A second network namespace, as long as its thread waits.
    fn other_netns(&self) -> PathBuf {
        let (told, path) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let tid = nix::unistd::gettid();
            let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
            told.send(PathBuf::from(path)).expect("told");
            std::thread::park();
        });
        path.recv().expect("made")
    }
}
