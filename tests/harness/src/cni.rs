//! The container runtime's part of CNI: calls the real `karst-cni` as containerd does, with the
//! result of the plugin that made the pod's network.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::inside::HELPER;
use crate::netns;
use crate::paths::Paths;
use crate::state::PodRecord;

/// Runs one command of the specification for a pod; `container` is the runtime's name of the
/// sandbox. Gives what the plugin printed.
pub fn call(paths: &Paths, pod: &PodRecord, command: &str, container: &str) -> Result<Value> {
    let netns = netns::file(&pod.netns);
    let ips: Vec<Value> = pod
        .addresses
        .iter()
        .map(|ip| json!({"address": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }), "interface": 0}))
        .collect();
    let result = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": netns}],
        "ips": ips,
    });
    let config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "karst-cni",
        "socket": paths.cni_socket(&pod.node), "prevResult": result,
    });
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.uid
    );
    let mut child = Command::new(HELPER.binary("karst-cni")?)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", &netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running karst-cni")?;
    let mut input = child.stdin.take().context("it has no standard input")?;
    input.write_all(config.to_string().as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "karst-cni {command}: {told}");
    if command != "ADD" {
        ensure!(told.is_empty(), "karst-cni {command} printed {told}");
        return Ok(Value::Null);
    }
    let told: Value = serde_json::from_str(&told).context("karst-cni ADD printed no JSON")?;
    ensure!(told == result, "karst-cni changed the result to {told}");
    Ok(told)
}
