//! What happens when parts of the mesh die, vanish or change under it: enrolled pods are never
//! let out in the clear, others notice nothing, and all is as before once the part is back.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::attacker::{self, HBONE, Signer, Validity};
use karst_lab_tests::scenario::{self, port};
use karst_lab_tests::{
    AMBIENT, Chat, Refusal, World, access_records, kernel_view, manifest, once_attached,
};
use serde_json::Value;

const CLIENT: &str = "mesh/client";
const SERVER: &str = "mesh/server";

#[test]
fn a_killed_agent_fails_closed_and_its_successor_adopts() -> Result<()> {
    let world = World::up("kill", Mesh::On)?;
    let lab = &world.lab;
    let at = world.at(SERVER, port::ECHO)?;
    let before = (kernel_view(&world, "node1")?, kernel_view(&world, "node2")?);
    ensure!(
        before.0.0.as_array().is_some_and(|links| !links.is_empty()),
        "nothing is attached"
    );
    let mut outside = Chat::open(lab, "plain/client", &world.at("plain/server", port::ECHO)?)?;

    lab.kill_agent("node1")?;
    for dial in [
        at.clone(),
        world.at6(SERVER, port::ECHO)?,
        world.at("plain/server", port::ECHO)?,
    ] {
        let refused = world.app(CLIENT, &["connect", &dial])?;
        ensure!(
            refused["kind"] == "ConnectionRefused",
            "not refused: {refused}"
        );
    }
    outside.say("nobody here needs an agent")?;
    world.app_ok(
        "plain/client",
        &[
            "connect",
            &world.at("plain/server", port::ECHO)?,
            "--send",
            "x",
            "--read-lines",
            "1",
        ],
    )?;
    // Towards an enrolled pod of the node without an agent nothing gets through either, not
    // even to an application that listens.
    let leaked = world.app(
        "plain/client",
        &[
            "connect",
            &world.at("mesh/near", port::ECHO)?,
            "--send",
            "x",
            "--read-lines",
            "1",
            "--limit-ms",
            "1500",
        ],
    )?;
    ensure!(leaked["ok"] == false, "the application answered: {leaked}");
    // The kubelet's probes need no agent: the kernel knows them.
    let near = world.at("mesh/near", port::ECHO)?;
    let probe = world.app_on_node(
        "node1",
        &["connect", &near, "--send", "x", "--read-lines", "1"],
    )?;
    ensure!(probe["ok"] == true, "the node's probe failed: {probe}");
    // The kernel still knows its pods with nobody to ask.
    ensure!(
        kernel_view(&world, "node1")?.0 == before.0.0,
        "the dead agent's links changed"
    );
    ensure!(
        lab.status()?
            .pods
            .iter()
            .any(|pod| pod.name == "client" && pod.namespace == "mesh" && pod.enrolled)
    );

    lab.start_agent("node1")?;
    until("traffic to flow again", Duration::from_secs(30), || {
        world
            .app_ok(
                CLIENT,
                &["connect", &at, "--send", "x", "--read-lines", "1"],
            )
            .map(drop)
    })?;
    world.app_ok(
        "plain/client",
        &[
            "connect",
            &world.at("mesh/near", port::ECHO)?,
            "--send",
            "x",
            "--read-lines",
            "1",
        ],
    )?;
    ensure!(
        kernel_view(&world, "node1")? == before.0,
        "not as before: {} was {}",
        kernel_view(&world, "node1")?.0,
        before.0.0
    );
    ensure!(
        kernel_view(&world, "node2")? == before.1,
        "the other node changed"
    );
    once_attached(&world, "node1")?;
    outside.end()
}

#[test]
fn an_agent_that_is_asked_to_end_leaves_enrolled_pods_closed() -> Result<()> {
    let world = World::up("term", Mesh::On)?;
    let before = kernel_view(&world, "node1")?;
    world.lab.stop_agent("node1")?;
    let refused = world.app(CLIENT, &["connect", &world.at(SERVER, port::ECHO)?])?;
    ensure!(
        refused["kind"] == "ConnectionRefused",
        "not refused: {refused}"
    );
    world.lab.start_agent("node1")?;
    world.app_ok(
        CLIENT,
        &[
            "connect",
            &world.at(SERVER, port::ECHO)?,
            "--send",
            "x",
            "--read-lines",
            "1",
        ],
    )?;
    ensure!(kernel_view(&world, "node1")? == before, "not as before");
    Ok(())
}

#[test]
fn the_data_plane_goes_on_without_a_controller() -> Result<()> {
    let world = World::up("ctrl", Mesh::On)?;
    let lab = &world.lab;
    let at = world.at(SERVER, port::ECHO)?;
    let mut chat = Chat::open(lab, CLIENT, &at)?;
    lab.stop_controller()?;
    chat.say("still here")?;
    world.app_ok(CLIENT, &["storm", &at, "100"])?;
    scenario::http_of_every_kind(&world, CLIENT, "server.mesh", 80)?;
    // What changes meanwhile takes effect when it is back.
    lab.label_namespace("plain", AMBIENT)?;
    lab.start_controller()?;
    lab.wait_enrolled("plain/client")?;
    lab.wait_enrolled("plain/server")?;
    chat.say("and after it came back")?;
    world.app_ok(
        "plain/client",
        &["connect", &at, "--send", "x", "--read-lines", "1"],
    )?;
    chat.end()
}

#[test]
fn a_pod_that_cannot_be_enrolled_does_not_start() -> Result<()> {
    let world = World::up("cni", Mesh::On)?;
    let lab = &world.lab;
    lab.stop_controller()?;
    let pod = manifest("mesh", "newcomer", "node1", "newcomer", "serve");
    let Err(error) = lab.apply(&pod) else {
        bail!("it was started without a certificate")
    };
    ensure!(format!("{error:#}").contains("agent"), "{error:#}");
    ensure!(!lab.status()?.pods.iter().any(|pod| pod.name == "newcomer"));
    lab.start_controller()?;
    lab.apply(&pod)?;
    lab.wait_enrolled("mesh/newcomer")?;
    world
        .app_ok(CLIENT, &["http", &world.at("mesh/newcomer", port::HTTP)?])
        .map(drop)
}

#[test]
fn an_agent_restarted_without_a_controller_stays_closed_until_it_is_back() -> Result<()> {
    let world = World::up("both", Mesh::On)?;
    let lab = &world.lab;
    lab.stop_controller()?;
    lab.kill_agent("node1")?;
    // Without certificates and knowledge nothing may leave; the start itself must not wait.
    lab.spawn_agent("node1")?;
    let refused = world.app(
        CLIENT,
        &[
            "connect",
            &world.at(SERVER, port::ECHO)?,
            "--send",
            "x",
            "--read-lines",
            "1",
            "--limit-ms",
            "3000",
        ],
    )?;
    ensure!(refused["ok"] == false, "it was let out: {refused}");
    lab.start_controller()?;
    lab.start_agent("node1")?;
    until("traffic to flow again", Duration::from_secs(30), || {
        world
            .app_ok(
                CLIENT,
                &[
                    "connect",
                    &world.at(SERVER, port::ECHO)?,
                    "--send",
                    "x",
                    "--read-lines",
                    "1",
                ],
            )
            .map(drop)
    })
}

/// The access record of a client's connection.
fn record_of(world: &World, client: &Value) -> Result<Value> {
    let suffix = format!(":{}", scenario::socket(&client["getsockname"])?.port());
    until("the access record", Duration::from_secs(10), || {
        let records = access_records(&world.lab, "node1")?;
        let mut records = records.into_iter().rev();
        let found = records.find(|r| {
            r["src.addr"]
                .as_str()
                .is_some_and(|addr| addr.ends_with(&suffix))
        });
        found.with_context(|| format!("no record of a client{suffix}"))
    })
}

#[test]
fn a_reused_address_is_reached_as_its_new_owner() -> Result<()> {
    let world = World::up("reuse", Mesh::On)?;
    let lab = &world.lab;
    let at = world.at(SERVER, port::ECHO)?;
    let page = world.at(SERVER, port::HTTP)?;
    let mut old = Chat::open(lab, CLIENT, &at)?;
    old.say("a pooled tunnel to the first owner")?;
    // Somebody asks all the time, also while nobody or the next owner is there.
    let first = world.app_ok(CLIENT, &["http", &page])?;
    let done = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<Vec<Value>> {
            let mut answers = vec![first];
            while !done.load(Ordering::Relaxed) {
                let answer = world.app(CLIENT, &["http", &page])?;
                if answer["ok"] == true {
                    answers.push(answer);
                }
            }
            answers.push(world.app_ok(CLIENT, &["http", &page])?);
            Ok(answers)
        });
        let swapped = swap_owner(&world, &at);
        done.store(true, Ordering::Relaxed);
        let answers = asking
            .join()
            .map_err(|_| anyhow::anyhow!("asking panicked"))?;
        swapped.and(answers)
    })?;
    for answer in &answers {
        let owner = answer["page"]["pod"].as_str().context("no pod")?;
        let record = record_of(&world, answer)?;
        let identity = format!("spiffe://cluster.local/ns/mesh/sa/{owner}");
        ensure!(
            record["dst.identity"] == identity.as_str(),
            "{owner} answered: {record}"
        );
    }
    let answered = |owner: &str| answers.iter().any(|answer| answer["page"]["pod"] == owner);
    ensure!(
        answered("server") && answered("heir"),
        "one of the owners never answered"
    );
    ensure!(
        old.say("is anybody there?").is_err(),
        "the first owner's connection lives on"
    );
    Ok(())
}

/// Deletes the server and has the next pod take its address.
fn swap_owner(world: &World, at: &str) -> Result<()> {
    let lab = &world.lab;
    lab.delete_pod(SERVER)?;
    lab.apply(&manifest("mesh", "heir", "node2", "heir", "serve"))?;
    ensure!(
        world.at("mesh/heir", port::ECHO)? == at,
        "the address was not reused"
    );
    lab.wait_enrolled("mesh/heir")?;
    until("the heir to answer", Duration::from_secs(20), || {
        let page = world.app(CLIENT, &["http", &world.at("mesh/heir", port::HTTP)?])?;
        ensure!(page["page"]["pod"] == "heir", "{page}");
        Ok(())
    })
}

#[test]
fn an_address_reused_outside_of_the_mesh_is_reached_plainly() -> Result<()> {
    let world = World::up("reuse2", Mesh::On)?;
    let lab = &world.lab;
    let at = world.at(SERVER, port::ECHO)?;
    world.app_ok(
        CLIENT,
        &["connect", &at, "--send", "x", "--read-lines", "1"],
    )?;
    lab.delete_pod(SERVER)?;
    lab.apply(&manifest("plain", "heir", "node2", "heir", "serve"))?;
    ensure!(
        world.at("plain/heir", port::ECHO)? == at,
        "the address was not reused"
    );
    lab.wait_unenrolled("plain/heir")?;
    let seen = world.app_ok(
        CLIENT,
        &["connect", &at, "--send", "x", "--read-lines", "1"],
    )?;
    let record = record_of(&world, &seen)?;
    ensure!(
        record["connection_security_policy"] != "mutual_tls",
        "{record}"
    );
    ensure!(
        record["dst.workload"] == "heir" && record["dst.identity"].is_null(),
        "{record}"
    );
    Ok(())
}

#[test]
fn a_peer_with_another_identity_than_expected_gets_nothing() -> Result<()> {
    let world = World::up("peer", Mesh::On)?;
    let lab = &world.lab;
    // A node whose agent is gone, and somebody with a good certificate of the mesh, but of
    // somebody else, at the tunnel port of one of its pods.
    lab.kill_agent("node2")?;
    let signer = Signer::of_mesh(lab)?;
    let evil = signer.issue("spiffe://cluster.local/ns/mesh/sa/evil", Validity::Now)?;
    let at = SocketAddr::new(world.v4(SERVER)?, HBONE);
    let netns = lab.pod_netns(SERVER)?;
    let refusal = Refusal::watch(lab, "node1")?;
    let (listening, is_listening) = mpsc::channel();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            attacker::attack(&netns, async || {
                attacker::impersonate(at, evil, &signer, move || {
                    let _ = listening.send(());
                })
                .await
            })
        });
        is_listening
            .recv_timeout(Duration::from_secs(10))
            .context("the impostor does not listen")?;
        let seen = world.app(
            CLIENT,
            &[
                "connect",
                &world.at(SERVER, port::ECHO)?,
                "--send",
                "a secret",
                "--read-to-end",
            ],
        )?;
        ensure!(seen["ok"] == false || seen["end"] != "open", "{seen}");
        let record = refusal.expect("identity_mismatch", "outbound")?;
        ensure!(
            record["error"]
                .as_str()
                .is_some_and(|text| text.contains("sa/evil")),
            "{record}"
        );
        let handshake = server
            .join()
            .map_err(|_| anyhow::anyhow!("the impostor panicked"))?;
        ensure!(
            handshake.is_err(),
            "the client went through with the handshake"
        );
        Ok(())
    })
}
