//! Command line and environment, parsed once into values that need no further
//! checks. All mistakes are reported together.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
pub use karst_process::args::{AccessLogFormat, ConfigError, LogFormat};

use crate::cgroup::{AgentCgroup, OWN, Places};

/// Most workers accepted: each one opens its own listeners in every pod.
const MAX_WORKERS: usize = 64;

/// The Karst node agent: captures the connections of enrolled pods and carries
/// them through mutually authenticated tunnels.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "karst-node-agent",
    version,
    max_term_width = 100,
    after_help = "`karst-node-agent cleanup` takes everything off the node again; see its --help."
)]
pub struct Args {
    /// Name of this node, as in Kubernetes.
    #[arg(long, env = "KARST_NODE_NAME")]
    pub node_name: String,
    /// Address of the controller, HOST:PORT.
    #[arg(long, env = "KARST_CONTROLLER")]
    pub controller: String,
    /// Name to expect in the controller's serving certificate; the host of --controller by default.
    #[arg(long, env = "KARST_CONTROLLER_NAME")]
    pub controller_name: Option<String>,
    /// PEM file with the root that the controller's certificate must chain to. Read again when it changes.
    #[arg(long, env = "KARST_ROOT_CERT")]
    pub root_cert: PathBuf,
    /// File with this agent's service account token. Read again for each request.
    #[arg(long, env = "KARST_TOKEN")]
    pub token: PathBuf,
    /// Directory on bpffs under which this node's programs and maps are pinned.
    #[arg(long, env = "KARST_BPFFS_ROOT", default_value = "/sys/fs/bpf/karst")]
    pub bpffs_root: PathBuf,
    /// cgroup v2 directory the programs are attached to: the root of the hierarchy on a real node.
    #[arg(long, env = "KARST_NODE_CGROUP", default_value = "/sys/fs/cgroup")]
    pub node_cgroup: PathBuf,
    /// cgroup v2 directory of the agent itself, which is never captured; created and joined at start.
    /// `self` is the one it was started in: a container has its own.
    #[arg(
        long,
        env = "KARST_AGENT_CGROUP",
        default_value = "/sys/fs/cgroup/karst-agent"
    )]
    pub agent_cgroup: PathBuf,
    /// cgroup v2 directory of the node's pods; the first that exists counts. Found by itself if
    /// none is given.
    #[arg(long, env = "KARST_KUBEPODS_CGROUP", value_delimiter = ',')]
    pub kubepods_cgroup: Vec<PathBuf>,
    /// Most pods that can be enrolled at once.
    #[arg(long, env = "KARST_MAX_PODS", default_value_t = 1024)]
    pub max_pods: u32,
    /// Directory for what must survive a restart of the agent; /run/karst/NODE by default.
    #[arg(long, env = "KARST_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Unix socket for the CLI and the CNI plugin; STATE_DIR/admin/agent.sock by default.
    #[arg(long, env = "KARST_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Unix socket for the CNI plugin, in a directory of its own, which is made root's alone.
    #[arg(long, env = "KARST_CNI_SOCKET")]
    pub cni_socket: Option<PathBuf>,
    /// The container runtime's directory of CNI plugins: ours is put there.
    #[arg(long, env = "KARST_CNI_BIN_DIR", requires_all = ["cni_conf_dir", "cni_socket"])]
    pub cni_bin_dir: Option<PathBuf>,
    /// The container runtime's directory of CNI configurations: ours is chained into the first.
    #[arg(long, env = "KARST_CNI_CONF_DIR", requires_all = ["cni_bin_dir", "cni_socket"])]
    pub cni_conf_dir: Option<PathBuf>,
    /// Find pods that run already by the node's processes.
    #[arg(long, env = "KARST_DISCOVER_PODS")]
    pub discover_pods: bool,
    /// The node's /proc.
    #[arg(long, env = "KARST_HOST_PROC", default_value = "/proc")]
    pub host_proc: PathBuf,
    /// The node's directory of network namespaces, as the agent sees it.
    #[arg(long, env = "KARST_NETNS_DIR")]
    pub netns_dir: Option<PathBuf>,
    /// Where to serve /metrics. Repeatable.
    #[arg(
        long,
        env = "KARST_METRICS_LISTEN",
        value_delimiter = ',',
        value_parser = listen_address,
        default_value = "127.0.0.1:15020"
    )]
    pub metrics_listen: Vec<SocketAddr>,
    /// Where to serve /healthz/ready. Repeatable.
    #[arg(
        long,
        env = "KARST_READINESS_LISTEN",
        value_delimiter = ',',
        default_value = "127.0.0.1:15021"
    )]
    pub readiness_listen: Vec<SocketAddr>,
    /// Unix socket of this process alone, for `karst-node-agent ready`; none by default.
    #[arg(long, env = "KARST_READY_SOCKET")]
    pub ready_socket: Option<PathBuf>,
    /// Number of data-plane threads.
    #[arg(long, env = "KARST_WORKERS", default_value_t = 2)]
    pub workers: usize,
    /// Format of the agent's log on standard error.
    #[arg(long, env = "KARST_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to log, as in `info,karst_node_agent=debug`.
    #[arg(long, env = "KARST_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Access log on standard output: one line a connection.
    #[arg(long, env = "KARST_ACCESS_LOG", value_enum, default_value = "text")]
    pub access_log: AccessLogFormat,
    /// Have connections between two pods of this node go through the agent, encrypted, as all others do. Without it,
    /// those that no waypoint and no policy asks the agent about go past it.
    #[arg(long, env = "KARST_ENCRYPT_SAME_NODE")]
    pub encrypt_same_node: bool,
    /// Do not count connections for metrics: for measuring what that costs.
    #[arg(long, hide = true)]
    pub without_traffic_metrics: bool,
    /// Trust domain of the mesh.
    #[arg(long, env = "KARST_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Namespace whose security policies are for the whole mesh, as the controller has it.
    #[arg(long, env = "KARST_ROOT_NAMESPACE", default_value = "karst-system")]
    pub root_namespace: String,
    /// Id of this cluster.
    #[arg(long, env = "KARST_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Id of this node's network; empty for the default network.
    #[arg(long, env = "KARST_NETWORK", default_value = "")]
    pub network: String,
    /// Seconds that established connections get to finish after SIGTERM.
    #[arg(long, env = "KARST_DRAIN_DEADLINE", default_value_t = 5)]
    pub drain_deadline: u64,
}

/// Checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the eBPF programs and maps live.
    pub places: Places,
    /// The container runtime's side of the node.
    pub runtime: RuntimeConfig,
    /// Name of this node.
    pub node_name: String,
    /// `https://HOST:PORT` of the controller.
    pub controller: String,
    /// Name in the controller's certificate.
    pub controller_name: String,
    /// Root certificate file.
    pub root_cert: PathBuf,
    /// Token file.
    pub token: PathBuf,
    /// State that survives restarts.
    pub state_dir: PathBuf,
    /// Admin socket.
    pub admin_socket: PathBuf,
    /// Metrics addresses.
    pub metrics_listen: Vec<SocketAddr>,
    /// Readiness addresses.
    pub readiness_listen: Vec<SocketAddr>,
    /// Socket for probes of this very process.
    pub ready_socket: Option<PathBuf>,
    /// Data-plane threads.
    pub workers: usize,
    /// Log format.
    pub log_format: LogFormat,
    /// Log filter.
    pub log_level: String,
    /// Connections between two pods of this node go through the agent.
    pub encrypt_same_node: bool,
    /// Connections are not counted for metrics.
    pub without_traffic_metrics: bool,
    /// Access log format.
    pub access_log: AccessLogFormat,
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace whose security policies are for the whole mesh.
    pub root_namespace: String,
    /// Cluster id.
    pub cluster_id: String,
    /// Network id.
    pub network: String,
    /// Time to finish after SIGTERM.
    pub drain_deadline: Duration,
}

/// What of the container runtime concerns the agent.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Socket for the CNI plugin.
    pub cni_socket: Option<PathBuf>,
    /// Directories for the plugin and its configuration.
    pub cni_dirs: Option<(PathBuf, PathBuf)>,
    /// Whether to look for pods that run already.
    pub discover_pods: bool,
    /// The node's `/proc`.
    pub host_proc: PathBuf,
    /// The node's directory of network namespaces.
    pub netns_dir: Option<PathBuf>,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let mistakes = mistakes(&args);
        if !mistakes.is_empty() {
            return Err(ConfigError(mistakes));
        }
        let state_dir = args
            .state_dir
            .unwrap_or_else(|| Path::new("/run/karst").join(&args.node_name));
        let host = args
            .controller
            .rsplit_once(':')
            .map_or("", |(host, _)| host);
        Ok(Self {
            places: Places {
                node_name: args.node_name.clone(),
                bpffs_root: args.bpffs_root,
                node_cgroup: args.node_cgroup,
                agent_cgroup: AgentCgroup::from(args.agent_cgroup),
                kubepods_cgroup: args.kubepods_cgroup,
                max_pods: args.max_pods,
            },
            runtime: RuntimeConfig {
                cni_socket: args.cni_socket,
                cni_dirs: args.cni_bin_dir.zip(args.cni_conf_dir),
                discover_pods: args.discover_pods,
                host_proc: args.host_proc,
                netns_dir: args.netns_dir,
            },
            node_name: args.node_name,
            controller_name: args
                .controller_name
                .unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned()),
            controller: args.controller,
            root_cert: args.root_cert,
            token: args.token,
            admin_socket: args
                .admin_socket
                .unwrap_or_else(|| state_dir.join("admin").join("agent.sock")),
            state_dir,
            metrics_listen: args.metrics_listen,
            readiness_listen: args.readiness_listen,
            ready_socket: args.ready_socket,
            workers: args.workers,
            log_format: args.log_format,
            log_level: args.log_level,
            encrypt_same_node: args.encrypt_same_node,
            without_traffic_metrics: args.without_traffic_metrics,
            access_log: args.access_log,
            trust_domain: args.trust_domain,
            root_namespace: args.root_namespace,
            cluster_id: args.cluster_id,
            network: args.network,
            drain_deadline: Duration::from_secs(args.drain_deadline),
        })
    }
}

/// Directories that others share: making one root's alone would break the node.
const SHARED_DIRS: [&str; 6] = ["/", "/run", "/var/run", "/tmp", "/var/tmp", "/var/lib"];

fn mistakes(args: &Args) -> Vec<String> {
    let mut mistakes = path_mistakes(args);
    let mut check = |good: bool, mistake: String| {
        if !good {
            mistakes.push(mistake);
        }
    };
    let name = &args.node_name;
    let dns = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let good = (1..=253).contains(&name.len()) && name.chars().all(dns) && !name.starts_with('.');
    check(
        good,
        format!("--node-name {name:?} is not a node name (a-z, 0-9, - and ., at most 253)"),
    );
    let port = args
        .controller
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    let good = matches!(port, Some((host, Ok(1..))) if !host.is_empty());
    check(
        good,
        format!("--controller {:?} is not HOST:PORT", args.controller),
    );
    let good = (1..=MAX_WORKERS).contains(&args.workers);
    check(
        good,
        format!("--workers {} is not 1 to {MAX_WORKERS}", args.workers),
    );
    check(args.max_pods > 0, "--max-pods is 0".to_owned());
    if let Err(error) = karst_process::logging::check(&args.log_level) {
        check(false, format!("--log-level: {error}"));
    }
    let good = karst_identity::TrustDomain::new(&args.trust_domain).is_ok();
    check(
        good,
        format!(
            "--trust-domain {:?} is not a trust domain",
            args.trust_domain
        ),
    );
    check(
        !args.root_namespace.is_empty(),
        "--root-namespace is empty".to_owned(),
    );
    check(
        !args.cluster_id.is_empty(),
        "--cluster-id is empty".to_owned(),
    );
    check(
        args.drain_deadline <= 3600,
        "--drain-deadline is above 3600 seconds".to_owned(),
    );
    mistakes
}

fn path_mistakes(args: &Args) -> Vec<String> {
    let mut mistakes = Vec::new();
    let own = args.agent_cgroup.as_os_str() == OWN;
    let agent_cgroup = (!own).then_some(&args.agent_cgroup);
    let absolute = [
        ("--root-cert", Some(&args.root_cert)),
        ("--token", Some(&args.token)),
        ("--bpffs-root", Some(&args.bpffs_root)),
        ("--node-cgroup", Some(&args.node_cgroup)),
        ("--agent-cgroup", agent_cgroup),
        ("--state-dir", args.state_dir.as_ref()),
        ("--admin-socket", args.admin_socket.as_ref()),
        ("--ready-socket", args.ready_socket.as_ref()),
        ("--cni-socket", args.cni_socket.as_ref()),
        ("--cni-bin-dir", args.cni_bin_dir.as_ref()),
        ("--cni-conf-dir", args.cni_conf_dir.as_ref()),
        ("--host-proc", Some(&args.host_proc)),
        ("--netns-dir", args.netns_dir.as_ref()),
    ];
    for (flag, path) in absolute {
        if let Some(path) = path
            && !path.is_absolute()
        {
            mistakes.push(format!("{flag} {} is not an absolute path", path.display()));
        }
    }
    let kubepods = args.kubepods_cgroup.iter();
    let below = kubepods.map(|path| ("--kubepods-cgroup", path));
    for (flag, path) in below.chain(agent_cgroup.map(|path| ("--agent-cgroup", path))) {
        if !path.starts_with(&args.node_cgroup) || *path == args.node_cgroup {
            mistakes.push(format!(
                "{flag} {} is not below --node-cgroup",
                path.display()
            ));
        }
    }
    let dir = args.cni_socket.as_ref().and_then(|path| path.parent());
    if dir.is_some_and(|dir| SHARED_DIRS.iter().any(|shared| dir == Path::new(shared))) {
        mistakes.push("--cni-socket needs a directory of its own".to_owned());
    }
    mistakes
}

/// `ADDRESS:PORT`; the brackets of an IPv6 address may be missing, as Kubernetes puts a node's address into the
/// environment without them.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (address, port) = text
        .rsplit_once(':')
        .ok_or("there is no port, as in 127.0.0.1:15020")?;
    let address: IpAddr = address
        .parse()
        .map_err(|error| format!("{address:?}: {error}"))?;
    let port = port.parse().map_err(|error| format!("{port:?}: {error}"))?;
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Args, Config};

    fn parse(extra: &[&str]) -> Result<Config, super::ConfigError> {
        let required = [
            "karst-node-agent",
            "--node-name=n1",
            "--controller=[fd00::1]:15012",
            "--root-cert=/r",
            "--token=/t",
        ];
        let args = required.iter().chain(extra);
        Config::try_from(Args::try_parse_from(args).expect("parses"))
    }

    #[test]
    fn defaults_follow_the_node_name() {
        let config = parse(&[]).expect("valid");
        assert_eq!(config.state_dir.to_str(), Some("/run/karst/n1"));
        assert_eq!(
            config.admin_socket.to_str(),
            Some("/run/karst/n1/admin/agent.sock")
        );
        assert_eq!(config.controller_name, "fd00::1");
        assert_eq!(config.places.node_name, "n1");
        assert!(config.places.kubepods_cgroup.is_empty(), "found by itself");
        assert!(config.runtime.cni_dirs.is_none() && !config.runtime.discover_pods);
    }

    #[test]
    fn a_daemonsets_arguments_are_taken() {
        let config = parse(&[
            "--agent-cgroup=self",
            "--cni-socket=/run/karst/cni.sock",
            "--cni-bin-dir=/host/opt/cni/bin",
            "--cni-conf-dir=/host/etc/cni/net.d",
            "--discover-pods",
            "--netns-dir=/host/run/netns",
            "--kubepods-cgroup=/sys/fs/cgroup/kubepods.slice,/sys/fs/cgroup/kubepods",
        ])
        .expect("valid");
        assert_eq!(config.places.agent_cgroup, crate::cgroup::AgentCgroup::Own);
        assert_eq!(config.places.kubepods_cgroup.len(), 2);
        assert!(config.runtime.discover_pods && config.runtime.cni_dirs.is_some());
        let shared = parse(&["--cni-socket=/run/cni.sock"]).expect_err("refused");
        assert!(shared.to_string().contains("--cni-socket"), "{shared}");
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let error = parse(&[
            "--workers=0",
            "--trust-domain=",
            "--root-namespace=",
            "--state-dir=relative",
            "--agent-cgroup=/elsewhere",
            "--log-level=a=b=c",
        ])
        .expect_err("refused");
        let text = error.to_string();
        for flag in [
            "--workers",
            "--trust-domain",
            "--root-namespace",
            "--state-dir",
            "--agent-cgroup",
            "--log-level",
        ] {
            assert!(text.contains(flag), "{flag} missing in {text}");
        }
        assert_eq!(error.0.len(), 6, "{text}");
    }

    #[test]
    fn a_nodes_address_needs_no_brackets() {
        let config = parse(&["--metrics-listen=127.0.0.1:15020,fd00::1:15020,[::1]:15020"]);
        let config = config.expect("valid");
        let listen: Vec<_> = config
            .metrics_listen
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            listen,
            ["127.0.0.1:15020", "[fd00::1]:15020", "[::1]:15020"]
        );
        for wrong in ["15020", "10.0.0.1", "node:15020", "fd00::1"] {
            let listen = format!("--metrics-listen={wrong}");
            let args = [
                "karst-node-agent",
                "--node-name=n",
                "--controller=c:1",
                &listen,
            ];
            assert!(Args::try_parse_from(args).is_err(), "{wrong}");
        }
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(Args::try_parse_from(["karst-node-agent", "--nodename=x"]).is_err());
    }
}
