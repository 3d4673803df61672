//! Why the controller cannot be reached or understood.

use std::path::PathBuf;

/// What went wrong with the controller. All of it is retried; `reason` is the label shared by log,
/// metric and CLI.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The pinned root file cannot be read. Ours to fix.
    #[error("root certificate file {path:?} cannot be read: {problem}")]
    RootUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The token file cannot be read or holds no token. Ours to fix.
    #[error("token file {path:?} cannot be used: {problem}")]
    TokenUnreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong. Never the token.
        problem: String,
    },
    /// The address or server name is not usable. Ours to fix.
    #[error("controller address {address:?} is not usable: {problem}")]
    Address {
        /// The address as configured.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// TCP, TLS or HTTP/2 failed: the controller is away, or is not who it should be.
    #[error("connection to the controller at {address} failed: {problem}")]
    Connect {
        /// The address as configured.
        address: String,
        /// The chain of causes.
        problem: String,
    },
    /// The controller answered a request with an error. The message starts with its reason.
    #[error("the controller refused: {code}: {message}")]
    Refused {
        /// gRPC status.
        code: tonic::Code,
        /// The controller's words.
        message: String,
    },
    /// The stream ended or stalled; normal when the controller restarts.
    #[error("the stream to the controller ended: {problem}")]
    StreamEnded {
        /// How.
        problem: String,
    },
}

impl ClientError {
    /// Stable label for logs, metrics and the CLI.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RootUnreadable { .. } => "controller_root_unreadable",
            Self::TokenUnreadable { .. } => "controller_token_unreadable",
            Self::Address { .. } => "controller_bad_address",
            Self::Connect { .. } => "controller_connect_failed",
            Self::Refused {
                code: tonic::Code::Unauthenticated,
                ..
            } => "controller_unauthenticated",
            Self::Refused {
                code: tonic::Code::PermissionDenied,
                ..
            } => "controller_permission_denied",
            Self::Refused { .. } => "controller_refused",
            Self::StreamEnded { .. } => "controller_stream_ended",
        }
    }

    /// Turns a gRPC status into an error: transport failures are told from refusals.
    #[must_use]
    pub fn from_status(status: &tonic::Status) -> Self {
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
                Self::StreamEnded {
                    problem: with_causes(status),
                }
            }
            code => Self::Refused {
                code,
                message: status.message().to_owned(),
            },
        }
    }
}

/// An error with its causes on one line, each cause once.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
