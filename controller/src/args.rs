//! Arguments and environment, checked together.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, ValueEnum};
use time::Duration;

use crate::{
    auth::{NodeAgents, ServiceAccount, TokenRules},
    ca::authority::AuthoritySource,
    cluster::proxies::{Proxies, ProxySettings, ServiceType},
};

/// Port of the controller's Service.
const PORT: u16 = 15012;

/// Lifetime of workload certificates when the request names none.
const DEFAULT_LIFETIME: Duration = Duration::hours(24);

/// Control plane of the Karst service mesh: tells node agents what is in the mesh, and signs the
/// certificates of its workloads.
#[derive(Debug, Parser)]
#[command(name = "karst-controller", version)]
pub struct Args {
    /// Where objects come from: kube, the API server of the cluster, or dir:PATH, a folder of
    /// Kubernetes manifests
    #[arg(long, env = "KARST_SOURCE")]
    source: String,

    /// How to reach the API server, for --source kube; without it, the pod's service account
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Namespace of the controller and its objects, for --source kube
    #[arg(long, env = "POD_NAMESPACE", default_value = "karst-system")]
    system_namespace: String,

    /// Name of the controller's pod, for --source kube; tells replicas apart
    #[arg(long, env = "POD_NAME", default_value = "karst-controller")]
    pod_name: String,

    /// Address to serve agents on
    #[arg(long, env = "KARST_LISTEN", default_value = "[::]:15012")]
    listen: String,

    /// Address for /metrics, /healthz/live and /healthz/ready
    #[arg(long, env = "KARST_METRICS_LISTEN", default_value = "127.0.0.1:15014")]
    metrics_listen: String,

    /// Folder for what must survive a restart (the mesh's root key); for --source dir
    #[arg(long, env = "KARST_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// File to write the trusted roots to, for agents and for people
    #[arg(long, env = "KARST_ROOT_CERT_OUT")]
    root_cert_out: Option<PathBuf>,

    /// First part of every workload uid
    #[arg(long, env = "KARST_CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,

    /// Trust domain of every identity
    #[arg(long, env = "KARST_TRUST_DOMAIN", default_value = karst_api::DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,

    /// DNS domain of services
    #[arg(long, env = "KARST_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,

    /// Namespace whose security policies of Istio's API are for the whole mesh
    #[arg(long, env = "KARST_ROOT_NAMESPACE", default_value = karst_core::ROOT_NAMESPACE)]
    root_namespace: String,

    /// Where pods may connect to whose namespace has no label karst.dev/egress
    #[arg(long, env = "KARST_EGRESS_DEFAULT", value_enum, default_value_t = EgressDefault::AllowAny)]
    egress_default: EgressDefault,
    /// File with the mesh's configuration as Istio has it, of which extensionProviders are read; read again when
    /// it changes
    #[arg(long, env = "KARST_MESH_CONFIG")]
    mesh_config: Option<PathBuf>,

    /// DNS name or IP address that agents know this server by; may be given several times
    #[arg(
        long,
        env = "KARST_SERVING_NAME",
        value_delimiter = ',',
        default_value = "karst-controller.karst-system.svc"
    )]
    serving_name: Vec<String>,

    /// JWKS file with the keys that sign service-account tokens; read again when it changes; for
    /// --source dir (with --source kube the API server is asked)
    #[arg(long, env = "KARST_TOKEN_JWKS")]
    token_jwks: Option<PathBuf>,

    /// Issuer that tokens must have; for --source dir
    #[arg(long, env = "KARST_TOKEN_ISSUER")]
    token_issuer: Option<String>,

    /// Audience that tokens must have
    #[arg(long, env = "KARST_TOKEN_AUDIENCE", default_value = "karst-ca")]
    token_audience: String,

    /// Service account of node agents, NAMESPACE/NAME; may be given several times
    #[arg(
        long,
        env = "KARST_NODE_AGENT_ACCOUNT",
        value_delimiter = ',',
        default_value = "karst-system/karst-node-agent"
    )]
    node_agent_account: Vec<String>,

    /// Longest lifetime of a workload certificate, as in 24h, 90m or 3600s
    #[arg(long, env = "KARST_MAX_CERTIFICATE_TTL", default_value = "24h")]
    max_certificate_ttl: String,

    /// Signing certificate of your own, with its chain (PEM); needs --ca-key and --ca-root; for
    /// --source dir (with --source kube, the Secret cacerts)
    #[arg(long, env = "KARST_CA_CERT")]
    ca_cert: Option<PathBuf>,

    /// Private key of --ca-cert (PEM, mode 0600)
    #[arg(long, env = "KARST_CA_KEY")]
    ca_key: Option<PathBuf>,

    /// Roots that --ca-cert leads to (PEM)
    #[arg(long, env = "KARST_CA_ROOT")]
    ca_root: Option<PathBuf>,

    /// Image of the proxies that are run for Gateways; for --source kube
    #[arg(
        long,
        env = "KARST_PROXY_IMAGE",
        default_value = concat!("karst.dev/waypoint:", env!("CARGO_PKG_VERSION"))
    )]
    proxy_image: String,

    /// When that image is pulled; for --source kube
    #[arg(long, env = "KARST_PROXY_PULL_POLICY", default_value = "IfNotPresent")]
    proxy_pull_policy: PullPolicy,

    /// Secret with credentials for its registry, in each namespace that has a Gateway; may be given several
    /// times; for --source kube
    #[arg(long, env = "KARST_PROXY_PULL_SECRET", value_delimiter = ',')]
    proxy_pull_secret: Vec<String>,

    /// How proxies are run, as JSON: the value `proxy` of the chart; for --source kube
    #[arg(long, env = "KARST_PROXY_SETTINGS", default_value = "{}")]
    proxy_settings: String,

    /// Type of the Services of gateways that do not choose one; for --source kube
    #[arg(
        long,
        env = "KARST_GATEWAY_SERVICE_TYPE",
        default_value = "LoadBalancer"
    )]
    gateway_service_type: ServiceType,

    /// Form of the log
    #[arg(long, env = "KARST_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where pods may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EgressDefault {
    /// Anywhere.
    #[value(name = "ALLOW_ANY")]
    AllowAny,
    /// To workloads, Services and ServiceEntries.
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
}

impl From<EgressDefault> for karst_core::Egress {
    fn from(mode: EgressDefault) -> Self {
        match mode {
            EgressDefault::AllowAny => Self::AllowAny,
            EgressDefault::RegistryOnly => Self::RegistryOnly,
        }
    }
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PullPolicy {
    /// Whenever a container starts.
    #[value(name = "Always")]
    Always,
    /// When it is not there.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// By nobody here.
    #[value(name = "Never")]
    Never,
}

/// Arguments that have been checked.
#[derive(Debug)]
pub struct Config {
    pub source: Source,
    pub listen: SocketAddr,
    pub metrics_listen: SocketAddr,
    pub root_cert_out: Option<PathBuf>,
    pub mesh: karst_core::MeshConfig,
    pub mesh_config: Option<PathBuf>,
    pub serving_names: Vec<String>,
    pub token_audience: String,
    pub node_agents: NodeAgents,
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
}

/// Where objects, tokens and the authority come from.
#[derive(Debug)]
pub enum Source {
    /// A folder of manifests, for where there is no API server.
    Directory {
        path: PathBuf,
        tokens: TokenRules,
        authority: AuthoritySource,
    },
    /// An API server.
    Kube {
        kubeconfig: Option<PathBuf>,
        system_namespace: String,
        pod_name: String,
        proxies: Box<Proxies>,
    },
}

impl Args {
    /// Checks everything that clap cannot.
    ///
    /// # Errors
    /// All mistakes together, one a line.
    pub fn check(self) -> Result<Config, String> {
        let mut mistakes = Mistakes(Vec::new());
        let source = self.source(&mut mistakes);
        let listen = mistakes.address("--listen", &self.listen);
        let metrics_listen = mistakes.address("--metrics-listen", &self.metrics_listen);
        mistakes.dns_name("--trust-domain", &self.trust_domain);
        mistakes.dns_name("--cluster-domain", &self.cluster_domain);
        mistakes.dns_name("--root-namespace", &self.root_namespace);
        for name in &self.serving_name {
            if name.parse::<std::net::IpAddr>().is_err() {
                mistakes.dns_name("--serving-name", name);
            }
        }
        if self.cluster_id.is_empty() || self.cluster_id.contains('/') {
            mistakes
                .0
                .push("--cluster-id must not be empty or have a '/'".to_owned());
        }
        if self.token_audience.is_empty() {
            mistakes
                .0
                .push("--token-audience must not be empty".to_owned());
        }
        let accounts = self.node_agent_account.iter();
        let accounts: Vec<ServiceAccount> =
            accounts.filter_map(|text| mistakes.account(text)).collect();
        let max_lifetime = mistakes.duration("--max-certificate-ttl", &self.max_certificate_ttl);
        match (source, listen, metrics_listen, max_lifetime) {
            (Some(source), Some(listen), Some(metrics_listen), Some(max))
                if mistakes.0.is_empty() =>
            {
                Ok(Config {
                    source,
                    listen,
                    metrics_listen,
                    root_cert_out: self.root_cert_out,
                    mesh: karst_core::MeshConfig {
                        cluster_id: self.cluster_id,
                        trust_domain: self.trust_domain,
                        cluster_domain: self.cluster_domain,
                        root_namespace: self.root_namespace,
                        egress_default: self.egress_default.into(),
                        network: String::new(),
                    },
                    mesh_config: self.mesh_config,
                    serving_names: self.serving_name,
                    token_audience: self.token_audience,
                    node_agents: NodeAgents(accounts),
                    default_lifetime: DEFAULT_LIFETIME.min(max),
                    max_lifetime: max,
                })
            }
            _ => Err(mistakes.0.join("\n")),
        }
    }

    fn source(&self, mistakes: &mut Mistakes) -> Option<Source> {
        if self.source == "kube" {
            return self.kube(mistakes);
        }
        let Some(path) = self.source.strip_prefix("dir:").filter(|p| !p.is_empty()) else {
            return mistakes.note(format!(
                "--source is {:?}; write kube or dir:PATH",
                self.source
            ));
        };
        let authority = self.authority(mistakes);
        let jwks = mistakes.needed("--token-jwks", self.token_jwks.clone());
        let issuer = self.token_issuer.clone().filter(|text| !text.is_empty());
        let issuer = mistakes.needed("--token-issuer", issuer);
        Some(Source::Directory {
            path: PathBuf::from(path),
            tokens: TokenRules {
                jwks: jwks?,
                issuer: issuer?,
                audience: self.token_audience.clone(),
            },
            authority: authority?,
        })
    }

    fn kube(&self, mistakes: &mut Mistakes) -> Option<Source> {
        for (name, is_given, instead) in [
            (
                "--state-dir",
                self.state_dir.is_some(),
                "the key is kept in the Secret karst-ca",
            ),
            (
                "--token-jwks",
                self.token_jwks.is_some(),
                "the API server is asked about tokens",
            ),
            (
                "--token-issuer",
                self.token_issuer.is_some(),
                "the API server is asked about tokens",
            ),
            (
                "--ca-cert",
                self.ca_cert.is_some(),
                "make the Secret cacerts",
            ),
            ("--ca-key", self.ca_key.is_some(), "make the Secret cacerts"),
            (
                "--ca-root",
                self.ca_root.is_some(),
                "make the Secret cacerts",
            ),
        ] {
            if is_given {
                mistakes
                    .0
                    .push(format!("{name} does not go with --source kube: {instead}"));
            }
        }
        mistakes.dns_name("--system-namespace", &self.system_namespace);
        mistakes.dns_name("--pod-name", &self.pod_name);
        let settings = ProxySettings::parse(&self.proxy_settings)
            .map_err(|problem| mistakes.0.push(format!("--proxy-settings: {problem}")));
        if self.proxy_image.is_empty() {
            mistakes
                .0
                .push("--proxy-image must not be empty".to_owned());
        }
        let proxies = Proxies {
            image: self.proxy_image.clone(),
            pull_policy: format!("{:?}", self.proxy_pull_policy),
            pull_secrets: self.proxy_pull_secret.clone(),
            service_type: self.gateway_service_type,
            controller: format!("karst-controller.{}.svc:{PORT}", self.system_namespace),
            audience: self.token_audience.clone(),
            trust_domain: self.trust_domain.clone(),
            cluster_id: self.cluster_id.clone(),
            settings: settings.ok()?,
        };
        Some(Source::Kube {
            proxies: Box::new(proxies),
            kubeconfig: self.kubeconfig.clone(),
            system_namespace: self.system_namespace.clone(),
            pod_name: self.pod_name.clone(),
        })
    }

    fn authority(&self, mistakes: &mut Mistakes) -> Option<AuthoritySource> {
        match (&self.ca_cert, &self.ca_key, &self.ca_root) {
            (None, None, None) => {
                let state = mistakes.needed("--state-dir", self.state_dir.clone())?;
                Some(AuthoritySource::SelfMade { state })
            }
            (Some(certificate), Some(key), Some(root)) => Some(AuthoritySource::PluggedIn {
                certificate: certificate.clone(),
                key: key.clone(),
                root: root.clone(),
            }),
            _ => mistakes.note("--ca-cert, --ca-key and --ca-root are needed together"),
        }
    }
}

struct Mistakes(Vec<String>);

impl Mistakes {
    fn note<T>(&mut self, mistake: impl Into<String>) -> Option<T> {
        self.0.push(mistake.into());
        None
    }

    fn needed<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        value.or_else(|| self.note(format!("{name} is needed with --source dir")))
    }

    fn address(&mut self, name: &str, text: &str) -> Option<SocketAddr> {
        text.parse().ok().or_else(|| {
            self.note(format!(
                "{name} is {text:?}; write ADDRESS:PORT, as in [::]:15012"
            ))
        })
    }

    fn dns_name(&mut self, name: &str, text: &str) {
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if text.len() > 253 || !text.split('.').all(label) {
            self.0.push(format!(
                "{name} is {text:?}; write a DNS name in lower case"
            ));
        }
    }

    fn account(&mut self, text: &str) -> Option<ServiceAccount> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Some(ServiceAccount {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => self.note(format!(
                "--node-agent-account is {text:?}; write NAMESPACE/NAME"
            )),
        }
    }

    fn duration(&mut self, name: &str, text: &str) -> Option<Duration> {
        let split = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let seconds = match unit {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(24 * 3600),
            _ => None,
        };
        let total = number
            .parse::<i64>()
            .ok()
            .zip(seconds)
            .and_then(|(number, seconds)| number.checked_mul(seconds));
        match total {
            // Below five minutes agents could not renew in time; above a year is no lease at all.
            Some(total) if (300..=366 * 24 * 3600).contains(&total) => {
                Some(Duration::seconds(total))
            }
            _ => self.note(format!("{name} is {text:?}; write 300s to 366d, as in 24h")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(extra: &[&str]) -> Args {
        let base = [
            "karst-controller",
            "--source=dir:/m",
            "--state-dir=/s",
            "--token-jwks=/j",
            "--token-issuer=i",
        ];
        Args::try_parse_from(base.iter().chain(extra)).unwrap()
    }

    #[test]
    fn defaults_are_good() {
        let config = args(&[]).check().unwrap();
        assert_eq!(config.listen.port(), 15012);
        assert_eq!(config.token_audience, "karst-ca");
        assert!(matches!(config.source, Source::Directory { .. }));
        assert_eq!(
            config.node_agents.0[0].to_string(),
            "karst-system/karst-node-agent"
        );
        assert_eq!(config.max_lifetime, Duration::hours(24));
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let text = args(&[
            "--listen=nowhere",
            "--trust-domain=Bad_Domain",
            "--node-agent-account=no-slash",
            "--max-certificate-ttl=1s",
            "--ca-cert=/c",
        ])
        .check()
        .unwrap_err();
        for name in [
            "--listen",
            "--trust-domain",
            "--node-agent-account",
            "--max-certificate-ttl",
            "--ca-key",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_folder_needs_what_an_api_server_brings() {
        let parse = |list: &[&str]| Args::try_parse_from(list).unwrap().check();
        let text = parse(&["karst-controller", "--source=dir:/m"]).unwrap_err();
        for name in ["--state-dir", "--token-jwks", "--token-issuer"] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
        let config = parse(&["karst-controller", "--source=kube"]).unwrap();
        let Source::Kube {
            system_namespace, ..
        } = config.source
        else {
            panic!("the source is the API server");
        };
        assert_eq!(system_namespace, "karst-system");
    }

    #[test]
    fn what_an_api_server_brings_cannot_be_given() {
        let args = Args::try_parse_from([
            "karst-controller",
            "--source=kube",
            "--system-namespace=A",
            "--state-dir=/s",
            "--token-jwks=/j",
            "--token-issuer=i",
        ]);
        let text = args.unwrap().check().unwrap_err();
        for name in [
            "--state-dir",
            "--token-jwks",
            "--token-issuer",
            "--system-namespace",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        let mut mistakes = Mistakes(Vec::new());
        assert_eq!(mistakes.duration("x", "90m"), Some(Duration::minutes(90)));
        assert_eq!(mistakes.duration("x", "2d"), Some(Duration::days(2)));
        for bad in ["", "h", "24", "24x", "-1h", "99999999999999999999h", "367d"] {
            assert_eq!(mistakes.duration("x", bad), None, "{bad:?}");
        }
    }
}
