//! The commands of the CNI specification.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::VERSIONS;
use crate::client::{self, ADD_LIMIT, AGENT_WAIT, Answer, Limits, QUICK_LIMIT};
use crate::config::{Config, Environment, FALLBACK_VERSION};
use crate::error::CniError;
use crate::wire::{self, Added, Attachment, NetnsInode};

/// Largest log file, in bytes: then it is moved aside and a new one begun.
const MAX_LOG: u64 = 4 << 20;

/// Does what the environment asks for and gives what belongs on standard output.
///
/// # Errors
/// The command failed; [`CniError::result`] is what then belongs there.
pub fn run(env: &Environment, input: &[u8]) -> Result<String, CniError> {
    let command = env.need("CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(versions(input));
    }
    let config = Config::parse(input)?;
    let outcome = match command {
        "ADD" => add(env, &config),
        "CHECK" => check(env, &config),
        "DEL" => del(env, &config),
        "GC" => {
            let limits = quick();
            // What it asks for happens by itself too, only later.
            let _ = client::post(&config.socket, wire::GC, &json!({}), limits);
            Ok(String::new())
        }
        // A node is not unready because its agent is: pods outside the mesh run without one, and
        // an agent that restarts must not get a node's pods evicted.
        "STATUS" => Ok(String::new()),
        other => Err(CniError::Environment {
            variable: "CNI_COMMAND",
            problem: format!("is {other:?}, which is no command"),
        }),
    };
    log(&config, command, env, &outcome);
    outcome
}

/// The runtime may ask in a version we do not speak: it is about to choose.
fn versions(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|value| Some(value.get("cniVersion")?.as_str()?.to_owned()));
    let version = asked.unwrap_or_else(|| FALLBACK_VERSION.to_owned());
    json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string()
}

fn add(env: &Environment, config: &Config) -> Result<String, CniError> {
    let result = config.prev_result()?.to_owned();
    let Some(mut attachment) = attachment(env, config)? else {
        return Ok(result);
    };
    let netns = env.netns().ok_or(CniError::Environment {
        variable: "CNI_NETNS",
        problem: "is not set".to_owned(),
    })?;
    attachment.netns_id = netns_id(netns);
    attachment.addresses = config.addresses()?;
    if attachment.addresses.is_empty() {
        return Err(CniError::Config {
            field: "prevResult",
            problem: "has no address of the pod".to_owned(),
        });
    }
    let limits = Limits {
        agent: AGENT_WAIT,
        total: ADD_LIMIT,
    };
    ask(config, wire::ADD, &attachment, limits)?;
    Ok(result)
}

fn check(env: &Environment, config: &Config) -> Result<String, CniError> {
    config.prev_result()?;
    if let Some(mut attachment) = attachment(env, config)? {
        attachment.netns_id = env.netns().and_then(netns_id);
        attachment.addresses = config.addresses()?;
        ask(config, wire::CHECK, &attachment, quick())?;
    }
    Ok(String::new())
}

/// Never fails for what the agent says or does not say: it finds out by itself that a sandbox is
/// gone, and a pod must be able to end without it.
fn del(env: &Environment, config: &Config) -> Result<String, CniError> {
    if let Some(mut attachment) = attachment(env, config)? {
        attachment.netns_id = env.netns().and_then(netns_id);
        let _ = client::post(&config.socket, wire::DEL, &attachment, quick());
    }
    Ok(String::new())
}

fn quick() -> Limits {
    Limits {
        agent: std::time::Duration::ZERO,
        total: QUICK_LIMIT,
    }
}

/// `None` for what is none of ours: an excluded namespace's, or no Kubernetes pod at all.
fn attachment(env: &Environment, config: &Config) -> Result<Option<Attachment>, CniError> {
    let container_id = env.need("CNI_CONTAINERID")?.to_owned();
    let (Some(namespace), Some(name)) = (env.arg("K8S_POD_NAMESPACE"), env.arg("K8S_POD_NAME"))
    else {
        return Ok(None);
    };
    if config.excluded.iter().any(|excluded| excluded == namespace) {
        return Ok(None);
    }
    Ok(Some(Attachment {
        pod_uid: env.arg("K8S_POD_UID").map(str::to_owned),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        container_id,
        netns: env.netns().map(Path::to_owned),
        netns_id: None,
        addresses: Vec::new(),
    }))
}

fn netns_id(path: &Path) -> Option<NetnsInode> {
    let metadata = fs::metadata(path).ok()?;
    Some(NetnsInode {
        dev: metadata.dev(),
        ino: metadata.ino(),
    })
}

fn ask(
    config: &Config,
    path: &'static str,
    attachment: &Attachment,
    limits: Limits,
) -> Result<Added, CniError> {
    match client::post(&config.socket, path, attachment, limits)? {
        Answer::Ok(body) => {
            serde_json::from_slice(&body).map_err(|e| CniError::Answer(e.to_string()))
        }
        Answer::Refused(refused) => Err(CniError::Refused {
            pod: format!("{}/{}", attachment.namespace, attachment.name),
            reason: refused.reason,
            error: refused.error,
        }),
    }
}

/// One line a call, if the configuration names a file. A log that cannot be written is no reason
/// to fail a pod.
fn log(config: &Config, command: &str, env: &Environment, outcome: &Result<String, CniError>) {
    let Some(path) = &config.log_file else { return };
    let pod = format!(
        "{}/{}",
        env.arg("K8S_POD_NAMESPACE").unwrap_or_default(),
        env.arg("K8S_POD_NAME").unwrap_or_default()
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut line = json!({
        "unix_s": now.unwrap_or_default().as_secs(),
        "command": command,
        "pod": pod,
        "container_id": env.get("CNI_CONTAINERID"),
    });
    if let (Err(error), Some(fields)) = (outcome, line.as_object_mut()) {
        fields.insert("reason".to_owned(), error.reason().into());
        fields.insert("error".to_owned(), error.to_string().into());
    }
    let _ = append(path, &line.to_string());
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|m| m.len() > MAX_LOG) {
        fs::rename(path, path.with_extension("old"))?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{line}")
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
