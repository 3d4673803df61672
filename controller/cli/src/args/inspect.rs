//! Arguments of `karst inspect`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{Kubernetes, NodeArgs, Objects, Output};

/// Longest `--stats`, seconds: counting slows every BPF program of the machine down.
const MAX_STATS: u64 = 30;

const INSPECT_HELP: &str = "\
OBJECT := { prog | link | map | pod | connection | tunnel | cert | workload | service | policy |
            route | endpoint | xds }
COMMAND := { show | list | dump | help }    (show when omitted; `dump` of a map has its entries)
SELECTOR := { id N | tag TAG | name NAME | pinned FILE | uid UID | NAME | NAMESPACE/NAME }

Objects, commands and keywords may be cut to a unique prefix, as with bpftool. prog, link, map and pod
are read from the kernel and need no agent; the others come from the agent's admin socket, and route
and the endpoints of routes from a waypoint.

  karst inspect pod                        enrolled pods of this node
  karst inspect prog show --stats 5        programs, with what they run in five seconds
  karst inspect map dump name PODS -p      every entry of one map, as indented JSON
  karst inspect workload show default/web-0
  karst inspect batch file FILE            many commands, one a line (- is standard input)
  karst inspect xds --node worker-1        through the API server
  karst inspect route --pod shop/waypoint-6f7c
  karst inspect diff                       what differs between objects, agent, kernel and sockets

Exit codes: 0 done; 1 the kernel or the cluster cannot be asked; 2 wrong usage; 3 not found;
6 diff found something; 7 the agent or the waypoint does not answer; 8 it has no such thing. With --node
they are those of the command on the node.";

/// Arguments of `karst inspect`.
#[derive(Clone, Debug, Args)]
#[command(after_help = INSPECT_HELP, disable_help_subcommand = true, override_usage = "\
karst inspect [OPTIONS] OBJECT { COMMAND [SELECTOR] | help }
       karst inspect [OPTIONS] diff
       karst inspect [OPTIONS] batch file FILE
       karst inspect version")]
pub struct Inspect {
    /// What to look at, what to do with it, and which one.
    #[arg(value_name = "OBJECT COMMAND SELECTOR")]
    pub words: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
    /// prog: let the kernel count runs for so long, and show what was counted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MAX_STATS))]
    pub stats: Option<u64>,
    /// The node.
    #[command(flatten)]
    pub place: NodeArgs,
    /// A waypoint's admin server, inside of its network namespace: 127.0.0.1:15000.
    #[arg(long, value_name = "ADDRESS", help_heading = "Place", conflicts_with_all = ["node", "pod", "admin_socket"])]
    pub waypoint_address: Option<SocketAddr>,
    /// Of `diff`, and the cluster.
    #[command(flatten)]
    pub diff: Diff,
}

impl Inspect {
    /// How to reach the cluster.
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.diff.objects.kubernetes
    }
}

/// What `karst inspect diff` compares with, and how.
#[derive(Clone, Debug, Args)]
pub struct Diff {
    /// diff: compare nothing with what Kubernetes objects ask for.
    #[arg(long)]
    pub no_intent: bool,
    /// diff: pauses before what differs is read again, five times, in all; it must differ in all of them.
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub settle: u16,
    /// Where container runtimes bind network namespaces, for pods whose agent is gone.
    #[arg(
        long,
        value_name = "DIR",
        env = "KARST_NETNS_DIR",
        default_value = "/run/netns"
    )]
    pub netns_dir: PathBuf,
    /// diff: print what was read on this node and compare nothing. What compares from afar asks for it.
    #[arg(long, hide = true)]
    pub layers: bool,
    /// With --layers: read the proxy in this pod too. Repeatable.
    #[arg(
        long = "proxy",
        value_name = "NAMESPACE/POD",
        hide = true,
        requires = "layers"
    )]
    pub proxies: Vec<String>,
    /// diff: the objects.
    #[command(flatten)]
    pub objects: Objects,
}
