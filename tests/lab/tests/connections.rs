//! Live connections as `karst inspect connection` shows them: what the agent knows, joined with what the kernel
//! measures on both of its sockets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{Chat, World};
use serde_json::Value;

/// The connection of `direction` to the echo port at a node.
fn shown(world: &World, node: &str, direction: &str) -> Result<Value> {
    let output = world.lab.inspect(node, &["conn", "-j"])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    let list: Value = serde_json::from_slice(&output.stdout)?;
    let suffix = format!(":{}", port::ECHO);
    let is_it = |one: &&Value| {
        let to = one["dst"]["addr"].as_str().unwrap_or_default();
        one["direction"] == direction && to.ends_with(&suffix)
    };
    let found = list.as_array().into_iter().flatten().find(is_it);
    found
        .cloned()
        .with_context(|| format!("no such connection on {node}: {list}"))
}

/// Both legs were measured; the bytes of the chat passed over that to the application.
fn measured(connection: &Value) -> Result<()> {
    ensure!(connection["sockets"] == "read", "{connection}");
    for leg in ["application", "network"] {
        let leg = &connection[leg];
        let number = |key: &str| leg[key].as_u64();
        ensure!(
            leg["state"] == "established"
                && number("rtt_us") > Some(0)
                && number("cwnd") > Some(0)
                && number("cookie") > Some(0)
                && number("retransmits_total").is_some(),
            "a leg is not measured: {connection}"
        );
    }
    let bytes = connection["application"]["bytes_received"].as_u64();
    ensure!(bytes >= Some(10), "{bytes:?}: {connection}");
    Ok(())
}

#[test]
fn connections_are_shown_with_what_the_kernel_measures() -> Result<()> {
    let world = World::up("conns", Mesh::On)?;
    let at = world.at("mesh/server", port::ECHO)?;
    let mut chat = Chat::open(&world.lab, "mesh/client", &at)?;
    chat.say("a line of more than ten bytes")?;
    let wait = Duration::from_secs(10);
    let (out, inbound) = until("the connection to be shown", wait, || {
        Ok((
            shown(&world, "node1", "outbound")?,
            shown(&world, "node2", "inbound")?,
        ))
    })?;
    for connection in [&out, &inbound] {
        ensure!(connection["path"] == "hbone", "{connection}");
        measured(connection)?;
    }
    let id = |name: &str| format!("spiffe://cluster.local/ns/mesh/sa/{name}");
    ensure!(out["src"]["identity"] == id("client").as_str(), "{out}");
    ensure!(
        inbound["src"]["identity"] == id("client").as_str(),
        "{inbound}"
    );
    // Both agents speak of one tunnel, each of its own end.
    ensure!(
        out["network"]["local"] == inbound["network"]["remote"]
            && out["network"]["remote"] == inbound["network"]["local"],
        "{out} and {inbound}"
    );
    chat.end()?;

    // From outside of the mesh, in plain text.
    let mut chat = Chat::open(&world.lab, "plain/client", &at)?;
    chat.say("a line of more than ten bytes")?;
    let plain = until("the connection to be shown", wait, || {
        let plain = shown(&world, "node2", "inbound")?;
        ensure!(plain["path"] == "plaintext", "{plain}");
        Ok(plain)
    })?;
    measured(&plain)?;
    let text = world.lab.inspect("node2", &["connection"])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(
        text.contains("NET RTT us") && text.contains("plaintext"),
        "{text}"
    );
    chat.end()
}
