//! What goes wrong in clusters, on purpose.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use karst_harness::{host, run_in};
use nix::sys::signal::Signal;

use crate::cgroup;
use crate::cluster::Cluster;
use crate::control_plane::{self, APISERVER, ETCD};
use crate::lifecycle;
use crate::network::CONTROL;
use crate::node;
use crate::paths::{Paths, node_name};

impl Cluster {
    /// Kills the API server: every watch and request fails until [`Self::start_apiserver`].
    pub fn stop_apiserver(&self) -> Result<()> {
        lifecycle::stop(self.paths(), APISERVER, Signal::SIGKILL)
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_apiserver(&self) -> Result<()> {
        control_plane::start_apiserver(self.paths())
    }

    /// Lets etcd forget all but its latest revision, so that a watch that goes on from an older
    /// one is answered with 410 Gone. Gives that revision.
    pub fn compact_etcd(&self) -> Result<i64> {
        let binary = self.paths().bin().join("kubernetes").display().to_string();
        let argv = [binary.as_str(), "etcd-compact", ETCD];
        let said = host::run(&mut lifecycle::inside(self.paths(), CONTROL, None, &argv)?)?;
        said.trim().parse().context("reading etcd's revision")
    }

    /// Kills a node's kubelet; its pods run on.
    pub fn stop_kubelet(&self, number: u8) -> Result<()> {
        let program = format!("{}-kubelet", node_name(number));
        lifecycle::stop(self.paths(), &program, Signal::SIGKILL)
    }

    /// Starts a node's kubelet again.
    pub fn start_kubelet(&self, number: u8) -> Result<()> {
        node::start_kubelet(self.paths(), number)
    }

    /// Ends a node at once, with every process on it, as if its power were cut. Its disk (images,
    /// containers' records) stays; its network namespace's links to its pods go.
    pub fn power_off(&self, number: u8) -> Result<()> {
        let name = node_name(number);
        lifecycle::stop(self.paths(), &name, Signal::SIGKILL)?;
        for program in ["containerd", "kubelet", "kube-proxy"] {
            lifecycle::stop(self.paths(), &format!("{name}-{program}"), Signal::SIGKILL)?;
        }
        // What a reboot would have cleared. A kubelet that finds the cgroups of containers that are
        // gone asks three seconds long for each of them before it runs a pod.
        let cgroup = self.paths().cgroup().join(&name);
        cgroup::kill(&cgroup)?;
        cgroup::remove(&cgroup)?;
        forget_network(self.paths(), &name)
    }

    /// Starts a node that was switched off, and its programs.
    pub fn power_on(&self, number: u8) -> Result<()> {
        ensure!(number <= crate::NODES, "there is no node {number}");
        node::boot(self.paths(), number)?;
        node::start_kubelet(self.paths(), number)?;
        node::start_proxy(self.paths(), number)
    }
}

fn forget_network(paths: &Paths, node: &str) -> Result<()> {
    let netns = paths.netns(node);
    // Both are absent on a node that has had no pod or no kube-proxy.
    let _ = host::run(Command::new("ip").args(["-n", &netns, "link", "delete", "cni0"]));
    run_in(&netns, || {
        host::run(Command::new("nft").args(["flush", "ruleset"]))
    })
    .map(drop)
}
