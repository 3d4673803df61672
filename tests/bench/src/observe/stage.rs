//! The lab of `observe`: a node and a waypoint for each process, which are set differently.

use std::{
    fmt::Write as _,
    fs,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, LabOptions, Running, get_in, until};

use super::{
    Carrier, PATHS, nginx,
    settings::{PROCESSES, Process},
};
use crate::parts::{
    NGINX, WAYPOINT_CLASS, karst_waypoint, waypoint_gateway, waypoint_pod, widen_ports,
};

/// The benchmark's lab; a second run on the same machine replaces the first.
const LAB: &str = "observe";

/// How long everything may take to be in force.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a subscriber may take to be there, or to be gone.
const TAP_LIMIT: Duration = Duration::from_secs(10);

/// Where a waypoint serves metrics and its admin pages, inside its pod.
const WAYPOINT_METRICS: &str = "127.0.0.1:15020";
const WAYPOINT_ADMIN: &str = "127.0.0.1:15000";

/// The running lab.
pub struct Stage {
    pub lab: Lab,
    /// The script by which wrk asks for several paths.
    pub paths: PathBuf,
    /// One for each process, which took over from the lab's own.
    agents: Vec<(u32, Running)>,
    waypoints: Vec<u32>,
}

/// Who carries a load, and what the load is.
pub struct Way {
    /// The process whose CPU is measured.
    pub pid: u32,
    /// The pod that makes the load.
    pub client: String,
    /// What it asks for.
    pub url: String,
    carrier: Carrier,
    /// The node of an agent, the pod of a waypoint.
    place: String,
    log: PathBuf,
}

impl Way {
    /// Empties the log, which would fill the machine's memory otherwise.
    pub fn begin_log(&self) -> Result<()> {
        let log = fs::File::options().write(true).open(&self.log);
        log.and_then(|log| log.set_len(0))
            .with_context(|| format!("emptying {}", self.log.display()))
    }

    /// Its lines.
    pub fn log_lines(&self) -> Result<f64> {
        let log =
            fs::File::open(&self.log).with_context(|| format!("opening {}", self.log.display()))?;
        let (mut log, mut part, mut lines) = (BufReader::new(log), vec![0; 1 << 16], 0_u32);
        loop {
            let length = log.read(&mut part)?;
            if length == 0 {
                return Ok(f64::from(lines));
            }
            let ends = part[..length].iter().filter(|byte| **byte == b'\n');
            lines += u32::try_from(ends.count())?;
        }
    }
}

/// Subscribers that read until they are dropped.
pub struct Taps<'a> {
    stage: &'a Stage,
    way: &'a Way,
    readers: Vec<Running>,
}

impl Taps<'_> {
    /// Ends them, and waits until the process has seen it.
    pub fn end(self) -> Result<()> {
        for reader in self.readers {
            reader.kill()?;
        }
        self.stage.wait_subscribers(self.way, 0)
    }
}

impl Stage {
    /// Brings everything up and waits until it answers.
    pub fn raise(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::write(nginx(folder), NGINX).context("writing nginx's configuration")?;
        let paths = folder.join("observe-paths.lua");
        fs::write(&paths, PATHS).context("writing wrk's script")?;
        Lab::tear_down(LAB)?;
        let lab = Lab::up(LabOptions {
            nodes: u8::try_from(PROCESSES.len())?,
            ..LabOptions::new(LAB)
        })?;
        let mut stage = Self {
            lab,
            paths,
            agents: Vec::new(),
            waypoints: Vec::new(),
        };
        match stage.set(folder) {
            Ok(()) => Ok(stage),
            Err(error) => {
                // The first error says more than one of tearing down would.
                let _ = stage.down();
                Err(error)
            }
        }
    }

    fn set(&mut self, folder: &Path) -> Result<()> {
        let lab = &self.lab;
        let mut text = WAYPOINT_CLASS.to_owned();
        for (number, process) in PROCESSES.iter().enumerate() {
            text += &pods(number, process, folder);
        }
        lab.apply(&text)?;
        for (number, process) in PROCESSES.iter().enumerate() {
            for pod in ["client", "server"] {
                lab.wait_enrolled(&format!("near{number}/{pod}"))?;
                lab.wait_enrolled(&format!("way{number}/{pod}"))?;
            }
            let node = node(number);
            let mut agent = lab.spawn_successor(&node, process.name, process.args)?;
            let pid = agent.child()?.id();
            until("the agent to take over", START_LIMIT, || {
                lab.successor_ready(&node, process.name)
            })?;
            self.agents.push((pid, agent));
        }
        let status = lab.status()?;
        for number in 0..PROCESSES.len() {
            let namespace = format!("way{number}");
            let mut pods = status.pods.iter();
            let pod = pods
                .find(|pod| pod.namespace == namespace && pod.name == "waypoint")
                .context("there is no waypoint")?;
            self.waypoints
                .push(pod.pid.context("the waypoint has ended")?);
            for client in [
                format!("near{number}/client"),
                format!("way{number}/client"),
            ] {
                widen_ports(lab, &client)?;
            }
            let url = waypoint_url(lab, number)?;
            until("the waypoint to answer", START_LIMIT, || {
                let client = format!("way{number}/client");
                let format = ["-o", "/dev/null", "-w", "%{http_code}", "--max-time", "2"];
                let argv = [&["curl", "-sS"], &format[..], &[&url]].concat();
                let answer = lab.exec_ok(&client, &argv)?;
                ensure!(answer == "200", "{answer}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Who carries the load of a process, and how.
    pub fn way(&self, carrier: Carrier, process: usize) -> Result<Way> {
        let lab = &self.lab;
        match carrier {
            Carrier::Agent => {
                let (pid, _) = self.agents.get(process).context("no such agent")?;
                let addresses = lab.pod_addresses(&format!("near{process}/server"))?;
                let address = addresses
                    .iter()
                    .find(|a| a.is_ipv4())
                    .context("no address")?;
                let place = node(process);
                Ok(Way {
                    pid: *pid,
                    client: format!("near{process}/client"),
                    url: format!("http://{address}/"),
                    carrier,
                    log: lab.agent_log_file(&place),
                    place,
                })
            }
            Carrier::Waypoint => {
                let pid = self.waypoints.get(process).context("no such waypoint")?;
                let place = format!("way{process}/waypoint");
                Ok(Way {
                    pid: *pid,
                    client: format!("way{process}/client"),
                    url: waypoint_url(lab, process)?,
                    carrier,
                    log: lab.pod_log(&place)?,
                    place,
                })
            }
        }
    }

    /// What it counts.
    pub fn metrics(&self, way: &Way) -> Result<String> {
        match way.carrier {
            Carrier::Agent => self.lab.agent_metrics(&way.place),
            Carrier::Waypoint => {
                let netns = self.lab.pod_netns(&way.place)?;
                get_in(&netns, WAYPOINT_METRICS, "/metrics")
            }
        }
    }

    /// Begins to read all events, as many times as there are selectors.
    pub fn tap<'a>(&'a self, way: &'a Way, selectors: &[&str]) -> Result<Taps<'a>> {
        let mut readers = Vec::new();
        for selector in selectors {
            let page = format!("/v1/tap?max_rps=10000&{selector}");
            let mut command = match way.carrier {
                Carrier::Agent => {
                    let socket = self.lab.admin_socket(&way.place);
                    let mut command = std::process::Command::new("curl");
                    command
                        .args(["-sSfN", "--unix-socket"])
                        .arg(socket)
                        .arg(format!("http://agent{page}"));
                    command
                }
                Carrier::Waypoint => {
                    let url = format!("http://{WAYPOINT_ADMIN}{page}");
                    self.lab.pod_command(&way.place, &["curl", "-sSfN", &url])?
                }
            };
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let reader = command.spawn().context("starting a tap")?;
            readers.push(Running::new(reader));
        }
        let wanted = readers.len();
        let taps = Taps {
            stage: self,
            way,
            readers,
        };
        self.wait_subscribers(way, wanted)?;
        Ok(taps)
    }

    fn wait_subscribers(&self, way: &Way, wanted: usize) -> Result<()> {
        until("the tap's subscribers", TAP_LIMIT, || {
            let subscribers = super::written::sum(&self.metrics(way)?, "karst_tap_subscribers")?;
            ensure!(subscribers == wanted as f64, "{subscribers}, not {wanted}");
            Ok(())
        })
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

/// A client and a server on the process's node, and the same in a namespace with a waypoint that is set as it is.
fn pods(number: usize, process: &Process, folder: &Path) -> String {
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
    let namespace = format!("way{number}");
    let args: Vec<String> = process.args.iter().map(ToString::to_string).collect();
    text += &waypoint_gateway(&namespace);
    text += &waypoint_pod(&namespace, &node, &karst_waypoint(&namespace, &args));
    let _ = write!(
        text,
        "---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec:
  selector: {{app: server}}
  ports: [{{name: http, port: 80, targetPort: 80, appProtocol: http}}]
"
    );
    text
}
