//! `karst tap`, `top`, `log-level`, `inspect diff` and `check` from afar: nodes by a command in the agent's container,
//! which leaves nothing there, and waypoints by a forwarded port.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use karst_cluster::Cluster;
use karst_harness::until;
use serde_json::Value;

use crate::mesh::{pod, text, with_karst};
use crate::shared::{APP_IMAGE, LIMIT, ask, shared};
use crate::waypoint::with_gateway_api;

const NAMESPACE: &str = "live";

/// A command of `karst`, where the API server is all that can be reached.
fn karst(cluster: &Cluster, words: &[&str]) -> Result<Output> {
    let program = karst_cluster::binary("karst")?.display().to_string();
    let argv = [&[program.as_str()], words].concat();
    Ok(cluster.exec_command(&argv)?.output()?)
}

fn said(output: Output) -> Result<String> {
    let text = String::from_utf8(output.stdout)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {text}{error}", output.status);
    Ok(text)
}

/// How many relays run in containers of this machine.
fn relays() -> Result<usize> {
    let mut count = 0;
    for process in fs::read_dir("/proc")? {
        // One that ends meanwhile is none.
        let Ok(line) = fs::read(process?.path().join("cmdline")) else {
            continue;
        };
        count += usize::from(line.starts_with(b"/karst\0relay\0"));
    }
    Ok(count)
}

/// The client's name, and the waypoint's pod.
fn open(cluster: &Cluster) -> Result<(String, String)> {
    with_karst(cluster);
    with_gateway_api(cluster);
    let yaml = include_str!("canary.yaml")
        .replace("NAMESPACE", NAMESPACE)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&yaml)?;
    for name in ["client", "web-v1", "web-v2", "waypoint"] {
        let what = [&format!("deployment/{name}"), "-n", NAMESPACE];
        cluster.wait_for(&what, "condition=Available", LIMIT)?;
    }
    let client = text(&pod(cluster, NAMESPACE, "client"), "/metadata/name").to_owned();
    let gateway = "gateway.networking.k8s.io/gateway-name=waypoint";
    let waypoints = cluster.get(&["pods", "-n", NAMESPACE, "-l", gateway])?;
    let waypoint = text(&waypoints, "/items/0/metadata/name");
    until("requests to pass the waypoint", LIMIT, || {
        ask(cluster, NAMESPACE, &client, "web:80").map(drop)
    })?;
    Ok((client, format!("{NAMESPACE}/{waypoint}")))
}

/// The first event of a tap, during which the client asks; the tap is killed then.
fn first_event(cluster: &Cluster, client: &str, place: &[&str]) -> Result<Value> {
    let program = karst_cluster::binary("karst")?.display().to_string();
    let words = ["tap", "-o", "json", "--for", "5m", "--from", NAMESPACE];
    let argv = [&[program.as_str()], &words[..], place].concat();
    let mut command = cluster.exec_command(&argv)?;
    let mut tap = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let out = tap.stdout.take().context("no output")?;
    let line = std::thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map(|_| line)
    });
    let found = until("an event", LIMIT, || {
        ask(cluster, NAMESPACE, client, "web:80")?;
        ensure!(line.is_finished(), "no event yet");
        Ok(())
    });
    // As by a laptop that is closed: it says no farewell.
    tap.kill()?;
    tap.wait()?;
    found?;
    let line = line.join().ok().context("the reader failed")??;
    serde_json::from_str(&line).with_context(|| line)
}

fn follow(cluster: &Cluster, client: &str, waypoint: &str) -> Result<()> {
    let of_client = format!("{NAMESPACE}/{client}");
    for place in [["--node", "node1"], ["--pod", &of_client]] {
        let event = first_event(cluster, client, &place)?;
        ensure!(event["src.workload"] == client, "{event}");
        ensure!(event["node"] == "node1", "{event}");
        until("the relay to be gone", LIMIT, || {
            let left = relays()?;
            ensure!(left == 0, "{left} relays are left");
            Ok(())
        })?;
    }
    let event = first_event(cluster, client, &["--pod", waypoint])?;
    ensure!(event["event"] == "request", "{event}");
    let top = said(karst(cluster, &["top", "--once", "--node", "node1"])?)?;
    ensure!(top.contains("node1"), "{top}");
    until("the relays to be gone", LIMIT, || {
        let left = relays()?;
        ensure!(left == 0, "{left} relays are left");
        Ok(())
    })
}

fn levels(cluster: &Cluster, waypoint: &str) -> Result<()> {
    for place in [["--node", "node2"], ["--pod", waypoint]] {
        let level = |words: &[&str]| -> Result<Value> {
            let words = [&["log-level", "-j"], words, &place].concat();
            Ok(serde_json::from_str(&said(karst(cluster, &words)?)?)?)
        };
        let before = level(&[])?;
        let set = level(&["debug", "--for", "60s"])?;
        ensure!(
            set["level"] == "debug" && set["seconds_left"].is_u64(),
            "{set}"
        );
        let default = text(&before, "/default_level");
        let back = level(&[default])?;
        ensure!(back["level"] == default, "{back}");
    }
    // Another node's agent has heard nothing of it.
    let other = said(karst(cluster, &["log-level", "--node", "node1"])?)?;
    ensure!(!other.contains("debug"), "{other}");
    Ok(())
}

/// With the objects' part, which only the API server can give.
fn compared(cluster: &Cluster) -> Result<()> {
    let mut last = String::new();
    let agrees = until("nothing to differ", LIMIT, || {
        let words = ["inspect", "diff", "-j", "--node", "node1"];
        let output = karst(cluster, &words)?;
        last = String::from_utf8(output.stdout)?;
        let report: Value = serde_json::from_str(&last).with_context(|| last.clone())?;
        for layer in ["intent", "agent", "kernel", "sockets"] {
            let layers = report["layers"].as_array().context("no layers")?;
            let read = layers
                .iter()
                .any(|one| one["layer"] == layer && one["read"] == true);
            ensure!(read, "{layer} was not read: {last}");
        }
        ensure!(output.status.code() == Some(0), "{last}");
        Ok(())
    });
    agrees?;
    // What the objects ask for is compared: of another mesh's trust domain nothing is right.
    let words = [
        "inspect",
        "diff",
        "--node",
        "node1",
        "--trust-domain",
        "elsewhere",
    ];
    let output = karst(cluster, &words)?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(6), "{text}");
    ensure!(text.contains("KARST1006 PodDiffers intent/agent"), "{text}");

    let of_nodes = |words: &[&str]| -> Result<Vec<Value>> {
        let output = karst(cluster, &[&["check", "-o", "json"], words].concat())?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let checks = report["checks"].as_array().context("no checks")?;
        let of_nodes = checks.iter().filter(|one| one["id"] == "node.state");
        Ok(of_nodes.cloned().collect())
    };
    let found = of_nodes(&[])?;
    ensure!(!found.is_empty(), "no node was looked at");
    ensure!(found.iter().all(|one| one["level"] == "ok"), "{found:?}");
    ensure!(
        of_nodes(&["--no-nodes"])?.is_empty(),
        "nodes were looked at"
    );
    Ok(())
}

#[test]
fn nodes_and_waypoints_are_followed_from_afar() {
    let cluster = shared();
    let (client, waypoint) = open(&cluster).unwrap_or_else(|error| panic!("{error:#}"));
    follow(&cluster, &client, &waypoint).unwrap_or_else(|error| panic!("{error:#}"));
    levels(&cluster, &waypoint).unwrap_or_else(|error| panic!("{error:#}"));
    compared(&cluster).unwrap_or_else(|error| panic!("{error:#}"));
}
