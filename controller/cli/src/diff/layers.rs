//! Reads the layers of one node.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use karst_api::NODE_POD_TYPE;
use karst_api::node::{DataplaneMode, NodePod};
use karst_core::{GatewayName, ProxyKind};
use karst_datapath::inspect::{self, LinkInfo, MapEntry, MapInfo, PodEntry};
use karst_datapath::netns::{self, Netns};
use karst_datapath::sock_diag::{self, TcpSocket};
use karst_node_agent::admin::service_view;
use karst_node_agent::egress::Egress;
use karst_node_agent::state::convert;
use karst_node_agent::state::workload::Locality;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::proxies;
use super::report::Object;
use crate::admin::Source;
use crate::args::{Diff, Inspect};
use crate::explain::{World, proxy_type};
use crate::failure::Failure;
use crate::inspect::place::Local;
use crate::source::Input;
use crate::{cluster, kernel, source};

/// A layer, or why it could not be read.
pub type Layer<T> = Result<T, String>;

/// The layers of a node at one moment, nearly.
pub struct Layers {
    /// The node.
    pub node: String,
    /// What the controller's own code makes of the objects.
    pub intent: Layer<Intent>,
    /// What the agent says.
    pub agent: Layer<Agent>,
    /// What is pinned.
    pub kernel: Layer<Kernel>,
    /// Sockets of each pod that the kernel captures, by uid.
    pub sockets: BTreeMap<String, PodSockets>,
    /// Waypoints and gateways of this node.
    pub proxies: Vec<Proxy>,
}

/// What should be.
pub struct Intent {
    /// Where the objects are from.
    pub from: String,
    /// Pods of the node that have addresses, by uid.
    pub pods: BTreeMap<String, WantedPod>,
    /// What agents are told.
    pub mesh: Mesh,
    /// Waypoints that Services ask for and that cannot take connections: the Gateway, what is wrong, a Service.
    pub waypoints: BTreeMap<String, (String, String)>,
    /// Proxies on the node.
    pub proxies: Vec<WantedProxy>,
}

/// A pod as its agent should be told of it.
pub struct WantedPod {
    /// `namespace/name`.
    pub name: String,
    /// Whether it is to be in the mesh.
    pub in_mesh: bool,
    /// Its identity.
    pub identity: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What connections to it must satisfy, as the agent's page has it.
    pub waypoints: Value,
    /// Where it may connect to, likewise.
    pub egress: Value,
}

/// A proxy that runs on the node.
pub struct WantedProxy {
    /// `namespace/name` of its pod.
    pub pod: String,
    /// Its Gateway.
    pub gateway: GatewayName,
    /// Versions by kind and name, as the proxy's page has them.
    pub resources: BTreeMap<(&'static str, String), String>,
}

/// What an agent is told of the mesh, as its pages have it.
#[derive(Default, Serialize, Deserialize)]
pub struct Mesh {
    /// By uid.
    pub workloads: BTreeMap<String, Value>,
    /// By key.
    pub services: BTreeMap<String, Value>,
    /// By name.
    pub policies: BTreeMap<String, Value>,
}

/// What the agent says.
#[derive(Serialize, Deserialize)]
pub struct Agent {
    /// `/v1/status`.
    pub status: Value,
    /// `/v1/pods`, by uid.
    pub pods: BTreeMap<String, Value>,
    /// What it knows of the mesh.
    pub mesh: Mesh,
    /// `/v1/certificates`.
    pub certificates: Vec<Value>,
    /// `/v1/rejected`.
    pub rejected: Vec<Value>,
    /// `/v1/datapath`; none while another agent serves the node.
    pub datapath: Option<Value>,
}

/// What is pinned.
#[derive(Serialize, Deserialize)]
pub struct Kernel {
    /// Links.
    pub links: Vec<LinkInfo>,
    /// Maps.
    pub maps: Vec<MapInfo>,
    /// Entries of `PODS`.
    pub pods: Vec<PodEntry>,
    /// Entries of `POD_ADDRESSES`.
    pub addresses: BTreeMap<IpAddr, u64>,
    /// The entry of `CONFIG`.
    pub config: BTreeMap<String, String>,
}

/// What lives in a pod's network namespace.
#[derive(Serialize, Deserialize)]
pub struct PodSockets {
    /// Its cookie and inode; `None`: nobody has it any more.
    pub netns: Option<(u64, u32)>,
    /// Where somebody listens, or why that could not be read.
    pub listening: Layer<Vec<SocketAddr>>,
}

/// A proxy on the node, in the order of [`Intent::proxies`].
#[derive(Serialize, Deserialize)]
pub struct Proxy {
    /// `/v1/status` and `/v1/config`.
    pub pages: Layer<(Value, Vec<Value>)>,
}

/// What is said of a layer.
#[derive(Debug, Serialize)]
pub struct Said {
    /// `intent`, `agent`, `kernel` or `sockets`.
    pub layer: &'static str,
    /// Whether it was read.
    pub read: bool,
    /// From where, or why not.
    pub text: String,
}

/// What is read on the node itself.
#[derive(Serialize, Deserialize)]
pub struct Reading {
    /// Version of the command that read, which is that of the one that compares.
    pub version: String,
    agent: Layer<Agent>,
    kernel: Layer<Kernel>,
    sockets: BTreeMap<String, PodSockets>,
    proxies: Vec<Proxy>,
}

/// What the objects of `input` ask for on a node.
pub fn wanted(input: &Input, node: &str, from: &str) -> Layer<Intent> {
    let index = input.read().index;
    let locality = Locality {
        network: Arc::from(index.config().network.as_str()),
        node: Arc::from(node),
        cluster: Arc::from(index.config().cluster_id.as_str()),
        ..Locality::default()
    };
    intent(&World::at(index, locality), node, from).map_err(|failure| failure.message)
}

/// What the arguments say that the objects ask for on a node.
///
/// # Errors
/// Manifests that were named cannot be read.
pub fn intended(diff: &Diff, node: &str) -> Result<Layer<Intent>, Failure> {
    if diff.no_intent {
        return Ok(Err("not asked for (--no-intent)".to_owned()));
    }
    let (input, from) = match source::offline(&diff.objects).map_err(crate::explain::as_failed)? {
        Some(input) => (input, "manifests"),
        None => {
            let read = cluster::run(async {
                let client = cluster::client(&diff.objects.kubernetes).await?;
                source::cluster(&diff.objects, &client).await
            });
            match read {
                Ok(input) => (input, "the cluster"),
                Err(failure) => return Ok(Err(failure.message)),
            }
        }
    };
    Ok(wanted(&input, node, from))
}

/// Reads on this machine.
pub struct Reader<'a> {
    args: &'a Inspect,
    node: String,
    agent: Source,
}

impl Intent {
    /// Pods of the proxies on the node, which are to be asked.
    pub fn proxy_pods(&self) -> Vec<String> {
        self.proxies.iter().map(|one| one.pod.clone()).collect()
    }
}

impl<'a> Reader<'a> {
    /// For a node of this machine.
    ///
    /// # Errors
    /// There are several and none is named.
    pub fn new(args: &'a Inspect, local: &Local) -> Result<Self, Failure> {
        let agent = Source::Agent(local.socket()?);
        let (_, node) = local.pins()?;
        Ok(Self { args, node, agent })
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Reads the node's layers: those that change others first, so that what changes meanwhile is seen by the
    /// later ones. Of proxies those in the pods of these names, `namespace/name`.
    pub fn read(&self, proxies: &[String]) -> Reading {
        let agent = self.agent().map_err(|failure| failure.message);
        let kernel = self.kernel().map_err(|failure| failure.message);
        let kernel = kernel.and_then(|kernel| {
            let none = kernel.maps.is_empty() && kernel.links.is_empty();
            let root = self.args.place.bpffs_root.display();
            (!none)
                .then_some(kernel)
                .ok_or_else(|| format!("nothing is pinned for {} under {root}", self.node))
        });
        Reading {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sockets: self.sockets(&agent, &kernel),
            proxies: self.proxies(&agent, proxies),
            agent,
            kernel,
        }
    }

    fn get(&self, path: &str) -> Result<Value, Failure> {
        self.agent.page(path)
    }

    fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let value = self.get(path)?;
        Ok(value.as_array().cloned().unwrap_or_default())
    }

    fn agent(&self) -> Result<Agent, Failure> {
        Ok(Agent {
            status: self.get("/v1/status")?,
            pods: by(self.list("/v1/pods")?, "uid"),
            mesh: Mesh {
                workloads: by(self.list("/v1/workloads")?, "uid"),
                services: by(self.list("/v1/services")?, "key"),
                policies: by(self.list("/v1/policies")?, "name"),
            },
            certificates: self.list("/v1/certificates")?,
            rejected: self.list("/v1/rejected")?,
            // While another agent serves the node this one has nothing in the kernel.
            datapath: self.get("/v1/datapath").ok(),
        })
    }

    fn kernel(&self) -> Result<Kernel, Failure> {
        let (root, node) = (&self.args.place.bpffs_root, &self.node);
        let links = inspect::links(root, node).map_err(kernel::failure)?;
        let maps = inspect::maps(root, node).map_err(kernel::failure)?;
        let dump = |map: &str| -> Result<Vec<MapEntry>, Failure> {
            inspect::dump_map(root, node, map).map_err(kernel::failure)
        };
        let addresses = dump("POD_ADDRESSES")?;
        let address = |entry: &MapEntry| {
            let of = |fields: &inspect::Fields| fields.0.first().map(|(_, text)| text.clone());
            Some((
                of(&entry.key)?.parse().ok()?,
                of(&entry.value)?.parse().ok()?,
            ))
        };
        let config = dump("CONFIG")?.into_iter().next();
        Ok(Kernel {
            links,
            maps,
            pods: inspect::pods(root, node).map_err(kernel::failure)?,
            addresses: addresses.iter().filter_map(address).collect(),
            config: config.map_or_else(BTreeMap::new, |entry| {
                let fields = entry.value.0.into_iter();
                fields.map(|(name, text)| (name.to_owned(), text)).collect()
            }),
        })
    }

    /// The namespace of a pod: where the agent says, else by the number in the pod's link.
    fn netns(&self, agent: &Layer<Agent>, pod: &PodEntry) -> Option<Netns> {
        let agent = agent.as_ref().ok();
        let path = agent.and_then(|agent| agent.pods.get(&pod.uid)?.get("netns")?.as_str());
        let named = path.and_then(|path| self.open(Path::new(path)).ok());
        named.or_else(|| {
            let folders = [self.args.diff.netns_dir.as_path()];
            netns::find(pod.netns_ino?, &folders, Path::new("/proc"))
        })
    }

    /// The namespace that has this file at the agent. In the agent's container the folder of namespaces may be at
    /// another place than here, and the file has the same name in both.
    fn open(&self, path: &Path) -> io::Result<Netns> {
        Netns::open(path).or_else(|error| {
            let name = path.file_name().ok_or(error)?;
            Netns::open(&self.args.diff.netns_dir.join(name))
        })
    }

    fn sockets(
        &self,
        agent: &Layer<Agent>,
        kernel: &Layer<Kernel>,
    ) -> BTreeMap<String, PodSockets> {
        let pods = kernel.as_ref().map(|kernel| kernel.pods.as_slice());
        let read = |pod: &PodEntry| {
            let netns = self.netns(agent, pod);
            let listening = match &netns {
                None => Err("its network namespace was not found".to_owned()),
                Some(netns) => match sock_diag::tcp_sockets(netns) {
                    // Whatever is missing may be among those that were not read.
                    Ok(found) if found.truncated => Err(format!(
                        "it has more than {} sockets",
                        sock_diag::MAX_SOCKETS
                    )),
                    Ok(found) => Ok(listening(&found.sockets)),
                    Err(error) => Err(format!("its sockets cannot be read: {error}")),
                },
            };
            let netns = netns.and_then(|netns| Some((netns.cookie().ok()?, netns.id().ino as u32)));
            (pod.uid.clone(), PodSockets { netns, listening })
        };
        pods.unwrap_or_default().iter().map(read).collect()
    }

    fn proxies(&self, agent: &Layer<Agent>, names: &[String]) -> Vec<Proxy> {
        let Ok(agent) = agent else {
            return Vec::new();
        };
        let read = |name: &String| {
            let text = |pod: &Value, key: &str| pod.get(key)?.as_str().map(str::to_owned);
            let is_it = |pod: &&Value| {
                let full = text(pod, "namespace").zip(text(pod, "name"));
                full.is_some_and(|(namespace, pod)| format!("{namespace}/{pod}") == *name)
            };
            let pod = agent.pods.values().find(is_it);
            let pages = match pod.and_then(|pod| text(pod, "netns")) {
                Some(path) => {
                    let netns = self.open(Path::new(&path));
                    proxies::ask(netns).map_err(|failure| failure.message)
                }
                None => Err("the agent does not know its network namespace".to_owned()),
            };
            Proxy { pages }
        };
        names.iter().map(read).collect()
    }
}

/// Where somebody listens.
fn listening(sockets: &[TcpSocket]) -> Vec<SocketAddr> {
    let listeners = sockets.iter().filter(|socket| socket.is_listening());
    listeners.map(|socket| socket.local).collect()
}

fn by(list: Vec<Value>, key: &str) -> BTreeMap<String, Value> {
    let named = |value: Value| Some((value.get(key)?.as_str()?.to_owned(), value));
    list.into_iter().filter_map(named).collect()
}

fn intent(world: &World, node: &str, from: &str) -> Result<Intent, Failure> {
    let invalid = |error: &dyn std::fmt::Display| Failure::failed("resource", error.to_string());
    let mut pods = BTreeMap::new();
    for resource in world.index.node_pods(node) {
        let pod: NodePod = resource
            .to_resource(NODE_POD_TYPE)
            .unpack(NODE_POD_TYPE)
            .map_err(|error| invalid(&error))?;
        let addresses = pod.ip_addresses().map_err(|error| invalid(&error))?;
        // Without an address it has no sandbox that the API server knows of.
        if addresses.is_empty() {
            continue;
        }
        let waypoints = convert::waypoints(&pod.waypoints).map_err(|error| invalid(&error))?;
        let wanted = WantedPod {
            name: format!("{}/{}", pod.namespace, pod.name),
            in_mesh: pod.dataplane_mode() == DataplaneMode::Ambient,
            identity: format!(
                "spiffe://{}/ns/{}/sa/{}",
                pod.trust_domain, pod.namespace, pod.service_account
            ),
            addresses,
            waypoints: serde_json::to_value(&waypoints).unwrap_or_default(),
            egress: serde_json::to_value(Egress::from_wire(pod.egress_mode)).unwrap_or_default(),
        };
        pods.insert(pod.pod_uid, wanted);
    }
    let mesh = mesh(world);
    Ok(Intent {
        from: from.to_owned(),
        pods,
        waypoints: absent_waypoints(world),
        proxies: wanted_proxies(world, node),
        mesh,
    })
}

fn mesh(world: &World) -> Mesh {
    let workloads = world.state.all_workloads().into_iter();
    let services = world.state.all_services().into_iter();
    let policies = world.state.policies.all();
    let value = |value| serde_json::to_value(value).unwrap_or_default();
    Mesh {
        workloads: workloads
            .map(|one| {
                let view = serde_json::to_value(&*one).unwrap_or_default();
                (one.uid.to_string(), view)
            })
            .collect(),
        services: services
            .map(|one| (one.spec.key.to_string(), service_view(&one)))
            .collect(),
        policies: policies
            .iter()
            .map(|one| (one.name.to_string(), value(one.view())))
            .collect(),
    }
}

fn absent_waypoints(world: &World) -> BTreeMap<String, (String, String)> {
    let mut absent = BTreeMap::new();
    for service in world.state.all_services() {
        let (namespace, name) = (&service.spec.namespace, &service.spec.name);
        let Some(binding) = world.index.service_waypoint_binding(namespace, name) else {
            continue;
        };
        if binding.is_usable && binding.is_ready {
            continue;
        }
        let problem = match (binding.problem, binding.is_usable) {
            (Some(problem), _) => format!("the Gateway {problem}"),
            (None, true) => "the Gateway has no address or no pod that is ready".to_owned(),
            (None, false) => "the Gateway is not there, or not for it".to_owned(),
        };
        // Services come in no order, and every reading must name the same.
        let found = (problem, format!("{namespace}/{name}"));
        let first = absent.entry(binding.gateway.to_string());
        let first = first.or_insert_with(|| found.clone());
        if found.1 < first.1 {
            *first = found;
        }
    }
    absent
}

fn wanted_proxies(world: &World, node: &str) -> Vec<WantedProxy> {
    let kinds = [
        (ProxyKind::Listener, "listener"),
        (ProxyKind::Route, "route"),
        (ProxyKind::Backend, "backend"),
        (ProxyKind::AuthorizationPolicy, "authorization_policy"),
        (ProxyKind::RequestAuthentication, "request_authentication"),
    ];
    let mut proxies = Vec::new();
    for (namespace, name) in world.index.pod_names() {
        let pod = world.index.mesh_pod(namespace, name);
        let Some((gateway, pod)) = pod.and_then(|pod| Some((pod.proxy_of.clone()?, pod))) else {
            continue;
        };
        if pod.node.as_deref() != Some(node) || pod.has_ended || pod.addresses.is_empty() {
            continue;
        }
        let of_kind = |(kind, word): (ProxyKind, &'static str)| {
            let resources = world.index.proxy_resources(&gateway, kind);
            let resources = resources.map(|one| one.to_resource(proxy_type(kind)));
            let versions = resources.map(|one| ((word, one.name), one.version));
            versions.collect::<Vec<_>>()
        };
        proxies.push(WantedProxy {
            pod: format!("{namespace}/{name}"),
            resources: kinds.into_iter().flat_map(of_kind).collect(),
            gateway,
        });
    }
    proxies.sort_by(|a, b| a.pod.cmp(&b.pod));
    proxies
}

impl Layers {
    /// What should be, and what was read.
    pub fn new(node: &str, intent: Layer<Intent>, reading: Reading) -> Self {
        Self {
            node: node.to_owned(),
            intent,
            agent: reading.agent,
            kernel: reading.kernel,
            sockets: reading.sockets,
            proxies: reading.proxies,
        }
    }

    /// `pod NAMESPACE/NAME`, or its uid where nobody knows the name.
    pub fn pod(&self, uid: &str) -> Object {
        Object {
            text: self.pod_name(uid),
            uid: Some(uid.to_owned()),
        }
    }

    fn pod_name(&self, uid: &str) -> String {
        let wanted = self.intent.as_ref().ok();
        if let Some(pod) = wanted.and_then(|intent| intent.pods.get(uid)) {
            return format!("pod {}", pod.name);
        }
        let agent = self.agent.as_ref().ok();
        let known = agent.and_then(|agent| agent.pods.get(uid)).and_then(|pod| {
            let text = |key: &str| pod.get(key)?.as_str();
            Some(format!("pod {}/{}", text("namespace")?, text("name")?))
        });
        known.unwrap_or_else(|| format!("pod with uid {uid}"))
    }

    /// What is said of the layers.
    pub fn said(&self) -> Vec<Said> {
        fn say<T>(layer: &'static str, read: &Layer<T>, text: impl Fn(&T) -> String) -> Said {
            Said {
                layer,
                read: read.is_ok(),
                text: match read {
                    Ok(read) => text(read),
                    Err(why) => why.clone(),
                },
            }
        }
        let unread = self.sockets.values().filter(|pod| pod.listening.is_err());
        let unread = unread.count();
        vec![
            say("intent", &self.intent, |intent| {
                let wanted = intent.pods.values().filter(|pod| pod.in_mesh).count();
                format!(
                    "{}: {wanted} pods of {} in the mesh",
                    intent.from, self.node
                )
            }),
            say("agent", &self.agent, |agent| {
                let of = |key: &str| agent.status.get(key).cloned().unwrap_or_default();
                format!("process {}, version {}", of("pid"), of("version"))
            }),
            say("kernel", &self.kernel, |kernel| {
                format!(
                    "{} links, {} maps, {} pods",
                    kernel.links.len(),
                    kernel.maps.len(),
                    kernel.pods.len()
                )
            }),
            Said {
                layer: "sockets",
                read: self.kernel.is_ok() && unread == 0,
                text: match unread {
                    0 => format!("{} network namespaces", self.sockets.len()),
                    some => format!("of {some} of {} network namespaces", self.sockets.len()),
                },
            },
        ]
    }

    /// What could not be compared although its layers were read.
    pub fn not_compared(&self) -> Vec<String> {
        let mut list = Vec::new();
        if let (Ok(_), Ok(agent)) = (&self.intent, &self.agent)
            && !is_same_version(agent)
        {
            let version = agent.status.get("version").cloned().unwrap_or_default();
            list.push(format!(
                "the content of workloads, services and policies: the agent is of version {version}, this command of {}",
                env!("CARGO_PKG_VERSION")
            ));
        }
        if let Ok(agent) = &self.agent
            && agent.datapath.is_none()
        {
            list.push("programs and CONFIG: the agent does not serve the node now".to_owned());
        }
        if self.agent.is_err() && self.kernel.is_ok() {
            list.push(
                "programs with those that the agent loaded, CONFIG, certificates, what agent and proxies hold"
                    .to_owned(),
            );
        }
        list
    }
}

/// Whether the agent's pages mean what they mean here.
pub fn is_same_version(agent: &Agent) -> bool {
    agent.status.get("version").and_then(Value::as_str) == Some(env!("CARGO_PKG_VERSION"))
}
