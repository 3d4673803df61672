//! Where pods may connect to: the mode of their namespace, and hosts outside that ServiceEntries make
//! known. The host outside is one that no mesh knows.

use std::net::{IpAddr, SocketAddr};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Mesh, Running, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{Chat, Refusal, World, access_records};
use serde_json::Value;

static WORLD: LazyLock<Result<Stage>> = LazyLock::new(Stage::up);
/// The mode is the whole namespace's: one test at a time has its own.
static TURN: Mutex<()> = Mutex::new(());

const CLIENT: &str = "mesh/client";
const PLAIN: &str = "plain/client";
const NODE: &str = "node1";
/// A change is in force within.
const IN_FORCE: Duration = Duration::from_secs(10);

/// A world, and a server outside of it.
struct Stage {
    world: World,
    _server: Mutex<Running>,
    /// IPv4, then IPv6.
    outside: Vec<IpAddr>,
}

impl Stage {
    fn up() -> Result<Self> {
        let world = World::up("egress", Mesh::On)?;
        let mut command = world.lab.external_command(&["karst-testapp", "serve"])?;
        let server = Running::new(command.stdout(std::process::Stdio::null()).spawn()?);
        let outside = world.lab.external_addresses();
        until("the server outside", IN_FORCE, || {
            let at = SocketAddr::new(outside[0], port::ECHO).to_string();
            world.app_ok(PLAIN, &["connect", &at]).map(drop)
        })?;
        Ok(Self {
            world,
            _server: Mutex::new(server),
            outside,
        })
    }

    fn at(&self, family: usize, port: u16) -> String {
        SocketAddr::new(self.outside[family], port).to_string()
    }

    /// Sets the mode of the namespace `mesh`, and waits until the agent has it.
    fn mode(&self, mode: &str) -> Result<()> {
        let label = format!("karst.dev/egress={mode}");
        self.world.lab.label_namespace("mesh", &label)?;
        until("the mode is known", IN_FORCE, || {
            let pods = self.world.lab.agent_admin(NODE, "/v1/pods")?;
            let pods = pods.as_array().context("no list")?;
            let pod = pods
                .iter()
                .find(|pod| pod["namespace"] == "mesh" && pod["name"] == "client");
            let found = &pod.context("no pod")?["egress"];
            ensure!(found == mode, "{found}");
            Ok(())
        })
    }

    /// Whether a pod gets an answer at `at`.
    fn passes(&self, pod: &str, at: &str, passes: bool) -> Result<()> {
        let args = ["connect", at, "--send", "x", "--read-lines", "1"];
        let report = self.world.app(pod, &args)?;
        ensure!(
            report["ok"] == passes,
            "{pod} to {at}, expected {passes}: {report}"
        );
        Ok(())
    }

    /// Until what is expected is so, and then once more.
    fn becomes(&self, expected: &[(&str, &str, bool)]) -> Result<()> {
        let all = || {
            let mut all = expected.iter();
            all.try_for_each(|(pod, at, passes)| self.passes(pod, at, *passes))
        };
        until("what is expected", IN_FORCE, all)?;
        all()
    }

    /// Does `then` with the manifests, and removes them.
    fn with(&self, manifests: &str, then: impl FnOnce() -> Result<()>) -> Result<()> {
        self.world.lab.apply(manifests)?;
        let result = then();
        self.world.lab.delete(manifests)?;
        result
    }
}

fn stage() -> Result<&'static Stage> {
    WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// An entry of the namespace `mesh`, with its spec in YAML's flow style.
fn entry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn what_the_mesh_does_not_know_is_refused() -> Result<()> {
    let stage = stage()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world = &stage.world;
    let outside = [stage.at(0, port::ECHO), stage.at(1, port::ECHO)];
    let mapped = format!("[::ffff:{}]:{}", stage.outside[0], port::ECHO);
    stage.mode("ALLOW_ANY")?;
    for at in &outside {
        stage.passes(CLIENT, at, true)?;
    }
    stage.mode("REGISTRY_ONLY")?;
    for at in outside.iter().chain([&mapped]) {
        let refusal = Refusal::watch(&world.lab, NODE)?;
        let mut args = vec!["connect", at, "--send", "x", "--read-lines", "1"];
        if *at == mapped {
            args.push("--v4-mapped");
        }
        let report = world.app(CLIENT, &args)?;
        ensure!(report["ok"] == false, "{report}");
        let record = refusal.expect("egress_denied", "outbound")?;
        ensure!(record["src.workload"] == "client", "{record}");
        // Another namespace is not concerned.
        stage
            .passes(PLAIN, at.as_str(), true)
            .or_else(|error| match *at == mapped {
                true => Ok(()),
                false => Err(error),
            })?;
    }
    // What the mesh knows: pods in it and outside of it, by address and by Service.
    for at in [
        world.at("mesh/server", port::ECHO)?,
        world.at6("mesh/server", port::ECHO)?,
        world.at("plain/server", port::ECHO)?,
        format!("server.mesh:{}", port::ECHO),
    ] {
        stage.passes(CLIENT, &at, true)?;
    }
    let shown = world.lab.inspect(NODE, &["pod"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("REGISTRY_ONLY"), "{shown}");
    // A value that is none closes.
    world
        .lab
        .label_namespace("mesh", "karst.dev/egress=anything")?;
    stage.passes(CLIENT, &outside[0], false)?;
    stage.mode("ALLOW_ANY")?;
    stage.passes(CLIENT, &outside[0], true)
}

#[test]
fn a_change_of_the_mode_cuts_within_a_second() -> Result<()> {
    let stage = stage()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world = &stage.world;
    stage.mode("ALLOW_ANY")?;
    let mut inside = Chat::open(&world.lab, CLIENT, &world.at("mesh/server", port::ECHO)?)?;
    let mut chats = vec![
        Chat::open(&world.lab, CLIENT, &stage.at(0, port::ECHO))?,
        Chat::open(&world.lab, CLIENT, &stage.at(1, port::ECHO))?,
    ];
    for chat in &mut chats {
        chat.say("before")?;
    }
    let started = Instant::now();
    let label = "karst.dev/egress=REGISTRY_ONLY";
    world.lab.label_namespace("mesh", label)?;
    for chat in &mut chats {
        cut(chat, started)?;
    }
    let took = started.elapsed();
    inside.say("after")?;
    until("the cut is logged", IN_FORCE, || {
        let records = access_records(&world.lab, NODE)?;
        let is_cut = |one: &&Value| one["reason"] == "egress_denied" && one["bytes_sent"] != 0;
        ensure!(records.iter().filter(is_cut).count() >= 2, "not both");
        Ok(())
    })?;
    stage.mode("ALLOW_ANY")?;
    inside.end()?;
    ensure!(took < Duration::from_secs(1), "cut after {took:?}");
    Ok(())
}

fn cut(chat: &mut Chat, started: Instant) -> Result<()> {
    while chat.say("still").is_ok() {
        ensure!(started.elapsed() < Duration::from_secs(5), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn an_entry_opens_its_addresses_and_ports_alone() -> Result<()> {
    let stage = stage()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let world = &stage.world;
    let [v4, v6] = [stage.outside[0], stage.outside[1]];
    let echo = [stage.at(0, port::ECHO), stage.at(1, port::ECHO)];
    let banner = stage.at(0, port::BANNER);
    let ports = format!(
        "ports: [{{number: {}, name: tcp-echo, protocol: TCP}}]",
        port::ECHO
    );
    let spec = |addresses: &str, more: &str| {
        format!("{{hosts: [api.example.com], addresses: [{addresses}], {ports}{more}}}")
    };
    stage.mode("REGISTRY_ONLY")?;
    let closed = [
        (CLIENT, echo[0].as_str(), false),
        (CLIENT, echo[1].as_str(), false),
    ];
    stage.becomes(&closed)?;
    // An address, a block, and another port.
    let whole = spec(&format!("{v4}, \"{v6}/64\""), ", resolution: NONE");
    stage.with(&entry("mesh", "api", &whole), || {
        stage.becomes(&[
            (CLIENT, &echo[0], true),
            (CLIENT, &echo[1], true),
            (CLIENT, &banner, false),
        ])?;
        let records = access_records(&world.lab, NODE)?;
        let named = records
            .iter()
            .any(|one| one["dst.service"] == "api.example.com");
        ensure!(named, "no record with the entry's host");
        Ok(())
    })?;
    stage.becomes(&closed)?;
    // Other namespaces' entries count as far as they are exported.
    let own = spec(&v4.to_string(), ", exportTo: [\".\"]");
    stage.with(&entry("plain", "api", &own), || {
        std::thread::sleep(Duration::from_secs(1));
        stage.becomes(&closed)
    })?;
    let shared = spec(&v4.to_string(), ", exportTo: [\".\", mesh]");
    stage.with(&entry("plain", "api", &shared), || {
        stage.becomes(&[(CLIENT, &echo[0], true), (CLIENT, &echo[1], false)])?;
        let mut chat = Chat::open(&world.lab, CLIENT, &echo[0])?;
        chat.say("before")?;
        let started = Instant::now();
        world.lab.delete(&entry("plain", "api", &shared))?;
        cut(&mut chat, started)?;
        let took = started.elapsed();
        world.lab.apply(&entry("plain", "api", &shared))?;
        ensure!(took < Duration::from_secs(1), "cut after {took:?}");
        Ok(())
    })?;
    // An address of the entry's own, with an endpoint behind it; the endpoint itself stays closed.
    let virtually = spec(
        "192.0.2.80",
        &format!(", resolution: STATIC, endpoints: [{{address: {v4}}}]"),
    );
    let virtual_address = format!("192.0.2.80:{}", port::ECHO);
    stage.with(&entry("mesh", "api", &virtually), || {
        stage.becomes(&[(CLIENT, &virtual_address, true), (CLIENT, &echo[0], false)])
    })?;
    // What is not supported opens nothing.
    let internal = spec(&v4.to_string(), ", location: MESH_INTERNAL");
    stage.with(&entry("mesh", "api", &internal), || {
        std::thread::sleep(Duration::from_secs(1));
        stage.becomes(&closed)
    })?;
    stage.mode("ALLOW_ANY")?;
    stage.becomes(&[(CLIENT, &echo[0], true), (CLIENT, &banner, true)])
}
