//! `cargo xtask cluster`: a real Kubernetes cluster of two nodes in namespaces of this machine. What
//! it is and how it works: the `karst_cluster` crate.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use karst_cluster::{Audit, Cluster, ClusterOptions, ClusterStatus, Lifetime, NODES};

use crate::setup::{self, Need};
use crate::workspace::{Workspace, require_root, say, step};

/// Arguments of `cargo xtask cluster`.
#[derive(Parser)]
pub struct Args {
    /// The cluster to speak of; clusters of different names run side by side.
    #[arg(long, global = true, default_value = "karst")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build what is missing, bring the cluster up, and wait until its nodes and DNS are ready.
    Up {
        /// How many nodes; 0 for a control plane alone.
        #[arg(long, default_value_t = NODES)]
        nodes: u8,
        /// Let the API server log every request's metadata.
        #[arg(long)]
        audit: bool,
        /// Take these images (OCI archives) into every node.
        #[arg(long, value_name = "ARCHIVE")]
        image: Vec<PathBuf>,
        /// Use the helper as it is, without building it first.
        #[arg(long)]
        no_build: bool,
    },
    /// Processes and nodes.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a command beside the control plane, with `kubectl` in its PATH, or on a node.
    Exec {
        /// Run it on this node, in the node's namespaces.
        #[arg(long)]
        node: Option<String>,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Take an image (OCI archive) into every node.
    Import {
        /// The archive.
        archive: PathBuf,
    },
    /// Take the cluster down; leaves nothing.
    Down,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    require_root(
        "cargo xtask cluster",
        "makes namespaces, cgroups and mounts",
    )?;
    let name = &args.name;
    match &args.command {
        Command::Up {
            nodes,
            audit,
            image,
            no_build,
        } => {
            let workspace = Workspace::locate()?;
            setup::ensure(&workspace, &[Need::Cluster])?;
            if !no_build {
                step(
                    "build the cluster's helper",
                    workspace
                        .cargo()
                        .args(["build", "--release", "--bin", "karst-cluster-run"]),
                )?;
            }
            let cluster = Cluster::up(
                &ClusterOptions {
                    nodes: *nodes,
                    lifetime: Lifetime::UntilDown,
                    audit: if *audit { Audit::Metadata } else { Audit::Off },
                    ..ClusterOptions::new(name)
                },
                &say,
            )?;
            for archive in image {
                cluster.import_image(archive)?;
            }
            say(&format!(
                "cargo xtask cluster exec --name {name} -- kubectl get pods -A"
            ));
            Ok(())
        }
        Command::Status { json } => {
            let status = Cluster::attach(name)?.status()?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print_status(&status);
            }
            Ok(())
        }
        Command::Exec { node, argv } => {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let cluster = Cluster::attach(name)?;
            let mut command = match node {
                Some(node) => cluster.node_command(node, &argv)?,
                None => cluster.exec_command(&argv)?,
            };
            exit_like(command.status().context("running the command")?)
        }
        Command::Import { archive } => Cluster::attach(name)?.import_image(archive),
        Command::Down => Cluster::tear_down(name),
    }
}

/// Ends this program as the command ended, as a shell would report it.
fn exit_like(status: ExitStatus) -> Result<()> {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    std::process::exit(code.unwrap_or(1))
}

fn print_status(status: &ClusterStatus) {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["PROCESS", "PID", "STATE", "LOG"]);
    for process in &status.processes {
        let state = if process.running { "running" } else { "ended" };
        table.add_row([
            process.name.as_str(),
            &process.pid.to_string(),
            state,
            &process.log,
        ]);
    }
    println!("{table}\n\n{}", status.nodes.trim_end());
}
