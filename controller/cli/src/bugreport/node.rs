//! A node that is this machine: what its kernel and its agent hold.

use std::fs;
use std::path::Path;

use karst_datapath::inspect;
use serde_json::{Value, json};

use super::archive::Archive;
use crate::admin::Source;
use crate::args::BugReport;
use crate::failure::{Failure, Kind};
use crate::kernel;

/// Pages of the agent's admin socket. None has a secret.
const PAGES: [&str; 8] = [
    "status",
    "pods",
    "workloads",
    "services",
    "policies",
    "certificates",
    "connections",
    "tunnels",
];

/// Files that say what machine it is.
const MACHINE: [&str; 4] = [
    "/proc/version",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/sys/kernel/bpf_stats_enabled",
];

/// Nodes that have pins on this machine.
///
/// # Errors
/// The pins cannot be read.
pub fn local(bpffs_root: &Path) -> Result<Vec<String>, Failure> {
    inspect::nodes(bpffs_root).map_err(kernel::failure)
}

/// Everything of one.
///
/// # Errors
/// The archive cannot be written.
pub fn gather(archive: &mut Archive, args: &BugReport, node: &str) -> Result<(), Failure> {
    let root = &args.bpffs_root;
    let place = |name: &str| format!("nodes/{node}/{name}");
    for file in MACHINE {
        match fs::read_to_string(file) {
            Ok(text) => archive.text(&place(&format!("machine{file}")), &text)?,
            Err(error) => archive.missing(&place(file), &error.to_string()),
        }
    }
    let lists = [
        ("prog", kernel::programs(root, node)),
        ("link", kernel::links(root, node)),
        ("map", kernel::maps(root, node)),
        ("pod", kernel::pods(root, node)),
    ];
    for (name, list) in lists {
        let maps = list.as_ref().ok().filter(|_| name == "map").cloned();
        add(archive, &place(&format!("kernel/{name}.json")), list)?;
        let maps = maps.as_ref().and_then(Value::as_array);
        for map in maps.into_iter().flatten() {
            let name = map["name"].as_str().unwrap_or_default();
            let entries = kernel::entries(root, node, map);
            add(
                archive,
                &place(&format!("kernel/maps/{name}.json")),
                entries,
            )?;
        }
    }
    let agent = Source::Agent(args.run_dir.join(node).join("admin").join("agent.sock"));
    for page in PAGES {
        let answer = agent.page(&format!("/v1/{page}"));
        let gone = answer
            .as_ref()
            .is_err_and(|failure| failure.kind == Kind::Unreachable);
        add(archive, &place(&format!("agent/{page}.json")), answer)?;
        if gone {
            archive.missing(&place("agent"), "its other pages were not asked for");
            break;
        }
    }
    Ok(())
}

fn add(archive: &mut Archive, name: &str, found: Result<Value, Failure>) -> Result<(), Failure> {
    match found {
        Ok(value) => archive.json(name, &value),
        Err(failure) => {
            archive.missing(name, &failure.message);
            let told = json!({"error": failure.message, "reason": failure.reason});
            archive.json(&format!("{name}.error"), &told)
        }
    }
}
