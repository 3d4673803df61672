//! The command line.

mod bugreport;
mod cluster;
mod inspect;
mod live;
mod log_level;
mod node;
mod objects;

use clap::{Args, Parser, Subcommand};

pub use bugreport::BugReport;
pub use cluster::{Check, DryRun, Form, Install, Kubernetes, Uninstall, ValueArgs};
pub use inspect::{Diff, Inspect};
pub use live::{EventKind, Selectors, Sources, Tap, TapOutput, Top};
pub use log_level::LogLevel;
pub use node::NodeArgs;
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
    /// Gather everything that helps to find a fault into one archive, without secrets.
    Bugreport(BugReport),
    /// Follow connections and requests as they come.
    Tap(Box<Tap>),
    /// Show who talks to whom, how much and how well, as it changes.
    Top(Box<Top>),
    /// Show or set the level of an agent's or waypoint's own log.
    LogLevel(Box<LogLevel>),
    /// Pass what comes on standard input on to this node's agent, and its answer back, until either ends. Commands
    /// on other machines are served by it through the API server.
    #[command(hide = true)]
    Relay(NodeArgs),
    /// Print the version.
    Version,
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
            assert_eq!(inspect.words, ["pod", "show"]);
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
