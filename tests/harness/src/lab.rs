//! The lab's handle: everything a caller can do with one.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::addresses;
use crate::admin;
use crate::cgroup;
use crate::ending::EndingAuthority;
use crate::files::tail;
use crate::host;
use crate::inside::HELPER;
use crate::kubelet::{self, node_cgroups};
use crate::launch::Launch;
use crate::lock::Lock;
use crate::manifests::{self, Key};
use crate::mesh;
use crate::name_files;
use crate::netns;
use crate::network::{self, EXTERNAL, WIRE};
use crate::newer::NewerController;
use crate::options::{LabName, LabOptions, Lifetime, MAX_NODES, Mesh};
use crate::paths::Paths;
use crate::running::Running;
use crate::state::{State, new_uid};
use crate::status::{self, LabStatus};
use crate::store;
use crate::tokens::{Claims, TokenKey};
use crate::wait::until;
use crate::workloads;

/// How long pods may take to become ready, and the mesh to follow a label.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A running lab. All methods may be called from several threads and from several processes
/// at once: each takes the lab's file lock for as long as it changes something.
///
/// A pod is named `namespace/name`, or `name` in namespace `default`; the name of a
/// Deployment stands for its first pod.
#[derive(Debug)]
pub struct Lab {
    paths: Paths,
    /// Processes this caller started: kept to take their exit status, so that none stays a
    /// zombie. They outlive the lab's handle.
    children: Mutex<Vec<Child>>,
    /// The guard; it tears the lab down when the pipe it holds closes.
    guard: Option<Child>,
}

impl Lab {
    /// Brings a lab up, or an existing one of this name to what is asked, and waits until
    /// controller, agents and pods are ready. Needs root.
    pub fn up(options: LabOptions) -> Result<Self> {
        host::require_root()?;
        let LabOptions {
            name,
            nodes,
            mesh,
            dir,
            lifetime,
            agent_args,
            controller_args,
        } = options;
        ensure!(
            (1..=MAX_NODES).contains(&nodes),
            "a lab has 1 to {MAX_NODES} nodes"
        );
        let mut lab = Self::handle(&name)?;
        if lifetime == Lifetime::WithCaller {
            lab.guard = Some(start_guard(&name)?);
        }
        {
            let _lock = Lock::take(lab.paths.lock())?;
            for dir in [
                lab.paths.manifests(),
                lab.paths.logs(),
                lab.paths.control_dir(),
            ] {
                fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            }
            let mut state = match State::load(&lab.paths)? {
                Some(state) => state,
                None => State::new(mesh),
            };
            state.mesh = mesh;
            state.agent_args = agent_args;
            state.controller_args = controller_args;
            network::ensure_hosts(&lab.paths, &mut state, nodes)?;
            lab.ensure_cluster(&mut state)?;
            if mesh == Mesh::On {
                lab.ensure_mesh(&state)?;
            }
            state.save(&lab.paths)?;
        }
        if let Some(dir) = dir {
            lab.apply_path(&dir)?;
        }
        lab.wait_ready()?;
        Ok(lab)
    }

    /// The handle of a lab that is up.
    pub fn attach(name: &str) -> Result<Self> {
        host::require_root()?;
        let lab = Self::handle(name)?;
        ensure!(
            lab.paths.state().is_file(),
            "there is no lab {name}: `cargo xtask lab up` makes one"
        );
        Ok(lab)
    }

    fn handle(name: &str) -> Result<Self> {
        let name: LabName = name.parse()?;
        Ok(Self {
            paths: Paths::new(name),
            children: Mutex::new(Vec::new()),
            guard: None,
        })
    }

    /// Removes the lab and everything it left on the machine.
    pub fn down(mut self) -> Result<()> {
        Self::tear_down(self.name())?;
        self.reap();
        if let Some(guard) = self.guard.take() {
            // Its end follows from the closed pipe; a second tear-down finds nothing.
            guard.wait_with_output().context("waiting for the guard")?;
        }
        Ok(())
    }

    /// Removes the lab called `name`, also one whose record is lost; fine if there is none.
    pub fn tear_down(name: &str) -> Result<()> {
        host::require_root()?;
        let paths = Paths::new(name.parse()?);
        let lock = Lock::take(paths.lock())?;
        let cgroup = cgroup::root()?.join(paths.cgroup());
        cgroup::remove(&cgroup)?;
        for netns in netns::with_prefix(&paths.netns_prefix())? {
            netns::remove(&netns)?;
        }
        for dir in [paths.bpffs_root(), paths.dir().to_owned()] {
            if dir.exists() {
                fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
            }
        }
        // The directories that labs share go with the last lab, which alone finds them empty.
        for shared in [cgroup, paths.bpffs_root()]
            .iter()
            .filter_map(|own| own.parent())
        {
            let _ = fs::remove_dir(shared);
        }
        lock.remove()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        self.paths.name().as_ref()
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        self.paths.dir()
    }

    fn ensure_cluster(&self, state: &mut State) -> Result<()> {
        for namespace in ["default", "kube-system", "karst-system"] {
            store::ensure_namespace(&self.paths, state, namespace)?;
        }
        store::put_service_account(&self.paths, state, "karst-system", "karst-node-agent")?;
        for number in 1..=state.nodes {
            let name = crate::state::node_name(number);
            let uid = state
                .node_uids
                .entry(name.clone())
                .or_insert_with(new_uid)
                .clone();
            let object = store::node_object(
                &name,
                &uid,
                &addresses::wire(number).both(),
                &addresses::pod_ranges(number),
            );
            store::put(&self.paths, state, &Key::new("Node", "", &name), object)?;
            let cgroups = node_cgroups(&self.paths, &name)?;
            for path in [&cgroups.agent, &cgroups.pods, &cgroups.host] {
                cgroup::create(path)?;
            }
        }
        cgroup::create(&self.host_cgroup(EXTERNAL)?)?;
        cgroup::create(&self.host_cgroup(WIRE)?)
    }

    fn ensure_mesh(&self, state: &State) -> Result<()> {
        self.keep(mesh::start_controller(&self.paths, state)?);
        let mut started = Vec::new();
        for node in state.node_names() {
            started.push((mesh::spawn_agent(&self.paths, state, &node)?, node));
        }
        for (mut child, node) in started {
            mesh::wait_agent_ready(&self.paths, &node, &mut child)?;
            self.keep(child);
        }
        Ok(())
    }

    fn keep(&self, child: Option<Child>) {
        if let Ok(mut children) = self.children.lock() {
            children.extend(child);
        }
    }

    fn reap(&self) {
        if let Ok(mut children) = self.children.lock() {
            children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        }
    }

    /// Runs `change` on the record under the lab's lock and saves it, also when the change
    /// failed half way.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let _lock = Lock::take(self.paths.lock())?;
        let mut state = State::load(&self.paths)?.context("the lab is down")?;
        self.reap();
        let result = change(&mut state);
        state.save(&self.paths)?;
        result
    }

    fn read(&self) -> Result<State> {
        State::load(&self.paths)?.context("the lab is down")
    }

    /// Applies manifests (several YAML documents) and waits until the pods they make are
    /// ready.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.apply_objects(manifests::parse(manifests)?)
    }

    /// Applies a manifest file, or every manifest file of a directory.
    pub fn apply_path(&self, path: &Path) -> Result<()> {
        self.apply_objects(manifests::read_path(path)?)
    }

    /// Like [`Lab::apply`], but does not wait for pods.
    pub fn apply_only(&self, manifests: &str) -> Result<()> {
        let objects = manifests::parse(manifests)?;
        self.change(|state| self.put_all(state, objects))
    }

    fn apply_objects(&self, objects: Vec<(Key, Value)>) -> Result<()> {
        self.change(|state| self.put_all(state, objects))?;
        self.wait_ready()
    }

    fn put_all(&self, state: &mut State, mut objects: Vec<(Key, Value)>) -> Result<()> {
        // Namespaces first, for their labels, and pods last, so that they find all else.
        objects.sort_by_key(|(key, _)| match key.kind.as_str() {
            "Namespace" => 0,
            "Deployment" => 2,
            "Pod" => 3,
            _ => 1,
        });
        for (key, object) in objects {
            self.put(state, &key, object)
                .with_context(|| format!("applying {key}"))?;
        }
        name_files::update_all(&self.paths, state)
    }

    fn put(&self, state: &mut State, key: &Key, object: Value) -> Result<()> {
        if key.kind == "Pod" {
            return self.put_pod(state, key, object);
        }
        let object = store::merge(state.objects.get(key), object);
        store::put(&self.paths, state, key, object.clone())?;
        if key.kind == "Deployment" {
            let plan = workloads::plan(state, key, &object)?;
            for pod in &plan.remove {
                kubelet::stop_pod(&self.paths, state, pod)?;
            }
            for (pod, object) in plan.create {
                self.put_pod(state, &pod, object)?;
            }
        }
        Ok(())
    }

    fn put_pod(&self, state: &mut State, key: &Key, object: Value) -> Result<()> {
        if let Some(pod) = state.pods.get(&format!("{}/{}", key.namespace, key.name)) {
            if pod.spec == object["spec"] && !pod.ended && pod.process.is_some() {
                let live = state.objects.get(key).context("the pod vanished")?;
                let mut object = store::merge(Some(live), object);
                object["spec"] = live["spec"].clone();
                return store::put(&self.paths, state, key, object);
            }
            // Another spec, or a process that ended: an ordinary cluster would want a
            // deletion first; here the pod is made anew.
            kubelet::stop_pod(&self.paths, state, key)?;
        }
        match kubelet::start_pod(&self.paths, state, key, object) {
            Ok(child) => {
                self.keep(Some(child));
                Ok(())
            }
            Err(error) => {
                // Nothing half made stays: the next apply begins anew.
                kubelet::stop_pod(&self.paths, state, key)?;
                Err(error)
            }
        }
    }

    /// Deletes the objects that the manifests name; ones that are gone are fine.
    pub fn delete(&self, manifests: &str) -> Result<()> {
        self.delete_objects(manifests::parse(manifests)?)
    }

    /// Deletes the objects that a manifest file, or a directory of them, names.
    pub fn delete_path(&self, path: &Path) -> Result<()> {
        self.delete_objects(manifests::read_path(path)?)
    }

    /// Deletes a pod.
    pub fn delete_pod(&self, pod: &str) -> Result<()> {
        self.change(|state| {
            let pod = state.pod(pod)?;
            let key = Key::new("Pod", &pod.namespace, &pod.name);
            kubelet::stop_pod(&self.paths, state, &key)?;
            name_files::update_all(&self.paths, state)
        })
    }

    fn delete_objects(&self, objects: Vec<(Key, Value)>) -> Result<()> {
        self.change(|state| {
            for (key, _) in objects.iter().rev() {
                self.remove(state, key)
                    .with_context(|| format!("deleting {key}"))?;
            }
            name_files::update_all(&self.paths, state)
        })
    }

    fn remove(&self, state: &mut State, key: &Key) -> Result<()> {
        match key.kind.as_str() {
            "Pod" => kubelet::stop_pod(&self.paths, state, key),
            "Deployment" => {
                for pod in workloads::pods_of(state, key) {
                    kubelet::stop_pod(&self.paths, state, &pod)?;
                }
                store::delete(&self.paths, state, key)
            }
            "Namespace" => {
                let inside: Vec<Key> = state
                    .objects
                    .keys()
                    .filter(|other| other.namespace == key.name)
                    .cloned()
                    .collect();
                // Deployments before their pods, so that none is made again.
                for object in inside {
                    self.remove(state, &object)?;
                }
                store::delete(&self.paths, state, key)
            }
            _ => store::delete(&self.paths, state, key),
        }
    }

    /// Sets (`key=value`) or removes (`key-`) a label of a namespace, live.
    pub fn label_namespace(&self, namespace: &str, label: &str) -> Result<()> {
        self.change(|state| self.label(state, &Key::new("Namespace", "", namespace), label))
    }

    /// Sets (`key=value`) or removes (`key-`) a label of a pod, live.
    pub fn label_pod(&self, pod: &str, label: &str) -> Result<()> {
        self.change(|state| {
            let pod = state.pod(pod)?;
            let key = Key::new("Pod", &pod.namespace, &pod.name);
            self.label(state, &key, label)
        })
    }

    fn label(&self, state: &mut State, key: &Key, label: &str) -> Result<()> {
        let object = state
            .objects
            .get(key)
            .with_context(|| format!("there is no {key}"))?;
        let mut object = object.clone();
        manifests::set_label(&mut object, label)?;
        store::put(&self.paths, state, key, object)
    }

    /// Waits until every pod is ready whose container has not ended before; one that ends
    /// meanwhile is an error at once.
    pub fn wait_ready(&self) -> Result<()> {
        let awaited: Vec<String> = self
            .read()?
            .pods
            .into_values()
            .filter(|pod| !pod.ended)
            .map(|pod| pod.id())
            .collect();
        let ended = until("the pods to be ready", SETTLE_LIMIT, || {
            let pods = self.change(|state| {
                kubelet::refresh(&self.paths, state)?;
                Ok(state.pods.clone())
            })?;
            let mut pods = awaited.iter().filter_map(|id| pods.get(id));
            match pods.find(|pod| !pod.ready) {
                None => Ok(None),
                Some(pod) if pod.ended => Ok(Some(pod.clone())),
                Some(pod) => bail!("{} is not ready", pod.id()),
            }
        })?;
        let Some(pod) = ended else { return Ok(()) };
        let log = self.paths.pod_log(&pod.namespace, &pod.name);
        bail!(
            "{} has ended; the end of its output:\n{}",
            pod.id(),
            tail(&log)
        )
    }

    /// Runs a program in a pod (its netns, cgroup and mounts) to its end, with empty input.
    pub fn exec(&self, pod: &str, argv: &[&str]) -> Result<Output> {
        let mut command = self.pod_command(pod, argv)?;
        command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {argv:?} in {pod}"))
    }

    /// Like [`Lab::exec`], but fails unless the program exits with 0, and gives its output
    /// as text.
    pub fn exec_ok(&self, pod: &str, argv: &[&str]) -> Result<String> {
        let output = self.exec(pod, argv)?;
        ensure!(
            output.status.success(),
            "{argv:?} in {pod}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a program in a pod, with pipes for its input and output.
    pub fn spawn(&self, pod: &str, argv: &[&str]) -> Result<Running> {
        let mut command = self.pod_command(pod, argv)?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {argv:?} in {pod}"))?;
        Ok(Running::new(child))
    }

    /// The command that runs a program in a pod, for callers with wishes about its pipes.
    pub fn pod_command(&self, pod: &str, argv: &[&str]) -> Result<Command> {
        let state = self.read()?;
        let pod = state.pod(pod)?;
        let key = Key::new("Pod", &pod.namespace, &pod.name);
        let object = state.objects.get(&key).context("the pod vanished")?;
        kubelet::launch(&self.paths, pod, object)?.command(argv)
    }

    /// The command that runs a program as a node's own (its netns, cgroup `host`).
    pub fn node_command(&self, node: &str, argv: &[&str]) -> Result<Command> {
        self.read()?.node_number(node)?;
        self.host_command(node, node_cgroups(&self.paths, node)?.host, argv)
    }

    /// Runs a program as a node's own to its end.
    pub fn node_exec(&self, node: &str, argv: &[&str]) -> Result<Output> {
        let mut command = self.node_command(node, argv)?;
        command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {argv:?} on {node}"))
    }

    /// The command that runs a program on the external host, which no mesh knows.
    pub fn external_command(&self, argv: &[&str]) -> Result<Command> {
        self.host_command(EXTERNAL, self.host_cgroup(EXTERNAL)?, argv)
    }

    /// The external host's addresses, IPv4 first; pods reach them by their default route.
    pub fn external_addresses(&self) -> Vec<IpAddr> {
        vec![addresses::EXTERNAL_V4.into(), addresses::EXTERNAL_V6.into()]
    }

    /// The command that runs a program in the wire's netns, where the bridge `wire0` carries
    /// all traffic between nodes (for captures).
    pub fn wire_command(&self, argv: &[&str]) -> Result<Command> {
        self.host_command(WIRE, self.host_cgroup(WIRE)?, argv)
    }

    fn host_cgroup(&self, host: &str) -> Result<PathBuf> {
        Ok(cgroup::root()?.join(self.paths.cgroup()).join(host))
    }

    fn host_command(&self, host: &str, cgroup: PathBuf, argv: &[&str]) -> Result<Command> {
        let launch = Launch {
            netns: self.paths.host_netns(host),
            cgroup,
            name_files: None,
            directory: self.paths.dir().to_owned(),
            env: vec![("HOME".to_owned(), "/root".to_owned())],
        };
        launch.command(argv)
    }

    /// Runs the user's CLI (`karst inspect ARGS`) against a node, also one whose agent is
    /// gone.
    pub fn inspect(&self, node: &str, args: &[&str]) -> Result<Output> {
        self.inspect_command(node, args)?
            .stdin(Stdio::null())
            .output()
            .context("running karst")
    }

    /// The command that runs the user's CLI (`karst ARGS`) against a node's agent.
    pub fn cli_command(&self, node: &str, args: &[&str]) -> Result<Command> {
        self.read()?.node_number(node)?;
        mesh::cli(&self.paths, node, args)
    }

    /// The command that runs the user's CLI (`karst inspect ARGS`) against a node.
    pub fn inspect_command(&self, node: &str, args: &[&str]) -> Result<Command> {
        self.read()?.node_number(node)?;
        mesh::inspect(&self.paths, node, args)
    }

    /// Runs the user's CLI, to which the lab is its folder of manifests.
    pub fn karst(&self, args: &[&str]) -> Result<Output> {
        mesh::karst(args)?
            .stdin(Stdio::null())
            .output()
            .context("running karst")
    }

    /// What a pod's container wrote so far.
    pub fn logs(&self, pod: &str) -> Result<String> {
        read_log(&self.pod_log(pod)?)
    }

    /// The file a pod's container writes to.
    pub fn pod_log(&self, pod: &str) -> Result<PathBuf> {
        let state = self.read()?;
        let pod = state.pod(pod)?;
        Ok(self.paths.pod_log(&pod.namespace, &pod.name))
    }

    /// What a node's agent wrote so far, over all its lives.
    pub fn agent_log(&self, node: &str) -> Result<String> {
        read_log(&self.agent_log_file(node))
    }

    /// The file a node's agents write to.
    pub fn agent_log_file(&self, node: &str) -> PathBuf {
        self.paths.agent_log(node)
    }

    /// What the controller wrote so far, over all its lives.
    pub fn controller_log(&self) -> Result<String> {
        read_log(&self.paths.controller_log())
    }

    /// The state of nodes and pods, read from the running system.
    pub fn status(&self) -> Result<LabStatus> {
        let state = self.change(|state| {
            kubelet::refresh(&self.paths, state)?;
            Ok(State {
                pods: state.pods.clone(),
                nodes: state.nodes,
                ..State::new(state.mesh)
            })
        })?;
        status::read(&self.paths, &state)
    }

    /// A pod's addresses, IPv4 first.
    pub fn pod_addresses(&self, pod: &str) -> Result<Vec<IpAddr>> {
        Ok(self.read()?.pod(pod)?.addresses.clone())
    }

    /// A pod's uid.
    pub fn pod_uid(&self, pod: &str) -> Result<String> {
        Ok(self.read()?.pod(pod)?.uid.clone())
    }

    /// The name of a pod's node.
    pub fn pod_node(&self, pod: &str) -> Result<String> {
        Ok(self.read()?.pod(pod)?.node.clone())
    }

    /// The name of a pod's network namespace.
    pub fn pod_netns(&self, pod: &str) -> Result<String> {
        Ok(self.read()?.pod(pod)?.netns.clone())
    }

    /// The cgroup of a pod's processes, a directory of the cgroup2 hierarchy.
    pub fn pod_cgroup(&self, pod: &str) -> Result<PathBuf> {
        kubelet::pod_cgroup(&self.paths, self.read()?.pod(pod)?)
    }

    /// The cgroup of what [`Lab::node_command`] runs on a node.
    pub fn node_cgroup(&self, node: &str) -> Result<PathBuf> {
        self.read()?.node_number(node)?;
        Ok(node_cgroups(&self.paths, node)?.host)
    }

    /// A Service's addresses; none when it is headless.
    pub fn service_addresses(&self, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
        let state = self.read()?;
        let service = state.objects.get(&Key::new("Service", namespace, name));
        let service = service.with_context(|| format!("there is no Service {namespace}/{name}"))?;
        let addresses = service["spec"]["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten();
        Ok(addresses.filter_map(store::parse_ip).collect())
    }

    /// Waits until the kernel captures the pod's connections and every agent knows it as
    /// reachable by HBONE.
    pub fn wait_enrolled(&self, pod: &str) -> Result<()> {
        until(&format!("{pod} to be enrolled"), SETTLE_LIMIT, || {
            let state = self.read()?;
            let pod = state.pod(pod)?;
            ensure!(
                status::is_enrolled(&self.paths, pod)?,
                "{} is not enrolled",
                pod.id()
            );
            for node in state.node_names() {
                status::check_known(&self.paths, &node, pod, status::Expected::Hbone)?;
            }
            Ok(())
        })
    }

    /// Waits until the kernel no longer captures the pod's connections and every agent knows
    /// it as reachable without HBONE.
    pub fn wait_unenrolled(&self, pod: &str) -> Result<()> {
        until(
            &format!("{pod} to be no longer enrolled"),
            SETTLE_LIMIT,
            || {
                let state = self.read()?;
                let pod = state.pod(pod)?;
                ensure!(
                    !status::is_enrolled(&self.paths, pod)?,
                    "{} is enrolled",
                    pod.id()
                );
                for node in state.node_names() {
                    status::check_known(&self.paths, &node, pod, status::Expected::Plain)?;
                }
                Ok(())
            },
        )
    }

    /// Kills (SIGKILL) a node's agent, and waits for its end.
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        self.change(|state| {
            state.node_number(node)?;
            mesh::kill_agent(&self.paths, node)
        })
    }

    /// Asks a node's agent to end (SIGTERM) and waits for it.
    pub fn stop_agent(&self, node: &str) -> Result<()> {
        self.change(|state| {
            state.node_number(node)?;
            mesh::stop_agent(&self.paths, node)
        })
    }

    /// Starts a node's agent, if it does not run, and waits until it is ready.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        self.change(|state| {
            state.node_number(node)?;
            let mut child = mesh::spawn_agent(&self.paths, state, node)?;
            let ready = mesh::wait_agent_ready(&self.paths, node, &mut child);
            self.keep(child);
            ready
        })
    }

    /// Starts a node's agent, if it does not run, without waiting for it.
    pub fn spawn_agent(&self, node: &str) -> Result<()> {
        self.change(|state| {
            state.node_number(node)?;
            self.keep(mesh::spawn_agent(&self.paths, state, node)?);
            Ok(())
        })
    }

    /// Starts one more agent for a node beside the one that runs, as an upgrade does, without
    /// waiting for it. `tag` tells it apart, `more` are arguments; its process is the caller's.
    pub fn spawn_successor(&self, node: &str, tag: &str, more: &[&str]) -> Result<Running> {
        self.change(|state| {
            state.node_number(node)?;
            mesh::spawn_successor(&self.paths, state, node, (tag, more)).map(Running::new)
        })
    }

    /// Whether that agent says that it serves: the probe of its pod (`karst-node-agent ready`).
    pub fn successor_ready(&self, node: &str, tag: &str) -> Result<()> {
        let socket = self.paths.ready_socket(node, tag);
        let output = Command::new(HELPER.binary("karst-node-agent")?)
            .args([
                OsStr::new("ready"),
                OsStr::new("--socket"),
                socket.as_os_str(),
            ])
            .output()
            .context("running the probe")?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the agent {tag} is not ready: {told}"
        );
        Ok(())
    }

    /// Where a node's agent is asked to hand over to another one.
    pub fn takeover_socket(&self, node: &str) -> PathBuf {
        self.paths.takeover_socket(node)
    }

    /// The process id of a node's agent.
    pub fn agent_pid(&self, node: &str) -> Result<u32> {
        mesh::agent_pid(&self.paths, node)?.with_context(|| format!("{node} has no running agent"))
    }

    /// Where the controller serves metrics, as nodes reach it: `HOST:PORT`.
    pub fn controller_metrics_address(&self) -> String {
        mesh::controller_metrics()
    }

    /// A node's agent's metrics, as Prometheus text.
    pub fn agent_metrics(&self, node: &str) -> Result<String> {
        mesh::agent_metrics(&self.paths, node)
    }

    /// A document of a node's agent's admin socket, e.g. `/v1/connections`.
    pub fn agent_admin(&self, node: &str, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&admin::get(
            &self.paths.admin_socket(node),
            path,
        )?)?)
    }

    /// The path of a node's agent's admin socket.
    pub fn admin_socket(&self, node: &str) -> PathBuf {
        self.paths.admin_socket(node)
    }

    /// Where the lab's node agents pin their programs and maps.
    pub fn bpffs_root(&self) -> PathBuf {
        self.paths.bpffs_root()
    }

    /// The directory the controller watches.
    pub fn manifests_dir(&self) -> PathBuf {
        self.paths.manifests()
    }

    /// The mesh's root certificate (PEM), as the agents pin it.
    pub fn root_certificate(&self) -> PathBuf {
        self.paths.root_certificate()
    }

    /// Signs a service-account token as the lab's API server would, for tests of what the
    /// controller accepts.
    pub fn sign_token(&self, claims: &Claims) -> Result<String> {
        TokenKey::load(&self.paths)?.sign(claims)
    }

    /// A controller of a newer version beside the controller, which is one of that authority's.
    pub fn newer_controller(&self, authority: &EndingAuthority) -> Result<NewerController> {
        NewerController::start(mesh::beside_controller(&self.paths), authority)
    }

    /// Kills (SIGKILL) the controller.
    pub fn stop_controller(&self) -> Result<()> {
        self.change(|_| mesh::kill_controller(&self.paths))
    }

    /// Starts the controller, if it does not run, and waits until it serves.
    pub fn start_controller(&self) -> Result<()> {
        self.change(|state| {
            self.keep(mesh::start_controller(&self.paths, state)?);
            Ok(())
        })
    }
}

fn read_log(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn start_guard(lab: &str) -> Result<Child> {
    HELPER
        .command()?
        .args(["guard", lab])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        // Ctrl-C goes to the caller's process group; the guard must outlive that.
        .process_group(0)
        .spawn()
        .context("starting the guard")
}
