//! Without a mesh: the lab's network and the test application do what the other tests take
//! for granted, so that a failure there points at the mesh.

use std::sync::LazyLock;

use anyhow::{Result, anyhow, ensure};
use karst_harness::Mesh;
use karst_lab_tests::scenario::{self, port};
use karst_lab_tests::{Chat, World};

static WORLD: LazyLock<Result<World>> = LazyLock::new(|| World::up("plain", Mesh::Off));

fn world() -> Result<&'static World> {
    WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))
}

const CLIENT: &str = "plain/client";
const SERVER: &str = "plain/server";

#[test]
fn http_of_every_kind() -> Result<()> {
    let host = world()?.v4(SERVER)?.to_string();
    scenario::http_of_every_kind(world()?, CLIENT, &host, port::HTTP)
}

#[test]
fn addresses_are_seen_at_both_ends() -> Result<()> {
    let world = world()?;
    let at = world.at(SERVER, port::ECHO)?;
    scenario::peer_is_what_was_dialled(world, CLIENT, &at, &at, &[])?;
    let mapped = format!("[::ffff:{}]:{}", world.v4(SERVER)?, port::ECHO);
    scenario::peer_is_what_was_dialled(world, CLIENT, &at, &mapped, &["--v4-mapped"])?;
    for dial in [
        world.at(SERVER, port::PEER_V4)?,
        world.at(SERVER, port::PEER_DUAL)?,
        world.at6(SERVER, port::PEER_DUAL)?,
    ] {
        scenario::server_sees_client(world, CLIENT, SERVER, &dial, &[])?;
    }
    Ok(())
}

#[test]
fn ends_and_resets() -> Result<()> {
    let world = world()?;
    let host = world.v4(SERVER)?.to_string();
    scenario::server_speaks_first(world, CLIENT, &host)?;
    scenario::client_ends_first(world, CLIENT, &host)?;
    scenario::server_ends_first(world, CLIENT, SERVER, &host)?;
    scenario::client_resets(world, CLIENT, SERVER, &host)?;
    scenario::server_resets(world, CLIENT, &host)
}

#[test]
fn bulk_both_ways() -> Result<()> {
    let host = world()?.v4(SERVER)?.to_string();
    scenario::bulk(world()?, CLIENT, &host, 200_000_001)
}

#[test]
fn udp_echo() -> Result<()> {
    scenario::udp(world()?, CLIENT, SERVER)
}

#[test]
fn many_connections() -> Result<()> {
    let world = world()?;
    let at = world.at(SERVER, port::ECHO)?;
    let storm = world.app_ok(CLIENT, &["storm", &at, "2000", "--at-once", "16"])?;
    ensure!(storm["failed"] == 0, "{storm}");
    let (held, report) = scenario::stall(world, CLIENT, &["hold", &at, "500"])?;
    ensure!(report["held"] == 500, "{report}");
    let output = held.finish()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn stalls_block_the_writer() -> Result<()> {
    let world = world()?;
    let (running, report) = scenario::stall(
        world,
        CLIENT,
        &["stall-write", &world.at(SERVER, port::SLOW)?],
    )?;
    ensure!(report["blocked"] == true, "{report}");
    running.kill()?;
    let (running, report) = scenario::stall(
        world,
        CLIENT,
        &["stall-read", &world.at(SERVER, port::SOURCE)?],
    )?;
    ensure!(report["asked"] == true, "{report}");
    let output = running.finish()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn chats_last() -> Result<()> {
    let world = world()?;
    let mut chat = Chat::open(&world.lab, CLIENT, &world.at(SERVER, port::ECHO)?)?;
    chat.say("one")?;
    chat.say("two")?;
    chat.end()
}

#[test]
fn what_nobody_listens_to_is_refused() -> Result<()> {
    let world = world()?;
    let closed = world.app(CLIENT, &["connect", &world.at(SERVER, port::CLOSED)?])?;
    ensure!(closed["kind"] == "ConnectionRefused", "{closed}");
    // The lab has no way out, and no proxy for Service addresses.
    for nowhere in ["8.8.8.8:53", "10.96.0.10:80"] {
        let refused = world.app(CLIENT, &["connect", nowhere])?;
        ensure!(
            refused["ok"] == false && refused["kind"] != "TimedOut",
            "{refused}"
        );
    }
    Ok(())
}
