//! Pods come to the agent by the real CNI plugin, as a container runtime calls it; and by their
//! processes, where nobody called it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{AMBIENT, World, manifest};
use serde_json::Value;

/// What the agent of node1 knows of a pod.
fn record(world: &World, pod: &str) -> Result<Option<Value>> {
    let pods = world.lab.agent_admin("node1", "/v1/pods")?;
    let pods = pods.as_array().context("/v1/pods is no list")?;
    let is_it = |found: &&Value| {
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        format!("{}/{}", text("namespace"), text("name")) == pod
    };
    Ok(pods.iter().find(is_it).cloned())
}

fn dial(world: &World, pod: &str) -> Result<Value> {
    let at = world.at("mesh/server", port::ECHO)?;
    world.app(pod, &["connect", &at, "--send", "x", "--read-lines", "1"])
}

#[test]
fn add_enrols_fails_closed_without_an_agent_and_del_forgets() -> Result<()> {
    let world = World::up("cni", Mesh::On)?;
    let lab = &world.lab;
    let known = record(&world, "mesh/client")?.context("ADD did not register it")?;
    ensure!(known["enrolled"] == true, "{known}");

    lab.kill_agent("node1")?;
    let late = manifest("mesh", "late", "node1", "client", "wait");
    let refused = lab
        .apply(&late)
        .err()
        .context("it started without an agent")?;
    let text = format!("{refused:#}");
    for part in ["\"code\":100", "cni_agent_unreachable", "karst-node-agent"] {
        ensure!(text.contains(part), "{part} missing in {text}");
    }
    ensure!(
        !lab.status()?
            .pods
            .iter()
            .any(|pod| pod.name == "late" && pod.pid.is_some()),
        "a process runs in a sandbox that was refused"
    );
    // A pod can end without an agent.
    lab.delete_pod("mesh/near")?;

    lab.start_agent("node1")?;
    ensure!(
        record(&world, "mesh/near")?.is_none(),
        "the agent keeps a pod that is gone"
    );
    lab.delete(&late)?;
    lab.apply(&late)?;
    lab.wait_enrolled("mesh/late")?;
    ensure!(dial(&world, "mesh/late")?["ok"] == true);
    lab.delete_pod("mesh/late")?;
    ensure!(
        record(&world, "mesh/late")?.is_none(),
        "DEL did not forget it"
    );
    let kernel = lab.inspect("node1", &["pod", "show", "-j"])?;
    let kernel = String::from_utf8_lossy(&kernel.stdout).into_owned();
    ensure!(!kernel.contains("late"), "the kernel keeps it: {kernel}");
    Ok(())
}

#[test]
fn a_pod_outside_the_mesh_is_remembered_and_enrolled_by_its_label() -> Result<()> {
    let world = World::up("later", Mesh::On)?;
    let known = record(&world, "plain/client")?.context("ADD did not register it")?;
    ensure!(
        known["enrolled"] == false && known["dataplane_mode"] == "none",
        "{known}"
    );
    world.lab.label_pod("plain/client", AMBIENT)?;
    world.lab.wait_enrolled("plain/client")
}

#[test]
fn running_pods_are_found_by_an_agent_that_lost_its_record() -> Result<()> {
    let world = World::up("found", Mesh::On)?;
    let lab = &world.lab;
    let before = record(&world, "mesh/client")?.context("no record")?;
    lab.kill_agent("node1")?;
    let records = lab.dir().join("node/node1/state/sandboxes");
    ensure!(
        fs::read_dir(&records)?.count() > 0,
        "the agent keeps its record elsewhere"
    );
    fs::remove_dir_all(&records)?;
    // Captured all the time: refused now, served again once it is found.
    let refused = dial(&world, "mesh/client")?;
    ensure!(refused["kind"] == "ConnectionRefused", "{refused}");
    lab.start_agent("node1")?;
    until("it to be found", Duration::from_secs(30), || {
        let found = record(&world, "mesh/client")?.context("not found yet")?;
        ensure!(found["enrolled"] == true, "{found}");
        // The bind mount is preferred: it is the very file that the runtime named.
        ensure!(found["netns"] == before["netns"], "{found}");
        ensure!(found["addresses"] == before["addresses"], "{found}");
        Ok(())
    })?;
    ensure!(dial(&world, "mesh/client")?["ok"] == true);
    // Those outside the mesh are found too, for the day they are labelled.
    until("the others to be found", Duration::from_secs(30), || {
        record(&world, "plain/client")?
            .context("not found yet")
            .map(drop)
    })?;
    let metrics = lab.agent_metrics("node1")?;
    ensure!(
        metrics.contains("karst_pods_discovered_total 3"),
        "{metrics}"
    );
    Ok(())
}

#[test]
fn a_rotated_token_is_used_without_a_restart() -> Result<()> {
    let world = World::up("token", Mesh::On)?;
    let lab = &world.lab;
    let file = lab.dir().join("node/node1/token");
    let good = fs::read(&file)?;
    // A new identity on this node needs a certificate, which needs a token.
    fs::write(&file, "expired.and.gone")?;
    lab.label_pod("plain/client", AMBIENT)?;
    until(
        "the bad token to be noticed",
        Duration::from_secs(20),
        || {
            let certificates = lab.agent_admin("node1", "/v1/certificates")?.to_string();
            ensure!(certificates.contains("ca_refused"), "{certificates}");
            let known = record(&world, "plain/client")?.context("no record")?;
            ensure!(known["enrolled"] == false, "{known}");
            Ok(())
        },
    )?;
    fs::write(&file, good)?;
    lab.wait_enrolled("plain/client")
}
