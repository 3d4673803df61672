//! Arguments of `karst log-level`.

use clap::Args;

use super::{Kubernetes, NodeArgs, Output};

const LOG_LEVEL_HELP: &str = "\
LEVEL := off | error | warn | info | debug | trace, or several as in info,karst_waypoint=debug

  karst log-level                              of this node's agent
  karst log-level debug --for 10m              for ten minutes, then as before
  karst log-level --waypoint 127.0.0.1:15000 info
                                               of a waypoint, from inside its pod
  karst log-level --node worker-1              through the API server
  karst log-level --pod shop/waypoint-6f7c debug --for 10m
                                               of a waypoint; of another pod's node's agent else

Exit codes: 0 done; 1 the level is refused, or the cluster cannot be asked; 2 wrong usage; 3 no such
node or pod; 7 the agent or waypoint does not answer; 8 it is of an older version.";

/// Arguments of `karst log-level`.
#[derive(Clone, Debug, Args)]
#[command(after_help = LOG_LEVEL_HELP)]
pub struct LogLevel {
    /// The level to set; without one, the level is shown.
    pub level: Option<String>,
    /// Go back to the level of the start after this time, as 90s, 10m, 2h or 1d.
    #[arg(long = "for", value_name = "DURATION", requires = "level")]
    pub lasts: Option<String>,
    /// A waypoint's or gateway's admin port, instead of an agent.
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Place", conflicts_with_all = ["node", "pod", "admin_socket"])]
    pub waypoint: Option<std::net::SocketAddr>,
    /// The node, or a waypoint beyond the API server.
    #[command(flatten)]
    pub place: NodeArgs,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}
