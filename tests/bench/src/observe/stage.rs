//! The lab of `observe`: three nodes with agents that are set differently, three waypoints likewise.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, LabOptions, Running, until};

use super::{Carrier, nginx};

/// The benchmark's lab; a second run on the same machine replaces the first.
const LAB: &str = "observe";

/// How long everything may take to be in force.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is on.
pub struct Setting {
    /// Name in the result, and part of names in the lab.
    pub name: &'static str,
    /// Arguments of agent and waypoint.
    args: &'static [&'static str],
}

/// In the order in which they add up. The first one is what the others are compared with.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "off",
        args: &["--access-log=off", "--without-traffic-metrics"],
    },
    Setting {
        name: "metrics",
        args: &["--access-log=off"],
    },
    Setting {
        name: "log",
        args: &["--access-log=json"],
    },
];

/// The running lab.
pub struct Stage {
    pub lab: Lab,
    /// One for each setting, which took over from the lab's own.
    agents: Vec<(u32, Running)>,
    waypoints: Vec<u32>,
}

impl Stage {
    /// Brings everything up and waits until it answers.
    pub fn raise(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::write(nginx(folder), NGINX).context("writing nginx's configuration")?;
        Lab::tear_down(LAB)?;
        let lab = Lab::up(LabOptions {
            nodes: u8::try_from(SETTINGS.len())?,
            ..LabOptions::new(LAB)
        })?;
        match Self::set(&lab, folder) {
            Ok((agents, waypoints)) => Ok(Self {
                lab,
                agents,
                waypoints,
            }),
            Err(error) => {
                // The first error says more than one of tearing down would.
                let _ = lab.down();
                Err(error)
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "named where it is kept")]
    fn set(lab: &Lab, folder: &Path) -> Result<(Vec<(u32, Running)>, Vec<u32>)> {
        let mut text = CLASS.to_owned();
        for (number, setting) in SETTINGS.iter().enumerate() {
            text += &pods(number, setting, folder);
        }
        lab.apply(&text)?;
        let mut agents = Vec::new();
        for (number, setting) in SETTINGS.iter().enumerate() {
            for pod in ["client", "server"] {
                lab.wait_enrolled(&format!("near{number}/{pod}"))?;
                lab.wait_enrolled(&format!("way{number}/{pod}"))?;
            }
            let node = node(number);
            let mut agent = lab.spawn_successor(&node, setting.name, setting.args)?;
            let pid = agent.child()?.id();
            until("the agent to take over", START_LIMIT, || {
                lab.successor_ready(&node, setting.name)
            })?;
            agents.push((pid, agent));
        }
        let status = lab.status()?;
        let mut waypoints = Vec::new();
        for number in 0..SETTINGS.len() {
            let namespace = format!("way{number}");
            let mut pods = status.pods.iter();
            let pod = pods
                .find(|pod| pod.namespace == namespace && pod.name == "waypoint")
                .context("there is no waypoint")?;
            waypoints.push(pod.pid.context("the waypoint has ended")?);
            for client in [
                format!("near{number}/client"),
                format!("way{number}/client"),
            ] {
                lab.exec_ok(
                    &client,
                    &[
                        "sysctl",
                        "-q",
                        "-w",
                        "net.ipv4.ip_local_port_range=1024 65000",
                        "net.ipv4.tcp_tw_reuse=1",
                    ],
                )?;
            }
            let url = waypoint_url(lab, number)?;
            until("the waypoint to answer", START_LIMIT, || {
                let client = format!("way{number}/client");
                let argv = [
                    "curl",
                    "-sS",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    "--max-time",
                    "2",
                    &url,
                ];
                let answer = lab.exec_ok(&client, &argv)?;
                ensure!(answer == "200", "{answer}");
                Ok(())
            })?;
        }
        Ok((agents, waypoints))
    }

    /// Who carries the load of a setting, the pod that makes it, and where to.
    pub fn way(&self, carrier: Carrier, setting: usize) -> Result<(u32, String, String)> {
        match carrier {
            Carrier::Agent => {
                let (pid, _) = self.agents.get(setting).context("no such agent")?;
                let server = format!("near{setting}/server");
                let addresses = self.lab.pod_addresses(&server)?;
                let address = addresses
                    .iter()
                    .find(|a| a.is_ipv4())
                    .context("no address")?;
                Ok((
                    *pid,
                    format!("near{setting}/client"),
                    format!("http://{address}/"),
                ))
            }
            Carrier::Waypoint => {
                let pid = self.waypoints.get(setting).context("no such waypoint")?;
                let url = waypoint_url(&self.lab, setting)?;
                Ok((*pid, format!("way{setting}/client"), url))
            }
        }
    }

    /// Removes the lab, the agents first.
    pub fn down(self) -> Result<()> {
        drop(self.agents);
        self.lab.down()
    }
}

fn waypoint_url(lab: &Lab, number: usize) -> Result<String> {
    let addresses = lab.service_addresses(&format!("way{number}"), "web")?;
    let address = addresses
        .iter()
        .find(|a| a.is_ipv4())
        .context("no address")?;
    Ok(format!("http://{address}/"))
}

fn node(number: usize) -> String {
    format!("node{}", number + 1)
}

const CLASS: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: karst-waypoint}
spec: {controllerName: karst.dev/waypoint-controller}
";

const NGINX: &str = "\
user root;
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
error_log stderr;
events { worker_connections 16000; }
http {
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    server {
        listen 80 backlog=4096;
        location / { return 200 \"Hello from the server of Karst! \\n\"; }
    }
}
";

/// A client and a server on the setting's node, and the same in a namespace with a waypoint that has the setting.
fn pods(number: usize, setting: &Setting, folder: &Path) -> String {
    let mut text = String::new();
    let node = node(number);
    for (namespace, label) in [
        (format!("near{number}"), ""),
        (format!("way{number}"), ", karst.dev/use-waypoint: waypoint"),
    ] {
        // A String takes all that is written to it.
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{karst.dev/dataplane-mode: ambient{label}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}}}
spec:
  nodeName: {node}
  serviceAccountName: client
  containers: [{{name: client, image: debian, command: [sleep, infinity]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {namespace}, labels: {{app: server}}}}
spec:
  nodeName: {node}
  serviceAccountName: server
  containers:
  - name: server
    image: debian
    command: [nginx, -c, {conf}, -g, \"pid {folder}/{namespace}.pid;\"]
    ports: [{{containerPort: 80}}]
",
            conf = nginx(folder).display(),
            folder = folder.display(),
        );
    }
    let args = setting.args.join(", ");
    let _ = write!(
        text,
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: way{number}}}
spec:
  gatewayClassName: karst-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
apiVersion: v1
kind: Service
metadata: {{name: waypoint, namespace: way{number}}}
spec:
  selector: {{gateway.networking.k8s.io/gateway-name: waypoint}}
  ports: [{{name: mesh, port: 15008, appProtocol: hbone}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: way{number}}}
spec:
  selector: {{app: server}}
  ports: [{{name: http, port: 80, targetPort: 80, appProtocol: http}}]
---
apiVersion: v1
kind: Pod
metadata:
  name: waypoint
  namespace: way{number}
  labels:
    gateway.networking.k8s.io/gateway-name: waypoint
    gateway.networking.k8s.io/gateway-class-name: karst-waypoint
spec:
  nodeName: {node}
  serviceAccountName: waypoint
  containers:
  - name: waypoint
    image: karst-waypoint
    command: [karst-waypoint, {args}]
    env:
    - {{name: KARST_GATEWAY_NAMESPACE, value: way{number}}}
    - {{name: KARST_GATEWAY_NAME, value: waypoint}}
    - {{name: KARST_CONTROLLER, value: $(LAB_CONTROLLER)}}
    - {{name: KARST_CONTROLLER_NAME, value: $(LAB_CONTROLLER_NAME)}}
    - {{name: KARST_ROOT_CERT, value: $(LAB_ROOT_CERT)}}
    - {{name: KARST_TOKEN, value: $(LAB_TOKEN)}}
    - {{name: KARST_NODE_NAME, value: $(NODE_NAME)}}
    - {{name: KARST_POD_NAME, value: $(POD_NAME)}}
    readinessProbe: {{httpGet: {{port: 15021, path: /healthz/ready}}}}
"
    );
    text
}
