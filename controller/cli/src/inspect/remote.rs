//! Nodes and waypoints, through the API server.
//!
//! What is in a node's kernel needs root on the node, so the agent's own container is asked to run this command:
//! its output and exit code are passed on. A waypoint's admin server listens on its loopback, which the API server
//! forwards to. RBAC: `get` and `list` of pods, and `create` of `pods/exec` (in Karst's namespace) or of
//! `pods/portforward` (in the waypoint's).
//!
//! Other commands reach both by [`Source`](crate::admin::Source), which connects to an agent by [`Node::relay`] and
//! to a waypoint by [`Forward::stream`]; [`Node::output`] runs any command on a node.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Client;
use kube::api::{Api, AttachParams, AttachedProcess, ListParams, Portforwarder};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Answer;
use crate::admin::Stream;
use crate::args::{Inspect, Kubernetes};
use crate::cluster::{self, SYSTEM_NAMESPACE};
use crate::failure::{Failure, Kind};
use crate::install::rollout::{self, AGENT};

/// The command in the agent's image.
const COMMAND: &str = "/karst";

/// The agent's container.
const CONTAINER: &str = "node-agent";

/// Port of a waypoint's admin server.
const ADMIN_PORT: u16 = 15000;

/// Label of the pods of waypoints and gateways.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// Longest time of a command on a node: `--stats` and a large map on a slow link.
const EXEC_LIMIT: Duration = Duration::from_secs(120);

/// Largest output of a command on a node: a full map of 32,768 entries takes a fifth of it.
const MAX_OUTPUT: u64 = 64 << 20;

/// Most that a relay says about its end, bytes: one sentence.
const MAX_WORDS: u64 = 16 << 10;

/// Whom a pod stands for.
pub enum Target {
    /// It is a waypoint's or gateway's own.
    Waypoint(Forward),
    /// The node that it runs on.
    Node(String),
}

/// Finds out whom `NAMESPACE/POD` stands for. A waypoint stands for itself only if `is_asked`.
///
/// # Errors
/// There is no such pod, it runs nowhere, or the cluster cannot be asked.
pub fn target(kubernetes: &Kubernetes, full: &str, is_asked: bool) -> Result<Target, Failure> {
    let (namespace, name) = full
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .ok_or_else(|| Failure::usage(format!("--pod is NAMESPACE/POD, not '{full}'")))?;
    let pod = cluster::run(async {
        let client = cluster::client(kubernetes).await?;
        let api: Api<Pod> = Api::namespaced(client, namespace);
        let doing = format!("reading pod {full}");
        let found = api.get_opt(name).await;
        found.map_err(|e| cluster::failure(&doing, &e))
    })?;
    let pod = pod.ok_or_else(|| Failure::not_found(format!("no pod {full} in the cluster")))?;
    if is_asked && is_waypoint(&pod) {
        return Ok(Target::Waypoint(Forward {
            kubernetes: kubernetes.clone(),
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
        }));
    }
    let node = pod.spec.and_then(|spec| spec.node_name);
    node.map(Target::Node)
        .ok_or_else(|| Failure::not_found(format!("pod {full} is on no node yet")))
}

fn is_waypoint(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let label = |key: &str| labels?.get(key).map(String::as_str);
    label(GATEWAY).is_some() && label("app.kubernetes.io/managed-by") == Some("karst-controller")
}

/// A waypoint's admin server.
#[derive(Clone, Debug)]
pub struct Forward {
    kubernetes: Kubernetes,
    namespace: String,
    pod: String,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// Ends the forwarding with the connection.
struct Forwarding(Portforwarder);

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Forward {
    /// A connection to it.
    ///
    /// # Errors
    /// The API server does not let us.
    pub async fn stream(&self) -> Result<Stream, Failure> {
        let client = cluster::client(&self.kubernetes).await?;
        let api: Api<Pod> = Api::namespaced(client, &self.namespace);
        let doing = format!("forwarding to port {ADMIN_PORT} of pod {self}");
        let forwarder = api.portforward(&self.pod, &[ADMIN_PORT]).await;
        let forwarder = forwarder.map_err(|e| cluster::failure(&doing, &e))?;
        let mut forwarding = Forwarding(forwarder);
        let stream = forwarding
            .0
            .take_stream(ADMIN_PORT)
            .ok_or_else(|| Failure::failed("cluster_unreachable", format!("{doing}: no stream")))?;
        Ok(Stream::new(stream).holding(forwarding))
    }
}

/// A node's agent.
#[derive(Clone, Debug)]
pub struct Node {
    kubernetes: Kubernetes,
    name: String,
    /// Longest time of a command.
    limit: Duration,
}

/// What a command on a node printed.
pub struct Output {
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// Its exit code.
    pub code: u8,
}

impl Node {
    /// The node of this name.
    pub fn new(kubernetes: Kubernetes, name: String) -> Self {
        Self {
            kubernetes,
            name,
            limit: EXEC_LIMIT,
        }
    }

    /// It, with so much time for each command.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `karst inspect WORDS` there.
    ///
    /// # Errors
    /// The command's own, with its kind, or it could not be run.
    pub fn run(&self, args: &Inspect, words: &[String]) -> Result<Answer, Failure> {
        let mut command = vec!["inspect".to_owned()];
        if args.output.is_json() {
            command.push("--json".to_owned());
        }
        if let Some(seconds) = args.stats {
            command.push(format!("--stats={seconds}"));
        }
        // What a user calls a pod may begin with a dash.
        command.push("--".to_owned());
        command.extend_from_slice(words);
        answer(self.output(&command)?, args)
    }

    /// Runs `karst ARGUMENTS` in the container of the node's agent, to its end.
    ///
    /// # Errors
    /// There is no agent, or the API server does not let us.
    pub fn output(&self, arguments: &[String]) -> Result<Output, Failure> {
        cluster::run(async {
            let client = self.client().await?;
            let running = self.execute(client, arguments);
            match tokio::time::timeout(self.limit, running).await {
                Ok(output) => output,
                Err(_) => Err(Failure::failed(
                    "exec_timeout",
                    format!("karst on {} did not end within {:?}", self.name, self.limit),
                )),
            }
        })
    }

    async fn client(&self) -> Result<Client, Failure> {
        let client = cluster::client(&self.kubernetes).await;
        client.map_err(|failure| Failure {
            message: format!(
                "{} has no pins on this machine, and there is {}",
                self.name, failure.message
            ),
            ..failure
        })
    }

    /// Starts `karst ARGUMENTS` in the container of the node's agent. It is cut off with what is returned.
    async fn start(
        &self,
        client: Client,
        arguments: &[String],
        stdin: bool,
    ) -> Result<(AttachedProcess, String), Failure> {
        let pod = self.agent(&client).await?;
        let api: Api<Pod> = Api::namespaced(client, SYSTEM_NAMESPACE);
        let doing = format!(
            "running karst in pod {SYSTEM_NAMESPACE}/{pod} on {}",
            self.name
        );
        let command = std::iter::once(COMMAND).chain(arguments.iter().map(String::as_str));
        let how = AttachParams::default()
            .container(CONTAINER)
            .stdin(stdin)
            .stdout(true)
            .stderr(true);
        let process = api.exec(&pod, command, &how).await;
        let process = process.map_err(|e| cluster::failure(&doing, &e))?;
        Ok((process, doing))
    }

    async fn execute(&self, client: Client, arguments: &[String]) -> Result<Output, Failure> {
        let (mut process, doing) = self.start(client, arguments, false).await?;
        let broken = |why: &str| broken(&doing, why);
        let status = process.take_status().ok_or_else(|| broken("no status"))?;
        let (out, err) = (process.stdout(), process.stderr());
        let (out, err) = tokio::join!(text(out, MAX_OUTPUT), text(err, MAX_OUTPUT));
        let status = status
            .await
            .ok_or_else(|| broken("the stream ended early"))?;
        let code = code(&status).map_err(|why| broken(&why))?;
        Ok(Output {
            out: out.map_err(|e| broken(&e))?,
            err: err.map_err(|e| broken(&e))?,
            code,
        })
    }

    /// A connection to the agent, by `karst relay` in its container, which ends when the connection does.
    ///
    /// # Errors
    /// There is no agent, or the API server does not let us.
    pub async fn relay(&self) -> Result<Stream, Failure> {
        let client = self.client().await?;
        let (mut process, doing) = self.start(client, &["relay".to_owned()], true).await?;
        let streams = (process.stdout(), process.stdin(), process.take_status());
        let (Some(out), Some(input), Some(status)) = streams else {
            return Err(broken(&doing, "no streams"));
        };
        let err = process.stderr();
        let said = tokio::spawn(async move {
            let said = text(err, MAX_WORDS).await.unwrap_or_else(|error| error);
            let said = said.trim();
            if !said.is_empty() {
                return said.strip_prefix("Error: ").unwrap_or(said).to_owned();
            }
            // It may not have been started at all.
            let status = status.await.and_then(|status| status.message);
            status.unwrap_or_default()
        });
        Ok(Stream::new(tokio::io::join(out, input))
            .holding(process)
            .with_last_words(said))
    }

    /// The pod of the node's agent; of two during an upgrade, one that is ready.
    async fn agent(&self, client: &Client) -> Result<String, Failure> {
        let api: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let which = ListParams::default()
            .labels(&format!("app.kubernetes.io/name={}", AGENT.name()))
            .fields(&format!("spec.nodeName={}", self.name));
        let list = api.list(&which).await;
        let doing = format!("listing the agent of {}", self.name);
        let pods = list.map_err(|e| cluster::failure(&doing, &e))?.items;
        let running = |pod: &&Pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            phase == Some("Running")
        };
        let best = pods
            .iter()
            .filter(running)
            .max_by_key(|pod| rollout::is_ready(pod));
        let name = best.and_then(|pod| pod.metadata.name.clone());
        name.ok_or_else(|| {
            Failure::not_found(format!(
                "no node agent runs on {}, and this machine has no pins of such a node",
                self.name
            ))
        })
    }
}

fn broken(doing: &str, why: &str) -> Failure {
    Failure::failed("cluster_unreachable", format!("{doing}: {why}"))
}

async fn text(stream: Option<impl AsyncRead + Unpin>, most: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut limited = stream.take(most + 1);
        let read = limited.read_to_end(&mut bytes).await;
        read.map_err(|error| error.to_string())?;
    }
    if bytes.len() as u64 > most {
        return Err(format!("it printed more than {most} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it printed what is no text".to_owned())
}

/// The exit code in the status that ends the stream; what went wrong if the command did not run.
fn code(status: &Status) -> Result<u8, String> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().filter_map(|d| d.causes.as_ref());
    let exit = causes
        .flatten()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse().ok());
    exit.ok_or_else(|| {
        let said = status.message.clone();
        said.unwrap_or_else(|| "it did not run".to_owned())
    })
}

/// What the command on the node said, as ours.
fn answer(output: Output, args: &Inspect) -> Result<Answer, Failure> {
    if args.output.is_json() {
        let value: Value = serde_json::from_str(&output.out).map_err(|error| {
            let why = if output.err.is_empty() {
                error.to_string()
            } else {
                output.err.trim().to_owned()
            };
            Failure::failed("json", format!("the node's karst printed no JSON: {why}"))
        })?;
        if output.code == 0 {
            return Ok(Answer::Json(value));
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        return Err(Failure {
            kind: Kind::of_exit_code(output.code),
            reason: text("reason").unwrap_or_default(),
            message: text("error").unwrap_or_default(),
        });
    }
    if output.code == 0 {
        return Ok(Answer::Text {
            text: output.out,
            notes: output.err,
        });
    }
    let said = output.err.trim();
    Err(Failure {
        kind: Kind::of_exit_code(output.code),
        reason: "node".to_owned(),
        message: said.strip_prefix("Error: ").unwrap_or(said).to_owned(),
    })
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
