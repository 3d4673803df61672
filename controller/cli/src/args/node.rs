//! Arguments by which a node, or a waypoint beyond the API server, is named.

use std::path::PathBuf;

use clap::Args;

/// Which node, and where on its machine things are. Nothing named: the only node of this machine.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// The node; one that is not this machine is reached through the API server.
    #[arg(
        long,
        value_name = "NODE",
        help_heading = "Place",
        conflicts_with = "pod"
    )]
    pub node: Option<String>,
    /// The waypoint or gateway of this pod, or the node that it runs on; through the API server.
    #[arg(long, value_name = "NAMESPACE/POD", help_heading = "Place")]
    pub pod: Option<String>,
    /// Directory on bpffs with the pins of the nodes.
    #[arg(
        long,
        env = "KARST_BPFFS_ROOT",
        default_value = "/sys/fs/bpf/karst",
        help_heading = "Place"
    )]
    pub bpffs_root: PathBuf,
    /// The agent's admin socket; /run/karst/NODE/admin/agent.sock by default.
    #[arg(long, env = "KARST_ADMIN_SOCKET", help_heading = "Place")]
    pub admin_socket: Option<PathBuf>,
}
