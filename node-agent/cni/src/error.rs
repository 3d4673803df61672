//! What goes wrong, as the CNI specification wants it told: a number, a line, and what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// The specification's version is not one of ours.
    #[error("CNI version {0:?} is not supported")]
    Version(String),
    /// A variable of the environment is missing or unusable.
    #[error("{variable} {problem}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Input(io::Error),
    /// It is no JSON object.
    #[error("the network configuration is no JSON object: {0}")]
    Undecodable(String),
    /// A field of the configuration is missing or unusable.
    #[error("{field}: {problem}")]
    Config {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers on the agent's socket.
    #[error("the Karst node agent cannot be reached at {socket}: {source}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the Karst node agent at {socket} did not answer within {} s", limit.as_secs())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long we waited.
        limit: Duration,
    },
    /// It answered something that is no answer.
    #[error("the Karst node agent's answer cannot be understood: {0}")]
    Answer(String),
    /// It says no.
    #[error("pod {pod} cannot be taken into the mesh ({reason}): {error}")]
    Refused {
        /// `namespace/name`.
        pod: String,
        /// The agent's label.
        reason: String,
        /// The agent's words.
        error: String,
    },
    /// A fault of ours.
    #[error("karst-cni failed: {0}")]
    Internal(String),
}

/// Own codes begin here, says the specification.
const UNREACHABLE: u32 = 100;
const REFUSED: u32 = 101;
const TIMEOUT: u32 = 102;
const BAD_ANSWER: u32 = 103;

impl CniError {
    /// A stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Version(_) => "cni_version_unsupported",
            Self::Environment { .. } => "cni_environment_invalid",
            Self::Input(_) => "cni_input_unreadable",
            Self::Undecodable(_) | Self::Config { .. } => "cni_config_invalid",
            Self::Unreachable { .. } => "cni_agent_unreachable",
            Self::Timeout { .. } => "cni_agent_timeout",
            Self::Answer(_) => "cni_agent_answer",
            Self::Refused { .. } => "cni_refused",
            Self::Internal(_) => "cni_internal",
        }
    }

    /// The number in the result.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment { .. } => 4,
            Self::Input(_) => 5,
            Self::Undecodable(_) => 6,
            Self::Config { .. } => 7,
            Self::Unreachable { .. } => UNREACHABLE,
            Self::Refused { .. } => REFUSED,
            Self::Timeout { .. } => TIMEOUT,
            Self::Answer(_) => BAD_ANSWER,
            Self::Internal(_) => 999,
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Version(_) => "use a cniVersion from 0.3.0 to 1.1.0 in the network configuration",
            Self::Environment { .. } | Self::Input(_) => {
                "karst-cni is called by the container runtime; check the runtime's version"
            }
            Self::Undecodable(_) | Self::Config { .. } => {
                "karst-cni's entry is written by the Karst node agent; delete it and the agent writes it again"
            }
            Self::Unreachable { .. } | Self::Timeout { .. } => {
                "look at the karst-node-agent pod of this node (kubectl -n karst-system get pods -o wide); \
                 the sandbox is tried again by itself; if Karst was removed, delete karst-cni from the CNI configuration"
            }
            Self::Answer(_) => {
                "the versions of karst-cni and karst-node-agent do not fit; roll the DaemonSet"
            }
            Self::Refused { reason, .. } => refused_advice(reason),
            Self::Internal(_) => "this is a fault of Karst; please report it",
        }
    }

    /// The result the specification asks for.
    pub fn result(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.to_string(),
            "details": format!("{}: {}", self.reason(), self.advice()),
        })
    }
}

/// By the agent's label; what it does not know leads to the agent's log.
fn refused_advice(reason: &str) -> &'static str {
    match reason {
        "cni_pod_unknown" => {
            "the controller has not told this node's agent of the pod; look at karst-controller (kubectl -n karst-system get pods) \
             and at the agent's karst_xds_connected"
        }
        "no_certificate" => {
            "the pod's identity has no certificate yet; look at karst-controller's log for ca_ reasons of this service account"
        }
        "listen_failed" => "ports 15001, 15006 and 15008 must be free in the pod",
        "bpf_pods_full" => {
            "this node's limit of enrolled pods is reached; raise the agent's --max-pods and restart the node"
        }
        "netns_unusable" | "netns_changed" => {
            "the agent cannot open the pod's network namespace; /run/netns must be mounted into its pod with HostToContainer propagation"
        }
        _ => {
            "look at the log of this node's karst-node-agent; the sandbox is tried again by itself"
        }
    }
}
