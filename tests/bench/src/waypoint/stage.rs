//! The lab of the benchmark: a client and a server three times, once with our waypoint between them, once
//! with Envoy as the waypoint, once with nothing.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use karst_harness::{Lab, LabOptions, get_in, netns, until};

use super::{
    count, envoy,
    measure::{Body, Protocol, Routes},
};
use crate::{
    own::{self, Pace, Target, this_program},
    parts::{WAYPOINT_CLASS, karst_waypoint, waypoint_gateway, waypoint_pod},
};

/// The benchmark's lab; a second run on the same machine replaces the first.
const LAB: &str = "bench_waypoint";

/// Nodes of the client, and of waypoint and server.
const NODES: [&str; 2] = ["node1", "node2"];

/// The servers' port for each protocol.
const PORTS: [(Protocol, u16); 2] = [(Protocol::Http1, 8080), (Protocol::Http2, 8081)];

/// The services' port.
const SERVICE_PORT: u16 = 80;

/// Which of a hundred routes requests match: one in the middle, so that a proxy that looks at one after
/// the other needs half of them, as it does for requests to all of them.
const MATCHED_ROUTE: usize = 50;

/// How long it may take until everything answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Lines of a proxy's log that are shown when a measurement fails.
const LAST_LINES: usize = 15;

/// How a client reaches its server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Outside the mesh, by the server's address.
    Direct,
    /// Through our waypoint.
    Karst,
    /// Through Envoy.
    Envoy,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Karst, Self::Envoy];

    /// Name of its namespace too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Karst => "karst",
            Self::Envoy => "envoy",
        }
    }
}

/// What to raise.
pub struct Options {
    /// Where files of the pods are put.
    pub folder: PathBuf,
    /// Envoy's program.
    pub envoy: PathBuf,
    /// Threads of either proxy.
    pub workers: u32,
    /// Whether the proxies log every request.
    pub access_log: bool,
}

/// A proxy in its pod.
pub struct Proxy {
    /// Its process.
    pub pid: u32,
    netns: String,
    way: Way,
}

impl Proxy {
    /// How many requests it says it has answered so far.
    pub fn requests(&self) -> Result<f64> {
        let (server, path) = if self.way == Way::Karst {
            count::KARST
        } else {
            count::ENVOY
        };
        let said = get_in(&self.netns, server, path)?;
        if self.way == Way::Karst {
            count::karst(&said)
        } else {
            count::envoy(&said)
        }
    }
}

/// Where clients find each kind of service.
type Addresses = Vec<(Way, Protocol, Routes, SocketAddr)>;

/// The running lab.
pub struct Stage {
    /// The lab.
    pub lab: Lab,
    addresses: Addresses,
    proxies: Vec<Proxy>,
}

impl Stage {
    /// Brings everything up and waits until every way answers.
    pub fn raise(options: &Options) -> Result<Self> {
        let folder = &options.folder;
        write_files(folder)?;
        Lab::tear_down(LAB)?;
        let lab = Lab::up(LabOptions::new(LAB))?;
        match Self::set(&lab, options) {
            Ok((addresses, proxies)) => {
                let stage = Self {
                    lab,
                    addresses,
                    proxies,
                };
                match stage.wait() {
                    Ok(()) => Ok(stage),
                    Err(error) => {
                        let words = stage.last_words();
                        // The first error says more than one of tearing down would.
                        let _ = stage.lab.down();
                        Err(error.context(words))
                    }
                }
            }
            Err(error) => {
                let _ = lab.down();
                Err(error)
            }
        }
    }

    fn set(lab: &Lab, options: &Options) -> Result<(Addresses, Vec<Proxy>)> {
        let folder = &options.folder;
        let mut first = WAYPOINT_CLASS.to_owned();
        for way in Way::ALL {
            first += &pair(way, folder);
            if way != Way::Direct {
                first += &services(way);
            }
        }
        first += &routes();
        first += &karst(options);
        lab.apply(&first)?;
        for way in [Way::Karst, Way::Envoy] {
            for pod in ["client", "server"] {
                lab.wait_enrolled(&format!("{}/{pod}", way.name()))?;
            }
        }
        let addresses = addresses(lab)?;
        let config = folder.join("envoy.json");
        let text = envoy::configuration(&job(lab, &addresses, options)?).to_string();
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        lab.apply(&envoy_pod(options, &config)?)?;
        let status = lab.status()?;
        for pod in &status.pods {
            netns::sysctl(&pod.netns, CONGESTION)?;
        }
        let mut proxies = Vec::new();
        for way in [Way::Karst, Way::Envoy] {
            let pod = status
                .pods
                .iter()
                .find(|pod| pod.namespace == way.name() && pod.name == "waypoint")
                .context("there is no waypoint")?;
            proxies.push(Proxy {
                pid: pod.pid.context("the waypoint has ended")?,
                netns: pod.netns.clone(),
                way,
            });
        }
        Ok((addresses, proxies))
    }

    /// The client's pod.
    pub fn client(&self, way: Way) -> String {
        format!("{}/client", way.name())
    }

    /// The proxy in the way.
    pub fn proxy(&self, way: Way) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| proxy.way == way)
    }

    /// What the client asks.
    pub fn address(&self, way: Way, protocol: Protocol, routes: Routes) -> Option<SocketAddr> {
        self.addresses
            .iter()
            .find(|(its_way, its_protocol, its_routes, _)| {
                (*its_way, *its_protocol, *its_routes) == (way, protocol, routes)
            })
            .map(|(.., address)| *address)
    }

    /// The ends of the proxies' logs, for an error's report.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for proxy in &self.proxies {
            let name = proxy.way.name();
            let log = self.lab.logs(&format!("{name}/waypoint"));
            let log = log.unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = log.lines().rev().take(LAST_LINES).collect();
            for line in lines.iter().rev() {
                let _ = writeln!(words, "{name}: {line}");
            }
        }
        words
    }

    /// Until a few requests go every way, for every kind of service.
    fn wait(&self) -> Result<()> {
        let few = Pace {
            rate: 20,
            connections: 1,
            seconds: 1,
        };
        for (way, protocol, routes, address) in &self.addresses {
            let path = path(Body::Small, *routes);
            let target = match protocol {
                Protocol::Http1 => Target::http1(*address, &path),
                Protocol::Http2 => Target::http2(*address, &path),
            };
            let what = format!("{} {} {} to answer", way.name(), protocol.name(), path);
            until(&what, ANSWER_LIMIT, || {
                own::rate(&self.lab, &self.client(*way), &target, few).map(drop)
            })?;
        }
        Ok(())
    }
}

/// What requests ask for: a body of that size, below the path that their route matches.
pub fn path(body: Body, routes: Routes) -> String {
    let prefix = match routes {
        Routes::One => String::new(),
        Routes::Hundred => routes.prefixes().swap_remove(MATCHED_ROUTE - 1),
    };
    format!("{prefix}/{}", body.name())
}

fn write_files(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let conf = folder.join("waypoint-nginx.conf");
    fs::write(&conf, nginx()).with_context(|| format!("writing {}", conf.display()))
}

/// More connections than any load opens. Bodies are put together in memory: from a file, nginx sends
/// headers and body of HTTP/2 in two parts, of which the second one waits for a delayed acknowledgement.
fn nginx() -> String {
    let [(_, http1), (_, http2)] = PORTS;
    let (small, large) = (Body::Small.name(), Body::Large.name());
    format!(
        "user root;
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
error_log stderr;
events {{ worker_connections 18000; }}
http {{
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    server {{
        listen {http1} backlog=4096;
        listen {http2} backlog=4096 http2;
        set $k1 {};
        set $k8 {};
        set $k64 {};
        location ~ /{small}$ {{ return 200 $k1; }}
        location ~ /{large}$ {{ return 200 $k64; }}
    }}
}}
",
        "k".repeat(1 << 10),
        "$k1".repeat(8),
        "$k8".repeat(8),
    )
}

/// BBR, where the machine has it, narrows a connection to four packets for 200 ms every ten seconds: those would be
/// p99 of whatever row they fall into. Reno is in every kernel, and does nothing where no packet is lost.
const CONGESTION: &[(&str, &str)] = &[("net/ipv4/tcp_congestion_control", "reno")];

/// A namespace with a client and a server.
fn pair(way: Way, folder: &Path) -> String {
    let (name, folder) = (way.name(), folder.display());
    let labels = if way == Way::Direct {
        ""
    } else {
        "karst.dev/dataplane-mode: ambient, karst.dev/use-waypoint: waypoint"
    };
    let [(_, http1), (_, http2)] = PORTS;
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata: {{name: {name}, labels: {{{labels}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {name}}}
spec:
  nodeName: {client}
  serviceAccountName: client
  containers: [{{name: client, image: debian, command: [sleep, infinity]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {name}, labels: {{app: server}}}}
spec:
  nodeName: {server}
  serviceAccountName: server
  containers:
  - name: server
    image: debian
    command: [nginx, -c, {folder}/waypoint-nginx.conf, -g, \"pid {folder}/{name}.pid;\"]
    ports: [{{containerPort: {http1}}}, {{containerPort: {http2}}}]
",
        client = NODES[0],
        server = NODES[1],
    )
}

fn service_name(protocol: Protocol, routes: Routes) -> String {
    format!("{}-{}", protocol.name(), routes.name())
}

/// The services of a namespace and the Gateway in front of them; whatever runs for it is a pod `waypoint`.
fn services(way: Way) -> String {
    let namespace = way.name();
    let mut text = waypoint_gateway(namespace);
    for (protocol, port) in PORTS {
        let declared = match protocol {
            Protocol::Http1 => "http",
            Protocol::Http2 => "kubernetes.io/h2c",
        };
        for routes in Routes::ALL {
            let name = service_name(protocol, routes);
            let _ = write!(
                text,
                "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: server}}
  ports: [{{name: web, port: {SERVICE_PORT}, targetPort: {port}, appProtocol: {declared}}}]
"
            );
        }
    }
    text
}

/// The routes of our waypoint. Envoy has them in its configuration.
fn routes() -> String {
    let mut text = String::new();
    for protocol in Protocol::ALL {
        for routes in Routes::ALL {
            let service = service_name(protocol, routes);
            for (number, prefix) in (1..).zip(routes.prefixes()) {
                let _ = write!(
                    text,
                    "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {service}-{number}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: {service}, port: {SERVICE_PORT}}}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]
    backendRefs: [{{name: {service}, port: {SERVICE_PORT}}}]
",
                    namespace = Way::Karst.name(),
                );
            }
        }
    }
    text
}

fn karst(options: &Options) -> String {
    let log = if options.access_log { "text" } else { "off" };
    let args = [
        format!("--workers={}", options.workers),
        format!("--access-log={log}"),
    ];
    let namespace = Way::Karst.name();
    waypoint_pod(namespace, NODES[1], &karst_waypoint(namespace, &args))
}

fn identity(way: Way, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{account}", way.name())
}

fn envoy_pod(options: &Options, config: &Path) -> Result<String> {
    let container = format!(
        "  - name: waypoint
    image: envoy
    command: ['{program}', envoy]
    args:
    - --program={envoy}
    - --config={config}
    - --workers={workers}
    - --identity={identity}
    - --controller=$(LAB_CONTROLLER)
    - --controller-name=$(LAB_CONTROLLER_NAME)
    - --root-cert=$(LAB_ROOT_CERT)
    - --token=$(LAB_TOKEN)
    readinessProbe: {{tcpSocket: {{port: 15008}}}}
",
        program = this_program()?,
        envoy = options.envoy.display(),
        config = config.display(),
        workers = options.workers,
        identity = identity(Way::Envoy, "waypoint"),
    );
    Ok(waypoint_pod(Way::Envoy.name(), NODES[1], &container))
}

/// Where clients find each kind of service: the server itself, or a service of the mesh.
fn addresses(lab: &Lab) -> Result<Addresses> {
    let mut addresses = Vec::new();
    for way in Way::ALL {
        for (protocol, port) in PORTS {
            for routes in Routes::ALL {
                let address = if way == Way::Direct {
                    SocketAddr::new(server(lab, way)?, port)
                } else {
                    let name = service_name(protocol, routes);
                    let all = lab.service_addresses(way.name(), &name)?;
                    let v4 = all.into_iter().find(IpAddr::is_ipv4);
                    let v4 = v4.with_context(|| format!("{name} has no IPv4 address"))?;
                    SocketAddr::new(v4, SERVICE_PORT)
                };
                addresses.push((way, protocol, routes, address));
            }
        }
    }
    Ok(addresses)
}

fn server(lab: &Lab, way: Way) -> Result<IpAddr> {
    let pod = format!("{}/server", way.name());
    let Some(address) = lab.pod_addresses(&pod)?.into_iter().find(IpAddr::is_ipv4) else {
        bail!("{pod} has no IPv4 address");
    };
    Ok(address)
}

fn job(lab: &Lab, addresses: &Addresses, options: &Options) -> Result<envoy::Job> {
    let services = addresses.iter().filter(|(way, ..)| *way == Way::Envoy).map(
        |(_, protocol, routes, address)| envoy::Service {
            address: *address,
            protocol: *protocol,
            prefixes: routes.prefixes(),
        },
    );
    Ok(envoy::Job {
        services: services.collect(),
        server: server(lab, Way::Envoy)?,
        ports: PORTS,
        identity: identity(Way::Envoy, "server"),
        clients: "spiffe://cluster.local/".to_owned(),
        access_log: options.access_log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_meshed_namespaces_differ_in_their_names_alone() {
        let all = |way| pair(way, Path::new("/x")) + &services(way);
        assert_eq!(all(Way::Envoy).replace("envoy", "karst"), all(Way::Karst));
    }

    #[test]
    fn there_is_a_route_for_what_is_asked() {
        assert_eq!(path(Body::Large, Routes::One), "/64k");
        assert_eq!(path(Body::Small, Routes::Hundred), "/r050/1k");
        let routes = routes();
        assert_eq!(routes.matches("kind: HTTPRoute").count(), 2 * 101);
        assert!(routes.contains("value: /r050}"), "{routes}");
    }
}
