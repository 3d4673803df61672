//! Arguments of the commands that work out what the mesh makes of Kubernetes objects.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Kubernetes, Output};

/// Where the objects are had from.
#[derive(Clone, Debug, Default, Args)]
pub struct Objects {
    /// Manifests instead of a cluster: a file, a folder, or - for standard input. Repeatable.
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        help_heading = "Objects",
        conflicts_with = "source"
    )]
    pub files: Vec<PathBuf>,
    /// Folder with all manifests of a cluster, instead of a cluster.
    #[arg(long, value_name = "DIR", help_heading = "Objects")]
    pub source: Option<PathBuf>,
    /// Trust domain of the mesh; that of the cluster's controller, or cluster.local.
    #[arg(long, value_name = "NAME", help_heading = "Objects")]
    pub trust_domain: Option<String>,
    /// DNS domain of the cluster; that of its controller, or cluster.local.
    #[arg(long, value_name = "NAME", help_heading = "Objects")]
    pub cluster_domain: Option<String>,
    /// Namespace whose policies are for the whole mesh; that of the cluster's controller, or karst-system.
    #[arg(long, value_name = "NAME", help_heading = "Objects")]
    pub root_namespace: Option<String>,
    /// Cluster.
    #[command(flatten)]
    pub kubernetes: Kubernetes,
}

const EXPLAIN_HELP: &str = "\
SRC := NAMESPACE/POD | IP | outside        (outside: a client with no identity, from 192.0.2.1)
DST := NAMESPACE/POD | svc/NAME.NAMESPACE | HOSTNAME | IP        (an IPv6 address in brackets)

The objects go through the controller's own code, and what it makes of them through the code that
decides in node agents, waypoints and gateways. What an agent has not heard of yet, and which pods
answer, is not known here, nor a gateway's listener that ends TLS without its Secret. Tokens are checked
as proxies do, but no keys are fetched: for rules with jwksUri give them with --jwks. Providers of
CUSTOM policies are named and not asked; the exit code is that of the case that they allow.

  karst explain shop/cart-0 svc/web.shop:80 --method GET --path /api
  karst explain outside shop/web-0:8080 -f manifests/

Exit codes: 0 allowed; 1 the objects cannot be had; 2 wrong usage; 3 SRC or DST is not there;
5 denied, also if only by some of several endpoints.";

/// Arguments of `karst explain`.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXPLAIN_HELP)]
pub struct Explain {
    /// Who connects.
    #[arg(value_name = "SRC")]
    pub client: String,
    /// What it connects to.
    #[arg(value_name = "DST:PORT")]
    pub destination: String,
    /// Method of a request; GET where something else of one is given.
    #[arg(long, value_name = "METHOD", help_heading = "Request")]
    pub method: Option<String>,
    /// Path of a request with its query; / where something else of one is given.
    #[arg(long, value_name = "PATH", help_heading = "Request")]
    pub path: Option<String>,
    /// Header of a request, as in 'X-Team: red'. Repeatable.
    #[arg(long = "header", value_name = "NAME:VALUE", help_heading = "Request")]
    pub headers: Vec<String>,
    /// Host of a request; DST where something else of one is given.
    #[arg(long, value_name = "HOST", help_heading = "Request")]
    pub host: Option<String>,
    /// File with the token (JWT) of an end user, or - for standard input; sent as 'authorization: Bearer'.
    #[arg(long, value_name = "FILE", help_heading = "Request")]
    pub jwt: Option<PathBuf>,
    /// File with the keys (JWKS) that rules with jwksUri are taken to have.
    #[arg(long, value_name = "FILE", help_heading = "Objects")]
    pub jwks: Option<PathBuf>,
    /// Mesh configuration with the providers of CUSTOM policies; else ConfigMap karst-mesh-config of karst-system.
    #[arg(long, value_name = "FILE", help_heading = "Objects")]
    pub mesh_config: Option<PathBuf>,
    /// Objects.
    #[command(flatten)]
    pub objects: Objects,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Threshold {
    /// Everything.
    Info,
    /// What deserves a look, and more.
    Warning,
    /// What does not do what it says.
    Error,
}

const ANALYZE_HELP: &str = "\
Every finding has a code that stays the same, the object, its field and what to do; `--list` has all
codes. A cluster is only read, Secrets not at all. With -f or --source no cluster is asked: what refers
to pods (or templates of them), Services, Gateways, namespaces or accounts is then checked only where
there are some of that kind.

  karst analyze -A                          the whole cluster
  karst analyze -f policies/ --failure-threshold warning

Exit codes: 0 nothing at or above the failure threshold; 79 something is; 64 wrong usage; 65 a
manifest or a file of metrics cannot be read; 1 the cluster cannot be asked.";

/// Arguments of `karst analyze`.
#[derive(Clone, Debug, Args)]
#[command(after_help = ANALYZE_HELP)]
pub struct Analyze {
    /// Only findings on objects of this namespace.
    #[arg(short, long, value_name = "NAME", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Findings of all namespaces, which is the default.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Fail on findings of this level or above.
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "error")]
    pub failure_threshold: Threshold,
    /// Show findings of this level or above.
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    pub output_threshold: Threshold,
    /// Print all codes and end.
    #[arg(long)]
    pub list: bool,
    /// Metrics of a node agent, as scraped, for findings on clients in plain text; agents of a cluster are asked.
    /// Repeatable.
    #[arg(long, value_name = "FILE")]
    pub metrics: Vec<PathBuf>,
    /// Objects.
    #[command(flatten)]
    pub objects: Objects,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}
