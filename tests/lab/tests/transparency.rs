//! Applications of the mesh notice nothing: every kind of destination, address family and
//! protocol behaves as without it, and what must stay out of the mesh stays out.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Mesh, Running, until};
use karst_lab_tests::scenario::{self, port};
use karst_lab_tests::{Refusal, World, access_records};
use serde_json::Value;

static WORLD: LazyLock<Result<World>> = LazyLock::new(|| World::up("trans", Mesh::On));

fn world() -> Result<&'static World> {
    WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))
}

const CLIENT: &str = "mesh/client";
const SERVER: &str = "mesh/server";
const NEAR: &str = "mesh/near";
const PLAIN_CLIENT: &str = "plain/client";
const PLAIN_SERVER: &str = "plain/server";

/// "At once" with room for a busy machine: far less than any time limit on the way.
const SOON_MS: f64 = 2000.0;

/// The record of a connection from a client's own port in a node's access log.
fn record(world: &World, node: &str, direction: &str, client: &Value) -> Result<Value> {
    let port = scenario::socket(&client["getsockname"])?.port();
    until(
        "the connection's access record",
        Duration::from_secs(10),
        || {
            let records = access_records(&world.lab, node)?;
            let ends_with = format!(":{port}");
            let mut found = records.into_iter().filter(|record| {
                record["direction"] == direction
                    && record["src.addr"]
                        .as_str()
                        .is_some_and(|addr| addr.ends_with(&ends_with))
            });
            found
                .next_back()
                .with_context(|| format!("no {direction} record of port {port} on {node}"))
        },
    )
}

/// A connection whose two agents say that it was mutual TLS between these service accounts.
fn carried_by_mtls(
    world: &World,
    from: (&str, &str),
    to: (&str, &str),
    dial: &str,
    peer: &str,
) -> Result<()> {
    let protected = [
        ("connection_security_policy", "mutual_tls"),
        ("tls_version", "TLSv1_3"),
        ("key_exchange", "X25519MLKEM768"),
    ];
    carried(world, from, to, (dial, peer), &protected)
}

/// A connection between these service accounts, of which the agents of both ends say this too.
fn carried(
    world: &World,
    from: (&str, &str),
    to: (&str, &str),
    (dial, peer): (&str, &str),
    more: &[(&str, &str)],
) -> Result<()> {
    let seen = scenario::peer_is_what_was_dialled(world, from.0, dial, peer, &[])?;
    let nodes = [
        (world.lab.pod_node(from.0)?, "outbound"),
        (world.lab.pod_node(to.0)?, "inbound"),
    ];
    for (node, direction) in nodes {
        let record = record(world, &node, direction, &seen)?;
        let identities: [(&str, &str); 2] = [
            (
                "src.identity",
                &format!("spiffe://cluster.local/ns/mesh/sa/{}", from.1),
            ),
            (
                "dst.identity",
                &format!("spiffe://cluster.local/ns/mesh/sa/{}", to.1),
            ),
        ];
        for (field, value) in identities.iter().chain(more) {
            ensure!(record[*field] == *value, "{field} is not {value}: {record}");
        }
    }
    Ok(())
}

#[test]
fn pod_ip() -> Result<()> {
    let world = world()?;
    let at = world.at(SERVER, port::ECHO)?;
    carried_by_mtls(world, (CLIENT, "client"), (SERVER, "server"), &at, &at)
}

#[test]
fn pod_ip_of_the_same_node() -> Result<()> {
    let world = world()?;
    let at = world.at(NEAR, port::ECHO)?;
    let past_the_agent = [("connection_security_policy", "same_node")];
    // Until the agent has told the kernel of both pods, it is in between.
    until("it goes past the agent", Duration::from_secs(10), || {
        let (from, to) = ((CLIENT, "client"), (NEAR, "near"));
        carried(world, from, to, (&at, &at), &past_the_agent)
    })
}

#[test]
fn ipv6() -> Result<()> {
    let world = world()?;
    let at = world.at6(SERVER, port::ECHO)?;
    carried_by_mtls(world, (CLIENT, "client"), (SERVER, "server"), &at, &at)
}

#[test]
fn cluster_ip() -> Result<()> {
    let world = world()?;
    let addresses = world.lab.service_addresses("mesh", "server")?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    for address in addresses {
        let at = std::net::SocketAddr::new(address, port::ECHO).to_string();
        carried_by_mtls(world, (CLIENT, "client"), (SERVER, "server"), &at, &at)?;
    }
    Ok(())
}

#[test]
fn service_by_name_and_another_target_port() -> Result<()> {
    let world = world()?;
    for name in ["server.mesh", "server.mesh.svc.cluster.local"] {
        scenario::http_of_every_kind(world, CLIENT, name, 80)?;
    }
    Ok(())
}

#[test]
fn headless_service() -> Result<()> {
    let world = world()?;
    let dial = format!("headless.mesh:{}", port::ECHO);
    carried_by_mtls(
        world,
        (CLIENT, "client"),
        (SERVER, "server"),
        &dial,
        &world.at(SERVER, port::ECHO)?,
    )
}

#[test]
fn external_destination() -> Result<()> {
    let world = world()?;
    let mut command = world.lab.external_command(&["karst-testapp", "serve"])?;
    let mut server = Running::new(command.stdout(std::process::Stdio::null()).spawn()?);
    let addresses = world.lab.external_addresses();
    until("the external server", Duration::from_secs(10), || {
        ensure!(server.is_running()?, "it ended");
        let at = format!("{}:{}", addresses[0], port::ECHO);
        world.app_ok(PLAIN_CLIENT, &["connect", &at]).map(drop)
    })?;
    for address in &addresses {
        let at = std::net::SocketAddr::new(*address, port::PEER_DUAL).to_string();
        let seen = world.app_ok(CLIENT, &["connect", &at, "--read-lines", "1"])?;
        ensure!(seen["getpeername"] == at.as_str(), "{seen}");
        let told: Value = serde_json::from_str(seen["lines"][0].as_str().context("no line")?)?;
        let peer = scenario::socket(&told["accept"])?.ip();
        ensure!(
            world.lab.pod_addresses(CLIENT)?.contains(&peer),
            "the pod's address is lost: {told}"
        );
        let record = record(world, "node1", "outbound", &seen)?;
        ensure!(
            record["connection_security_policy"] != "mutual_tls",
            "{record}"
        );
    }
    server.kill()
}

#[test]
fn unknown_destination_fails_soon_with_a_reason() -> Result<()> {
    let world = world()?;
    let refusal = Refusal::watch(&world.lab, "node1")?;
    // Nobody has this address and no route leads to it.
    let seen = world.app(CLIENT, &["connect", "198.51.100.7:80", "--read-to-end"])?;
    ensure!(seen["ok"] == false || seen["end"] != "open", "{seen}");
    ensure!(seen["total_ms"].as_f64().unwrap_or(0.0) < SOON_MS, "{seen}");
    refusal
        .expect("upstream_connect_failed", "outbound")
        .map(drop)
}

#[test]
fn service_without_endpoints_fails_soon_with_a_reason() -> Result<()> {
    let world = world()?;
    let refusal = Refusal::watch(&world.lab, "node1")?;
    let seen = world.app(CLIENT, &["connect", "nobody.mesh:80", "--read-to-end"])?;
    ensure!(seen["ok"] == false || seen["end"] != "open", "{seen}");
    ensure!(seen["total_ms"].as_f64().unwrap_or(0.0) < SOON_MS, "{seen}");
    refusal.expect("no_healthy_upstream", "outbound").map(drop)
}

#[test]
fn unknown_port_of_a_service_has_a_reason() -> Result<()> {
    let world = world()?;
    let refusal = Refusal::watch(&world.lab, "node1")?;
    let seen = world.app(CLIENT, &["connect", "server.mesh:4321", "--read-to-end"])?;
    ensure!(seen["ok"] == false || seen["end"] != "open", "{seen}");
    refusal.expect("service_port_unknown", "outbound").map(drop)
}

#[test]
fn closed_port_of_a_pod_is_reset_with_a_reason() -> Result<()> {
    let world = world()?;
    let refusal = Refusal::watch(&world.lab, "node2")?;
    let seen = world.app(
        CLIENT,
        &["connect", &world.at(SERVER, port::CLOSED)?, "--read-to-end"],
    )?;
    ensure!(
        seen["ok"] == false || seen["end"] == "ConnectionReset",
        "{seen}"
    );
    refusal
        .expect("upstream_connect_failed", "inbound")
        .map(drop)
}

#[test]
fn original_destination_through_getpeername() -> Result<()> {
    let world = world()?;
    for dial in [
        world.at(SERVER, port::ECHO)?,
        world.at6(SERVER, port::ECHO)?,
        world.at(NEAR, port::ECHO)?,
    ] {
        scenario::peer_is_what_was_dialled(world, CLIENT, &dial, &dial, &[])?;
    }
    let service = world.lab.service_addresses("mesh", "server")?;
    for address in service {
        let at = std::net::SocketAddr::new(address, port::ECHO).to_string();
        scenario::peer_is_what_was_dialled(world, CLIENT, &at, &at, &[])?;
    }
    Ok(())
}

#[test]
fn ipv4_mapped_sockets() -> Result<()> {
    let world = world()?;
    let at = world.at(SERVER, port::ECHO)?;
    let mapped = format!("[::ffff:{}]:{}", world.v4(SERVER)?, port::ECHO);
    scenario::peer_is_what_was_dialled(world, CLIENT, &at, &mapped, &["--v4-mapped"])?;
    let peer = world.at(SERVER, port::PEER_DUAL)?;
    scenario::server_sees_client(world, CLIENT, SERVER, &peer, &["--v4-mapped"])
}

#[test]
fn sockets_bound_to_the_pod_address() -> Result<()> {
    let world = world()?;
    let own = world.v4(CLIENT)?.to_string();
    let at = world.at(SERVER, port::PEER_V4)?;
    let seen = world.app_ok(
        CLIENT,
        &["connect", &at, "--bind", &own, "--read-lines", "1"],
    )?;
    ensure!(
        scenario::socket(&seen["getsockname"])?.ip().to_string() == own,
        "{seen}"
    );
    scenario::server_sees_client(world, CLIENT, SERVER, &at, &["--bind", &own])
}

#[test]
fn client_address_and_port_over_hbone() -> Result<()> {
    let world = world()?;
    for dial in [
        world.at(SERVER, port::PEER_V4)?,
        world.at(SERVER, port::PEER_DUAL)?,
        world.at6(SERVER, port::PEER_DUAL)?,
        format!("server.mesh:{}", port::PEER_DUAL),
    ] {
        scenario::server_sees_client(world, CLIENT, SERVER, &dial, &[])?;
    }
    Ok(())
}

#[test]
fn client_address_and_port_over_hbone_on_the_same_node() -> Result<()> {
    let world = world()?;
    for dial in [
        world.at(NEAR, port::PEER_V4)?,
        world.at(NEAR, port::PEER_DUAL)?,
        world.at6(NEAR, port::PEER_DUAL)?,
    ] {
        scenario::server_sees_client(world, CLIENT, NEAR, &dial, &[])?;
    }
    Ok(())
}

#[test]
fn client_address_and_port_over_plaintext() -> Result<()> {
    let world = world()?;
    for dial in [
        world.at(SERVER, port::PEER_V4)?,
        world.at(SERVER, port::PEER_DUAL)?,
        world.at6(SERVER, port::PEER_DUAL)?,
    ] {
        scenario::server_sees_client(world, PLAIN_CLIENT, SERVER, &dial, &[])?;
    }
    Ok(())
}

#[test]
fn unenrolled_to_enrolled() -> Result<()> {
    let world = world()?;
    let host = world.v4(SERVER)?.to_string();
    scenario::http_of_every_kind(world, PLAIN_CLIENT, &host, port::HTTP)?;
    let at = world.at(SERVER, port::ECHO)?;
    let seen = scenario::peer_is_what_was_dialled(world, PLAIN_CLIENT, &at, &at, &[])?;
    let record = record(world, "node2", "inbound", &seen)?;
    ensure!(
        record["connection_security_policy"] != "mutual_tls",
        "{record}"
    );
    ensure!(
        record["src.identity"].is_null(),
        "an identity nobody proved: {record}"
    );
    Ok(())
}

#[test]
fn enrolled_to_unenrolled() -> Result<()> {
    let world = world()?;
    let host = world.v4(PLAIN_SERVER)?.to_string();
    scenario::http_of_every_kind(world, CLIENT, &host, port::HTTP)?;
    let at = world.at6(PLAIN_SERVER, port::ECHO)?;
    scenario::peer_is_what_was_dialled(world, CLIENT, &at, &at, &[])?;
    let at = world.at(PLAIN_SERVER, port::PEER_V4)?;
    let seen = world.app_ok(CLIENT, &["connect", &at, "--read-lines", "1"])?;
    let told: Value = serde_json::from_str(seen["lines"][0].as_str().context("no line")?)?;
    let peer = scenario::socket(&told["accept"])?.ip();
    ensure!(
        world.lab.pod_addresses(CLIENT)?.contains(&peer),
        "the pod's address is lost: {told}"
    );
    Ok(())
}

#[test]
fn server_first_protocol() -> Result<()> {
    let world = world()?;
    for (from, to) in [
        (CLIENT, SERVER),
        (CLIENT, NEAR),
        (PLAIN_CLIENT, SERVER),
        (CLIENT, PLAIN_SERVER),
    ] {
        scenario::server_speaks_first(world, from, &world.v4(to)?.to_string())?;
    }
    Ok(())
}

#[test]
fn half_close_by_the_client() -> Result<()> {
    let world = world()?;
    for (from, to) in [
        (CLIENT, SERVER),
        (CLIENT, NEAR),
        (PLAIN_CLIENT, SERVER),
        (CLIENT, PLAIN_SERVER),
    ] {
        scenario::client_ends_first(world, from, &world.v4(to)?.to_string())
            .with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}

#[test]
fn half_close_by_the_server() -> Result<()> {
    let world = world()?;
    for (from, to) in [
        (CLIENT, SERVER),
        (CLIENT, NEAR),
        (PLAIN_CLIENT, SERVER),
        (CLIENT, PLAIN_SERVER),
    ] {
        scenario::server_ends_first(world, from, to, &world.v4(to)?.to_string())
            .with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}

#[test]
fn reset_by_the_client() -> Result<()> {
    let world = world()?;
    for (from, to) in [
        (CLIENT, SERVER),
        (PLAIN_CLIENT, SERVER),
        (CLIENT, PLAIN_SERVER),
    ] {
        scenario::client_resets(world, from, to, &world.v4(to)?.to_string())
            .with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}

#[test]
fn reset_by_the_server() -> Result<()> {
    let world = world()?;
    for (from, to) in [
        (CLIENT, SERVER),
        (PLAIN_CLIENT, SERVER),
        (CLIENT, PLAIN_SERVER),
    ] {
        scenario::server_resets(world, from, &world.v4(to)?.to_string())
            .with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}

#[test]
fn udp_is_untouched() -> Result<()> {
    let world = world()?;
    scenario::udp(world, CLIENT, SERVER)?;
    scenario::udp(world, CLIENT, PLAIN_SERVER)?;
    scenario::udp(world, PLAIN_CLIENT, SERVER)
}

/// What a server on the same host shows: no address is anybody else's, and no agent has seen
/// the connection.
fn untouched(world: &World, pod: &str, dial: &str) -> Result<()> {
    let seen = world.app_ok(pod, &["connect", dial, "--read-lines", "1"])?;
    ensure!(seen["getpeername"] == dial, "{seen}");
    let told: Value = serde_json::from_str(seen["lines"][0].as_str().context("no line")?)?;
    ensure!(
        scenario::socket(&told["accept"])? == scenario::socket(&seen["getsockname"])?,
        "{seen}: {told}"
    );
    let port = scenario::socket(&seen["getsockname"])?.port();
    let ends_with = format!(":{port}");
    let node = world.lab.pod_node(pod)?;
    // The agent's log is written in order: once a later connection is in it, an earlier one
    // would be too.
    let marker = world.app_ok(pod, &["connect", &world.at(PLAIN_SERVER, port::ECHO)?])?;
    record(world, &node, "outbound", &marker)?;
    let of_pod = format!("{}{ends_with}", world.v4(pod)?);
    let records = access_records(&world.lab, &node)?;
    let touched = records.iter().find(|record| {
        let source = record["src.addr"].as_str().unwrap_or_default();
        source == of_pod || source.starts_with("127.") && source.ends_with(&ends_with)
    });
    ensure!(touched.is_none(), "an agent saw it: {touched:?}");
    Ok(())
}

#[test]
fn loopback_is_untouched() -> Result<()> {
    let world = world()?;
    for dial in [
        format!("127.0.0.1:{}", port::PEER_V4),
        format!("[::1]:{}", port::PEER_DUAL),
    ] {
        untouched(world, SERVER, &dial)?;
    }
    Ok(())
}

#[test]
fn a_pod_calling_its_own_address_is_untouched() -> Result<()> {
    let world = world()?;
    for dial in [
        world.at(SERVER, port::PEER_V4)?,
        world.at(SERVER, port::PEER_DUAL)?,
        world.at6(SERVER, port::PEER_DUAL)?,
    ] {
        untouched(world, SERVER, &dial)?;
    }
    Ok(())
}

#[test]
fn a_pod_calls_itself_by_its_service() -> Result<()> {
    let world = world()?;
    let at = format!(
        "{}:{}",
        world.lab.service_addresses("mesh", "near")?[0],
        port::ECHO
    );
    scenario::peer_is_what_was_dialled(world, NEAR, &at, &at, &[]).map(drop)
}

#[test]
fn a_probe_from_the_node_passes() -> Result<()> {
    let world = world()?;
    for dial in [
        world.at(SERVER, port::PEER_V4)?,
        world.at6(SERVER, port::PEER_DUAL)?,
    ] {
        let seen = world.app_on_node("node2", &["connect", &dial, "--read-lines", "1"])?;
        ensure!(seen["ok"] == true, "the probe failed: {seen}");
        let told: Value = serde_json::from_str(seen["lines"][0].as_str().context("no line")?)?;
        let client = scenario::socket(&seen["getsockname"])?;
        ensure!(
            scenario::socket(&told["accept"])? == client,
            "{seen}: {told}"
        );
        // Straight to the application: once a later connection is in the agent's log, this one
        // would be too.
        let marker = world.app_ok(PLAIN_CLIENT, &["connect", &world.at(SERVER, port::ECHO)?])?;
        record(world, "node2", "inbound", &marker)?;
        let records = access_records(&world.lab, "node2")?;
        let seen = records
            .iter()
            .find(|record| record["src.addr"] == client.to_string().as_str());
        ensure!(seen.is_none(), "an agent saw the probe: {seen:?}");
    }
    Ok(())
}
