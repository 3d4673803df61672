//! The pods that tests play with.

use std::net::{IpAddr, SocketAddr};
use std::process::Output;

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, LabOptions, Lifetime, Mesh};
use serde_json::Value;

/// The label that takes a namespace into the mesh.
pub const AMBIENT: &str = "karst.dev/dataplane-mode=ambient";

/// A lab with a client and a server in a namespace of the mesh (`mesh/client` on node1,
/// `mesh/server` on node2, `mesh/near` on node1) and the same outside of it
/// (`plain/client` on node1, `plain/server` on node2). Without a mesh they are just pods.
pub struct World {
    /// The lab.
    pub lab: Lab,
}

impl World {
    /// Brings a world up; `tag` (at most 8 of a-z, 0-9) tells the labs of this test program
    /// apart. It ends with the test program, unless `KARST_LAB_KEEP` is set, for a look at its
    /// logs.
    pub fn up(tag: &str, mesh: Mesh) -> Result<Self> {
        Self::up_with(tag, mesh, |options| options)
    }

    /// The same with a lab of other options.
    pub fn up_with(
        tag: &str,
        mesh: Mesh,
        change: impl FnOnce(LabOptions) -> LabOptions,
    ) -> Result<Self> {
        let keep = std::env::var_os("KARST_LAB_KEEP").is_some();
        let name = format!("t{}_{tag}", std::process::id());
        let lab = Lab::up(change(LabOptions {
            mesh,
            lifetime: if keep {
                Lifetime::UntilDown
            } else {
                Lifetime::WithCaller
            },
            ..LabOptions::new(&name)
        }))?;
        let label = if mesh == Mesh::On {
            "karst.dev/dataplane-mode: ambient"
        } else {
            ""
        };
        lab.apply(&MANIFESTS.replace("LABEL", label))?;
        let world = Self { lab };
        if mesh == Mesh::On {
            for pod in ["mesh/client", "mesh/server", "mesh/near"] {
                world.lab.wait_enrolled(pod)?;
            }
        }
        Ok(world)
    }

    /// Runs the test application in a pod and gives what it reports, be it good or bad.
    pub fn app(&self, pod: &str, args: &[&str]) -> Result<Value> {
        let argv: Vec<&str> = ["karst-testapp"].iter().chain(args).copied().collect();
        report(&self.lab.exec(pod, &argv)?).with_context(|| format!("{argv:?} in {pod}"))
    }

    /// The same, and the report has to be good.
    pub fn app_ok(&self, pod: &str, args: &[&str]) -> Result<Value> {
        let report = self.app(pod, args)?;
        ensure!(report["ok"] == true, "{args:?} in {pod}: {report}");
        Ok(report)
    }

    /// Runs the test application on a node, as the node's own process.
    pub fn app_on_node(&self, node: &str, args: &[&str]) -> Result<Value> {
        let argv: Vec<&str> = ["karst-testapp"].iter().chain(args).copied().collect();
        report(&self.lab.node_exec(node, &argv)?).with_context(|| format!("{argv:?} on {node}"))
    }

    /// A pod's IPv4 address.
    pub fn v4(&self, pod: &str) -> Result<IpAddr> {
        let addresses = self.lab.pod_addresses(pod)?;
        addresses
            .into_iter()
            .find(IpAddr::is_ipv4)
            .context("no IPv4 address")
    }

    /// A pod's IPv6 address.
    pub fn v6(&self, pod: &str) -> Result<IpAddr> {
        let addresses = self.lab.pod_addresses(pod)?;
        addresses
            .into_iter()
            .find(IpAddr::is_ipv6)
            .context("no IPv6 address")
    }

    /// `address:port` of a pod, IPv4, as one writes it.
    pub fn at(&self, pod: &str, port: u16) -> Result<String> {
        Ok(SocketAddr::new(self.v4(pod)?, port).to_string())
    }

    /// `[address]:port` of a pod, IPv6.
    pub fn at6(&self, pod: &str, port: u16) -> Result<String> {
        Ok(SocketAddr::new(self.v6(pod)?, port).to_string())
    }
}

fn report(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().with_context(|| {
        format!(
            "no report: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    serde_json::from_str(last).with_context(|| format!("the report is {last:?}"))
}

/// A pod that runs the test application (`serve`) or just waits (anything else).
pub fn manifest(namespace: &str, name: &str, node: &str, account: &str, role: &str) -> String {
    let (command, ports) = if role == "serve" {
        (
            "[karst-testapp, serve]",
            "ports: [{containerPort: 8080}, {containerPort: 7000}]",
        )
    } else {
        ("[sleep, infinity]", "")
    };
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: {account}\n  containers:\n  \
         - name: app\n    image: karst-testapp\n    command: {command}\n    {ports}\n---\n"
    )
}

const MANIFESTS: &str = include_str!("world.yaml");
