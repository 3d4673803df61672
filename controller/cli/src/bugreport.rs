//! `karst bugreport`: one archive with what somebody needs who looks for a fault from afar, and no secrets.
//!
//! Whatever cannot be had is noted in it, and the rest goes on: a report is wanted when things do not work.

mod archive;
mod cluster;
mod node;
mod redact;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use self::archive::{Archive, Summary};
use crate::args::BugReport;
use crate::failure::Failure;
use crate::style::progress;

/// Writes the report; returns what to print.
///
/// # Errors
/// There is nothing to report on, or the archive cannot be written.
pub fn run(args: &BugReport) -> Result<String, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let time = i64::try_from(now)
        .ok()
        .and_then(|now| Timestamp::from_second(now).ok());
    let time = time.map_or_else(
        || now.to_string(),
        |time| time.strftime("%Y%m%dT%H%M%SZ").to_string(),
    );
    let folder = format!("karst-bugreport-{time}");
    let path = args.output.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    let nodes = node::local(&args.bpffs_root);
    let client = if args.no_cluster {
        None
    } else {
        Some(cluster::reach(&args.kubernetes))
    };
    if let (Ok([]) | Err(_), None | Some(Err(_))) = (nodes.as_deref(), &client) {
        let cluster = client
            .and_then(Result::err)
            .map_or("none was asked".to_owned(), |f| f.message);
        let node = nodes.err().map_or_else(
            || {
                format!(
                    "no node has programs pinned under {}",
                    args.bpffs_root.display()
                )
            },
            |failure| failure.message,
        );
        return Err(Failure::failed(
            "nothing_to_report",
            format!("there is nothing to report on.\n  cluster: {cluster}\n  this machine: {node}"),
        ));
    }
    let mut archive = Archive::create(&path, &folder, now)?;
    match nodes {
        Ok(nodes) => {
            for name in nodes {
                progress(&format!("node {name}: kernel and agent"));
                node::gather(&mut archive, args, &name)?;
            }
        }
        Err(failure) => archive.missing("nodes", &failure.message),
    }
    match client {
        Some(Ok(())) => cluster::gather(&mut archive, args)?,
        Some(Err(failure)) => archive.missing("cluster", &failure.message),
        None => {}
    }
    let about = json!({"karst": env!("CARGO_PKG_VERSION"), "time": time, "logs_minutes": (!args.no_logs).then_some(args.since)});
    Ok(told(&archive.finish(&about)?))
}

fn told(summary: &Summary) -> String {
    let mut text = format!("{}: {} files\n", summary.path.display(), summary.files);
    for (what, why) in &summary.problems {
        let first = why.lines().next().unwrap_or_default();
        text.push_str(&format!("  not in it: {what}: {first}\n"));
    }
    text.push_str("It has no secrets that Karst knows of, but names and addresses: look through it before you give it away.\n");
    text
}

#[cfg(test)]
#[path = "bugreport/tests.rs"]
mod tests;
