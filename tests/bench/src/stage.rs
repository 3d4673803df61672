//! The lab of the benchmark: a client and a server pod in the mesh, and the same pair beside it.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use karst_harness::{Lab, LabOptions};

use crate::parts::{NGINX, widen_ports};

/// The benchmark's lab; a second run on the same machine replaces the first.
const LAB: &str = "bench";

/// The pair's namespaces: enrolled, and not.
const MESHED: &str = "meshed";
const DIRECT: &str = "direct";

/// Nodes of client and server.
pub const NODES: [&str; 2] = ["node1", "node2"];

/// One client and one server.
#[derive(Clone)]
pub struct Pair {
    /// `namespace/name` of the client's pod.
    pub client: String,
    /// The server's address.
    pub server: IpAddr,
}

/// The running lab.
pub struct Stage {
    pub lab: Lab,
    pub meshed: Pair,
    pub direct: Pair,
}

impl Stage {
    /// Brings everything up and waits until one pair is enrolled.
    pub fn raise(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let conf = folder.join("nginx.conf");
        fs::write(&conf, NGINX).with_context(|| format!("writing {}", conf.display()))?;
        Lab::tear_down(LAB)?;
        let lab = Lab::up(LabOptions::new(LAB))?;
        match Self::set(&lab, folder) {
            Ok((meshed, direct)) => Ok(Self {
                lab,
                meshed,
                direct,
            }),
            Err(error) => {
                // The first error says more than one of tearing down would.
                let _ = lab.down();
                Err(error)
            }
        }
    }

    fn set(lab: &Lab, folder: &Path) -> Result<(Pair, Pair)> {
        let manifests = [
            manifests(MESHED, "ambient", folder),
            manifests(DIRECT, "none", folder),
        ]
        .concat();
        lab.apply(&manifests)?;
        for pod in ["client", "server"] {
            let pod = format!("{MESHED}/{pod}");
            lab.wait_enrolled(&pod)?;
        }
        let status = lab.status()?;
        let pair = |namespace: &str| {
            let server = status
                .pods
                .iter()
                .find(|pod| pod.namespace == namespace && pod.name == "server");
            let server = server
                .and_then(|pod| pod.addresses.first())
                .context("the server has no address")?;
            anyhow::Ok(Pair {
                client: format!("{namespace}/client"),
                server: *server,
            })
        };
        let pairs = (pair(MESHED)?, pair(DIRECT)?);
        for client in [&pairs.0.client, &pairs.1.client] {
            widen_ports(lab, client)?;
        }
        Ok(pairs)
    }

    /// Process ids of the client's and the server's agent.
    pub fn agents(&self) -> Result<[u32; 2]> {
        Ok([self.lab.agent_pid(NODES[0])?, self.lab.agent_pid(NODES[1])?])
    }
}

fn manifests(namespace: &str, mode: &str, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{karst.dev/dataplane-mode: {mode}}}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: client, namespace: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: server, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  nodeName: {client_node}
  serviceAccountName: client
  containers: [{{name: client, image: debian, command: [sleep, infinity]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {namespace}}}
spec:
  nodeName: {server_node}
  serviceAccountName: server
  containers:
  - name: server
    image: debian
    command: [sh, -c, \"iperf3 -s & exec nginx -c {folder}/nginx.conf -g 'pid {folder}/{namespace}.pid;'\"]
    ports: [{{containerPort: 80}}, {{containerPort: 5201}}]
",
        client_node = NODES[0],
        server_node = NODES[1],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pairs_differ_in_nothing_but_the_mesh() {
        let folder = Path::new("/x");
        let meshed = manifests(MESHED, "ambient", folder);
        let direct = manifests(DIRECT, "none", folder);
        let same = direct
            .replace(DIRECT, MESHED)
            .replace("dataplane-mode: none", "dataplane-mode: ambient");
        assert_eq!(meshed, same);
    }
}
