//! Names, addresses and paths of everything a cluster leaves on the machine, all made from its name.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use karst_harness::netns;

use crate::options::ClusterName;

/// Where all clusters keep their files.
pub const CLUSTERS_DIR: &str = "/run/karst-cluster";

/// The cgroup, in every hierarchy, below which every cluster has its own.
pub const CLUSTER_CGROUP: &str = "karst-cluster";

/// The most nodes that a cluster has.
pub const NODES: u8 = 2;

/// The API server's address on the wire.
pub const API_SERVER: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);

/// The ClusterIP of the cluster's DNS.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The first ClusterIP, which is always that of `kubernetes.default`.
pub const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The range of ClusterIPs.
pub const SERVICES: &str = "10.96.0.0/16";

/// The range of addresses that load balancers have.
pub const BALANCED: &str = "10.251.0.0/24";

/// The range of pods' addresses.
pub const PODS: &str = "10.244.0.0/16";

/// A node's address on the wire.
pub fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 250, 0, 10 + number)
}

/// The range of the pods of a node.
pub fn pod_range(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// A node's name.
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// A cluster's names and paths.
#[derive(Clone, Debug)]
pub struct Paths {
    name: ClusterName,
    dir: PathBuf,
}

impl Paths {
    /// Those of the cluster called `name`.
    pub fn new(name: ClusterName) -> Self {
        let dir = Path::new(CLUSTERS_DIR).join(name.to_string());
        Self { name, dir }
    }

    /// The cluster's name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its lock: outside its directory, because `down` removes that while it holds the lock.
    pub fn lock(&self) -> PathBuf {
        Path::new(CLUSTERS_DIR).join(format!(".{}.lock", self.name))
    }

    /// Its record.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Links by which the programs find their names, for `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// A program's configuration for the API server; `admin` is the people's.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.conf"))
    }

    /// A program's log.
    pub fn log(&self, program: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{program}.log"))
    }

    /// etcd's data.
    pub fn etcd(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    /// A node's files on the machine.
    pub fn node(&self, node: &str) -> PathBuf {
        self.dir.join(node)
    }

    /// Files that are laid over a node's view of the machine's before it starts.
    pub fn node_files(&self, node: &str) -> PathBuf {
        self.node(node).join("files")
    }

    /// The network namespace of `cp`, `wire` or a node.
    pub fn netns(&self, host: &str) -> String {
        format!("kc-{}-{host}", self.name)
    }

    /// The file of that network namespace.
    pub fn netns_file(&self, host: &str) -> PathBuf {
        netns::file(&self.netns(host))
    }

    /// The cluster's cgroup, relative to a hierarchy's root.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(CLUSTER_CGROUP).join(self.name.to_string())
    }
}
