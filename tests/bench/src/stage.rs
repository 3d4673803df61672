//! The lab of `tunnel`, `same-node` and `connect`: a client and a server pod in the mesh, the same beside it, and the
//! same again for another proxy, if there is one.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, LabOptions, cgroup};
use serde::Serialize;

use crate::{
    cpus::Halves,
    parts::{NGINX, widen_ports},
    peer::Peers,
};

/// The benchmark's lab; a second run on the same machine replaces the first.
const LAB: &str = "bench";

/// From client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing between them: neither pod is enrolled.
    Direct,
    /// Both pods are enrolled.
    Karst,
    /// Neither pod is enrolled, and a program of the caller's captures what they send.
    Peer,
}

impl Way {
    /// The namespace of its pods.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Karst => "meshed",
            Self::Peer => "peer",
        }
    }

    fn mode(self) -> &'static str {
        match self {
            Self::Karst => "ambient",
            Self::Direct | Self::Peer => "none",
        }
    }
}

/// Where client and server run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On two nodes.
    TwoNodes,
    /// On one.
    OneNode,
}

impl Place {
    /// The nodes of client and server.
    pub fn nodes(self) -> [&'static str; 2] {
        match self {
            Self::TwoNodes => ["node1", "node2"],
            Self::OneNode => ["node1", "node1"],
        }
    }
}

/// Which CPUs pods and agents run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Pin {
    /// All on all.
    None,
    /// The client's pod on the first half of the CPUs and the server's on the second, each with its node's agent and
    /// its node's peer; what both share on all.
    Sides,
}

/// What to raise.
pub struct Options<'a> {
    /// For files of the applications.
    pub folder: &'a Path,
    pub place: Place,
    pub pin: Pin,
    /// The program that stands in our place, with its arguments; none without.
    pub peer: &'a [String],
    /// Each namespace has another client, `probe`, and another server, `quiet`, which no storm touches.
    pub bystanders: bool,
}

/// One client and one server.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `namespace/name` of the client's pod.
    pub client: String,
    /// The server's address.
    pub server: IpAddr,
    pub client_cgroup: PathBuf,
    pub server_cgroup: PathBuf,
}

/// The running lab.
pub struct Stage {
    pub lab: Lab,
    pub place: Place,
    pub pin: Pin,
    pairs: Vec<(Way, Pair)>,
    bystanders: Vec<(Way, Pair)>,
    /// Where the peer's processes are, one for each node.
    pub peer_cgroups: Vec<PathBuf>,
    _peers: Option<Peers>,
}

impl Stage {
    /// Brings everything up and waits until one pair is enrolled and the peer is ready.
    pub fn raise(options: &Options<'_>) -> Result<Self> {
        let folder = options.folder;
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let conf = folder.join("nginx.conf");
        fs::write(&conf, NGINX).with_context(|| format!("writing {}", conf.display()))?;
        let halves = match options.pin {
            Pin::Sides => Some(Halves::of_machine()?),
            Pin::None => None,
        };
        Lab::tear_down(LAB)?;
        let nodes = match options.place {
            Place::TwoNodes => 2,
            Place::OneNode => 1,
        };
        let lab = Lab::up(LabOptions {
            nodes,
            ..LabOptions::new(LAB)
        })?;
        let stage = Self {
            lab,
            place: options.place,
            pin: options.pin,
            pairs: Vec::new(),
            bystanders: Vec::new(),
            peer_cgroups: Vec::new(),
            _peers: None,
        };
        stage.set(options, halves.as_ref())
    }

    fn set(mut self, options: &Options<'_>, halves: Option<&Halves>) -> Result<Self> {
        match self.fill(options, halves) {
            Ok(()) => Ok(self),
            Err(error) => {
                // The first error says more than one of tearing down would.
                let _ = self.lab.down();
                Err(error)
            }
        }
    }

    fn fill(&mut self, options: &Options<'_>, halves: Option<&Halves>) -> Result<()> {
        let mut ways = vec![Way::Direct, Way::Karst];
        if !options.peer.is_empty() {
            ways.push(Way::Peer);
        }
        let manifests: String = ways.iter().map(|way| manifests(*way, options)).collect();
        self.lab.apply(&manifests)?;
        let mut kinds = vec![("client", "server")];
        if options.bystanders {
            kinds.push(("probe", "quiet"));
        }
        for way in ways {
            for (client, server) in &kinds {
                let pair = self.pair_of(way, client, server)?;
                if *client == "client" {
                    self.pairs.push((way, pair));
                } else {
                    self.bystanders.push((way, pair));
                }
            }
        }
        if !options.peer.is_empty() {
            let peers = Peers::start(&self.lab, self.place, options.peer, options.folder)?;
            self.peer_cgroups = peers.cgroups.clone();
            self._peers = Some(peers);
        }
        // Last, so that agents and peers have as many threads as there are CPUs.
        match halves {
            Some(halves) => self.pin_sides(halves),
            None => Ok(()),
        }
    }

    fn pair_of(&self, way: Way, client: &str, server: &str) -> Result<Pair> {
        let namespace = way.namespace();
        let (client, server) = (
            format!("{namespace}/{client}"),
            format!("{namespace}/{server}"),
        );
        if way == Way::Karst {
            self.lab.wait_enrolled(&client)?;
            self.lab.wait_enrolled(&server)?;
        }
        widen_ports(&self.lab, &client)?;
        let addresses = self.lab.pod_addresses(&server)?;
        Ok(Pair {
            server: *addresses.first().context("the server has no address")?,
            client_cgroup: self.lab.pod_cgroup(&client)?,
            server_cgroup: self.lab.pod_cgroup(&server)?,
            client,
        })
    }

    /// Moves servers, agents and peers to their side, and this thread to the clients', which it starts.
    fn pin_sides(&self, halves: &Halves) -> Result<()> {
        for (_, pair) in self.pairs.iter().chain(&self.bystanders) {
            for pid in cgroup::pids(&pair.server_cgroup)? {
                halves.second.take(pid)?;
            }
        }
        if self.place == Place::TwoNodes {
            let agents = self.agents()?;
            ensure!(agents.len() == 2, "there are {} agents", agents.len());
            halves.first.take(agents[0])?;
            halves.second.take(agents[1])?;
            for (cgroup, half) in self
                .peer_cgroups
                .iter()
                .zip([&halves.first, &halves.second])
            {
                for pid in cgroup::pids(cgroup)? {
                    half.take(pid)?;
                }
            }
        }
        halves.begin()
    }

    /// The ways there are, the direct one first.
    pub fn ways(&self) -> Vec<Way> {
        self.pairs.iter().map(|(way, _)| *way).collect()
    }

    /// The client and the server of a way.
    pub fn pair(&self, way: Way) -> Result<&Pair> {
        find(&self.pairs, way)
    }

    /// The other client and server of a way, for a look at whom a storm is none of the business of.
    pub fn bystander(&self, way: Way) -> Result<&Pair> {
        find(&self.bystanders, way)
    }

    /// The nodes that have an agent, the client's first.
    pub fn nodes(&self) -> &'static [&'static str] {
        match self.place {
            Place::TwoNodes => &["node1", "node2"],
            Place::OneNode => &["node1"],
        }
    }

    /// Process ids of the nodes' agents.
    pub fn agents(&self) -> Result<Vec<u32>> {
        let agents = self.nodes().iter().map(|node| self.lab.agent_pid(node));
        agents.collect()
    }
}

fn find(pairs: &[(Way, Pair)], way: Way) -> Result<&Pair> {
    let found = pairs.iter().find(|(its_way, _)| *its_way == way);
    found
        .map(|(_, pair)| pair)
        .with_context(|| format!("no pods of {way:?} were raised"))
}

fn manifests(way: Way, options: &Options<'_>) -> String {
    let (namespace, mode) = (way.namespace(), way.mode());
    let [client_node, server_node] = options.place.nodes();
    let mut text = format!(
        "---
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{karst.dev/dataplane-mode: {mode}}}}}
"
    );
    let mut kinds = vec![("client", "server")];
    if options.bystanders {
        kinds.push(("probe", "quiet"));
    }
    for (client, server) in kinds {
        text += &format!(
            "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {client}, namespace: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {server}, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {client}, namespace: {namespace}}}
spec:
  nodeName: {client_node}
  serviceAccountName: {client}
  containers: [{{name: client, image: debian, command: [sleep, infinity]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: {server}, namespace: {namespace}}}
spec:
  nodeName: {server_node}
  serviceAccountName: {server}
  containers:
  - name: server
    image: debian
    command: [sh, -c, \"iperf3 -s & exec nginx -c {folder}/nginx.conf -g 'pid {folder}/{namespace}-{server}.pid;'\"]
    ports: [{{containerPort: 80}}, {{containerPort: 5201}}]
",
            folder = options.folder.display(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(place: Place, bystanders: bool) -> Options<'static> {
        Options {
            folder: Path::new("/x"),
            place,
            pin: Pin::None,
            peer: &[],
            bystanders,
        }
    }

    #[test]
    fn the_pairs_differ_in_nothing_but_the_mesh() {
        for place in [Place::TwoNodes, Place::OneNode] {
            for bystanders in [false, true] {
                let options = options(place, bystanders);
                let meshed = manifests(Way::Karst, &options);
                for way in [Way::Direct, Way::Peer] {
                    let same = manifests(way, &options)
                        .replace(way.namespace(), Way::Karst.namespace())
                        .replace("dataplane-mode: none", "dataplane-mode: ambient");
                    assert_eq!(meshed, same);
                }
            }
        }
    }

    #[test]
    fn on_one_node_both_are_there() {
        let text = manifests(Way::Karst, &options(Place::OneNode, true));
        assert_eq!(text.matches("nodeName: node1").count(), 4);
        assert!(!text.contains("node2"));
    }
}
