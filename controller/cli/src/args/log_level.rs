//! Arguments of `karst log-level`.

use std::path::PathBuf;

use clap::Args;

use super::Output;

const LOG_LEVEL_HELP: &str = "\
LEVEL := off | error | warn | info | debug | trace, or several as in info,karst_waypoint=debug

  karst log-level                              of this node's agent
  karst log-level debug --for 10m              for ten minutes, then as before
  karst log-level --waypoint 127.0.0.1:15000 info
                                               of a waypoint, for example by kubectl port-forward

Exit codes: 0 done; 1 the agent or waypoint cannot be asked, or refuses the level; 2 wrong usage.";

/// Arguments of `karst log-level`.
#[derive(Debug, Args)]
#[command(after_help = LOG_LEVEL_HELP)]
pub struct LogLevel {
    /// The level to set; without one, the level is shown.
    pub level: Option<String>,
    /// Go back to the level of the start after this time, as 90s, 10m, 2h or 1d.
    #[arg(long = "for", value_name = "DURATION", requires = "level")]
    pub lasts: Option<String>,
    /// A waypoint's or gateway's admin port, instead of an agent.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub waypoint: Option<std::net::SocketAddr>,
    /// The node, where a machine has several.
    #[arg(long, env = "KARST_NODE_NAME")]
    pub node: Option<String>,
    /// Directory on bpffs with the pins of the nodes.
    #[arg(long, env = "KARST_BPFFS_ROOT", default_value = "/sys/fs/bpf/karst")]
    pub bpffs_root: PathBuf,
    /// The agent's admin socket; /run/karst/NODE/admin/agent.sock by default.
    #[arg(long, env = "KARST_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}
