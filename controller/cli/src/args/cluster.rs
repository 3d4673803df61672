//! Arguments of the commands that talk to a Kubernetes cluster.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

/// Longest `--timeout`, in seconds: a day is more than any roll-out takes, and far from what a clock
/// cannot add.
const MAX_TIMEOUT: u64 = 86_400;

fn timeout() -> RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=MAX_TIMEOUT)
}

/// How to reach the cluster.
#[derive(Clone, Debug, Default, Args)]
pub struct Kubernetes {
    /// kubeconfig file; otherwise KUBECONFIG, ~/.kube/config, or the account of the pod this runs in.
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one by default.
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
}

/// The chart's values.
#[derive(Clone, Debug, Default, Args)]
pub struct ValueArgs {
    /// Set a value, as in agent.cgroupPath=/sys/fs/cgroup. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Values")]
    pub set: Vec<String>,
    /// YAML file with values. Repeatable; later files win, and --set over files.
    #[arg(
        short = 'f',
        long = "values",
        value_name = "FILE",
        help_heading = "Values"
    )]
    pub files: Vec<PathBuf>,
    /// Registry of the images; short for --set image.registry=.
    #[arg(long, value_name = "REGISTRY", help_heading = "Values")]
    pub image_registry: Option<String>,
    /// Tag of the images; short for --set image.tag=.
    #[arg(long, value_name = "TAG", help_heading = "Values")]
    pub image_tag: Option<String>,
    /// Forget the values that were given when Karst was installed before.
    #[arg(long, help_heading = "Values")]
    pub reset_values: bool,
}

/// What to do instead of changing the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Print the manifests; the cluster is not asked.
    Client,
    /// Let the API server check every object and say what would change.
    Server,
}

const INSTALL_HELP: &str = "\
Applies what is missing or different and waits until it runs: run it again after a failure, and it
goes on where it stopped; run it on a good installation, and nothing is written. Values given at an
earlier installation are kept.

Exit codes: 0 done; 1 the cluster refused or did not get there in time; 2 wrong usage or values.";

/// Arguments of `karst install` and `karst upgrade`.
#[derive(Clone, Debug, Args)]
#[command(after_help = INSTALL_HELP)]
pub struct Install {
    /// Values.
    #[command(flatten)]
    pub values: ValueArgs,
    /// Change nothing: print the manifests, or with =server let the API server check them.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "client")]
    pub dry_run: Option<DryRun>,
    /// Longest wait for the controller, and then for the agents, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = timeout())]
    pub timeout: u64,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

const UNINSTALL_HELP: &str = "\
First every node's agent takes its pods out of the mesh (their connections live on or are made anew,
in plain text) and removes its programs, maps, CNI entry and files; then every object goes, with the
root bundles, annotations, lease, keys and the namespace. Labels that you put on namespaces and pods
are yours and stay.

Exit codes: 0 done; 1 the cluster refused, or a node could not be cleaned; 2 wrong usage.";

/// Arguments of `karst uninstall`.
#[derive(Clone, Debug, Args)]
#[command(after_help = UNINSTALL_HELP)]
pub struct Uninstall {
    /// Keep the mesh's root key (Secret karst-ca), and so the namespace, for a later installation.
    #[arg(long)]
    pub keep_ca: bool,
    /// Go on although nodes could not be cleaned. What stays on them goes at their next reboot, but
    /// for the CNI entry and the file karst-cni.
    #[arg(long)]
    pub force: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Longest wait for the nodes, and then for each group of objects, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = timeout())]
    pub timeout: u64,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

/// Form of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

impl Form {
    /// Whether it is JSON.
    pub fn is_json(self) -> bool {
        self == Self::Json
    }
}

const CHECK_HELP: &str = "\
Each line is one check: ok, warning, or failed with what to do about it.

Exit codes: 0 nothing failed (there may be warnings); 1 the cluster cannot be asked; 2 wrong usage;
4 a check failed.";

/// Arguments of `karst check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = CHECK_HELP)]
pub struct Check {
    /// Only what must hold before Karst is installed.
    #[arg(long)]
    pub pre: bool,
    /// Leave out the comparison of what nodes hold with what they should, which runs a command in each agent's
    /// container.
    #[arg(long)]
    pub no_nodes: bool,
    /// Form of the report.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Form,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}
