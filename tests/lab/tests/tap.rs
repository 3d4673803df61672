//! What `karst tap` and `karst top` show of traffic in the lab, to people and to programs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Running, get_in, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::shop::{CLIENT, Shop};
use karst_lab_tests::tmux::{Tmux, typed};
use serde_json::Value;

static SHOP: LazyLock<Result<Shop>> = LazyLock::new(|| Shop::open("tap"));
/// Traffic and policies are everybody's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

const WAYPOINT: &str = "shop/waypoint";
/// The waypoint's admin port, inside its pod.
const ADMIN: &str = "127.0.0.1:15000";
/// Pods outside of the shop: in the mesh, on node1, and a server on node2.
const GUEST: &str = "mesh/client";
const NEAR: &str = "mesh/near";
const SERVER: &str = "mesh/server";
/// How soon an event is told, and a change is in force.
const SOON: Duration = Duration::from_secs(15);

fn shop() -> Result<(&'static Shop, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let shop = SHOP.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok((shop, turn))
}

/// `karst tap` or `top` against a node's agent.
fn on_node(shop: &Shop, node: &str, args: &str) -> Result<Command> {
    let args: Vec<&str> = args.split(' ').collect();
    shop.world.lab.cli_command(node, &args)
}

/// The same against the waypoint, where its admin port is.
fn on_waypoint(shop: &Shop, args: &str) -> Result<Command> {
    let mut argv: Vec<&str> = ["karst"].into_iter().chain(args.split(' ')).collect();
    argv.extend(["--waypoint", ADMIN]);
    shop.world.lab.pod_command(WAYPOINT, &argv)
}

/// How many follow a node's agent.
fn followers(shop: &Shop, node: &str) -> Result<u64> {
    let status = shop.world.lab.agent_admin(node, "/v1/status")?;
    status["tap_subscribers"].as_u64().context("no number")
}

/// How many follow the waypoint.
fn waypoint_followers(shop: &Shop) -> Result<u64> {
    let netns = shop.world.lab.pod_netns(WAYPOINT)?;
    let status: Value = serde_json::from_str(&get_in(&netns, ADMIN, "/v1/status")?)?;
    status["tap_subscribers"].as_u64().context("no number")
}

fn is(what: &str, count: impl Fn() -> Result<u64>, wanted: u64) -> Result<()> {
    until(what, SOON, || {
        let found = count()?;
        ensure!(found == wanted, "{found}, not {wanted}");
        Ok(())
    })
}

/// A running tap whose events gather.
struct Tapped {
    running: Running,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Tapped {
    fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Running::new(command.spawn()?);
        let stdout = running.child()?.stdout.take().context("no output")?;
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let gathered = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                gathered
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(event);
            }
        });
        Ok(Self { running, events })
    }

    /// Several of a node's agent, all of them at work.
    fn agent(shop: &Shop, node: &str, all: &[&str]) -> Result<Vec<Self>> {
        let start = |args: &&str| Self::start(on_node(shop, node, &format!("tap -o json {args}"))?);
        let started = all.iter().map(start).collect::<Result<Vec<_>>>()?;
        is(
            "the agent's followers",
            || followers(shop, node),
            all.len() as u64,
        )?;
        Ok(started)
    }

    /// Several of the waypoint, all of them at work.
    fn waypoint(shop: &Shop, all: &[&str]) -> Result<Vec<Self>> {
        let start = |args: &&str| Self::start(on_waypoint(shop, &format!("tap -o json {args}"))?);
        let started = all.iter().map(start).collect::<Result<Vec<_>>>()?;
        is(
            "the waypoint's followers",
            || waypoint_followers(shop),
            all.len() as u64,
        )?;
        Ok(started)
    }

    fn events(&self) -> Vec<Value> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for an event in which these fields have these values.
    fn expect(&self, fields: &Value) -> Result<Value> {
        let fields = fields.as_object().context("no fields")?;
        until(&format!("an event with {fields:?}"), SOON, || {
            let events = self.events();
            let fits = |event: &&Value| fields.iter().all(|(name, value)| event[name] == *value);
            let found = events.iter().find(fits);
            found
                .cloned()
                .with_context(|| format!("there are {events:#?}"))
        })
    }
}

fn connect(shop: &Shop, pod: &str, at: &str) -> Result<bool> {
    let args = ["connect", at, "--send", "x", "--read-lines", "1"];
    Ok(shop.world.app(pod, &args)?["ok"] == true)
}

/// A policy that refuses a pod of the mesh, while `then` runs.
fn with_denied(shop: &Shop, then: impl FnOnce() -> Result<()>) -> Result<()> {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: not-near, namespace: mesh}\nspec: {selector: {matchLabels: {app: server}}, \
                  action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/near]}}]}]}\n---\n";
    let lab = &shop.world.lab;
    lab.apply(policy)?;
    let at = shop.world.at(SERVER, port::ECHO)?;
    let done = until("the policy", SOON, || {
        ensure!(!connect(shop, NEAR, &at)?, "it still passes");
        Ok(())
    })
    .and_then(|()| then());
    lab.delete(policy)?;
    until("the policy is gone", SOON, || {
        ensure!(connect(shop, NEAR, &at)?, "it is still refused");
        Ok(())
    })?;
    done
}

#[test]
fn connections_are_told_with_their_verdicts_and_by_selectors() -> Result<()> {
    let (shop, _turn) = shop()?;
    with_denied(shop, || {
        let at = shop.world.at(SERVER, port::ECHO)?;
        let client_ip = shop.world.v4(GUEST)?.to_string();
        let by_ip = format!("--from {client_ip}");
        let selectors = [
            "--to mesh/server",
            "--from mesh/near",
            "--from spiffe://cluster.local/ns/mesh/sa/client",
            "--verdict denied",
            "--policy not-near",
            "--direction outbound",
            &by_ip,
            "--event closed --from mesh --min-duration 400ms",
        ];
        let taps = Tapped::agent(shop, "node2", &selectors)?;
        ensure!(connect(shop, GUEST, &at)?, "it does not pass");
        ensure!(!connect(shop, NEAR, &at)?, "it is not refused");
        hold(shop, &at)?;

        let opened = taps[0].expect(&serde_json::json!({
            "event": "connection_opened", "verdict": "allowed", "direction": "inbound",
            "src.identity": "spiffe://cluster.local/ns/mesh/sa/client",
            "src.workload": "client", "src.namespace": "mesh", "dst.workload": "server",
            "connection_security_policy": "mutual_tls", "tls_version": "TLSv1_3", "node": "node2",
        }))?;
        ensure!(
            opened["bytes_sent"] == 0 && opened.get("reason").is_none(),
            "{opened}"
        );
        let closed = taps[0].expect(&serde_json::json!({
            "event": "connection_closed", "verdict": "allowed", "src.workload": "client", "bytes_sent": 2,
        }))?;
        ensure!(
            closed["src.addr"]
                .as_str()
                .is_some_and(|addr| addr.starts_with(&client_ip)),
            "{closed}"
        );
        let denied = serde_json::json!({
            "event": "connection_refused", "verdict": "denied", "reason": "policy_denied",
            "policy.name": "mesh/not-near", "policy.rule": 0,
            "src.identity": "spiffe://cluster.local/ns/mesh/sa/near",
        });
        for tap in [&taps[0], &taps[1], &taps[3], &taps[4]] {
            tap.expect(&denied)?;
        }
        taps[7]
            .expect(&serde_json::json!({"event": "connection_closed", "src.workload": "client"}))?;
        for tap in [&taps[2], &taps[6]] {
            tap.expect(&serde_json::json!({"event": "connection_closed"}))?;
        }
        // What was told to each is what it asked for, and nothing else.
        let all = |tap: &Tapped, holds: &dyn Fn(&Value) -> bool| {
            let events = tap.events();
            ensure!(events.iter().all(holds), "{events:#?}");
            Ok(())
        };
        all(&taps[1], &|event| event["src.workload"] == "near")?;
        all(&taps[2], &|event| {
            event["src.identity"] == "spiffe://cluster.local/ns/mesh/sa/client"
        })?;
        all(&taps[3], &|event| event["verdict"] == "denied")?;
        all(&taps[4], &|event| event["policy.name"] == "mesh/not-near")?;
        all(&taps[5], &|event| event["direction"] == "outbound")?;
        all(&taps[6], &|event| event["src.workload"] == "client")?;
        all(&taps[7], &|event| {
            event["duration_ms"].as_u64() >= Some(400)
        })?;

        // The ninth is refused, with the reason.
        let ninth = on_node(shop, "node2", "tap")?.output()?;
        let said = String::from_utf8_lossy(&ninth.stderr).into_owned();
        ensure!(
            ninth.status.code() == Some(1) && said.contains("8 subscribers"),
            "{said}"
        );
        drop(taps);
        is("nobody follows", || followers(shop, "node2"), 0)
    })
}

/// A connection that stays open for half a second.
fn hold(shop: &Shop, at: &str) -> Result<()> {
    let (running, _) = karst_lab_tests::scenario::stall(&shop.world, GUEST, &["hold", at, "1"])?;
    std::thread::sleep(Duration::from_millis(600));
    running.finish().map(drop)
}

#[test]
fn what_leaves_is_told_at_its_source_with_service_and_egress() -> Result<()> {
    let (shop, _turn) = shop()?;
    let lab = &shop.world.lab;
    let taps = Tapped::agent(
        shop,
        "node1",
        &[
            "--to svc/server.mesh:7000",
            "--from mesh --verdict denied",
            "--to mesh/server --direction outbound",
        ],
    )?;
    ensure!(
        connect(shop, GUEST, "server.mesh:7000")?,
        "it does not pass"
    );
    taps[0].expect(&serde_json::json!({
        "event": "connection_closed", "direction": "outbound", "dst.service": "server.mesh.svc.cluster.local",
        "dst.service_port": 7000, "dst.workload": "server",
        "dst.identity": "spiffe://cluster.local/ns/mesh/sa/server",
    }))?;
    lab.label_namespace("mesh", "karst.dev/egress=REGISTRY_ONLY")?;
    let outside = std::net::SocketAddr::new(lab.external_addresses()[0], port::ECHO).to_string();
    let refused = until("the egress mode", SOON, || {
        connect(shop, GUEST, &outside)?;
        let events = taps[1].events();
        let found = events
            .iter()
            .find(|event| event["reason"] == "egress_denied");
        found.cloned().with_context(|| format!("{events:#?}"))
    });
    lab.label_namespace("mesh", "karst.dev/egress=ALLOW_ANY")?;
    let refused = refused?;
    ensure!(
        refused["verdict"] == "denied"
            && refused["dst.addr"] == outside.as_str()
            && refused["src.workload"] == "client",
        "{refused}"
    );
    let events = taps[2].events();
    ensure!(
        !events.is_empty() && events.iter().all(|event| event["dst.workload"] == "server"),
        "{events:#?}"
    );
    // Killed, not ended: the agent notices all the same.
    for tap in taps {
        tap.running.kill()?;
    }
    is("nobody follows", || followers(shop, "node1"), 0)
}

#[test]
fn live_connections_come_first_when_asked_for() -> Result<()> {
    let (shop, _turn) = shop()?;
    let at = shop.world.at(SERVER, port::ECHO)?;
    let (held, _) = karst_lab_tests::scenario::stall(&shop.world, GUEST, &["hold", &at, "1"])?;
    let tap = Tapped::agent(shop, "node2", &["--live --event closed --from mesh/client"])?;
    let live = tap[0]
        .expect(&serde_json::json!({"event": "connection_live", "src.workload": "client"}))?;
    held.finish()?;
    tap[0]
        .expect(&serde_json::json!({"event": "connection_closed", "src.addr": live["src.addr"]}))?;
    Ok(())
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /here}}}]
  - backendRefs: [{name: web-v1, port: 80}]
";

#[test]
fn requests_are_told_with_method_path_status_and_route() -> Result<()> {
    let (shop, _turn) = shop()?;
    shop.apply(ROUTE, || {
        let answer = shop.ask("web:80", &["--path", "/gone"])?;
        ensure!(
            answer["page"]["status"] == 301 || answer["status"] == 301,
            "{answer}"
        );
        Ok(())
    })?;
    let taps = Tapped::waypoint(
        shop,
        &[
            "--max-rps 1000",
            "--method POST",
            "--path /gone",
            "--status 3xx",
            "--from shop/client",
            "--verdict denied",
            "--to svc/web-v1.shop:80",
        ],
    )?;
    shop.get("web:80", &["--path", "/a?token=secret"])?;
    shop.get("web:80", &["--path", "/b", "--body", "x"])?;
    shop.ask("web:80", &["--path", "/gone"])?;
    let got = taps[0].expect(&serde_json::json!({
        "event": "request", "verdict": "allowed", "method": "GET", "path": "/a", "status": 200, "protocol": "http",
        "authority": "web:80", "route": "HTTPRoute/shop/web", "reporter": "waypoint", "proxy": "shop/waypoint",
        "src.identity": "spiffe://cluster.local/ns/shop/sa/client",
        "dst.identity": "spiffe://cluster.local/ns/shop/sa/web", "node": "node2",
    }))?;
    ensure!(
        got["duration_ms"].is_u64() && !got.to_string().contains("secret"),
        "{got}"
    );
    taps[1].expect(&serde_json::json!({"method": "POST", "path": "/b", "bytes_recv": 1}))?;
    taps[2].expect(&serde_json::json!({"path": "/gone", "status": 301}))?;
    taps[3].expect(&serde_json::json!({"path": "/gone", "status": 301}))?;
    taps[4].expect(&serde_json::json!({"path": "/gone"}))?;
    for (tap, field, value) in [
        (&taps[1], "method", "POST"),
        (&taps[2], "path", "/gone"),
        (&taps[3], "path", "/gone"),
    ] {
        let events = tap.events();
        ensure!(
            events.len() == 1 && events[0][field] == value,
            "{events:#?}"
        );
    }
    let told = [4, 5, 6].map(|tap: usize| taps[tap].events());
    ensure!(told[0].len() == 3 && told[1].is_empty(), "{told:#?}");
    // The redirect went nowhere.
    ensure!(told[2].len() == 2, "{:#?}", told[2]);
    // An agent sees no HTTP, and says so rather than nothing.
    let refused = on_node(shop, "node1", "tap --method GET")?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(2) && said.contains("ask a waypoint"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_policy_at_the_waypoint_is_named() -> Result<()> {
    let (shop, _turn) = shop()?;
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: no-admin, namespace: shop}\nspec: {targetRefs: [{group: '', kind: Service, name: web}], \
                  action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n---\n";
    let tap = Tapped::waypoint(shop, &["--policy no-admin"])?;
    shop.world.lab.apply(policy)?;
    let told = until("the policy", SOON, || {
        shop.ask("web:80", &["--path", "/admin"])?;
        ensure!(!tap[0].events().is_empty(), "nothing is refused");
        tap[0].expect(&serde_json::json!({
            "event": "request", "verdict": "denied", "status": 403, "path": "/admin", "reason": "policy_denied",
            "policy.name": "shop/no-admin", "policy.rule": 0,
        }))
    });
    shop.world.lab.delete(policy)?;
    told.map(drop)
}

/// Traffic that goes on until this is dropped.
fn traffic(shop: &Shop, rate: &str) -> Result<Running> {
    let argv = [
        "karst-testapp",
        "load",
        "web:80",
        "--requests",
        "1000000",
        "--rate",
        rate,
        "--until-eof",
    ];
    let mut running = shop.world.lab.spawn(CLIENT, &argv)?;
    // Its report is not of interest, but it must find a reader.
    let mut stdout = running.child()?.stdout.take().context("no output")?;
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    Ok(running)
}

#[test]
fn a_reader_that_does_not_read_harms_no_traffic() -> Result<()> {
    let (shop, _turn) = shop()?;
    let load = || shop.load("web:80", &["--requests", "15000", "--connections", "4"]);
    let before = load()?;
    let mut command = on_waypoint(shop, "tap -o json --max-rps 10000")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut stuck = Running::new(command.spawn()?);
    is("the waypoint's followers", || waypoint_followers(shop), 1)?;
    let during = load()?;
    for report in [&before, &during] {
        ensure!(
            report["failed"] == 0 && report["requests"] == 15_000,
            "{report}"
        );
    }
    let netns = shop.world.lab.pod_netns(WAYPOINT)?;
    let metrics = get_in(&netns, "127.0.0.1:15020", "/metrics")?;
    let counted = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let dropped = counted("karst_tap_events_dropped_total{cause=\"queue_full\"}");
    ensure!(dropped > 0, "nothing was dropped: {metrics}");
    // Now that it is read, it tells what is missing.
    let child = stuck.child()?;
    let mut stdout = child.stdout.take().context("no output")?;
    let mut stderr = BufReader::new(child.stderr.take().context("no errors")?);
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let mut said = String::new();
    while !said.contains("not read fast enough") {
        ensure!(stderr.read_line(&mut said)? > 0, "it has ended: {said}");
    }
    stuck.kill()?;
    is("nobody follows", || waypoint_followers(shop), 0)
}

#[test]
fn a_tap_ends_by_count_and_by_time() -> Result<()> {
    let (shop, _turn) = shop()?;
    let traffic = traffic(shop, "50")?;
    let counted = on_waypoint(shop, "tap -o json -n 3")?.output()?;
    ensure!(counted.status.success(), "{counted:?}");
    ensure!(
        String::from_utf8_lossy(&counted.stdout).lines().count() == 3,
        "{counted:?}"
    );
    let begun = Instant::now();
    let limited = on_waypoint(shop, "tap -o json --for 2s --max-rps 5")?.output()?;
    let took = begun.elapsed();
    ensure!(
        limited.status.success() && (2..8).contains(&took.as_secs()),
        "{took:?} {limited:?}"
    );
    let lines = String::from_utf8_lossy(&limited.stdout).lines().count();
    ensure!((5..=20).contains(&lines), "{lines} lines at 5 a second");
    drop(traffic);
    is("nobody follows", || waypoint_followers(shop), 0)
}

/// All lines are within the width.
fn fits(screen: &str, columns: usize) -> Result<()> {
    let widest = screen
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0);
    ensure!(widest <= columns, "{widest} columns:\n{screen}");
    Ok(())
}

/// The shell shows what was there before, and waits for a command: what is typed earlier may find no echo.
fn is_shell(screen: &str) -> bool {
    screen.contains("before") && screen.trim_end().ends_with("shell$")
}

/// The rate in the row of the client's requests, if the screen has it.
fn shown_rate(screen: &str) -> Option<f64> {
    let row = screen
        .lines()
        .find(|line| line.starts_with("wp ") && line.contains("shop/client"))?;
    let heading = screen.lines().find(|line| line.starts_with("BY "))?;
    // Numbers stand under the end of their heading.
    let end = heading.find("RATE/s")? + "RATE/s".len();
    let before: String = row.chars().take(end).collect();
    before.split_whitespace().last()?.parse().ok()
}

#[test]
fn top_shows_traffic_at_80_and_200_columns() -> Result<()> {
    let (shop, _turn) = shop()?;
    shop.apply(ROUTE, || shop.get("web:80", &[]).map(drop))?;
    let traffic = traffic(shop, "40")?;
    let socket = shop.world.lab.admin_socket("node1");
    let args = format!("top --agent --admin-socket {}", socket.display());
    let command = typed(&on_waypoint(shop, &args)?);
    let tmux = Tmux::open(80, 24)?;
    tmux.enter("echo before; true")?;
    tmux.enter(&command)?;
    let right = |screen: &str| shown_rate(screen).is_some_and(|rate| (30.0..50.0).contains(&rate));
    let screen = tmux.until_is("a rate of some 40", right)?;
    fits(&screen, 80)?;
    let lines: Vec<&str> = screen.lines().collect();
    ensure!(
        lines[0].starts_with("karst top  node1 shop/waypoint") && lines[0].contains("requests"),
        "{screen}"
    );
    ensure!(lines[1].contains("dropped 0"), "{screen}");
    ensure!(
        screen.contains("web-v1.shop:80")
            && !screen.contains("ROUTE")
            && !screen.contains("before"),
        "{screen}"
    );
    ensure!(screen.contains("q quit"), "{screen}");
    // The second of the terminal's colours, in either way to say so.
    let coloured = tmux.coloured()?;
    let green = ["\u{1b}[32m", "[38;5;2m", ";32m"];
    ensure!(
        green.iter().any(|code| coloured.contains(code)),
        "no green:\n{coloured}"
    );

    tmux.resize(200, 24)?;
    let screen = tmux.until("ROUTE")?;
    fits(&screen, 200)?;
    let row = screen
        .lines()
        .find(|line| line.starts_with("wp "))
        .context("no row")?;
    for part in [
        "shop/client",
        "web-v1.shop:80",
        "GET",
        "HTTPRoute/shop/web",
        " 100 ",
    ] {
        ensure!(row.contains(part), "{part}: {screen}");
    }
    // The agent's side: the client's connections to the waypoint, which stay open.
    let row = screen
        .lines()
        .find(|line| line.starts_with("out ") && line.contains("shop/client"));
    let live = row
        .and_then(|row| row.split_whitespace().last())
        .context("no row of the agent's")?;
    ensure!(live.parse::<u32>()? >= 1, "{screen}");

    tmux.key("s")?;
    tmux.until("sort OK%")?;
    tmux.enter("/nobody")?;
    tmux.until("rows 0/")?;
    tmux.key("Escape")?;
    tmux.key("p")?;
    tmux.until("PAUSED")?;
    tmux.resize(80, 24)?;
    let screen = tmux.until_is("a screen without ROUTE", |screen| {
        !screen.contains("ROUTE") && screen.contains("PAUSED")
    })?;
    fits(&screen, 80)?;
    tmux.key("q")?;
    let screen = tmux.until_is("the shell as it was", is_shell)?;
    ensure!(!screen.contains("sort OK%"), "{screen}");
    // It echoes again.
    tmux.enter("echo after=$?")?;
    tmux.until("\nafter=0")?;
    drop(traffic);
    is("nobody follows", || waypoint_followers(shop), 0)
}

#[test]
fn the_terminal_is_restored_when_top_is_ended() -> Result<()> {
    let (shop, _turn) = shop()?;
    let tmux = Tmux::open(100, 24)?;
    let file = shop.world.lab.dir().join("top.pid");
    let command = typed(&on_node(shop, "node1", "top")?);
    tmux.enter("echo before; true")?;
    tmux.enter(&format!(
        "sh -c 'echo $$ >{}; exec \"$@\"' sh {command}",
        file.display()
    ))?;
    tmux.until("karst top  node1")?;
    let pid = std::fs::read_to_string(&file)?;
    let killed = Command::new("kill").args(["-TERM", pid.trim()]).status()?;
    ensure!(killed.success(), "no such process: {pid}");
    let screen = tmux.until_is("the shell as it was", is_shell)?;
    ensure!(!screen.contains("karst top  node1"), "{screen}");
    tmux.enter("echo after=$?")?;
    tmux.until("\nafter=0")?;
    is("nobody follows", || followers(shop, "node1"), 0)
}

#[test]
fn colours_are_for_terminals() -> Result<()> {
    let (shop, _turn) = shop()?;
    shop.apply(ROUTE, || shop.get("web:80", &[]).map(drop))?;
    let traffic = traffic(shop, "20")?;
    for columns in [80, 200] {
        let tmux = Tmux::open(columns, 24)?;
        let command = typed(&on_waypoint(shop, "tap -n 5")?);
        tmux.enter(&command)?;
        tmux.until_is("events", |screen| {
            screen.contains("ALLOWED wp  GET") && screen.trim_end().ends_with("shell$")
        })?;
        let green = tmux.coloured()?.matches("\u{1b}[32mALLOWED").count();
        ensure!(green >= 1, "{}", tmux.coloured()?);
        tmux.enter(&format!("clear; NO_COLOR=1 {command}"))?;
        tmux.until_is("no colours", |screen| {
            screen.contains("ALLOWED wp  GET") && !screen.contains("NO_COLOR")
        })?;
        let plain = tmux.coloured()?;
        ensure!(!plain.contains("\u{1b}[32m"), "{plain}");
    }
    let piped = on_waypoint(shop, "tap -n 2")?.output()?;
    let text = String::from_utf8_lossy(&piped.stdout).into_owned();
    ensure!(
        text.lines().count() == 2
            && text.contains("ALLOWED wp  GET    shop/client -> web-v1.shop:80"),
        "{text}"
    );
    ensure!(!text.contains('\u{1b}'), "{text:?}");
    let wide = on_waypoint(shop, "tap -n 1 -o wide")?.output()?;
    let text = String::from_utf8_lossy(&wide.stdout).into_owned();
    ensure!(
        text.contains("src.identity=spiffe://cluster.local/ns/shop/sa/client"),
        "{text}"
    );
    let table = on_waypoint(shop, "top --once --interval 2s")?.output()?;
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(
        table.status.success() && !text.contains('\u{1b}'),
        "{text:?}"
    );
    let row = text
        .lines()
        .find(|line| line.starts_with("wp "))
        .with_context(|| text.clone())?;
    ensure!(
        row.contains("shop/client") && row.contains("web-v1.shop:80") && row.contains("GET"),
        "{text}"
    );
    // Without --once it goes on, still without a terminal.
    let mut command = on_waypoint(shop, "top --interval 500ms")?;
    let mut running = Running::new(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut stdout = running.child()?.stdout.take().context("no output")?;
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while text.matches("SOURCE").count() < 3 {
        let read = stdout.read(&mut buffer)?;
        ensure!(read > 0, "it has ended: {text}");
        text += &String::from_utf8_lossy(&buffer[..read]);
    }
    running.kill()?;
    ensure!(!text.contains('\u{1b}'), "{text:?}");
    drop(traffic);
    Ok(())
}
