//! `cargo xtask lab`: nodes and pods out of network namespaces on this machine, with the real
//! controller and node agents. What a lab is and how it works: the `karst_harness` crate.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use karst_harness::{Lab, LabOptions, LabStatus, Lifetime, Mesh};

use crate::workspace::{Workspace, require_root};

/// Arguments of `cargo xtask lab`.
#[derive(Parser)]
pub struct Args {
    /// The lab to speak of; labs of different names run side by side.
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the lab up, or to what is asked if it is up, and wait until all of it is ready.
    Up {
        /// A directory of manifests to apply.
        dir: Option<PathBuf>,
        /// How many nodes.
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// Nodes and pods only: no controller, no agents.
        #[arg(long)]
        no_mesh: bool,
        /// Use the binaries as they are, without building first.
        #[arg(long)]
        no_build: bool,
    },
    /// Apply manifests and wait until the pods they make are ready.
    Apply {
        /// A manifest file, a directory of them, or - for standard input.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Delete the objects that manifests name.
    Delete {
        /// A manifest file, a directory of them, or - for standard input.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Set (key=value) or remove (key-) a label, live.
    Label {
        /// What kind of object.
        kind: Labelled,
        /// Its name; a pod's as NAMESPACE/NAME, or NAME in namespace default.
        object: String,
        /// key=value or key-
        label: String,
    },
    /// Run a command in a pod.
    Exec {
        /// The pod's namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The pod's name, or that of its Deployment.
        pod: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Show what a pod's container wrote.
    Logs {
        /// The pod's namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The pod's name, or that of its Deployment.
        pod: String,
    },
    /// Show nodes and pods.
    Status {
        /// As JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// Run `karst inspect` against a node.
    Inspect {
        /// The node's name.
        node: String,
        /// The arguments of `karst inspect`.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Run `karst` against a node: `cargo xtask lab karst node1 -- tap --verdict denied`.
    Karst {
        /// The node's name.
        node: String,
        /// The command of `karst` and its arguments; where the node's things are is added.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Remove the lab and all it left, also after a crash.
    Down,
}

#[derive(Clone, Copy, ValueEnum)]
enum Labelled {
    /// A namespace.
    #[value(alias = "namespace")]
    Ns,
    /// A pod.
    Pod,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    require_root(
        "the lab",
        "makes network namespaces, cgroups and BPF programs",
    )?;
    let name = args.name.as_str();
    match &args.command {
        Command::Up {
            dir,
            nodes,
            no_mesh,
            no_build,
        } => {
            let mesh = if *no_mesh { Mesh::Off } else { Mesh::On };
            if !no_build {
                Workspace::locate()?.build_all()?;
            }
            let lab = Lab::up(LabOptions {
                nodes: *nodes,
                mesh,
                dir: dir.clone(),
                lifetime: Lifetime::UntilDown,
                ..LabOptions::new(name)
            })?;
            print_status(&lab.status()?)
        }
        Command::Apply { file } if file.as_os_str() == "-" => {
            Lab::attach(name)?.apply(&io::read_to_string(io::stdin())?)
        }
        Command::Apply { file } => Lab::attach(name)?.apply_path(file),
        Command::Delete { file } if file.as_os_str() == "-" => {
            Lab::attach(name)?.delete(&io::read_to_string(io::stdin())?)
        }
        Command::Delete { file } => Lab::attach(name)?.delete_path(file),
        Command::Label {
            kind: Labelled::Ns,
            object,
            label,
        } => Lab::attach(name)?.label_namespace(object, label),
        Command::Label {
            kind: Labelled::Pod,
            object,
            label,
        } => Lab::attach(name)?.label_pod(object, label),
        Command::Exec {
            namespace,
            pod,
            argv,
        } => {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let mut command =
                Lab::attach(name)?.pod_command(&format!("{namespace}/{pod}"), &argv)?;
            exit_like(command.status().context("running the command")?)
        }
        Command::Logs { namespace, pod } => {
            let log = Lab::attach(name)?.logs(&format!("{namespace}/{pod}"))?;
            Ok(io::stdout().write_all(log.as_bytes())?)
        }
        Command::Status { json: true } => {
            println!(
                "{}",
                serde_json::to_string_pretty(&Lab::attach(name)?.status()?)?
            );
            Ok(())
        }
        Command::Status { json: false } => print_status(&Lab::attach(name)?.status()?),
        Command::Inspect { node, argv } => {
            karst(name, node, &[&["inspect".to_owned()], &argv[..]].concat())
        }
        Command::Karst { node, argv } => karst(name, node, argv),
        Command::Down => Lab::tear_down(name),
    }
}

/// Runs `karst` with what it needs to find a node of the lab, and ends as it did.
fn karst(name: &str, node: &str, argv: &[String]) -> Result<()> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut command = Lab::attach(name)?.cli_command(node, &argv)?;
    exit_like(command.status().context("running karst")?)
}

/// Ends this program as the command in the pod ended, as a shell would report it.
fn exit_like(status: ExitStatus) -> Result<()> {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    std::process::exit(code.unwrap_or(1))
}

fn print_status(status: &LabStatus) -> Result<()> {
    let table = |header: &[&str]| {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_header(header.to_vec());
        table
    };
    let list = |addresses: &[std::net::IpAddr]| {
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let number = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let mut nodes = table(&["NODE", "ADDRESSES", "AGENT", "NETNS"]);
    for node in &status.nodes {
        nodes.add_row([
            node.name.clone(),
            list(&node.addresses),
            number(node.agent_pid),
            node.netns.clone(),
        ]);
    }
    let mut pods = table(&["NAMESPACE", "POD", "NODE", "ADDRESSES", "PID", "ENROLLED"]);
    for pod in &status.pods {
        let enrolled = if pod.enrolled { "yes" } else { "no" };
        pods.add_row([
            pod.namespace.clone(),
            pod.name.clone(),
            pod.node.clone(),
            list(&pod.addresses),
            number(pod.pid),
            enrolled.to_owned(),
        ]);
    }
    println!("{nodes}\n\n{pods}");
    Ok(())
}
