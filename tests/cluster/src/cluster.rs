//! The cluster's handle: everything a caller can do with one.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::Lifetime;
use karst_harness::files::tail;
use karst_harness::host::run;
use karst_harness::lock::Lock;
use nix::unistd::Uid;
use serde::Serialize;

use crate::binaries::Binaries;
use crate::cgroup;
use crate::control_plane;
use crate::image::Image;
use crate::inside::HELPER;
use crate::lifecycle;
use crate::network;
use crate::node::{self, PAUSE_IMAGE};
use crate::options::{Audit, ClusterOptions};
use crate::paths::{NODES, Paths, node_name};
use crate::pki;
use crate::state::State;

/// Nodes become ready within ten seconds on free cores, and DNS a few seconds later.
const READY_LIMIT: Duration = Duration::from_secs(180);

/// What the cluster's DNS is made of.
const DNS: &str = include_str!("dns.yaml");

/// The image in it.
const COREDNS_IMAGE: &str = "karst.dev/test/coredns:1";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    paths: Paths,
    /// The guard; it takes the cluster down when the pipe that it holds closes.
    guard: Option<Child>,
}

/// What `status` tells of a cluster.
#[derive(Debug, Serialize)]
pub struct ClusterStatus {
    /// Its processes, by name.
    pub processes: Vec<ProcessStatus>,
    /// What `kubectl get nodes` says; an error while the API server is away.
    pub nodes: String,
}

/// One of its processes.
#[derive(Debug, Serialize)]
pub struct ProcessStatus {
    /// What it is called in the cluster's record.
    pub name: String,
    /// Its process id in the machine's process namespace.
    pub pid: u32,
    /// Whether it runs.
    pub running: bool,
    /// Where its output goes.
    pub log: String,
}

impl Cluster {
    /// Brings a cluster up and waits until its nodes and its DNS are ready. A cluster of this name
    /// that is up is used as it is; one of which a part has ended is made anew. Needs root; builds
    /// the cluster's programs if need be. `say` is told what is done.
    pub fn up(options: &ClusterOptions, say: &dyn Fn(&str)) -> Result<Self> {
        require_root()?;
        ensure!(
            options.nodes <= NODES,
            "a cluster has at most {NODES} nodes"
        );
        cgroup::check()?;
        node::check()?;
        let binaries = Binaries::ensure(say)?;
        let paths = Paths::new(options.name.parse()?);
        let mut cluster = Self { paths, guard: None };
        if cluster.is_whole()? {
            say(&format!("cluster {} is up already", options.name));
            return Ok(cluster);
        }
        Self::tear_down(&options.name)?;
        if options.lifetime == Lifetime::WithCaller {
            cluster.guard = Some(start_guard(&options.name)?);
        }
        let started = Instant::now();
        {
            let _lock = Lock::take(cluster.paths.lock())?;
            cluster.start(options, &binaries, say)?;
        }
        cluster.wait_ready(options.nodes)?;
        let took = started.elapsed().as_secs_f64();
        say(&format!(
            "cluster {} is ready after {took:.0} s",
            options.name
        ));
        Ok(cluster)
    }

    /// The handle of a cluster that is up.
    pub fn attach(name: &str) -> Result<Self> {
        require_root()?;
        let paths = Paths::new(name.parse()?);
        ensure!(
            paths.state().is_file(),
            "there is no cluster {name}: `cargo xtask cluster up` makes one"
        );
        Ok(Self { paths, guard: None })
    }

    /// Takes the cluster down and waits until nothing of it is left.
    pub fn down(mut self) -> Result<()> {
        Self::tear_down(&self.name())?;
        if let Some(guard) = self.guard.take() {
            // Its end follows from the closed pipe; a second tear-down finds nothing.
            guard.wait_with_output().context("waiting for the guard")?;
        }
        Ok(())
    }

    /// Removes the cluster called `name` and all it left on the machine, also one whose making
    /// failed halfway; fine if there is none.
    pub fn tear_down(name: &str) -> Result<()> {
        require_root()?;
        lifecycle::remove(&Paths::new(name.parse()?))
    }

    /// Names and paths of the cluster.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.paths.name().to_string()
    }

    /// The directory with the cluster's files: `admin.conf`, `logs/`, `pki/`, ...
    pub fn dir(&self) -> &Path {
        self.paths.dir()
    }

    /// The name of the network namespace of the control plane.
    pub fn control_netns(&self) -> String {
        self.paths.netns(network::CONTROL)
    }

    /// The configuration with which a user reaches the API server: `admin` may do everything.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.paths.kubeconfig(user)
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let state = State::load(&self.paths)?.context("the cluster has no record")?;
        Ok((1..=state.nodes).map(node_name).collect())
    }

    /// Processes and nodes.
    pub fn status(&self) -> Result<ClusterStatus> {
        let state = State::load(&self.paths)?.context("the cluster has no record")?;
        let processes = state
            .processes
            .iter()
            .map(|(name, process)| ProcessStatus {
                name: name.clone(),
                pid: process.pid,
                running: process.is_alive(),
                log: self.paths.log(name).display().to_string(),
            })
            .collect();
        let nodes = self
            .kubectl(&["get", "nodes", "-o", "wide", "--request-timeout=5s"])
            .unwrap_or_else(|error| format!("{error:#}"));
        Ok(ClusterStatus { processes, nodes })
    }

    /// A program on a node, as its root; see [`Self::nodes`].
    pub fn node_command(&self, node: &str, argv: &[&str]) -> Result<Command> {
        lifecycle::inside(&self.paths, node, None, argv)
    }

    /// Runs a program on a node and gives what it printed.
    pub fn node_exec(&self, node: &str, argv: &[&str]) -> Result<String> {
        run(&mut self.node_command(node, argv)?)
    }

    /// Takes an image's archive (OCI or docker) into every node's containerd.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        for node in self.nodes()? {
            import(&self.paths, &node, archive)?;
        }
        Ok(())
    }

    /// Makes an image and takes it into every node's containerd.
    pub fn add_image(&self, image: &Image) -> Result<()> {
        let name = image.reference().replace(['/', ':'], "-");
        let archive = self.dir().join(format!("{name}.tar"));
        crate::write_archive(image, &archive)?;
        self.import_image(&archive)
    }

    /// Whether every process that was started still runs.
    fn is_whole(&self) -> Result<bool> {
        let state = State::load(&self.paths)?.unwrap_or_default();
        let whole = state.processes.contains_key(control_plane::APISERVER)
            && state.processes.values().all(|process| process.is_alive());
        Ok(whole)
    }

    fn start(
        &self,
        options: &ClusterOptions,
        binaries: &Binaries,
        say: &dyn Fn(&str),
    ) -> Result<()> {
        let paths = &self.paths;
        let nodes = options.nodes;
        say(&format!(
            "cluster {}: control plane and {nodes} nodes in {}",
            options.name,
            paths.dir().display()
        ));
        prepare(paths, options, binaries)?;
        let images = [
            (PAUSE_IMAGE, "/pause", &binaries.pause),
            (COREDNS_IMAGE, "/coredns", &binaries.coredns),
        ];
        let mut archives = Vec::new();
        for (reference, path, program) in images {
            let archive = paths.dir().join(format!("{}.tar", &path[1..]));
            let content = fs::read(program).context("reading a built program")?;
            let image = Image::new(reference, &[path]).file(path, 0o755, content);
            crate::write_archive(&image, &archive)?;
            archives.push(archive);
        }
        std::thread::scope(|scope| {
            // Nodes come up beside the API server; both wait for disk and sockets now and then.
            let booting = scope.spawn(|| -> Result<()> {
                for number in 1..=nodes {
                    node::boot(paths, number)?;
                    for archive in &archives {
                        import(paths, &node_name(number), archive)?;
                    }
                }
                Ok(())
            });
            let control = control_plane::start(paths);
            let booted = booting.join().map_err(|_| anyhow!("a thread panicked"))?;
            control.and(booted)
        })?;
        for number in 1..=nodes {
            node::start_kubelet(paths, number)?;
            node::start_proxy(paths, number)?;
        }
        Ok(())
    }

    fn wait_ready(&self, nodes: u8) -> Result<()> {
        let account = ["serviceaccount", "default"];
        self.wait_for(&account, "jsonpath={.metadata.uid}", READY_LIMIT)?;
        if nodes == 0 {
            return Ok(());
        }
        self.apply(DNS)?;
        for number in 1..=nodes {
            let name = node_name(number);
            self.wait_for(&["node", &name], "condition=Ready", READY_LIMIT)
                .with_context(|| tail(&self.paths.log(&format!("{name}-kubelet"))))?;
        }
        let dns = ["deployment/coredns", "-n", "kube-system"];
        self.wait_for(&dns, "condition=Available", READY_LIMIT)
    }
}

/// Network, keys, record and links: what must be there before the first program starts.
fn prepare(paths: &Paths, options: &ClusterOptions, binaries: &Binaries) -> Result<()> {
    fs::create_dir_all(paths.dir().join("logs"))?;
    fs::create_dir_all(paths.bin())?;
    let state = State {
        nodes: options.nodes,
        kubernetes: fs::canonicalize(&binaries.kubernetes)?,
        audit: options.audit == Audit::Metadata,
        ..State::default()
    };
    for name in ["kubernetes", "kubectl"] {
        symlink(&state.kubernetes, paths.bin().join(name)).context("making a link")?;
    }
    state.save(paths)?;
    cgroup::create(&paths.cgroup().join(network::CONTROL))?;
    network::build(paths, options.nodes)?;
    pki::create(paths, options.nodes)
}

/// Fails unless the process may make namespaces, cgroups and mounts.
fn require_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "the cluster makes namespaces, cgroups and mounts: run it as root"
    );
    Ok(())
}

fn import(paths: &Paths, node: &str, archive: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let argv = ["ctr", "-n", "k8s.io", "images", "import", "-"];
    let output = lifecycle::inside(paths, node, None, &argv)?
        .stdin(file)
        .output()
        .context("starting ctr")?;
    ensure!(
        output.status.success(),
        "importing {} on {node}: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn start_guard(cluster: &str) -> Result<Child> {
    HELPER
        .command()?
        .args(["guard", cluster])
        // Standard output is kept: who reads the caller's output to its end also waits for the
        // end of the cluster.
        .stdin(Stdio::piped())
        // Ctrl-C goes to the caller's process group; the guard must outlive that.
        .process_group(0)
        .spawn()
        .context("starting the guard")
}
