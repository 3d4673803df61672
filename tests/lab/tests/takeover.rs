//! An agent that is upgraded: a second one starts beside it and takes the node over. No
//! connection is refused or reset for it, and what goes wrong on the way changes nothing.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{Chat, World, kernel_view, once_attached};
use karst_node_agent::takeover::taker::{self, Offer};
use serde_json::Value;

const CLIENT: &str = "mesh/client";
const SERVER: &str = "mesh/server";
/// On the same node as the client: what it takes, the upgraded agent takes.
const NEAR: &str = "mesh/near";
const OUTSIDE: &str = "plain/client";
const NODE: &str = "node1";

/// Time for an agent to start, get its certificates and take over.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(60);

/// Connections of one round of load.
const ROUND: &str = "100";

/// Short connections through the upgraded agent, in each direction it knows: out of a pod,
/// into a pod by tunnel, into a pod in the clear.
fn ways(world: &World) -> Result<[(&'static str, String); 3]> {
    let near = world.at(NEAR, port::ECHO)?;
    Ok([
        (CLIENT, world.at(SERVER, port::ECHO)?),
        (SERVER, near.clone()),
        (OUTSIDE, near),
    ])
}

/// New connections, one round after the other.
#[derive(Default)]
struct Load {
    done: AtomicBool,
    rounds: AtomicU64,
}

impl Load {
    /// Connects until told to end; fails at the first connection that fails.
    fn run(&self, world: &World, from: &str, at: &str) -> Result<()> {
        while !self.done.load(Ordering::Relaxed) {
            let report = world.app(from, &["storm", at, ROUND, "--at-once", "4"])?;
            ensure!(report["ok"] == true, "{from} to {at}: {report}");
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits for more rounds, so that every way has been gone since.
    fn go_on(&self) -> Result<()> {
        let goal = self.rounds.load(Ordering::Relaxed) + 9;
        until("the load to go on", Duration::from_secs(60), || {
            ensure!(
                self.rounds.load(Ordering::Relaxed) >= goal || self.done.load(Ordering::Relaxed)
            );
            Ok(())
        })
    }
}

/// Ends the load also when the test fails.
struct EndOfLoad<'a>(&'a Load);

impl Drop for EndOfLoad<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

/// Runs `test` under load.
fn under_load(world: &World, test: impl FnOnce(&Load) -> Result<()>) -> Result<()> {
    let load = Load::default();
    let ways = ways(world)?;
    std::thread::scope(|scope| {
        let end = EndOfLoad(&load);
        let running = ways.each_ref().map(|(from, at)| {
            let load = &load;
            scope.spawn(move || {
                let outcome = load.run(world, from, at);
                // A way that fails ends the test.
                load.done.store(true, Ordering::Relaxed);
                outcome
            })
        });
        let tested = load.go_on().and_then(|()| test(&load));
        drop(end);
        let mut loaded = Ok(());
        for way in running {
            let outcome = way.join().map_err(|_| anyhow!("a way panicked"));
            loaded = loaded.and(outcome.and_then(|outcome| outcome));
        }
        // A failed connection explains more than what the test noticed of it.
        loaded.and(tested)
    })
}

fn chats(world: &World) -> Result<Vec<Chat>> {
    let open = |(from, at): &(&str, String)| Chat::open(&world.lab, from, at);
    ways(world)?.iter().map(open).collect()
}

fn all_say(chats: &mut [Chat], line: &str) -> Result<()> {
    chats.iter_mut().try_for_each(|chat| chat.say(line))
}

fn pid(world: &World) -> Result<u64> {
    let status: Value = world.lab.agent_admin(NODE, "/v1/status")?;
    status["pid"].as_u64().context("no pid")
}

fn one_connection_each_way(world: &World) -> Result<()> {
    for (from, at) in ways(world)? {
        world.app_ok(from, &["connect", &at, "--send", "x", "--read-lines", "1"])?;
    }
    Ok(())
}

#[test]
fn upgrades_refuse_and_reset_nothing() -> Result<()> {
    let world = World::up("upgrade", Mesh::On)?;
    let lab = &world.lab;
    let before = kernel_view(&world, NODE)?;
    let mut old_chats = chats(&world)?;
    let mut new_chats = Vec::new();
    let first = pid(&world)?;
    let mut agents = Vec::new();
    under_load(&world, |load| {
        // Another number of workers each time: more than before, then fewer.
        for (tag, workers) in [("b", "--workers=3"), ("c", "--workers=1")] {
            let agent = lab.spawn_successor(NODE, tag, &[workers])?;
            agents.push(agent);
            until("the new agent to take over", TAKEOVER_LIMIT, || {
                lab.successor_ready(NODE, tag)
            })?;
            ensure!(pid(&world)? != first, "the admin socket is the old one's");
            load.go_on()?;
            all_say(&mut old_chats, "beside the new agent")?;
        }
        new_chats = chats(&world)?;
        let served_before = lab.successor_ready(NODE, "b").err().context("b serves")?;
        ensure!(
            format!("{served_before:#}").contains("handed_over"),
            "{served_before:#}"
        );
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| lab.stop_agent(NODE));
            until("the old agent to drain", TAKEOVER_LIMIT, || {
                ensure!(lab.agent_log(NODE)?.contains("draining"));
                Ok(())
            })?;
            all_say(&mut old_chats, "while the old agent drains")?;
            ending.join().map_err(|_| anyhow!("stopping panicked"))?
        })?;
        load.go_on()
    })?;
    for chat in &mut old_chats {
        ensure!(
            chat.say("beyond the drain deadline").is_err(),
            "who carries this connection?"
        );
    }
    all_say(&mut new_chats, "nothing has changed for the others")?;
    one_connection_each_way(&world)?;
    ensure!(kernel_view(&world, NODE)? == before, "not as before");
    once_attached(&world, NODE)?;
    until("the metrics port", Duration::from_secs(10), || {
        lab.agent_metrics(NODE).map(drop)
    })
}

/// Has the agent offer the node to this test, as to a new agent that does not go on.
fn offered(world: &World) -> Result<(tokio::runtime::Runtime, Offer)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let socket = world.lab.takeover_socket(NODE);
    let offer = runtime.block_on(taker::ask(&socket, Vec::new()))?;
    Ok((runtime, offer))
}

#[test]
fn a_new_agent_that_dies_on_the_way_is_none() -> Result<()> {
    let world = World::up("newdies", Mesh::On)?;
    let lab = &world.lab;
    let before = kernel_view(&world, NODE)?;
    let served_by = pid(&world)?;
    let mut chats = chats(&world)?;
    under_load(&world, |load| {
        let (runtime, offer) = offered(&world)?;
        all_say(&mut chats, "in the middle of it")?;
        drop(offer);
        drop(runtime);
        load.go_on()?;
        // A real one, killed while it gets ready or later.
        lab.spawn_successor(NODE, "dies", &[])?.kill()?;
        load.go_on()
    })?;
    all_say(&mut chats, "as if nothing had been")?;
    ensure!(pid(&world)? == served_by, "another agent serves");
    ensure!(kernel_view(&world, NODE)? == before, "not as before");
    once_attached(&world, NODE)
}

#[test]
fn an_agent_that_handed_over_steps_in_when_its_successor_dies() -> Result<()> {
    let world = World::up("stepin", Mesh::On)?;
    let lab = &world.lab;
    let before = kernel_view(&world, NODE)?;
    let served_by = pid(&world)?;
    let mut chats = chats(&world)?;
    let successor = lab.spawn_successor(NODE, "b", &[])?;
    until("the new agent to take over", TAKEOVER_LIMIT, || {
        lab.successor_ready(NODE, "b")
    })?;
    successor.kill()?;
    until("the old agent to serve again", TAKEOVER_LIMIT, || {
        ensure!(pid(&world)? == served_by, "another agent serves");
        one_connection_each_way(&world)
    })?;
    all_say(&mut chats, "through the same agent all the time")?;
    ensure!(kernel_view(&world, NODE)? == before, "not as before");
    once_attached(&world, NODE)
}

/// Tells this program, run again as another user, to be the asker at this socket.
const ASK_AT: &str = "KARST_TEST_ASK_AT";

/// `nobody`.
const NOBODY: u32 = 65_534;

/// What a process gets that asks for a takeover.
fn ask(socket: &Path) -> Result<Offer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(taker::ask(socket, Vec::new()))?)
}

#[test]
fn only_root_may_ask_for_a_takeover() -> Result<()> {
    if let Some(socket) = std::env::var_os(ASK_AT) {
        let error = ask(Path::new(&socket)).err().context("it was offered")?;
        ensure!(format!("{error:#}").contains("ended"), "{error:#}");
        return Ok(());
    }
    let world = World::up("askroot", Mesh::On)?;
    let socket = world.lab.takeover_socket(NODE);
    let folder = socket.parent().context("no folder")?;
    let mode =
        |path: &Path| -> Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure!(mode(&socket)? == 0o600, "others may open the socket");
    ensure!(mode(folder)? == 0o700, "others may look into the state");
    // The kernel's word on the peer counts, not the files' modes alone.
    let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode));
    set(&socket, 0o666)?;
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with("/run/"))
        .try_for_each(|folder| set(folder, 0o755))?;
    let copy = std::env::temp_dir().join(format!("karst-asker-{}", std::process::id()));
    // By another process: a child that another thread forks meanwhile would hold this process's copy open for
    // writing, and what is open for writing cannot be run.
    let copied = Command::new("cp")
        .arg(std::env::current_exe()?)
        .arg(&copy)
        .status()?;
    ensure!(copied.success(), "cp: {copied}");
    set(&copy, 0o755)?;
    let asked = Command::new(&copy)
        .args(["--exact", "only_root_may_ask_for_a_takeover"])
        .env(ASK_AT, &socket)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output();
    std::fs::remove_file(&copy)?;
    let asked = asked?;
    ensure!(
        asked.status.success(),
        "{}",
        String::from_utf8_lossy(&asked.stdout)
    );
    until("the refusal in the log", Duration::from_secs(10), || {
        let log = world.lab.agent_log(NODE)?;
        ensure!(log.contains("takeover_not_root"), "it is not logged");
        Ok(())
    })?;
    one_connection_each_way(&world)
}
