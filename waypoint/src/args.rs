//! Command line and environment, parsed once into values that need no further checks. All mistakes are
//! reported together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;
use karst_identity::SpiffeId;
pub use karst_process::args::{AccessLogFormat, ConfigError, LogFormat};

use crate::authz::MAX_TRUSTED_HOPS;

/// Most workers accepted: each one has its own listeners and pools.
const MAX_WORKERS: usize = 64;

/// Longest drain accepted, seconds.
const MAX_DRAIN: u64 = 3600;

/// Port of the tunnel listener, as in every pod of the mesh.
const MESH_PORT: u16 = karst_tunnel::settings::HBONE_PORT;

/// The layer 7 proxy of Karst: waypoint of services and ingress gateway, for one Gateway.
#[derive(Clone, Debug, Parser)]
#[command(name = "karst-waypoint", version, max_term_width = 100)]
pub struct Args {
    /// Namespace of the Gateway this proxy runs for; it is that of its service account too.
    #[arg(long, env = "KARST_GATEWAY_NAMESPACE")]
    pub gateway_namespace: String,
    /// Name of the Gateway this proxy runs for; its service account has the same name.
    #[arg(long, env = "KARST_GATEWAY_NAME")]
    pub gateway_name: String,
    /// Address of the controller, HOST:PORT.
    #[arg(long, env = "KARST_CONTROLLER")]
    pub controller: String,
    /// Name to expect in the controller's serving certificate; the host of --controller by default.
    #[arg(long, env = "KARST_CONTROLLER_NAME")]
    pub controller_name: Option<String>,
    /// PEM file with the root that the controller's certificate must chain to. Read again when it changes.
    #[arg(long, env = "KARST_ROOT_CERT")]
    pub root_cert: PathBuf,
    /// File with this proxy's service account token. Read again for each request.
    #[arg(long, env = "KARST_TOKEN")]
    pub token: PathBuf,
    /// Trust domain of the mesh.
    #[arg(long, env = "KARST_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Id of this cluster.
    #[arg(long, env = "KARST_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Id of this pod's network; empty for the default network.
    #[arg(long, env = "KARST_NETWORK", default_value = "")]
    pub network: String,
    /// Name of the node this proxy runs on; for the choice of near endpoints.
    #[arg(long, env = "KARST_NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Zone this proxy runs in; for the choice of near endpoints.
    #[arg(long, env = "KARST_ZONE", default_value = "")]
    pub zone: String,
    /// Name of this pod, for logs.
    #[arg(long, env = "KARST_POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Number of data-plane threads; one for each CPU this process may use by default.
    #[arg(long, env = "KARST_WORKERS")]
    pub workers: Option<usize>,
    /// Where tunnels from the mesh are taken. Repeatable; a family that the pod lacks is left out.
    #[arg(long, env = "KARST_MESH_LISTEN", value_delimiter = ',', default_values_t = any(MESH_PORT))]
    pub mesh_listen: Vec<SocketAddr>,
    /// Addresses on which a gateway's listener ports are opened. Repeatable; a family that the pod lacks is left out.
    #[arg(long, env = "KARST_LISTEN_ADDRESSES", value_delimiter = ',',
        default_values_t = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)])]
    pub listen_addresses: Vec<IpAddr>,
    /// Where to serve /metrics. Repeatable; a family that the pod lacks is left out.
    #[arg(long, env = "KARST_METRICS_LISTEN", value_delimiter = ',', default_values_t = any(15020))]
    pub metrics_listen: Vec<SocketAddr>,
    /// Where to serve /healthz/ready. Repeatable; a family that the pod lacks is left out.
    #[arg(long, env = "KARST_READINESS_LISTEN", value_delimiter = ',', default_values_t = any(15021))]
    pub readiness_listen: Vec<SocketAddr>,
    /// Where to show configuration and state to an operator; loopback only.
    #[arg(long, env = "KARST_ADMIN_LISTEN", default_value = "127.0.0.1:15000")]
    pub admin_listen: SocketAddr,
    /// Forward proxies in front of this one that are trusted to tell their client's address in x-forwarded-for; for
    /// policies that ask for it.
    #[arg(long, env = "KARST_TRUSTED_HOPS", default_value_t = 0)]
    pub trusted_hops: usize,
    /// Do not count connections and requests for metrics: for measuring what that costs.
    #[arg(long, hide = true)]
    pub without_traffic_metrics: bool,
    /// Format of the program's log on standard error.
    #[arg(long, env = "KARST_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to log, as in `info,karst_waypoint=debug`.
    #[arg(long, env = "KARST_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Access log on standard output: one line a request or connection.
    #[arg(long, env = "KARST_ACCESS_LOG", value_enum, default_value = "text")]
    pub access_log: AccessLogFormat,
    /// Seconds after SIGTERM in which new connections are still taken: as long as others may not know yet.
    #[arg(long, env = "KARST_DRAIN_DELAY", default_value_t = 3)]
    pub drain_delay: u64,
    /// Seconds after SIGTERM by which connections must have ended.
    #[arg(long, env = "KARST_DRAIN_DEADLINE", default_value_t = 25)]
    pub drain_deadline: u64,
}

/// Both families' unspecified address.
fn any(port: u16) -> [SocketAddr; 2] {
    [
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    ]
}

/// Checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the Gateway.
    pub gateway_namespace: String,
    /// Name of the Gateway.
    pub gateway_name: String,
    /// Who we are.
    pub identity: SpiffeId,
    /// `HOST:PORT` of the controller.
    pub controller: String,
    /// Name in the controller's certificate.
    pub controller_name: String,
    /// Root certificate file.
    pub root_cert: PathBuf,
    /// Token file.
    pub token: PathBuf,
    /// Cluster id.
    pub cluster_id: String,
    /// Network id.
    pub network: String,
    /// Node; empty if unknown.
    pub node_name: String,
    /// Zone; empty if unknown.
    pub zone: String,
    /// Pod; empty if unknown.
    pub pod_name: String,
    /// Data-plane threads.
    pub workers: usize,
    /// Tunnel listeners.
    pub mesh_listen: Vec<SocketAddr>,
    /// Addresses of gateway listeners.
    pub listen_addresses: Vec<IpAddr>,
    /// Metrics addresses.
    pub metrics_listen: Vec<SocketAddr>,
    /// Readiness addresses.
    pub readiness_listen: Vec<SocketAddr>,
    /// Admin address.
    pub admin_listen: SocketAddr,
    /// Forward proxies that are trusted.
    pub trusted_hops: usize,
    /// Log format.
    pub log_format: LogFormat,
    /// Log filter.
    pub log_level: String,
    /// Connections and requests are not counted for metrics.
    pub without_traffic_metrics: bool,
    /// Access log format.
    pub access_log: AccessLogFormat,
    /// Time after SIGTERM in which new connections are taken.
    pub drain_delay: Duration,
    /// Time after SIGTERM by which everything has ended.
    pub drain_deadline: Duration,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let workers = args.workers.unwrap_or_else(|| {
            thread::available_parallelism().map_or(1, |cpus| cpus.get().min(MAX_WORKERS))
        });
        let mut mistakes = mistakes(&args, workers);
        let identity = SpiffeId::new(
            &args.trust_domain,
            &args.gateway_namespace,
            &args.gateway_name,
        );
        let identity = match identity {
            Ok(identity) if mistakes.is_empty() => identity,
            Ok(_) => return Err(ConfigError(mistakes)),
            Err(error) => {
                mistakes.push(format!(
                    "--trust-domain, --gateway-namespace and --gateway-name make no identity: {error}"
                ));
                return Err(ConfigError(mistakes));
            }
        };
        let host = args
            .controller
            .rsplit_once(':')
            .map_or("", |(host, _)| host);
        Ok(Self {
            controller_name: args
                .controller_name
                .unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned()),
            gateway_namespace: args.gateway_namespace,
            gateway_name: args.gateway_name,
            identity,
            controller: args.controller,
            root_cert: args.root_cert,
            token: args.token,
            cluster_id: args.cluster_id,
            network: args.network,
            node_name: args.node_name,
            zone: args.zone,
            pod_name: args.pod_name,
            workers,
            mesh_listen: args.mesh_listen,
            listen_addresses: args.listen_addresses,
            metrics_listen: args.metrics_listen,
            readiness_listen: args.readiness_listen,
            admin_listen: args.admin_listen,
            trusted_hops: args.trusted_hops,
            log_format: args.log_format,
            log_level: args.log_level,
            without_traffic_metrics: args.without_traffic_metrics,
            access_log: args.access_log,
            drain_delay: Duration::from_secs(args.drain_delay),
            drain_deadline: Duration::from_secs(args.drain_deadline),
        })
    }
}

fn mistakes(args: &Args, workers: usize) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut check = |good: bool, mistake: String| {
        if !good {
            mistakes.push(mistake);
        }
    };
    let port = args
        .controller
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    let good = matches!(port, Some((host, Ok(1..))) if !host.is_empty());
    check(
        good,
        format!("--controller {:?} is not HOST:PORT", args.controller),
    );
    for (flag, path) in [("--root-cert", &args.root_cert), ("--token", &args.token)] {
        let mistake = format!("{flag} {} is not an absolute path", path.display());
        check(path.is_absolute(), mistake);
    }
    check(
        (1..=MAX_WORKERS).contains(&workers),
        format!("--workers {workers} is not 1 to {MAX_WORKERS}"),
    );
    check(
        !args.cluster_id.is_empty(),
        "--cluster-id is empty".to_owned(),
    );
    // What it shows is for whoever may enter the pod, not for the network.
    check(
        args.admin_listen.ip().is_loopback(),
        format!("--admin-listen {} is not on loopback", args.admin_listen),
    );
    check(
        args.trusted_hops <= MAX_TRUSTED_HOPS,
        format!("--trusted-hops is above {MAX_TRUSTED_HOPS}"),
    );
    if let Err(error) = karst_process::logging::check(&args.log_level) {
        check(false, format!("--log-level: {error}"));
    }
    check(
        args.drain_deadline <= MAX_DRAIN,
        format!("--drain-deadline is above {MAX_DRAIN} seconds"),
    );
    check(
        args.drain_delay <= args.drain_deadline,
        "--drain-delay is above --drain-deadline".to_owned(),
    );
    mistakes
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Args, Config, ConfigError};

    fn parse(extra: &[&str]) -> Result<Config, ConfigError> {
        let required = [
            "--controller=[fd00::1]:15012",
            "--root-cert=/r",
            "--token=/t",
            "--gateway-namespace=shop",
            "--gateway-name=front",
        ];
        let flag = |arg: &str| arg.split('=').next().map(str::to_owned);
        let given: Vec<_> = extra.iter().map(|arg| flag(arg)).collect();
        let missing = required.iter().filter(|arg| !given.contains(&flag(arg)));
        let args = ["karst-waypoint"].iter().chain(missing).chain(extra);
        Config::try_from(Args::try_parse_from(args).expect("parses"))
    }

    #[test]
    fn the_identity_is_that_of_the_gateways_account() {
        let config = parse(&[]).expect("valid");
        assert_eq!(
            config.identity.as_str(),
            "spiffe://cluster.local/ns/shop/sa/front"
        );
        assert_eq!(config.controller_name, "fd00::1");
        assert!(config.workers >= 1);
        let mesh: Vec<_> = config.mesh_listen.iter().map(ToString::to_string).collect();
        assert_eq!(mesh, ["0.0.0.0:15008", "[::]:15008"]);
    }

    #[test]
    fn all_mistakes_are_told_together() {
        let error = parse(&[
            "--controller=nowhere",
            "--token=t",
            "--workers=0",
            "--admin-listen=0.0.0.0:15000",
            "--drain-deadline=1",
            "--trusted-hops=33",
            "--trust-domain=UPPER",
        ])
        .expect_err("refused");
        assert_eq!(error.0.len(), 7, "{error}");
    }

    #[test]
    fn addresses_come_as_a_list() {
        let config = parse(&["--listen-addresses=127.0.0.1,::1"]).expect("valid");
        assert_eq!(config.listen_addresses.len(), 2);
    }
}
