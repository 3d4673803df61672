//! A label takes pods into the mesh and out of it while they run: nothing restarts, what is
//! connected stays connected, and only new connections take the new way.

use anyhow::{Context, Result, ensure};
use karst_harness::Mesh;
use karst_lab_tests::scenario::{self, port};
use karst_lab_tests::{AMBIENT, Chat, World, access_records, manifest};
use serde_json::Value;

/// The access records of connections by mutual TLS to `namespace`.
fn tunnelled(world: &World, node: &str, namespace: &str) -> Result<usize> {
    let records = access_records(&world.lab, node)?;
    let by_tls = |record: &&Value| {
        record["connection_security_policy"] == "mutual_tls" && record["dst.namespace"] == namespace
    };
    Ok(records.iter().filter(by_tls).count())
}

/// Whether a new connection is carried by mutual TLS, told by the live connections that the
/// client's agent lists.
fn is_carried(world: &World, from: &str, to: &str) -> Result<bool> {
    let mut chat = Chat::open(&world.lab, from, &world.at(to, port::ECHO)?)?;
    chat.say("is this carried?")?;
    let client = scenario::socket(&chat.connected["getsockname"])?.port();
    let node = world.lab.pod_node(from)?;
    let live = world.lab.agent_admin(&node, "/v1/connections")?;
    let live = live.as_array().context("/v1/connections is no list")?;
    let carried = live.iter().any(|connection| {
        let text = connection.to_string();
        text.contains(&format!(":{client}\"")) && text.contains("mutual_tls")
    });
    chat.end()?;
    Ok(carried)
}

#[test]
fn established_connections_survive_enrolment_and_its_end() -> Result<()> {
    let world = World::up("live", Mesh::On)?;
    let lab = &world.lab;
    for (name, node, role) in [("client", "node1", "wait"), ("server", "node2", "serve")] {
        lab.apply(&manifest("late", name, node, name, role))?;
    }
    let (client, server) = ("late/client", "late/server");
    let at = world.at(server, port::ECHO)?;
    let pids = |world: &World| -> Result<Vec<Option<u32>>> {
        let status = world.lab.status()?;
        Ok(status
            .pods
            .iter()
            .filter(|pod| pod.namespace == "late")
            .map(|pod| pod.pid)
            .collect())
    };
    let before = pids(&world)?;

    let mut plain = Chat::open(lab, client, &at)?;
    plain.say("before the label")?;
    ensure!(
        !is_carried(&world, client, server)?,
        "carried before the label"
    );

    lab.label_namespace("late", AMBIENT)?;
    lab.wait_enrolled(client)?;
    lab.wait_enrolled(server)?;
    plain.say("after the label")?;
    ensure!(
        is_carried(&world, client, server)?,
        "a new connection is not carried"
    );
    let mut carried = Chat::open(lab, client, &at)?;
    carried.say("through the mesh")?;

    lab.label_namespace("late", "karst.dev/dataplane-mode-")?;
    lab.wait_unenrolled(client)?;
    lab.wait_unenrolled(server)?;
    plain.say("without the label again")?;
    carried.say("still through the mesh")?;
    let count = tunnelled(&world, "node1", "late")?;
    ensure!(
        !is_carried(&world, client, server)?,
        "carried without the label"
    );
    plain.end()?;
    carried.end()?;
    // The carried one is in the log now that it ended, and nothing else.
    karst_harness::until(
        "the last record",
        std::time::Duration::from_secs(10),
        || {
            let now = tunnelled(&world, "node1", "late")?;
            ensure!(now == count + 1, "{now} records, there were {count}");
            Ok(())
        },
    )?;
    ensure!(
        before.iter().all(Option::is_some) && pids(&world)? == before,
        "a pod was restarted"
    );
    Ok(())
}

#[test]
fn a_pods_own_label_wins_over_its_namespaces() -> Result<()> {
    let world = World::up("label", Mesh::On)?;
    let lab = &world.lab;
    lab.label_pod("mesh/near", "karst.dev/dataplane-mode=none")?;
    lab.wait_unenrolled("mesh/near")?;
    lab.label_pod("plain/client", AMBIENT)?;
    lab.wait_enrolled("plain/client")?;
    ensure!(
        is_carried(&world, "plain/client", "mesh/server")?,
        "its own label is not followed"
    );
    ensure!(
        !is_carried(&world, "plain/client", "mesh/near")?,
        "a pod that opted out is in"
    );
    let enrolled = |name: &str| -> Result<bool> {
        let pods = lab.status()?.pods;
        let found = pods
            .iter()
            .find(|pod| format!("{}/{}", pod.namespace, pod.name) == name);
        Ok(found.context("no such pod")?.enrolled)
    };
    ensure!(enrolled("plain/client")? && !enrolled("mesh/near")? && !enrolled("plain/server")?);
    ensure!(enrolled("mesh/client")?);
    Ok(())
}

#[test]
fn a_pod_made_in_the_mesh_never_speaks_plainly() -> Result<()> {
    let world = World::up("born", Mesh::On)?;
    let lab = &world.lab;
    // Its very first act is a connection; the sandbox was enrolled before it could start.
    let first = "apiVersion: v1\nkind: Pod\nmetadata: {name: eager, namespace: mesh}\nspec:\n  \
                 nodeName: node1\n  serviceAccountName: eager\n  containers:\n  - name: app\n    \
                 image: karst-testapp\n    command: [sh, -c, \"karst-testapp connect ADDRESS --read-lines 1; sleep infinity\"]\n";
    let server = world.at("mesh/server", port::PEER_V4)?;
    lab.apply(&first.replace("ADDRESS", &server))?;
    let seen = karst_harness::until("its report", std::time::Duration::from_secs(20), || {
        let log = lab.logs("mesh/eager")?;
        let line = log.lines().next().context("it has not told anything")?;
        Ok(serde_json::from_str::<Value>(line)?)
    })?;
    ensure!(seen["ok"] == true, "{seen}");
    // A captured socket is connected to the agent in its own pod.
    ensure!(
        scenario::socket(&seen["getsockname"])?.ip().is_loopback(),
        "it was not captured: {seen}"
    );
    Ok(())
}
