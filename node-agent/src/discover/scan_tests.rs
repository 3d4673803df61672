//! Discovery on made-up `/proc` and cgroup trees: a namespace is a file, and its inode is its id.

use std::fs;
use std::path::PathBuf;

use super::{Found, NodeView, id, scan};

const UID: &str = "1b2c3d4e-0000-1111-2222-333344445555";

struct Tree {
    dir: tempfile::TempDir,
    view: NodeView,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        for name in ["proc", "netns", "kubepods", "namespaces"] {
            fs::create_dir(at(name)).expect("made");
        }
        fs::write(at("namespaces/host"), "").expect("written");
        let view = NodeView {
            proc: at("proc"),
            netns_dir: Some(at("netns")),
            kubepods: at("kubepods"),
            host_netns: id(&at("namespaces/host")).expect("there"),
        };
        Self { dir, view }
    }

    /// A process of a cgroup in a namespace, which is made if need be.
    fn process(&self, pid: u32, cgroup: &str, netns: &str, started: u64) {
        let process = self.view.proc.join(pid.to_string());
        fs::create_dir_all(process.join("ns")).expect("made");
        fs::write(process.join("cgroup"), cgroup).expect("written");
        let before = "S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0";
        let stat = format!("{pid} (a) b (c) {before} {started} 0 0");
        fs::write(process.join("stat"), stat).expect("written");
        let namespace = self.dir.path().join("namespaces").join(netns);
        if !namespace.exists() {
            fs::write(&namespace, "").expect("written");
        }
        fs::hard_link(namespace, process.join("ns/net")).expect("linked");
    }

    fn bind(&self, netns: &str, name: &str) -> PathBuf {
        let path = self.dir.path().join("netns").join(name);
        fs::hard_link(self.dir.path().join("namespaces").join(netns), &path).expect("linked");
        path
    }

    fn found(&self) -> Option<Found> {
        scan(&self.view, &["other", UID])
            .expect("scanned")
            .remove(UID)
    }

    fn of_process(&self, pid: u32) -> Found {
        let path = self.view.proc.join(pid.to_string()).join("ns/net");
        let netns = id(&path).expect("there");
        Found::Sandbox(path, netns)
    }
}

fn cgroup() -> String {
    format!("0::/kubepods/besteffort/pod{UID}/container\n")
}

#[test]
fn the_oldest_process_tells_the_namespace() {
    let tree = Tree::new();
    tree.process(30, &cgroup(), "inner", 900);
    tree.process(10, &cgroup(), "pod", 500);
    tree.process(20, &cgroup(), "inner", 700);
    assert_eq!(tree.found(), Some(tree.of_process(10)));
}

#[test]
fn a_bind_mount_of_it_is_preferred() {
    let tree = Tree::new();
    tree.process(10, &cgroup(), "pod", 500);
    tree.process(11, "0::/kubepods/podother/c\n", "theirs", 400);
    tree.bind("theirs", "cni-theirs");
    let path = tree.bind("pod", "cni-1234");
    let netns = id(&path).expect("there");
    assert_eq!(tree.found(), Some(Found::Sandbox(path, netns)));
}

#[test]
fn the_nodes_namespace_is_no_pods() {
    let tree = Tree::new();
    tree.process(10, &cgroup(), "host", 500);
    assert_eq!(tree.found(), Some(Found::HostNetwork));
    // A privileged process that went to the node's namespace does not make a pod of it.
    tree.process(20, &cgroup(), "pod", 600);
    assert_eq!(tree.found(), Some(tree.of_process(20)));
}

#[test]
fn a_pod_without_processes_is_not_found() {
    let tree = Tree::new();
    tree.process(10, "0::/kubepods/podother/c\n", "pod", 500);
    tree.process(1, "0::/init.scope\n", "host", 1);
    fs::write(tree.view.proc.join("version"), "").expect("written");
    fs::create_dir(tree.view.proc.join("77")).expect("a process that just went");
    assert_eq!(tree.found(), None);
}

#[test]
fn a_process_that_cannot_be_looked_at_is_not_gone() {
    let tree = Tree::new();
    tree.process(10, &cgroup(), "pod", 500);
    fs::remove_file(tree.view.proc.join("10/ns/net")).expect("hidden");
    assert_eq!(tree.found(), Some(Found::Unreadable));
}

#[test]
fn the_cgroups_folder_is_the_shorter_way() {
    let check = |folder: &str| {
        let tree = Tree::new();
        // What /proc says leads elsewhere, so it was not asked.
        tree.process(10, "0::/elsewhere\n", "pod", 500);
        tree.process(11, "0::/elsewhere\n", "pod", 600);
        let container = tree.view.kubepods.join(folder).join("container");
        fs::create_dir_all(&container).expect("made");
        fs::write(container.join("cgroup.procs"), "11\n10\n0\n").expect("written");
        assert_eq!(tree.found(), Some(tree.of_process(10)), "{folder}");
    };
    let escaped = UID.replace('-', "_");
    check(&format!("pod{UID}"));
    check(&format!("burstable/pod{UID}"));
    check(&format!(
        "kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice"
    ));
    check(&format!("kubepods-pod{escaped}.slice"));
}

#[test]
fn an_empty_cgroup_falls_back_to_the_processes() {
    let tree = Tree::new();
    let folder = tree.view.kubepods.join(format!("pod{UID}"));
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join("cgroup.procs"), "").expect("written");
    tree.process(
        10,
        &format!("3:memory:/kubepods/pod{UID}/c\n0::/\n"),
        "pod",
        500,
    );
    assert_eq!(tree.found(), Some(tree.of_process(10)));
}

/// A folder in a file's place cannot be read as one: like a file for which no descriptor is left, it
/// is there, and what it says is not known.
#[test]
fn what_cannot_be_looked_at_is_not_taken_for_gone() {
    let check = |unreadable: &str| {
        let tree = Tree::new();
        tree.process(10, "0::/elsewhere\n", "pod", 500);
        fs::create_dir_all(tree.dir.path().join(unreadable)).expect("made");
        let error = scan(&tree.view, &[UID]).expect_err(unreadable);
        assert!(error.to_string().contains(unreadable), "{error}");
    };
    check("proc/11/cgroup");
    check(&format!("kubepods/burstable/pod{UID}/cgroup.procs"));
    check(&format!("kubepods/pod{UID}/container/cgroup.procs"));
    // Of a pod's processes the oldest counts, and this may be it.
    let tree = Tree::new();
    tree.process(10, &cgroup(), "inner", 500);
    fs::create_dir_all(tree.view.proc.join("11/stat")).expect("made");
    fs::write(tree.view.proc.join("11/cgroup"), cgroup()).expect("written");
    assert_eq!(tree.found(), Some(Found::Unreadable));
    // So it is with one whose namespace cannot be looked at: a link to itself is there.
    let tree = Tree::new();
    tree.process(10, &cgroup(), "inner", 500);
    tree.process(11, &cgroup(), "pod", 400);
    let netns = tree.view.proc.join("11/ns/net");
    fs::remove_file(&netns).expect("replaced");
    std::os::unix::fs::symlink(&netns, &netns).expect("linked");
    assert_eq!(tree.found(), Some(Found::Unreadable));
}

#[test]
fn an_unreadable_proc_is_an_error() {
    let mut tree = Tree::new();
    tree.view.proc = tree.dir.path().join("nowhere");
    assert!(scan(&tree.view, &[UID]).is_err());
}
