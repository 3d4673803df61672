//! `--peer`: another proxy in the place of ours. Its command runs once on each node and captures what the pods of its
//! namespace send; README.md says what it is told and what it owes.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use karst_harness::{Lab, Running, netns};

use crate::stage::{Place, Way};

/// How long a peer may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How much of what it said is shown when it fails, bytes.
const LAST_WORDS: usize = 2000;

/// The peer on every node. Its processes end with the lab, whichever it has started.
pub struct Peers {
    _running: Vec<Running>,
    /// Where its processes are, one for each node.
    pub cgroups: Vec<PathBuf>,
}

impl Peers {
    /// Starts the command on each node and waits until all are ready.
    pub fn start(lab: &Lab, place: Place, command: &[String], folder: &Path) -> Result<Self> {
        let directory = folder.join("peer");
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("removing {}", directory.display()))?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let argv: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut nodes = place.nodes().to_vec();
        nodes.dedup();
        let about = about_pods(lab, place, &directory)?;
        let mut started = Vec::new();
        let mut cgroups = Vec::new();
        for node in nodes {
            let ready = directory.join(format!("{node}.ready"));
            let log = directory.join(format!("{node}.log"));
            let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
            let mut command = lab.node_command(node, &argv)?;
            command
                .envs(about.iter().map(|(name, value)| (name, value)))
                .env("KARST_BENCH_NODE", node)
                .env("KARST_BENCH_READY", &ready)
                .stdin(Stdio::null())
                .stdout(file.try_clone()?)
                .stderr(file);
            let child = command
                .spawn()
                .with_context(|| format!("starting the peer on {node}"))?;
            started.push((Running::new(child), ready, log));
            cgroups.push(lab.node_cgroup(node)?);
        }
        let mut running = Vec::new();
        for (mut child, ready, log) in started {
            wait(&mut child, &ready, READY_LIMIT).with_context(|| last_words(&log))?;
            running.push(child);
        }
        Ok(Self {
            _running: running,
            cgroups,
        })
    }
}

/// What every node's command is told about both pods and all nodes.
fn about_pods(lab: &Lab, place: Place, directory: &Path) -> Result<Vec<(String, String)>> {
    let mut about = vec![("KARST_BENCH_DIRECTORY".to_owned(), path_text(directory)?)];
    for pod in ["client", "server"] {
        let name = format!("{}/{pod}", Way::Peer.namespace());
        let prefix = format!("KARST_BENCH_{}", pod.to_ascii_uppercase());
        let netns = path_text(&netns::file(&lab.pod_netns(&name)?))?;
        for (suffix, value) in [
            ("NODE", lab.pod_node(&name)?),
            ("NETNS", netns),
            ("ADDRESSES", list(&lab.pod_addresses(&name)?)),
        ] {
            about.push((format!("{prefix}_{suffix}"), value));
        }
    }
    let mut names = place.nodes().to_vec();
    names.dedup();
    for node in lab.status()?.nodes {
        if names.contains(&node.name.as_str()) {
            let name = node.name.to_ascii_uppercase();
            about.push((
                format!("KARST_BENCH_{name}_ADDRESSES"),
                list(&node.addresses),
            ));
        }
    }
    about.push(("KARST_BENCH_SERVER_PORTS".to_owned(), "80,5201".to_owned()));
    Ok(about)
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(",")
}

fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{} must be text", path.display()))
}

/// Waits until the file is there. A peer that has made it may end, if all went well: it has put something in place
/// that needs no process.
fn wait(child: &mut Running, ready: &Path, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let ended = child.child()?.try_wait()?;
        let there = ready.exists();
        match ended {
            Some(status) => {
                ensure!(status.success(), "the peer failed ({status})");
                ensure!(there, "the peer ended without getting ready");
                return Ok(());
            }
            None if there => return Ok(()),
            None if begun.elapsed() > limit => bail!(
                "the peer has not made {} in {} s",
                ready.display(),
                limit.as_secs()
            ),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn last_words(log: &Path) -> String {
    let said = fs::read(log).unwrap_or_default();
    let tail = &said[said.len().saturating_sub(LAST_WORDS)..];
    format!(
        "it said in {}:\n{}",
        log.display(),
        String::from_utf8_lossy(tail)
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(script: &str, limit: Duration) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let ready = folder.path().join("ready");
        let child = Command::new("sh")
            .args(["-c", script])
            .env("KARST_BENCH_READY", &ready)
            .spawn()?;
        wait(&mut Running::new(child), &ready, limit)
    }

    #[test]
    fn a_peer_is_ready_when_it_says_so() {
        let limit = Duration::from_secs(30);
        run("touch $KARST_BENCH_READY; exec sleep 60", limit).unwrap();
        run("touch $KARST_BENCH_READY", limit).unwrap();
        assert!(run("exit 0", limit).is_err());
        assert!(run("exit 3", limit).is_err());
        assert!(run("exec sleep 60", Duration::from_millis(200)).is_err());
    }
}
