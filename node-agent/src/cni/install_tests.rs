//! The plugin in directories as a node has them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::{CniInstall, entry};

const LIST: &str =
    "{\n \"cniVersion\": \"1.0.0\", \"name\": \"n\",\n \"plugins\": [ {\"type\": \"ptp\"} ]\n}\n";
const SINGLE: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"type\":\"bridge\"}";

struct Node {
    _dir: tempfile::TempDir,
    install: CniInstall,
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "net.d"] {
            fs::create_dir(at(name)).expect("made");
        }
        fs::write(at("karst-cni"), b"binary one").expect("written");
        let install = CniInstall {
            source: at("karst-cni"),
            bin_dir: at("bin"),
            conf_dir: at("net.d"),
            entry: entry(Path::new("/run/karst/cni.sock")),
        };
        for (name, text) in files {
            fs::write(install.conf_dir.join(name), text).expect("written");
        }
        Self { _dir: dir, install }
    }

    /// Names and texts of the configuration.
    fn files(&self) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(&self.install.conf_dir)
            .expect("listed")
            .map(|entry| {
                let path = entry.expect("entry").path();
                let name = path
                    .file_name()
                    .expect("name")
                    .to_string_lossy()
                    .into_owned();
                (name, fs::read_to_string(path).expect("text"))
            })
            .collect();
        files.sort();
        files
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.install.conf_dir.join(name), text).expect("written");
    }

    /// Types of the plugins in the file that a runtime would take.
    fn used(&self) -> (String, Vec<String>) {
        let (name, text) = self.files().remove(0);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let plugins = value["plugins"].as_array().cloned().unwrap_or_default();
        let types = plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap_or("?").to_owned());
        (name, types.collect())
    }
}

#[test]
fn the_first_file_gets_the_entry_and_is_restored() {
    let check = |files: &[(&str, &str)], used: &str, types: &[&str]| {
        let node = Node::new(files);
        let before = node.files();
        assert!(node.install.ensure().expect("installed") > 0);
        let (name, found) = node.used();
        assert_eq!(
            (name.as_str(), found),
            (used, types.iter().map(|t| (*t).to_owned()).collect())
        );
        assert_eq!(node.install.ensure().expect("again"), 0, "idempotent");
        let binary = node.install.bin_dir.join("karst-cni");
        let mode = fs::metadata(&binary).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(node.install.remove().expect("removed") > 0);
        assert_eq!(node.files(), before, "byte by byte");
        assert!(!binary.exists());
        assert_eq!(node.install.remove().expect("again"), 0);
    };
    check(
        &[("10-a.conflist", LIST)],
        "10-a.conflist",
        &["ptp", "karst-cni"],
    );
    check(
        &[("10-a.conflist", LIST), ("20-b.conflist", LIST)],
        "10-a.conflist",
        &["ptp", "karst-cni"],
    );
    check(
        &[("10-a.conf", SINGLE)],
        "00-karst.conflist",
        &["bridge", "karst-cni"],
    );
    check(
        &[("00-a.json", SINGLE)],
        "!00-karst.conflist",
        &["bridge", "karst-cni"],
    );
}

#[test]
fn a_configuration_that_comes_first_is_followed() {
    let node = Node::new(&[("10-a.conf", SINGLE)]);
    node.install.ensure().expect("installed");
    node.put("05-b.conflist", LIST);
    node.install.ensure().expect("followed");
    let names: Vec<_> = node.files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["05-b.conflist", "10-a.conf"],
        "the wrapped list is gone"
    );
    assert_eq!(node.used().1, ["ptp", "karst-cni"]);
    node.put("01-c.conflist", LIST);
    node.install.ensure().expect("followed");
    assert_eq!(
        node.used(),
        (
            "01-c.conflist".to_owned(),
            vec!["ptp".to_owned(), "karst-cni".to_owned()]
        )
    );
    assert_eq!(
        node.files()[1],
        ("05-b.conflist".to_owned(), LIST.to_owned()),
        "let go of"
    );
    fs::remove_file(node.install.conf_dir.join("01-c.conflist")).expect("removed");
    node.install.ensure().expect("back");
    assert_eq!(node.used().0, "05-b.conflist");
    assert_eq!(node.used().1, ["ptp", "karst-cni"]);
}

#[test]
fn what_others_undo_is_put_right() {
    let node = Node::new(&[("10-a.conflist", LIST)]);
    node.install.ensure().expect("installed");
    let good = node.files();
    node.put("10-a.conflist", LIST);
    fs::write(node.install.bin_dir.join("karst-cni"), b"old").expect("written");
    assert_eq!(node.install.ensure().expect("repaired"), 2);
    assert_eq!(node.files(), good);
    fs::write(&node.install.source, b"binary two").expect("upgraded");
    assert_eq!(node.install.ensure().expect("upgraded"), 1);
    let binary = fs::read(node.install.bin_dir.join("karst-cni")).expect("there");
    assert_eq!(binary, b"binary two");
    let single = Node::new(&[("10-a.conf", SINGLE)]);
    single.install.ensure().expect("installed");
    single.put("10-a.conf", &SINGLE.replace("bridge", "macvlan"));
    single.install.ensure().expect("followed");
    assert_eq!(single.used().1, ["macvlan", "karst-cni"]);
    fs::remove_file(single.install.conf_dir.join("10-a.conf")).expect("removed");
    let error = single.install.ensure().expect_err("no network any more");
    assert_eq!(error.reason(), "cni_conf_missing");
    assert!(
        single.files().is_empty(),
        "the list made of it went with it"
    );
}

#[test]
fn what_cannot_be_edited_is_left_alone_with_a_reason() {
    let check = |files: &[(&str, &str)], reason: &str| {
        let node = Node::new(files);
        let before = node.files();
        let error = node.install.ensure().expect_err(reason);
        assert_eq!(error.reason(), reason, "{error}");
        assert_eq!(node.files(), before);
    };
    check(&[], "cni_conf_missing");
    check(&[("README", "x")], "cni_conf_missing");
    check(&[("10-a.conflist", "{ broken")], "cni_conf_unusable");
    check(
        &[("10-a.conflist", "{ broken"), ("20-b.conflist", LIST)],
        "cni_conf_unusable",
    );
    check(&[("10-a.conf", "{}")], "cni_conf_unusable");
    let old = LIST.replace("1.0.0", "0.2.0");
    check(&[("10-a.conflist", &old)], "cni_conf_version");
    let node = Node::new(&[("10-a.conflist", LIST)]);
    fs::remove_file(&node.install.source).expect("removed");
    let error = node.install.ensure().expect_err("no binary");
    assert_eq!(error.reason(), "cni_dir_unusable");
    assert_eq!(node.files()[0].1, LIST, "no entry without a binary");
}

#[test]
fn files_of_others_that_cannot_be_read_stand_in_nobodys_way() {
    let large = format!("{LIST}{}", " ".repeat(super::MAX_CONF as usize));
    let node = Node::new(&[("10-a.conflist", LIST), ("70-large.conflist", &large)]);
    let at = |name: &str| node.install.conf_dir.join(name);
    std::os::unix::fs::symlink("/nowhere", at("80-dangling.conflist")).expect("linked");
    fs::write(at("90-binary.conflist"), b"\xff\xfe").expect("written");
    assert_eq!(node.install.ensure().expect("installed"), 2);
    let list = fs::read_to_string(at("10-a.conflist")).expect("there");
    assert!(list.contains("karst-cni"), "{list}");
    assert_eq!(node.install.remove().expect("removed"), 2);
    let list = fs::read_to_string(at("10-a.conflist")).expect("there");
    assert_eq!(list, LIST);
    // What may have our entry is no such file.
    fs::create_dir(at("20-b")).expect("made");
    std::os::unix::fs::symlink(at("20-b"), at("20-b.conflist")).expect("linked");
    assert_eq!(node.install.remove().expect("a folder is no file"), 0);
    std::os::unix::fs::symlink(at("30-c.conflist"), at("30-c.conflist")).expect("linked");
    let error = node.install.remove().expect_err("nobody knows");
    assert_eq!(error.reason(), "cni_dir_unusable");
}

#[test]
fn what_was_changed_meanwhile_is_not_overwritten() {
    let node = Node::new(&[("10-a.conflist", LIST)]);
    let path = node.install.conf_dir.join("10-a.conflist");
    let changed = LIST.replace("ptp", "bridge");
    node.put("10-a.conflist", &changed);
    let error = super::write_if_other(&path, LIST, "ours").expect_err("another was read");
    assert!(error.to_string().contains("changed meanwhile"), "{error}");
    assert_eq!(
        node.files(),
        [("10-a.conflist".to_owned(), changed.clone())]
    );
    assert_eq!(
        super::write_if_other(&path, &changed, "ours").expect("written"),
        1
    );
    // What was not there, and what is not there any more.
    let new = node.install.conf_dir.join("00-karst.conflist");
    assert_eq!(super::write_if_other(&new, "", "ours").expect("written"), 1);
    fs::remove_file(&path).expect("removed");
    let error = super::write_if_other(&path, "ours", LIST).expect_err("it is gone");
    assert!(error.to_string().contains("changed meanwhile"), "{error}");
    assert!(!path.exists());
}

#[test]
fn two_agents_do_not_put_it_in_place_at_once() {
    let node = Node::new(&[("10-a.conflist", LIST)]);
    let other = fs::File::open(&node.install.conf_dir).expect("opened");
    other.lock().expect("locked");
    let install = node.install.clone();
    let second = std::thread::spawn(move || install.ensure());
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!second.is_finished());
    assert_eq!(node.files()[0].1, LIST);
    drop(other);
    assert_eq!(second.join().expect("joined").expect("installed"), 2);
}

#[test]
fn nothing_temporary_is_left() {
    let node = Node::new(&[("10-a.conflist", LIST)]);
    node.install.ensure().expect("installed");
    let mut names: Vec<_> = node.files().into_iter().map(|(name, _)| name).collect();
    let bin = fs::read_dir(&node.install.bin_dir).expect("listed");
    names.extend(bin.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()));
    assert_eq!(names, ["10-a.conflist", "karst-cni"]);
}
