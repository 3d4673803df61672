//! This program's own load, started in a pod.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, Running};

use crate::{
    load::{Latency, READY, dial::Dialled},
    tools::{GRACE, run_within},
};

/// What is asked for, and how.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    path: String,
    http2: bool,
}

impl Target {
    /// By HTTP/1.1.
    pub fn http1(address: SocketAddr, path: &str) -> Self {
        Self {
            address,
            path: path.to_owned(),
            http2: false,
        }
    }

    /// By HTTP/2 without TLS.
    pub fn http2(address: SocketAddr, path: &str) -> Self {
        Self {
            http2: true,
            ..Self::http1(address, path)
        }
    }

    /// As a URL.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.path)
    }
}

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests a second, over all connections.
    pub rate: u32,
    /// Connections.
    pub connections: u32,
    /// How long.
    pub seconds: u32,
}

/// Latencies of requests at a fixed rate.
pub fn rate(lab: &Lab, pod: &str, target: &Target, pace: Pace) -> Result<Latency> {
    let mut argv = argv("rate", target, pace.connections)?;
    let (rate, seconds) = (pace.rate.to_string(), pace.seconds.to_string());
    argv.extend(["--rate".to_owned(), rate, "--seconds".to_owned(), seconds]);
    if target.http2 {
        argv.push("--http2".to_owned());
    }
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let said = run_within(lab, pod, pace.seconds + GRACE, &argv)?;
    serde_json::from_str(&said).with_context(|| format!("the load at a fixed rate said {said}"))
}

/// New connections, one request on each, as fast as it goes with so many at a time.
pub fn dial(lab: &Lab, pod: &str, target: &Target, at_once: u32, seconds: u32) -> Result<Dialled> {
    let argv = dial_argv(target, "--connections", at_once, seconds)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let said = run_within(lab, pod, seconds + GRACE, &argv)?;
    serde_json::from_str(&said).with_context(|| format!("the load of connections said {said}"))
}

/// A storm that blows until it is told to end.
pub struct Storm(Running);

/// The longest storm, seconds; one that nobody ends does not blow for ever.
const LONGEST_STORM: u32 = 3600;

/// Begins new connections, so many a minute, one request on each.
pub fn storm(lab: &Lab, pod: &str, target: &Target, per_minute: u32) -> Result<Storm> {
    let mut argv = dial_argv(target, "--per-minute", per_minute, LONGEST_STORM)?;
    argv.push("--until-eof".to_owned());
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    lab.spawn(pod, &argv).map(Storm)
}

impl Storm {
    /// Begins no more, waits for those that are under way, and tells of all.
    pub fn end(self) -> Result<Dialled> {
        let output = self.0.finish()?;
        let (said, failed) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "the storm failed: {failed}");
        serde_json::from_str(&said).with_context(|| format!("the storm said {said}"))
    }
}

fn dial_argv(target: &Target, how: &str, many: u32, seconds: u32) -> Result<Vec<String>> {
    let (address, many, seconds) = (
        target.address.to_string(),
        many.to_string(),
        seconds.to_string(),
    );
    let program = this_program()?;
    let argv = [
        &program,
        "dial",
        "--address",
        &address,
        "--path",
        &target.path,
        how,
        &many,
        "--seconds",
        &seconds,
    ];
    Ok(argv.map(str::to_owned).to_vec())
}

/// Opens connections of HTTP/1.1 that have each served a request; they stay open until the result is
/// dropped.
pub fn hold(lab: &Lab, pod: &str, target: &Target, connections: u32) -> Result<Running> {
    let argv = argv("hold", target, connections)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let child = lab
        .pod_command(pod, &argv)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting idle connections")?;
    let mut running = Running::new(child);
    let stdout = running
        .child()?
        .stdout
        .take()
        .context("no output to read")?;
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("waiting for idle connections")?;
    ensure!(line.trim() == READY, "idle connections could not be opened");
    Ok(running)
}

fn argv(command: &str, target: &Target, connections: u32) -> Result<Vec<String>> {
    let (address, connections) = (target.address.to_string(), connections.to_string());
    let program = this_program()?;
    let argv = [
        &program,
        command,
        "--address",
        &address,
        "--path",
        &target.path,
        "--connections",
        &connections,
    ];
    Ok(argv.map(str::to_owned).to_vec())
}

/// The path of this program.
pub fn this_program() -> Result<String> {
    let path = env::current_exe().context("finding this program")?;
    path.into_os_string()
        .into_string()
        .ok()
        .context("the path of this program must be text")
}
