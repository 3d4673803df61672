//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Sees into a Karst mesh.
#[derive(Debug, Parser)]
#[command(
    name = "karst",
    version,
    max_term_width = 100,
    infer_subcommands = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what is on a node.
    Inspect(Inspect),
    /// Print the version.
    Version,
}

const INSPECT_HELP: &str = "\
OBJECT := { pod | prog | link | map | cert | workload | service | connection | tunnel }
COMMAND := { show | list | dump NAME | help }    (show when omitted; dump is for maps)

Objects and commands may be cut to a unique prefix. pod, prog, link and map are read from the
kernel and need no agent; the others come from the agent's admin socket.

  karst inspect pod                     enrolled pods of this node
  karst inspect map dump PODS -p        every entry of one map, as indented JSON
  karst inspect workload show default/web-0

Exit codes: 0 done; 1 the kernel or the agent cannot be asked; 2 wrong usage; 3 not found.";

/// Arguments of `karst inspect`.
#[derive(Debug, Args)]
#[command(after_help = INSPECT_HELP, disable_help_subcommand = true)]
pub struct Inspect {
    /// What to look at.
    pub object: Option<String>,
    /// What to do with it.
    pub verb: Option<String>,
    /// Only the one of this name, `namespace/name`, uid or id.
    pub name: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
    /// The node, where a machine has several.
    #[arg(long, env = "KARST_NODE_NAME")]
    pub node: Option<String>,
    /// Directory on bpffs with the pins of the nodes.
    #[arg(long, env = "KARST_BPFFS_ROOT", default_value = "/sys/fs/bpf/karst")]
    pub bpffs_root: PathBuf,
    /// The agent's admin socket; /run/karst/NODE/admin/agent.sock by default.
    #[arg(long, env = "KARST_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
}

/// Output format.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// JSON.
    #[arg(short, long)]
    pub json: bool,
    /// JSON, indented.
    #[arg(short, long)]
    pub pretty: bool,
}

impl Output {
    /// Whether any kind of JSON is wanted.
    pub fn is_json(self) -> bool {
        self.json || self.pretty
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Cli, Command};

    fn inspect(args: &[&str]) -> super::Inspect {
        let args = ["karst", "inspect"].iter().chain(args);
        match Cli::try_parse_from(args).expect("parses").command {
            Command::Inspect(inspect) => inspect,
            Command::Version => panic!("not inspect"),
        }
    }

    #[test]
    fn flags_stand_anywhere() {
        for args in [
            &["-j", "pod", "show"][..],
            &["pod", "-j", "show"],
            &["pod", "show", "--json"],
        ] {
            let inspect = inspect(args);
            assert_eq!(inspect.object.as_deref(), Some("pod"));
            assert_eq!(inspect.verb.as_deref(), Some("show"));
            assert!(inspect.output.is_json());
        }
        assert!(inspect(&["pod", "-p"]).output.is_json());
        assert!(!inspect(&["pod"]).output.is_json());
    }

    #[test]
    fn command_names_may_be_cut() {
        let cli = Cli::try_parse_from(["karst", "ins", "pod"]).expect("parses");
        assert!(matches!(cli.command, Command::Inspect(_)));
    }
}
