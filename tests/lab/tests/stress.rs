//! No byte is lost, doubled, changed or moved, and nothing is left behind: many connections of every shape at once, each
//! checked byte by byte at both ends (`karst-testapp stress`), between two nodes and on one, over IPv4 and IPv6, to pods
//! and to Services.
//!
//! Two minutes in all; `cargo xtask bench stress --minutes 30` is the same for longer. That the check can fail is shown
//! where it is, in `karst-testapp`, against a relay that does each of these things.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::{Footprint, World, footprint, manifest};
use serde_json::Value;

/// Seconds of the measured part unless the variable says otherwise; with [`WARM_UP`] two minutes.
const SECONDS: u64 = 105;
const SECONDS_VARIABLE: &str = "KARST_STRESS_SECONDS";
/// Seconds before the first look at what agents hold: tunnels, workers' buffers and what an allocator keeps of a crowd are
/// there then, and only what goes on growing is more afterwards.
const WARM_UP: u64 = 15;
/// The longest part that is told of at once, seconds. Agents' logs are emptied in between: they are in memory.
const PART: u64 = 60;

const NODES: [&str; 2] = ["node1", "node2"];
const CLIENTS: [&str; 2] = ["mesh/client", "mesh/client2"];
const SERVERS: [&str; 2] = ["mesh/server", "mesh/near"];
/// The port of `karst-testapp serve` that tells what came of connections.
const TOTALS: u16 = 7012;

/// Connections of each client at a time.
const AT_ONCE: &str = "32";
/// What an agent may hold more than after the warm-up, bytes: an allocator keeps what the largest crowd needed, and by chance
/// a later one needs more. A connection has up to 8 MiB, of which less than 256 KiB are in an agent at a time; so this is what
/// the 64 of one moment may have in buffers, once. What is lost for each connection is more after some ten thousand of them,
/// if it is a KiB or more.
const KEPT_BYTES: u64 = 16 << 20;
/// Files that an agent may have open more than after the warm-up: tunnels that a larger crowd had opened and that are kept.
const KEPT_FILES: usize = 8;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: stress-far, namespace: mesh}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: server}
  ports: [{name: stress, port: 7010}, {name: first, port: 7011}]
---
apiVersion: v1
kind: Service
metadata: {name: stress-near, namespace: mesh}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: near}
  ports: [{name: stress, port: 7010}, {name: first, port: 7011}]
";

#[test]
fn every_byte_arrives_and_nothing_is_left() -> Result<()> {
    let seconds = match std::env::var(SECONDS_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{SECONDS_VARIABLE} is {text:?}"))?,
        Err(_) => SECONDS,
    };
    let world = World::up("stress", Mesh::On)?;
    let another = manifest("mesh", "client2", "node2", "client2", "wait");
    world.lab.apply(&format!("{another}{SERVICES}"))?;
    world.lab.wait_enrolled("mesh/client2")?;
    let hosts = hosts(&world)?;

    let mut whole = part(&world, &hosts, WARM_UP)?;
    let before = at_rest(&world)?;
    tell("after the warm-up", whole, &before);
    let mut left = seconds;
    while left > 0 {
        // A last part that is very short would be one of its own for nothing.
        let this = if left < 2 * PART { left } else { PART };
        left -= this;
        whole += part(&world, &hosts, this)?;
        for node in NODES {
            File::create(world.lab.agent_log_file(node)).context("emptying a log")?;
        }
        tell("so far", whole, &look(&world)?);
    }

    until("servers to be done", Duration::from_secs(60), || {
        let mut served = 0;
        for server in SERVERS {
            let at = world.at(server, TOTALS)?;
            let totals = world.app("mesh/client", &["stress-totals", &at])?;
            ensure!(
                totals["open"] == 0,
                "{server} has open connections: {totals}"
            );
            ensure!(totals["ok"] == true, "{server}: {totals}");
            served += number(&totals, "whole")?;
        }
        ensure!(
            served == whole,
            "of {whole} connections that were whole to clients {served} were to servers"
        );
        Ok(())
    })?;
    until("the agents to let go", Duration::from_secs(45), || {
        let now = look(&world)?;
        tell("at the end", whole, &now);
        for ((node, before), now) in NODES.iter().zip(&before).zip(&now) {
            growth(node, before, now)?;
        }
        Ok(())
    })
}

/// Pods by address and by Service, on the client's node and on the other one, in both families.
fn hosts(world: &World) -> Result<Vec<String>> {
    let mut hosts: Vec<IpAddr> = Vec::new();
    for server in SERVERS {
        hosts.extend([world.v4(server)?, world.v6(server)?]);
    }
    for service in ["stress-far", "stress-near"] {
        let addresses = world.lab.service_addresses("mesh", service)?;
        ensure!(
            addresses.len() == 2,
            "{service} has {addresses:?}, not an address of each family"
        );
        hosts.extend(addresses);
    }
    Ok(hosts.iter().map(IpAddr::to_string).collect())
}

/// Both clients for so long; gives how many connections were whole.
fn part(world: &World, hosts: &[String], seconds: u64) -> Result<u64> {
    let seconds = seconds.to_string();
    let mut args = vec!["stress", "--seconds", &seconds, "--at-once", AT_ONCE];
    args.extend(hosts.iter().map(String::as_str));
    let args = &args;
    let reports: Vec<Result<Value>> = std::thread::scope(|scope| {
        let clients = CLIENTS.map(|client| scope.spawn(move || world.app(client, args)));
        let ended = clients.map(|client| client.join().map_err(|_| anyhow!("a client's thread")));
        ended.into_iter().map(|report| report?).collect()
    });
    let mut whole = 0;
    for (client, report) in CLIENTS.iter().zip(reports) {
        let report = report?;
        ensure!(report["ok"] == true, "{client}: {report}");
        eprintln!("{client}: {report}");
        for host in hosts {
            ensure!(
                number(&report["by_host"], host)? > 0,
                "{client} made no connection to {host}"
            );
        }
        ensure!(number(&report, "reset")? > 0, "{client} saw no reset");
        whole += number(&report, "whole")?;
    }
    ensure!(whole > 0, "no connection was whole");
    Ok(whole)
}

fn number(of: &Value, name: &str) -> Result<u64> {
    of[name]
        .as_u64()
        .with_context(|| format!("no number {name} in {of}"))
}

fn look(world: &World) -> Result<Vec<Footprint>> {
    let each = NODES.iter().map(|node| footprint(&world.lab, node));
    each.collect()
}

/// What agents hold once nothing changes.
fn at_rest(world: &World) -> Result<Vec<Footprint>> {
    let mut before = Vec::new();
    until(
        "the agents to come to rest",
        Duration::from_secs(20),
        || {
            let now = look(world)?;
            let same = |(a, b): (&Footprint, &Footprint)| {
                a.files == b.files && a.map_entries == b.map_entries
            };
            let rest = before.len() == now.len() && before.iter().zip(&now).all(same);
            before = now;
            ensure!(rest, "something still changes");
            std::thread::sleep(Duration::from_millis(500));
            Ok(())
        },
    )?;
    Ok(before)
}

fn growth(node: &str, before: &Footprint, now: &Footprint) -> Result<()> {
    ensure!(
        now.files <= before.files + KEPT_FILES,
        "{node}: {} files open, before {}",
        now.files,
        before.files
    );
    ensure!(
        now.map_entries == before.map_entries,
        "{node}: {:?}, before {:?}",
        now.map_entries,
        before.map_entries
    );
    ensure!(
        now.memory <= before.memory + KEPT_BYTES,
        "{node}: {} bytes, before {}",
        now.memory,
        before.memory
    );
    Ok(())
}

fn tell(when: &str, whole: u64, agents: &[Footprint]) {
    let held = agents
        .iter()
        .map(|agent| format!("{} files, {} KiB", agent.files, agent.memory >> 10));
    let held: Vec<String> = held.collect();
    eprintln!("{when}: {whole} connections; agents: {}", held.join("; "));
}
