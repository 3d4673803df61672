//! Connections between two pods of one node: past the agent where nothing asks for it, and reported, refused and reset
//! like all others.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{Chat, Refusal, World, access_records};
use serde_json::Value;

static WORLD: LazyLock<Result<World>> = LazyLock::new(|| World::up("same", Mesh::On));
/// Policies and counters are the whole world's: one test at a time looks at them.
static TURN: Mutex<()> = Mutex::new(());

const NODE: &str = "node1";
const CLIENT: &str = "mesh/client";
const NEAR: &str = "mesh/near";
/// A change is in force within.
const IN_FORCE: Duration = Duration::from_secs(10);

fn world() -> Result<(&'static World, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world = WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    // What a test that failed has left; there may be none.
    let _ = world.lab.delete(&deny("{}"));
    Ok((world, turn))
}

/// What the programs have counted on a node.
fn counted(world: &World, node: &str, counter: &str) -> Result<u64> {
    let output = world
        .lab
        .inspect(node, &["map", "dump", "COUNTERS", "-j"])?;
    let dump: Value = serde_json::from_slice(&output.stdout)?;
    let items = dump.as_array().or_else(|| dump["entries"].as_array());
    let mut items = items.into_iter().flatten();
    let found = items.find(|one| one["key"]["reason"] == counter);
    let value = found.and_then(|one| one["value"]["value"].as_str()?.parse().ok());
    value.with_context(|| format!("no counter {counter} in {dump}"))
}

/// The entries of a map on node1.
fn entries(world: &World, map: &str) -> Result<usize> {
    let output = world.lab.inspect(NODE, &["map", "dump", map, "-j"])?;
    let dump: Value = serde_json::from_slice(&output.stdout)?;
    let entries = match &dump {
        Value::Array(entries) => Some(entries),
        other => other["entries"].as_array(),
    };
    Ok(entries.with_context(|| dump.to_string())?.len())
}

/// How many connections went past the agent while `work` was done, as their other end counted them.
fn past(world: &World, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = counted(world, NODE, "bypass_verified")?;
    work()?;
    Ok(counted(world, NODE, "bypass_verified")? - before)
}

/// Waits until a connection from client to near goes past the agent.
fn until_past(world: &World) -> Result<()> {
    let at = world.at(NEAR, port::ECHO)?;
    until("a connection goes past the agent", IN_FORCE, || {
        let count = past(world, || echo(world, &at))?;
        ensure!(count == 1, "it went through the agent");
        Ok(())
    })
}

fn echo(world: &World, at: &str) -> Result<()> {
    let args = ["connect", at, "--send", "hello", "--read-lines", "1"];
    world.app_ok(CLIENT, &args).map(drop)
}

/// What the server at `at` sees; the client has to see `at`.
fn peer(world: &World, at: &str) -> Result<String> {
    let seen = world.app_ok(CLIENT, &["connect", at, "--read-lines", "1"])?;
    ensure!(seen["getpeername"] == at, "{seen}");
    Ok(seen["lines"][0].as_str().context("no line")?.to_owned())
}

/// Records of the access log from `from` on that have all these fields.
fn logged(world: &World, from: usize, fields: &[(&str, &str)]) -> Result<Vec<Value>> {
    let mut records = access_records(&world.lab, NODE)?.split_off(from);
    records.retain(|record| fields.iter().all(|(name, value)| record[*name] == *value));
    Ok(records)
}

#[test]
fn it_goes_past_the_agent_and_is_reported_by_both_ends() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let records = access_records(&world.lab, NODE)?.len();
    let both = [world.at(NEAR, port::ECHO)?, world.at6(NEAR, port::ECHO)?];
    for at in &both {
        let count = past(world, || echo(world, at))?;
        ensure!(count == 1, "{at} was reached through the agent");
    }
    until("both ends are logged", IN_FORCE, || {
        let ways = ["outbound", "inbound"];
        for (direction, at) in ways
            .iter()
            .flat_map(|way| both.iter().map(move |at| (*way, at)))
        {
            let found = logged(
                world,
                records,
                &[
                    ("direction", direction),
                    ("dst.addr", at),
                    ("connection_security_policy", "same_node"),
                    ("src.identity", "spiffe://cluster.local/ns/mesh/sa/client"),
                    ("dst.identity", "spiffe://cluster.local/ns/mesh/sa/near"),
                    ("dst.workload", "near"),
                ],
            )?;
            ensure!(!found.is_empty(), "{direction} {at}: {found:?}");
            for record in found {
                // "hello" and its end of line, there and back.
                ensure!(
                    record["bytes_recv"] == 6 && record["bytes_sent"] == 6,
                    "{record}"
                );
                ensure!(record["reason"].is_null(), "{record}");
            }
        }
        Ok(())
    })?;
    let metrics = world.lab.agent_metrics(NODE)?;
    for reporter in ["source", "destination"] {
        let counted = |name: &str| {
            let mut lines = metrics.lines();
            lines.any(|line| {
                line.starts_with(name)
                    && line.contains(&format!("reporter=\"{reporter}\""))
                    && line.contains("connection_security_policy=\"same_node\"")
                    && line.contains("destination_workload=\"near\"")
            })
        };
        for name in [
            "istio_tcp_connections_opened_total{",
            "istio_tcp_connections_closed_total{",
            "istio_tcp_sent_bytes_total{",
        ] {
            ensure!(counted(name), "no {name} of {reporter} in\n{metrics}");
        }
    }
    Ok(())
}

#[test]
fn both_ends_see_each_other_and_nothing_is_left() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let (client4, client6) = (world.v4(CLIENT)?, world.v6(CLIENT)?);
    for (at, client) in [
        (world.at(NEAR, port::PEER_DUAL)?, client4),
        (world.at6(NEAR, port::PEER_DUAL)?, client6),
    ] {
        let count = past(world, || {
            let seen = peer(world, &at)?;
            let text = seen.to_string();
            ensure!(
                text.contains(&client.to_string()),
                "{client} is not in {text}"
            );
            Ok(())
        })?;
        ensure!(count >= 1, "{at} was reached through the agent");
    }
    // Refused where nobody listens, honestly.
    let closed = world.at(NEAR, port::CLOSED)?;
    let refused = world.app(CLIENT, &["connect", &closed])?;
    ensure!(refused["ok"] == false, "{refused}");
    ensure!(refused.to_string().contains("refused"), "{refused}");
    for map in ["FLOWS", "AUTH"] {
        until("the maps are empty", IN_FORCE, || {
            let left = entries(world, map)?;
            ensure!(left == 0, "{map} has {left} entries");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn live_connections_are_listed_with_their_bytes() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let mut chat = Chat::open(&world.lab, CLIENT, &world.at(NEAR, port::ECHO)?)?;
    chat.say("hello there")?;
    until("it is listed", IN_FORCE, || {
        let all = world.lab.agent_admin(NODE, "/v1/connections")?;
        let all = all.as_array().context("no list")?;
        let ours: Vec<_> = all
            .iter()
            .filter(|one| one["path"] == "same_node")
            .collect();
        ensure!(ours.len() == 2, "{all:?}");
        for one in ours {
            ensure!(one["bytes_recv"] == 12 && one["bytes_sent"] == 12, "{one}");
            ensure!(one["dst"]["workload"] == "near", "{one}");
        }
        Ok(())
    })?;
    chat.end()
}

/// A Service with an endpoint on each node.
const SPREAD: &str = "
apiVersion: v1
kind: Service
metadata: {name: spread, namespace: mesh}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {spread: here}
  ports: [{name: peer, port: 90, targetPort: 7006}]
---
";

#[test]
fn a_service_is_spread_over_all_its_endpoints() -> Result<()> {
    let (world, _turn) = world()?;
    let mut manifests = String::from(SPREAD);
    for (name, node) in [("here", "node1"), ("there", "node2")] {
        let pod = karst_lab_tests::manifest("mesh", name, node, name, "serve");
        manifests += &pod.replace(&format!("{{app: {name}}}"), "{spread: here}");
    }
    world.lab.apply(&manifests)?;
    for pod in ["mesh/here", "mesh/there"] {
        world.lab.wait_enrolled(pod)?;
    }
    let vips = world.lab.service_addresses("mesh", "spread")?;
    let vip = vips
        .iter()
        .find(|vip| vip.is_ipv4())
        .context("no IPv4 address")?;
    let at = format!("{vip}:90");
    until("the service is known in the kernel", IN_FORCE, || {
        let count = past(world, || {
            for _ in 0..10 {
                peer(world, &at)?;
            }
            Ok(())
        })?;
        ensure!(count > 0, "all went through the agent");
        Ok(())
    })?;
    let count = past(world, || {
        for _ in 0..100 {
            peer(world, &at)?;
        }
        Ok(())
    })?;
    // A fair coin falls outside of this once in a million.
    ensure!(
        (25..=75).contains(&count),
        "{count} of 100 came to the endpoint of this node"
    );
    let records = logged(
        world,
        0,
        &[("dst.service", "spread.mesh.svc.cluster.local")],
    )?;
    let of = |policy: &str| {
        let of = |record: &&Value| {
            record["connection_security_policy"] == policy && record["direction"] == "outbound"
        };
        records.iter().filter(of).count()
    };
    ensure!(of("same_node") > 25 && of("mutual_tls") > 25, "{records:?}");
    world.lab.delete(&manifests)
}

fn deny(rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: stop, namespace: mesh}}\n\
         spec: {{action: DENY, rules: [{rule}]}}\n---\n"
    )
}

#[test]
fn a_policy_resets_what_it_forbids_and_names_itself() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let mut chat = Chat::open(&world.lab, CLIENT, &world.at(NEAR, port::ECHO)?)?;
    chat.say("hello")?;
    // Another port of the same pod is another matter, for what lives and for what is new.
    let other = world.at(NEAR, port::PEER_DUAL)?;
    world
        .lab
        .apply(&deny("{to: [{operation: {ports: [\"7006\"]}}]}"))?;
    until("the other port is refused", IN_FORCE, || {
        let passed = peer(world, &other);
        ensure!(passed.is_err(), "it passes");
        Ok(())
    })?;
    chat.say("still there")?;
    until_past(world)?;
    let records = access_records(&world.lab, NODE)?.len();
    let refusal = Refusal::watch(&world.lab, NODE)?;
    let policy = deny("{to: [{operation: {ports: [\"7000\"]}}]}");
    world.lab.apply(&policy)?;
    until("it is reset", IN_FORCE, || {
        ensure!(chat.say("still there").is_err(), "it goes on");
        Ok(())
    })?;
    let count = past(world, || peer(world, &other).map(drop))?;
    ensure!(count == 1, "another port is not reached past the agent");
    let at = world.at(NEAR, port::ECHO)?;
    ensure!(echo(world, &at).is_err(), "new connections pass");
    let refused = refusal.expect("policy_denied", "inbound")?;
    ensure!(refused["policy.name"] == "mesh/stop", "{refused}");
    until(
        "the reset connection is logged with the policy",
        IN_FORCE,
        || {
            let found = logged(
                world,
                records,
                &[
                    ("connection_security_policy", "same_node"),
                    ("reason", "policy_denied"),
                    ("policy.name", "mesh/stop"),
                ],
            )?;
            ensure!(found.len() == 2, "{found:?}");
            Ok(())
        },
    )?;
    world.lab.delete(&policy)?;
    until_past(world)
}

#[test]
fn none_lives_on_while_policies_flip() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let at = world.at(NEAR, port::ECHO)?;
    let policy = deny("{}");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (flips, reset) = std::thread::scope(|scope| {
        let dial = || -> Result<u64> {
            let mut reset = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Refused while the policy is in force.
                let Ok(mut chat) = Chat::open(&world.lab, CLIENT, &at) else {
                    continue;
                };
                std::thread::sleep(Duration::from_millis(30));
                reset += u64::from(chat.say("hello").is_err());
            }
            Ok(reset)
        };
        let dialing: Vec<_> = (0..3).map(|_| scope.spawn(dial)).collect();
        let flips = flip(world, &policy);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let reset: u64 = dialing
            .into_iter()
            .map(|one| one.join().map_or(Ok(0), |reset| reset).unwrap_or(0))
            .sum();
        (flips, reset)
    });
    flips?;
    ensure!(
        reset > 0,
        "no connection lived when the policy came: nothing was tested"
    );
    world.lab.delete(&policy)?;
    until_past(world)
}

/// Has the policy come and go, and looks each time that nothing lives while it is there.
fn flip(world: &World, policy: &str) -> Result<()> {
    for _ in 0..15 {
        let verdicts = entries(world, "VERDICTS")?;
        world.lab.apply(policy)?;
        until("the verdicts are gone", IN_FORCE, || {
            let left = entries(world, "VERDICTS")?;
            ensure!(left < verdicts, "{left} of {verdicts}");
            Ok(())
        })?;
        // The verdicts change first, and then what lives is reset; that takes milliseconds.
        until("all are reset", Duration::from_secs(1), || {
            let left = entries(world, "FLOWS")?;
            ensure!(left == 0, "{left} live on");
            Ok(())
        })?;
        for _ in 0..5 {
            let left = entries(world, "FLOWS")?;
            ensure!(left == 0, "{left} came to live under the policy");
        }
        world.lab.delete(policy)?;
        until_past(world)?;
    }
    Ok(())
}

#[test]
fn a_policy_on_trial_keeps_the_agent_in_between() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let trial = deny("{to: [{operation: {ports: [\"7000\"]}}]}").replace(
        "namespace: mesh}",
        "namespace: mesh, annotations: {istio.io/dry-run: \"true\"}}",
    );
    world.lab.apply(&trial)?;
    let at = world.at(NEAR, port::ECHO)?;
    until("the agent is in between", IN_FORCE, || {
        let count = past(world, || echo(world, &at))?;
        ensure!(count == 0, "past the agent");
        Ok(())
    })?;
    until("what is on trial is logged", IN_FORCE, || {
        let found = logged(world, 0, &[("dry_run.policy.name", "mesh/stop")])?;
        ensure!(!found.is_empty(), "it is not");
        Ok(())
    })?;
    world.lab.delete(&trial)?;
    until_past(world)
}

#[test]
fn it_goes_on_without_an_agent_and_the_next_one_takes_over() -> Result<()> {
    let (world, _turn) = world()?;
    until_past(world)?;
    let near = world.at(NEAR, port::ECHO)?;
    let mut chat = Chat::open(&world.lab, CLIENT, &near)?;
    chat.say("before")?;
    world.lab.kill_agent(NODE)?;
    // The last good state holds; what needs the agent is refused.
    chat.say("without")?;
    echo(world, &near)?;
    let far = world.at("mesh/server", port::ECHO)?;
    ensure!(echo(world, &far).is_err(), "plain text to another node");
    world.lab.start_agent(NODE)?;
    chat.say("after")?;
    until("the new agent knows it", Duration::from_secs(60), || {
        let all = world.lab.agent_admin(NODE, "/v1/connections")?;
        let all = all.as_array().context("no list")?;
        let ours = all.iter().filter(|one| one["path"] == "same_node").count();
        ensure!(ours == 2, "{all:?}");
        Ok(())
    })?;
    until_past(world)?;
    // The new agent resets what is forbidden now.
    let policy = deny("{}");
    world.lab.apply(&policy)?;
    until("it is reset", IN_FORCE, || {
        ensure!(chat.say("still there").is_err(), "it goes on");
        Ok(())
    })?;
    world.lab.delete(&policy)?;
    until_past(world)
}

#[test]
fn who_wants_it_encrypted_has_the_agent_in_between() -> Result<()> {
    let world = World::up_with("sameenc", Mesh::On, |options| karst_harness::LabOptions {
        agent_args: vec!["--encrypt-same-node".to_owned()],
        ..options
    })?;
    let at = world.at(NEAR, port::ECHO)?;
    let count = past(&world, || {
        for _ in 0..20 {
            echo(&world, &at)?;
        }
        Ok(())
    })?;
    ensure!(count == 0, "{count} went past the agent");
    until("they are logged as tunnelled", IN_FORCE, || {
        let fields = [
            ("connection_security_policy", "mutual_tls"),
            ("direction", "inbound"),
        ];
        let tunnelled = logged(&world, 0, &fields)?;
        ensure!(tunnelled.len() >= 20, "{tunnelled:?}");
        Ok(())
    })
}
