//! A node: its configuration files, its first process, and the programs that run on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use karst_harness::files::{tail, write};
use karst_harness::host::{SEARCH_PATH, run};
use karst_harness::until;
use serde_json::{Value, json};

use crate::cgroup;
use crate::inside::HELPER;
use crate::lifecycle;
use crate::paths::{CLUSTER_DNS, PODS, Paths, node_address, node_name, pod_range};
use crate::state::State;

/// Where Debian keeps CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The plugins that a node's pods are connected with.
const PLUGINS: &[&str] = &["bridge", "host-local", "loopback", "portmap"];

/// Where nodes look for their configuration.
const ETC: &str = "/etc/kubernetes";

/// What holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "karst.dev/test/pause:1";

/// containerd answers within a second on free cores.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);

/// Fails unless the machine has the programs that nodes run.
pub fn check() -> Result<()> {
    for program in ["containerd", "ctr", "runc", "nft", "ip"] {
        find_program(program)?;
    }
    for plugin in PLUGINS {
        let path = Path::new(CNI_PLUGINS).join(plugin);
        path.is_file().then_some(()).with_context(|| {
            format!(
                "{} is missing (Debian package containernetworking-plugins); `cargo xtask setup` installs it",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Fails unless the program called `name` is where nodes look for programs.
fn find_program(name: &str) -> Result<()> {
    SEARCH_PATH
        .split(':')
        .any(|dir| Path::new(dir).join(name).is_file())
        .then_some(())
        .with_context(|| {
            format!("{name} is not on this machine; `cargo xtask setup` installs what is missing")
        })
}

/// Makes a node and starts its containerd.
pub fn boot(paths: &Paths, number: u8) -> Result<()> {
    let name = node_name(number);
    write_files(paths, number)?;
    let cgroup = paths.cgroup().join(&name);
    cgroup::create(&cgroup)?;
    let state = State::load(paths)?.context("the cluster has no record")?;
    let mut command = HELPER.command()?;
    command
        .args(["node", "--name", &name, "--netns"])
        .arg(paths.netns_file(&name))
        .arg("--cgroup")
        .arg(&cgroup)
        .arg("--dir")
        .arg(paths.node(&name))
        .arg("--kubernetes")
        .arg(&state.kubernetes)
        .env_clear()
        .env("PATH", SEARCH_PATH);
    lifecycle::record(paths, &name, &mut command)?;
    let config = format!("{ETC}/containerd.toml");
    let program = format!("{name}-containerd");
    lifecycle::start(paths, &name, &program, &["containerd", "--config", &config])?;
    until("containerd to answer", CONTAINERD_LIMIT, || {
        run(&mut lifecycle::inside(
            paths,
            &name,
            None,
            &["ctr", "version"],
        )?)
    })
    .with_context(|| tail(&paths.log(&program)))
    .map(drop)
}

/// Starts a booted node's kubelet.
pub fn start_kubelet(paths: &Paths, number: u8) -> Result<()> {
    let name = node_name(number);
    let config = format!("--config={ETC}/kubelet.json");
    let kubeconfig = format!("--kubeconfig={ETC}/kubelet.conf");
    let hostname = format!("--hostname-override={name}");
    let address = format!("--node-ip={}", node_address(number));
    lifecycle::start(
        paths,
        &name,
        &format!("{name}-kubelet"),
        &[
            "kubernetes",
            "kubelet",
            &config,
            &kubeconfig,
            &hostname,
            &address,
        ],
    )
}

/// Starts a booted node's kube-proxy.
pub fn start_proxy(paths: &Paths, number: u8) -> Result<()> {
    let name = node_name(number);
    let config = format!("--config={ETC}/proxy.json");
    lifecycle::start(
        paths,
        &name,
        &format!("{name}-kube-proxy"),
        &["kubernetes", "kube-proxy", &config],
    )
}

fn write_files(paths: &Paths, number: u8) -> Result<()> {
    let name = node_name(number);
    let files = paths.node_files(&name);
    let etc = files.join("etc/kubernetes");
    let put = |file: &str, value: &Value| write(&etc.join(file), serde_json::to_vec_pretty(value)?);
    put("kubelet.json", &kubelet_config())?;
    put("proxy.json", &proxy_config(&name))?;
    write(&etc.join("containerd.toml"), containerd_config())?;
    let copy = |from: PathBuf, to: &str| {
        fs::copy(&from, etc.join(to)).with_context(|| format!("copying {}", from.display()))
    };
    copy(paths.pki().join("cluster-ca.crt"), "cluster-ca.crt")?;
    copy(paths.pki().join(format!("{name}.crt")), "kubelet.crt")?;
    copy(paths.pki().join(format!("{name}.key")), "kubelet.key")?;
    copy(paths.kubeconfig(&name), "kubelet.conf")?;
    copy(paths.kubeconfig("proxy"), "proxy.conf")?;
    // A kubelet gives pods that want the node's resolver this file's content: nothing to ask.
    write(&etc.join("resolv.conf"), "")?;
    write(
        &files.join("etc/hosts"),
        format!("127.0.0.1 localhost\n{} {name}\n", node_address(number)),
    )?;
    write(
        &files.join("etc/cni/net.d/10-bridge.conflist"),
        serde_json::to_vec_pretty(&cni_config(number))?,
    )?;
    let plugins = files.join("opt/cni/bin");
    fs::create_dir_all(&plugins)?;
    for plugin in PLUGINS {
        let source = Path::new(CNI_PLUGINS).join(plugin);
        fs::copy(&source, plugins.join(plugin))
            .with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(())
}

fn kubelet_config() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // From 1.35 on a kubelet does not start on cgroup v1 unless told to.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{ETC}/cluster-ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{ETC}/kubelet.crt"),
        "tlsPrivateKeyFile": format!("{ETC}/kubelet.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": format!("{ETC}/resolv.conf"),
        "makeIPTablesUtilChains": false,
        "serializeImagePulls": false,
        // The machine's disk and memory are shared with all that runs beside the cluster: neither
        // may make a kubelet evict pods or remove images, which could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "nodeStatusUpdateFrequency": "5s",
    })
}

fn proxy_config(node: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": format!("{ETC}/proxy.conf")},
        "clusterCIDR": PODS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // Sizes and times of connection tracking are the machine's and stay as they are.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

fn cni_config(number: u8) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "karst-test",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_range(number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": false},
        ],
    })
}

fn containerd_config() -> String {
    let unused = ["aufs", "btrfs", "devmapper", "zfs"]
        .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""))
        .join(", ");
    format!(
        "version = 2\n\
         disabled_plugins = [{unused}]\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{PAUSE_IMAGE}\"\n\
         disable_apparmor = true\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/opt/cni/bin\"\n\
         conf_dir = \"/etc/cni/net.d\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n"
    )
}
