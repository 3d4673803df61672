//! Arguments of `karst bugreport`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::Kubernetes;

/// Longest `--since`, in minutes: what nodes keep of logs seldom goes back further than a month.
const MAX_SINCE: u64 = 60 * 24 * 31;

const HELP: &str = "\
One archive: the objects of the mesh, what Karst's pods are and have logged, their metrics, the reports
of `karst check` and `karst analyze`; and of the node this runs on, if it is one, what the kernel and
the agent hold. Secrets are not read; what looks like one elsewhere is taken out: keys, tokens,
passwords, queries of URLs, environment and arguments of other pods. Look through it all the same
before you give it away: it has the names and addresses of the cluster.

What could not be had stands in index.json, and is no failure as long as there is anything.

Exit codes: 0 written; 1 there is nothing to report on, or the file cannot be written; 2 wrong usage.";

/// Arguments of `karst bugreport`.
#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub struct BugReport {
    /// The archive; karst-bugreport-TIME.tar.gz here by default. It must not be there yet.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Logs of so many last minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 60,
          value_parser = RangedU64ValueParser::<u64>::new().range(1..=MAX_SINCE))]
    pub since: u64,
    /// No logs.
    #[arg(long)]
    pub no_logs: bool,
    /// Ask no cluster: only the node this runs on.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"])]
    pub no_cluster: bool,
    /// Directory on bpffs with the pins of this machine's nodes.
    #[arg(long, env = "KARST_BPFFS_ROOT", default_value = "/sys/fs/bpf/karst")]
    pub bpffs_root: PathBuf,
    /// Directory with a folder for each of this machine's nodes, in which its agent's admin socket is.
    #[arg(long, value_name = "DIR", default_value = "/run/karst")]
    pub run_dir: PathBuf,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}
