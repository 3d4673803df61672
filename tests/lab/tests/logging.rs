//! Levels of programs' own logs, changed while they run, and what never gets into a log at any level.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::until;
use karst_lab_tests::manifest;
use karst_lab_tests::shop::Shop;
use serde_json::Value;

static SHOP: LazyLock<Result<Shop>> = LazyLock::new(|| Shop::open("log"));

fn shop() -> Result<&'static Shop> {
    SHOP.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// What a user's request carries and no log may have.
const USERS_TOKEN: &str = "user-token-4711-must-not-be-logged";

/// `karst log-level ARGS -j` for node1's agent.
fn of_agent(shop: &Shop, args: &[&str]) -> Result<(bool, Value)> {
    let lab = &shop.world.lab;
    let socket = lab.admin_socket("node1").display().to_string();
    let argv = [
        &["karst", "log-level", "-j", "--admin-socket", &socket],
        args,
    ]
    .concat();
    let output = lab.node_exec("node1", &argv)?;
    let answer = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.success(), answer))
}

/// The same for the waypoint, from inside its pod.
fn of_waypoint(shop: &Shop, args: &[&str]) -> Result<Value> {
    let karst = ["karst", "log-level", "-j", "--waypoint", "127.0.0.1:15000"];
    let text = shop
        .world
        .lab
        .exec_ok("shop/waypoint", &[&karst, args].concat())?;
    serde_json::from_str(&text).context(text)
}

/// What no log has: parts of tokens and keys.
fn has_no_secret(log: &str, secrets: &[String]) -> Result<()> {
    for secret in secrets {
        ensure!(
            !secret.is_empty() && !log.contains(secret.as_str()),
            "a secret is in the log"
        );
    }
    for words in ["PRIVATE KEY", "Bearer ", USERS_TOKEN] {
        let line = log.lines().find(|line| line.contains(words));
        ensure!(line.is_none(), "{words:?} in {line:?}");
    }
    Ok(())
}

/// The signature of a token in a file, which is its secret part.
fn signature(file: &Path) -> Result<String> {
    let token = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let signature = token.trim().rsplit('.').next();
    Ok(signature.context("no token")?.to_owned())
}

#[test]
fn an_agents_level_is_changed_for_a_time_and_no_secret_is_logged() -> Result<()> {
    let shop = shop()?;
    let lab = &shop.world.lab;
    let (_, before) = of_agent(shop, &[])?;
    ensure!(before["level"] == "info", "{before}");
    for wrong in ["inof", "h2=trace", "karst=loud"] {
        let (good, answer) = of_agent(shop, &[wrong])?;
        ensure!(!good && answer["reason"] == "log_level_invalid", "{answer}");
        ensure!(of_agent(shop, &[])?.1 == before, "nothing has changed");
    }
    let (good, state) = of_agent(shop, &["trace", "--for", "60s"])?;
    ensure!(good && state["level"] == "trace", "{state}");
    // A new pod makes a key, and the agent asks for its certificate with a token.
    let pod = manifest("mesh", "late", "node1", "late", "wait");
    lab.apply(&pod)?;
    lab.wait_enrolled("mesh/late")?;
    let server = shop.world.at("mesh/server", 7000)?;
    until("the new pod to connect", Duration::from_secs(20), || {
        shop.world
            .app_ok("mesh/late", &["connect", &server])
            .map(drop)
    })?;
    let log = lab.agent_log("node1")?;
    ensure!(
        log.contains("DEBUG") || log.contains("TRACE"),
        "the level has had effect"
    );
    // The lab's own names of files: the token is beside the admin socket's folder.
    let socket = lab.admin_socket("node1");
    let node = socket
        .ancestors()
        .find(|folder| folder.join("token").is_file());
    let token = node.context("no token of the agent's")?.join("token");
    has_no_secret(&log, &[signature(&token)?])?;
    has_no_secret(&lab.controller_log()?, &[signature(&token)?])?;
    let (_, state) = of_agent(shop, &["debug", "--for", "1s"])?;
    ensure!(state["level"] == "debug", "{state}");
    until("the level to go back", Duration::from_secs(20), || {
        let (_, state) = of_agent(shop, &[])?;
        ensure!(
            state["level"] == "info" && state["seconds_left"].is_null(),
            "{state}"
        );
        Ok(())
    })
}

#[test]
fn a_waypoint_logs_no_users_token_at_any_level() -> Result<()> {
    let shop = shop()?;
    let state = of_waypoint(shop, &["trace"])?;
    ensure!(state["level"] == "trace", "{state}");
    let header = format!("authorization: Bearer {USERS_TOKEN}");
    for _ in 0..3 {
        shop.get("web:80", &["--header", &header])?;
    }
    let log = shop.world.lab.logs("shop/waypoint")?;
    ensure!(
        log.contains("DEBUG") || log.contains("TRACE"),
        "the level has had effect"
    );
    has_no_secret(&log, &[])?;
    let state = of_waypoint(shop, &["info"])?;
    ensure!(state["level"] == "info", "{state}");
    Ok(())
}
