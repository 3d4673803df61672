//! The CNI socket: what the plugin asks on behalf of the container runtime. Root only, by the
//! directory's mode, the socket's mode and the caller's credentials.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use karst_cni::wire::{self, Added, Attachment, NetnsInode, Refused};
use karst_datapath::netns::NetnsId;
use karst_process::http_server::{Reply, json};
use serde_json::json as object;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::enrol::attach::SandboxName;
use crate::enrol::registry::Registration;
use crate::enrol::task::{Event, Patience};
use crate::enrol::{POD_UNKNOWN, Problem};
use crate::metrics::cni::{CniMetrics, Command};

/// Largest request body, in bytes: one has a few hundred.
const MAX_BODY: usize = 16 << 10;

/// Calls of the plugin served at once. A node that starts asks for all its pods together, at most
/// some hundred, and each call may wait for its pod.
pub const MAX_CALLS: usize = 512;

/// Where the plugin's paths are found from inside the agent's own file system.
#[derive(Clone, Debug)]
pub struct HostPaths {
    /// The node's `/proc`.
    pub proc: PathBuf,
    /// The node's directory of network namespaces.
    pub netns_dir: Option<PathBuf>,
}

/// Answers the plugin.
#[derive(Debug)]
pub struct CniServer {
    /// Where sandboxes are registered.
    pub enrolment: mpsc::UnboundedSender<Event>,
    /// Where namespaces are found.
    pub paths: HostPaths,
    /// Calls by outcome.
    pub metrics: Arc<CniMetrics>,
}

/// Opens the socket. The one of a former agent is replaced at once and never missing.
///
/// # Errors
/// The path cannot be used.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory keeps others out until the mode is right.
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

impl CniServer {
    /// Answers one request.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let command = match path.as_str() {
            wire::ADD => Command::Add,
            wire::CHECK => Command::Check,
            wire::DEL => Command::Del,
            wire::GC => Command::Gc,
            _ => return refuse(StatusCode::NOT_FOUND, &problem("not_found", "no such path")),
        };
        if request.method() != Method::POST {
            let problem = problem("method_not_allowed", "not this method here");
            return refuse(StatusCode::METHOD_NOT_ALLOWED, &problem);
        }
        let outcome = self.serve(command, request).await;
        let reason = outcome
            .as_ref()
            .err()
            .map_or("ok", |problem| problem.reason);
        self.metrics.count(command, reason);
        match outcome {
            Ok(reply) => reply,
            Err(problem) => {
                let status = match problem.reason {
                    "cni_request_invalid" | "sandbox_invalid" => StatusCode::BAD_REQUEST,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                tracing::warn!(
                    command = command.as_str(),
                    reason = problem.reason,
                    error = problem.message,
                    "CNI call refused"
                );
                refuse(status, &problem)
            }
        }
    }

    async fn serve(&self, command: Command, request: Request<Incoming>) -> Result<Reply, Problem> {
        if command == Command::Gc {
            // Nobody there any more: then there is nothing to collect either.
            let _ = self.enrolment.send(Event::Collect);
            return Ok(json(StatusCode::OK, &object!({})));
        }
        let invalid = |error: String| problem("cni_request_invalid", &error);
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| invalid(error.to_string()))?.to_bytes();
        let attachment: Attachment =
            serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
        match command {
            Command::Add => self.add(attachment).await,
            Command::Check => {
                let (reply, answer) = oneshot::channel();
                let sandbox = name(&attachment);
                let enrolled = self.ask(Event::Check { sandbox, reply }, answer).await?;
                Ok(json(StatusCode::OK, &Added { enrolled }))
            }
            Command::Del | Command::Gc => {
                let (reply, answer) = oneshot::channel();
                let sandbox = name(&attachment);
                self.ask(Event::Detach { sandbox, reply }, answer).await?;
                Ok(json(StatusCode::OK, &object!({})))
            }
        }
    }

    async fn add(&self, attachment: Attachment) -> Result<Reply, Problem> {
        let path = attachment
            .netns
            .as_deref()
            .ok_or_else(|| problem("cni_request_invalid", "it has no network namespace"))?;
        // The same path may be another namespace's in the agent's own file system.
        let wanted = attachment.netns_id.ok_or_else(|| {
            problem(
                "cni_request_invalid",
                "it does not say which network namespace it has",
            )
        })?;
        let netns = self.paths.netns(path, wanted)?;
        let registration = Registration {
            namespace: attachment.namespace,
            name: attachment.name,
            netns,
            addresses: attachment.addresses,
            container_id: Some(attachment.container_id),
            expected: Some(netns_id(wanted)),
        };
        let (reply, answer) = oneshot::channel();
        let event = Event::Register {
            uid: attachment.pod_uid,
            registration,
            patience: Patience {
                unknown: wire::POD_WAIT,
                total: wire::POD_WAIT + wire::ENROL_WAIT,
            },
            reply,
        };
        let enrolled = self.ask(event, answer).await?;
        Ok(json(StatusCode::OK, &Added { enrolled }))
    }

    async fn ask<T>(
        &self,
        event: Event,
        answer: oneshot::Receiver<Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let ending = || problem("shutdown", "the agent is ending");
        self.enrolment.send(event).map_err(|_| ending())?;
        let answer = answer.await.map_err(|_| ending())?;
        answer.map_err(|mut problem| {
            if problem.reason == POD_UNKNOWN {
                problem.reason = "cni_pod_unknown";
            }
            problem
        })
    }
}

impl HostPaths {
    /// Where the plugin's namespace is for us: under the node's directory of namespaces, under
    /// the same path, or under the node's root. Its inode decides.
    fn netns(&self, path: &Path, wanted: NetnsInode) -> Result<PathBuf, Problem> {
        if !path.is_absolute() {
            let message = format!("{} is not an absolute path", path.display());
            return Err(problem("cni_request_invalid", &message));
        }
        let bound = match (&self.netns_dir, path.file_name()) {
            (Some(dir), Some(file)) => Some(dir.join(file)),
            _ => None,
        };
        let in_root = path
            .strip_prefix("/")
            .ok()
            .map(|relative| self.proc.join("1/root").join(relative));
        let candidates = [bound, Some(path.to_owned()), in_root];
        let is_it = |candidate: &PathBuf| {
            fs::metadata(candidate)
                .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev, wanted.ino))
        };
        candidates.into_iter().flatten().find(is_it).ok_or_else(|| {
            let message = format!(
                "{} cannot be seen from inside the agent: the node's /run/netns must be mounted into it with HostToContainer propagation",
                path.display()
            );
            problem("netns_unusable", &message)
        })
    }
}

fn name(attachment: &Attachment) -> SandboxName {
    SandboxName {
        pod_uid: attachment.pod_uid.clone(),
        namespace: attachment.namespace.clone(),
        name: attachment.name.clone(),
        container_id: attachment.container_id.clone(),
        netns_id: attachment.netns_id.map(netns_id),
    }
}

fn netns_id(told: NetnsInode) -> NetnsId {
    NetnsId {
        dev: told.dev,
        ino: told.ino,
    }
}

fn problem(reason: &'static str, message: &str) -> Problem {
    Problem {
        reason,
        message: message.to_owned(),
    }
}

fn refuse(status: StatusCode, problem: &Problem) -> Reply {
    let refused = Refused {
        reason: problem.reason.to_owned(),
        error: problem.message.clone(),
    };
    json(status, &refused)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
