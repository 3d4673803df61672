//! The kubelet's and the CNI plugin's part: a pod gets addresses, a network namespace, a
//! cgroup, the agent's consent, and its first container's process.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::addresses;
use crate::cgroup;
use crate::cni;
use crate::inside::HELPER;
use crate::launch::Launch;
use crate::manifests::Key;
use crate::mesh::{self, CONTROLLER_NAME};
use crate::name_files;
use crate::netns;
use crate::network;
use crate::options::Mesh;
use crate::paths::Paths;
use crate::process::ProcessRecord;
use crate::state::{PodRecord, State, new_uid};
use crate::store;
use crate::tokens;
use crate::wait::until;
use crate::workloads;

/// How long a pod's sandbox may wait for its agent: the first certificate of an identity
/// has to come from the controller.
const SANDBOX_LIMIT: Duration = Duration::from_secs(15);

/// The cgroups of one node, as on a real one.
pub struct NodeCgroups {
    /// The node's root: programs attach here.
    pub node: PathBuf,
    /// The agent's.
    pub agent: PathBuf,
    /// The parent of the pods'.
    pub pods: PathBuf,
    /// The node's other processes'.
    pub host: PathBuf,
}

/// Where a node's cgroups are.
pub fn node_cgroups(paths: &Paths, node: &str) -> Result<NodeCgroups> {
    let root = cgroup::root()?.join(paths.cgroup()).join(node);
    Ok(NodeCgroups {
        agent: root.join("karst-agent"),
        pods: root.join("kubepods"),
        host: root.join("host"),
        node: root,
    })
}

/// Where a pod's processes live.
pub fn pod_cgroup(paths: &Paths, pod: &PodRecord) -> Result<PathBuf> {
    Ok(node_cgroups(paths, &pod.node)?
        .pods
        .join(format!("pod{}", pod.uid)))
}

/// Makes and starts a pod that does not exist yet; gives its process for reaping.
pub fn start_pod(paths: &Paths, state: &mut State, key: &Key, mut object: Value) -> Result<Child> {
    let container = &object["spec"]["containers"][0];
    ensure!(
        container["command"].is_array() || container["args"].is_array(),
        "its first container has no command: the lab runs host programs, not images"
    );
    let node = workloads::schedule(state, &object)?;
    let account = object["spec"]["serviceAccountName"]
        .as_str()
        .unwrap_or("default")
        .to_owned();
    store::ensure_namespace(paths, state, &key.namespace)?;
    store::put_service_account(paths, state, &key.namespace, &account)?;
    let spec = object["spec"].clone();
    object["spec"]["nodeName"] = json!(node);
    object["spec"]["serviceAccountName"] = json!(account);
    object["metadata"]["uid"] = json!(new_uid());
    let mut pod = record(paths, state, key, &object, &node, spec)?;
    object["status"] = status(paths, state, &pod)?;
    store::put(paths, state, key, object)?;
    state.pods.insert(pod.id(), pod.clone());
    state.save(paths)?;

    cgroup::create(&pod_cgroup(paths, &pod)?)?;
    if pod.own_netns {
        network::make_pod(paths, state.node_number(&node)?, &pod)?;
        if state.mesh == Mesh::On {
            register(paths, &pod)?;
        }
    }
    name_files::update(paths, &pod, &name_files::services(state)?)?;
    if state.mesh == Mesh::On {
        let node_uid = state.node_uids.get(&node).context("the node has no uid")?;
        tokens::write_pod_token(paths, &pod, &account, node_uid)?;
    }
    let object = state.objects.get(key).context("the pod vanished")?;
    let log = paths.pod_log(&pod.namespace, &pod.name);
    let child = launch(paths, &pod, object)?.start(&argv(paths, &pod, object)?, &log)?;
    pod.process = Some(ProcessRecord::of(child.id())?);
    state.pods.insert(pod.id(), pod.clone());
    write_status(paths, state, &pod)?;
    Ok(child)
}

fn record(
    paths: &Paths,
    state: &State,
    key: &Key,
    object: &Value,
    node: &str,
    spec: Value,
) -> Result<PodRecord> {
    let own_netns = object["spec"]["hostNetwork"] != true;
    let number = state.node_number(node)?;
    let pair = if own_netns {
        let taken: BTreeSet<IpAddr> = state
            .pods
            .values()
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        addresses::allot_pod(number, &taken)?
    } else {
        addresses::wire(number)
    };
    let netns = if own_netns {
        paths.pod_netns(&key.namespace, &key.name)
    } else {
        paths.host_netns(node)
    };
    Ok(PodRecord {
        uid: object["metadata"]["uid"]
            .as_str()
            .context("no uid")?
            .to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        node: node.to_owned(),
        netns,
        own_netns,
        addresses: pair.both(),
        process: None,
        ended: false,
        ready: false,
        spec,
    })
}

/// What the container runtime does before it starts anything: the agent has to agree.
fn register(paths: &Paths, pod: &PodRecord) -> Result<()> {
    until("the agent to take the sandbox", SANDBOX_LIMIT, || {
        cni::call(paths, pod, "ADD", &sandbox_name(pod)).map(drop)
    })
    .with_context(|| format!("pod {}", pod.id()))
}

/// The runtime's name of a pod's only sandbox.
pub fn sandbox_name(pod: &PodRecord) -> String {
    format!("sandbox-{}", pod.uid)
}

/// Ends a pod and removes all that it had.
pub fn stop_pod(paths: &Paths, state: &mut State, key: &Key) -> Result<()> {
    let Some(pod) = state
        .pods
        .get(&format!("{}/{}", key.namespace, key.name))
        .cloned()
    else {
        return store::delete(paths, state, key);
    };
    cgroup::remove(&pod_cgroup(paths, &pod)?)?;
    if pod.own_netns {
        if state.mesh == Mesh::On {
            // It succeeds without an agent too, which learns of the end from the controller and
            // from the missing namespace.
            cni::call(paths, &pod, "DEL", &sandbox_name(&pod))?;
        }
        network::remove_pod(paths, &pod)?;
    }
    let dir = paths.pod_dir(&pod.uid);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    store::delete(paths, state, key)?;
    state.pods.remove(&pod.id());
    state.save(paths)
}

/// Looks after every pod: notes processes that ended, probes those not ready yet, and writes
/// what changed.
pub fn refresh(paths: &Paths, state: &mut State) -> Result<()> {
    let pods: Vec<PodRecord> = state.pods.values().cloned().collect();
    let mut changed = false;
    for old in pods {
        let mut pod = old.clone();
        pod.ended = !pod.process.is_some_and(ProcessRecord::is_alive);
        pod.ready = !pod.ended && (pod.ready || probe(paths, state, &pod)?);
        if (pod.ended, pod.ready) != (old.ended, old.ready) {
            changed = true;
            state.pods.insert(pod.id(), pod.clone());
            write_status(paths, state, &pod)?;
        }
    }
    if changed {
        name_files::update_all(paths, state)?;
        state.save(paths)?;
    }
    Ok(())
}

fn write_status(paths: &Paths, state: &mut State, pod: &PodRecord) -> Result<()> {
    let key = Key::new("Pod", &pod.namespace, &pod.name);
    let mut object = state.objects.get(&key).context("the pod vanished")?.clone();
    object["status"] = status(paths, state, pod)?;
    store::put(paths, state, &key, object)
}

fn status(_paths: &Paths, state: &State, pod: &PodRecord) -> Result<Value> {
    let phase = match (pod.process, pod.ended) {
        (_, true) => "Failed",
        (None, _) => "Pending",
        (Some(_), _) => "Running",
    };
    let ready = if pod.ready { "True" } else { "False" };
    let host = addresses::wire(state.node_number(&pod.node)?);
    let mut status = json!({
        "phase": phase,
        "hostIP": host.v4,
        "hostIPs": [{"ip": host.v4}, {"ip": host.v6}],
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": "True"},
            {"type": "ContainersReady", "status": ready},
            {"type": "Ready", "status": ready},
        ],
    });
    if pod.process.is_some() {
        let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        status["podIP"] = json!(pod.addresses.first());
        status["podIPs"] = json!(ips);
    }
    Ok(status)
}

/// How to start a program in a pod.
pub fn launch(paths: &Paths, pod: &PodRecord, object: &Value) -> Result<Launch> {
    let dir = paths.pod_dir(&pod.uid);
    Ok(Launch {
        netns: pod.netns.clone(),
        cgroup: pod_cgroup(paths, pod)?,
        name_files: Some(dir.clone()),
        directory: dir,
        env: environment(paths, pod, object),
    })
}

/// What the lab tells, then what the manifest does. There are no volumes: where a Deployment of a cluster
/// mounts the mesh's root and its account's token, a pod of the lab is told files by `LAB_` variables.
fn environment(paths: &Paths, pod: &PodRecord, object: &Value) -> Vec<(String, String)> {
    let shown = |path: PathBuf| path.display().to_string();
    let mut env = vec![
        ("HOSTNAME".to_owned(), pod.name.clone()),
        ("POD_NAME".to_owned(), pod.name.clone()),
        ("POD_NAMESPACE".to_owned(), pod.namespace.clone()),
        ("NODE_NAME".to_owned(), pod.node.clone()),
        ("HOME".to_owned(), "/root".to_owned()),
        ("LAB_CONTROLLER".to_owned(), mesh::controller_address()),
        ("LAB_CONTROLLER_NAME".to_owned(), CONTROLLER_NAME.to_owned()),
        ("LAB_ROOT_CERT".to_owned(), shown(paths.root_certificate())),
        ("LAB_TOKEN".to_owned(), shown(paths.pod_token(&pod.uid))),
    ];
    for entry in object["spec"]["containers"][0]["env"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let Some(name) = entry["name"].as_str() else {
            continue;
        };
        let value = match entry["value"].as_str() {
            Some(value) => expand(value, &env),
            None => field(pod, object, &entry["valueFrom"]["fieldRef"]["fieldPath"]),
        };
        env.push((name.to_owned(), value));
    }
    env
}

/// The downward API's fields that a program may want.
fn field(pod: &PodRecord, object: &Value, path: &Value) -> String {
    match path.as_str() {
        Some("metadata.name") => pod.name.clone(),
        Some("metadata.namespace") => pod.namespace.clone(),
        Some("metadata.uid") => pod.uid.clone(),
        Some("spec.nodeName") => pod.node.clone(),
        Some("spec.serviceAccountName") => object["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        Some("status.podIP") => pod
            .addresses
            .first()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
        _ => String::new(),
    }
}

/// The container's command line, with `$(NAME)` replaced from its environment.
fn argv(paths: &Paths, pod: &PodRecord, object: &Value) -> Result<Vec<String>> {
    let container = &object["spec"]["containers"][0];
    let env = environment(paths, pod, object);
    let mut argv = Vec::new();
    for part in ["command", "args"] {
        for word in container[part].as_array().into_iter().flatten() {
            match word.as_str() {
                Some(word) => argv.push(expand(word, &env)),
                None => bail!("{}: {part} holds {word}, which is no string", pod.id()),
            }
        }
    }
    Ok(argv)
}

fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    for (name, value) in env.iter().rev() {
        text = text.replace(&format!("$({name})"), value);
    }
    text
}

/// Whether the pod answers, asked from its node as a kubelet does. A pod that declares
/// neither a probe nor a TCP port is ready once it runs.
fn probe(paths: &Paths, state: &State, pod: &PodRecord) -> Result<bool> {
    let key = Key::new("Pod", &pod.namespace, &pod.name);
    let object = state.objects.get(&key).context("the pod vanished")?;
    let container = &object["spec"]["containers"][0];
    let probe = &container["readinessProbe"];
    let address = *pod.addresses.first().context("a pod without address")?;
    for kind in ["tcpSocket", "httpGet"] {
        if probe[kind].is_object() {
            let port = port_number(container, &probe[kind]["port"])?;
            let path = (kind == "httpGet").then(|| probe[kind]["path"].as_str().unwrap_or("/"));
            return ask(paths, pod, SocketAddr::new(address, port), path);
        }
    }
    for port in container["ports"].as_array().into_iter().flatten() {
        if matches!(port["protocol"].as_str(), None | Some("TCP")) {
            let port = port_number(container, &port["containerPort"])?;
            if !ask(paths, pod, SocketAddr::new(address, port), None)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn port_number(container: &Value, port: &Value) -> Result<u16> {
    let number = match port.as_str() {
        None => port.as_u64(),
        Some(name) => container["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|candidate| candidate["name"] == name)
            .and_then(|found| found["containerPort"].as_u64()),
    };
    let number = number.with_context(|| format!("{port} names no port"))?;
    Ok(u16::try_from(number)?)
}

fn ask(paths: &Paths, pod: &PodRecord, address: SocketAddr, path: Option<&str>) -> Result<bool> {
    let mut command = HELPER.command()?;
    command
        .arg("probe")
        .arg("--netns")
        .arg(netns::file(&paths.host_netns(&pod.node)));
    command
        .arg("--cgroup")
        .arg(node_cgroups(paths, &pod.node)?.host);
    command.arg(address.to_string());
    if let Some(path) = path {
        command.args(["--http-path", path]);
    }
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}
