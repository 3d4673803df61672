//! The command line.

mod cluster;
mod objects;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use cluster::{Check, DryRun, Install, Kubernetes, Uninstall, ValueArgs};
pub use objects::{Analyze, Explain, Objects, Threshold};

/// Installs, checks and sees into a Karst mesh.
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
    /// Install Karst into a Kubernetes cluster, or repair an installation.
    Install(Install),
    /// Bring an installation to this command's version.
    Upgrade(Install),
    /// Take every pod out of the mesh and remove Karst from the cluster.
    Uninstall(Uninstall),
    /// Check that a cluster can run Karst, or that Karst runs well in it.
    Check(Check),
    /// Say whether a client may connect, and which policy decides it and why.
    Explain(Explain),
    /// Look for mistakes in what the mesh is configured with.
    Analyze(Analyze),
    /// Show what is on a node.
    Inspect(Inspect),
    /// Show or set the level of an agent's or waypoint's own log.
    LogLevel(LogLevel),
    /// Print the version.
    Version,
}

const INSPECT_HELP: &str = "\
OBJECT := { pod | prog | link | map | cert | workload | service | policy | connection | tunnel }
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

    use super::{Cli, Command, DryRun};

    fn inspect(args: &[&str]) -> super::Inspect {
        let args = ["karst", "inspect"].iter().chain(args);
        match Cli::try_parse_from(args).expect("parses").command {
            Command::Inspect(inspect) => inspect,
            other => panic!("not inspect: {other:?}"),
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
        let cli = Cli::try_parse_from(["karst", "insp", "pod"]).expect("parses");
        assert!(matches!(cli.command, Command::Inspect(_)));
    }

    #[test]
    fn install_takes_values_and_check_takes_a_form() {
        let args = [
            "karst",
            "install",
            "--dry-run",
            "--set",
            "a=1",
            "--set=b=2",
            "--context",
            "c",
        ];
        let Command::Install(install) = Cli::try_parse_from(args).expect("parses").command else {
            panic!("not install");
        };
        assert_eq!(install.dry_run, Some(DryRun::Client));
        assert_eq!(install.values.set, ["a=1", "b=2"]);
        assert_eq!(install.kubernetes.context.as_deref(), Some("c"));
        let args = ["karst", "check", "--pre", "-o", "json"];
        let Command::Check(check) = Cli::try_parse_from(args).expect("parses").command else {
            panic!("not check");
        };
        assert!(check.pre && check.output.is_json());
    }

    #[test]
    fn a_timeout_is_between_a_second_and_a_day() {
        for command in ["install", "upgrade", "uninstall"] {
            let parses = |seconds: &str| {
                Cli::try_parse_from(["karst", command, "--timeout", seconds]).is_ok()
            };
            assert!(parses("1") && parses("86400"), "{command}");
            for wrong in ["0", "86401", "18446744073709551615", "-1"] {
                assert!(!parses(wrong), "{command} --timeout {wrong}");
            }
        }
    }
}
