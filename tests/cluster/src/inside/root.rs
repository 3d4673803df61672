//! A node's file system: the machine's, with a layer of the node's own above it in memory, so that
//! whatever a kubelet, a CNI installer or a DaemonSet writes is the node's alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use karst_harness::files::write;
use karst_harness::host::run;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;

use crate::cgroup::hierarchies;

/// Directories of a node that are on the machine's disk: container layers cannot be on an overlay.
const ON_DISK: &[(&str, &str)] = &[
    ("containerd", "var/lib/containerd"),
    ("kubelet", "var/lib/kubelet"),
    ("log", "var/log"),
];

/// Builds the file system of a node whose files are in `dir`, and makes it this process's root.
pub fn build(dir: &Path, kubernetes: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .context("separating the mount namespace")?;
    let layers = dir.join("root");
    fs::create_dir_all(&layers)?;
    // A layer above `/` must not itself be a directory below `/`; this mount makes it another
    // file system's.
    mount_new("tmpfs", &layers, Some("mode=755"))?;
    let (upper, work, root) = (
        layers.join("upper"),
        layers.join("work"),
        layers.join("new"),
    );
    for path in [&upper, &work, &root] {
        fs::create_dir(path).with_context(|| format!("making {}", path.display()))?;
    }
    let options = format!(
        "lowerdir=/,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount_new("overlay", &root, Some(&options))?;
    mount_kernel(&root)?;
    mount_cgroups(&root)?;
    for (name, target) in ON_DISK {
        let source = dir.join(name);
        fs::create_dir_all(&source)?;
        fs::create_dir_all(root.join(target))?;
        bind(&source, &root.join(target), MsFlags::empty())?;
    }
    let program = root.join("usr/local/bin/kubernetes");
    write(&program, "")?;
    bind(kubernetes, &program, MsFlags::empty())?;
    run(Command::new("cp")
        .args(["-a", "-T"])
        .arg(dir.join("files"))
        .arg(&root))
    .context("laying the node's files over the machine's")?;
    become_root(&root)
}

/// What the kernel shows: processes, devices, this network namespace's links, BPF's pins.
fn mount_kernel(root: &Path) -> Result<()> {
    mount_new("proc", &root.join("proc"), None)?;
    bind(Path::new("/dev"), &root.join("dev"), MsFlags::MS_REC)?;
    mount_new("sysfs", &root.join("sys"), None)?;
    mount_new("bpf", &root.join("sys/fs/bpf"), None)?;
    mount_new("tmpfs", &root.join("tmp"), None)?;
    mount_new("tmpfs", &root.join("run"), Some("mode=755"))?;
    fs::create_dir(root.join("run/netns"))?;
    // The old root goes here for a moment.
    fs::create_dir_all(root.join("mnt")).context("making /mnt")
}

/// The machine's cgroup hierarchies at the machine's paths, each from this process's cgroup on.
fn mount_cgroups(root: &Path) -> Result<()> {
    mount_new("tmpfs", &root.join("sys/fs/cgroup"), Some("mode=755"))?;
    for hierarchy in hierarchies()? {
        let relative = hierarchy
            .target
            .strip_prefix("/")
            .unwrap_or(&hierarchy.target);
        let target = root.join(relative);
        fs::create_dir_all(&target)?;
        let options = v1_options(&hierarchy.options);
        let options = (hierarchy.kind == "cgroup").then_some(options.as_str());
        mount_new(&hierarchy.kind, &target, options)?;
    }
    Ok(())
}

/// The options that name a v1 hierarchy: its controllers, or its name.
fn v1_options(options: &str) -> String {
    let names = |option: &&str| !matches!(*option, "rw" | "ro" | "clone_children" | "xattr");
    let mut kept: Vec<&str> = options
        .split(',')
        .filter(names)
        .filter(|option| !option.starts_with("release_agent="))
        .collect();
    if kept.iter().any(|option| option.starts_with("name=")) {
        kept.insert(0, "none");
    }
    kept.join(",")
}

fn become_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", "mnt").context("changing the root")?;
    std::env::set_current_dir("/")?;
    umount2("/mnt", MntFlags::MNT_DETACH).context("leaving the machine's file system")?;
    // As systemd does on a real node: pods may ask for the mounts that the node makes later.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)
        .context("sharing the node's mounts with its pods")
}

fn mount_new(kind: &str, target: &Path, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mounting {kind} at {}", target.display()))
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<()> {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND | flags, none)
        .with_context(|| format!("binding {} to {}", source.display(), target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_hierarchy_has_no_controllers() {
        assert_eq!(v1_options("rw,xattr,name=systemd"), "none,name=systemd");
        assert_eq!(v1_options("rw,cpu,cpuacct"), "cpu,cpuacct");
    }
}
