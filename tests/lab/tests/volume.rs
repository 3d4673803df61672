//! Much data, many connections and slow readers: every byte arrives, and the agents hold no
//! more afterwards than before.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::scenario::{self, port};
use karst_lab_tests::{Footprint, World, footprint};

static WORLD: LazyLock<Result<World>> = LazyLock::new(|| World::up("volume", Mesh::On));

/// These tests measure the same agents, so they go one after the other.
static TURN: Mutex<()> = Mutex::new(());

fn world() -> Result<(&'static World, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))?, turn))
}

const CLIENT: &str = "mesh/client";
const SERVER: &str = "mesh/server";
const NODES: [&str; 2] = ["node1", "node2"];
const GIB: u64 = 1 << 30;
/// What an agent may hold for one connection whose reader stands still: windows, buffers and
/// what an allocator keeps of them.
const STALL_BYTES: u64 = 64 << 20;
/// What an allocator may keep after a crowd has gone.
const KEPT_BYTES: u64 = 48 << 20;

#[test]
fn one_gibibyte_both_ways() -> Result<()> {
    let (world, _turn) = world()?;
    scenario::bulk(world, CLIENT, &world.v4(SERVER)?.to_string(), GIB)
}

#[test]
fn one_gibibyte_from_a_client_outside_the_mesh() -> Result<()> {
    let (world, _turn) = world()?;
    scenario::bulk(
        world,
        "plain/client",
        &world.v4(SERVER)?.to_string(),
        GIB / 4,
    )
}

/// A client that stops in the middle, and what the agents hold meanwhile.
fn stalled(world: &World, command: &str, at: &str) -> Result<()> {
    let before = NODES.map(|node| footprint(&world.lab, node));
    let (running, _) = scenario::stall(world, CLIENT, &[command, at])?;
    // The writer is blocked or the source runs into a closed window within moments; memory
    // that grew without bounds would go on growing while we look.
    let mut most = [0; 2];
    let mut still = 0;
    until(
        "the agents to stop growing",
        Duration::from_secs(30),
        || {
            let mut grew = false;
            for (node, most) in NODES.iter().zip(&mut most) {
                let now = footprint(&world.lab, node)?.memory;
                grew |= now > *most;
                *most = now.max(*most);
            }
            still = if grew { 0 } else { still + 1 };
            ensure!(still >= 20, "an agent's memory is growing");
            Ok(())
        },
    )?;
    for ((node, most), before) in NODES.iter().zip(most).zip(before) {
        let before = before?.memory;
        ensure!(
            most < before + STALL_BYTES,
            "{node}'s agent grew from {before} to {most} bytes"
        );
    }
    running.kill()
}

#[test]
fn a_slow_server_does_not_fill_the_agents_memory() -> Result<()> {
    let (world, _turn) = world()?;
    stalled(world, "stall-write", &world.at(SERVER, port::SLOW)?)
}

#[test]
fn a_slow_client_does_not_fill_the_agents_memory() -> Result<()> {
    let (world, _turn) = world()?;
    stalled(world, "stall-read", &world.at(SERVER, port::SOURCE)?)
}

#[test]
fn a_slow_reader_delays_nobody_else() -> Result<()> {
    let (world, _turn) = world()?;
    let (running, _) = scenario::stall(
        world,
        CLIENT,
        &["stall-read", &world.at(SERVER, port::SOURCE)?],
    )?;
    let at = world.at(SERVER, port::ECHO)?;
    let storm = world.app_ok(CLIENT, &["storm", &at, "200", "--at-once", "4"])?;
    ensure!(
        storm["seconds"].as_f64().unwrap_or(f64::MAX) < 10.0,
        "{storm}"
    );
    running.kill()
}

/// How much the second measurement holds more than the first: files, memory, and entries of
/// every map.
fn growth(node: &str, before: &Footprint, now: &Footprint) -> Result<()> {
    ensure!(
        now.files <= before.files,
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

#[test]
fn twenty_thousand_short_connections_leave_nothing() -> Result<()> {
    let (world, _turn) = world()?;
    let at = world.at(SERVER, port::ECHO)?;
    // What is made once and kept (tunnels, their buffers) is there before the first look.
    world.app_ok(CLIENT, &["storm", &at, "200", "--at-once", "16"])?;
    let mut before = Vec::new();
    until(
        "the agents to come to rest",
        Duration::from_secs(20),
        || {
            let now: Vec<Footprint> = NODES
                .iter()
                .map(|node| footprint(&world.lab, node))
                .collect::<Result<_>>()?;
            let same = |(a, b): (&Footprint, &Footprint)| {
                a.files == b.files && a.map_entries == b.map_entries
            };
            let rest = before.len() == now.len() && before.iter().zip(&now).all(same);
            before = now;
            ensure!(rest, "something still changes");
            Ok(())
        },
    )?;
    let storm = world.app_ok(CLIENT, &["storm", &at, "20000", "--at-once", "16"])?;
    ensure!(storm["failed"] == 0, "{storm}");
    until("the agents to let go", Duration::from_secs(30), || {
        for (node, before) in NODES.iter().zip(&before) {
            growth(node, before, &footprint(&world.lab, node)?)?;
        }
        Ok(())
    })
}

#[test]
fn a_thousand_held_connections_stay_usable() -> Result<()> {
    let (world, _turn) = world()?;
    let (held, report) = scenario::stall(
        world,
        CLIENT,
        &["hold", &world.at(SERVER, port::ECHO)?, "1000"],
    )?;
    ensure!(report["held"] == 1000, "{report}");
    world.app_ok(CLIENT, &["http", &world.at(SERVER, port::HTTP)?])?;
    // It uses each of them once more before it ends.
    let output = held.finish()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}
