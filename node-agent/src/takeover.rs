//! How a new agent takes a node over from the running one, so that no connection
//! is refused while the agent is upgraded.
//!
//! The new agent gets ready beside the running one (mesh state, certificates),
//! then asks it over a root-only socket in the state directory. The running one
//! stops accepting and changing anything, and hands over copies of its listeners,
//! with whatever waits in their queues, and of the lock on the state directory:
//!
//! ```text
//! new                                    running
//!  ── hello: versions, what it lacks ──►
//!                                        freezes enrolment, pauses accepting
//!  ◄── sockets of a pod (many times) ──
//!  ◄── complete: layout; the lock ─────
//!  loads its programs
//!  ── taken ───────────────────────────►
//!  ◄── released ───────────────────────  closes its copies, drains
//!  serves
//! ```
//!
//! Until it has said `released` the running agent can go back to serving, and does
//! so when the new one is silent for too long or gone. The new one serves nobody
//! before it has heard it. So there is never a time when both serve; and if the new
//! one dies after `released`, the lock is free, and whichever agent is left takes it.
//!
//! Start with [`giver`] and [`taker`]; [`wire`] has the messages.

pub mod giver;
pub mod taker;
pub mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the messages. Raise it when an older agent would misunderstand
/// them; [`wire::Hello`] keeps its form for ever.
pub const PROTOCOL: u32 = 1;

/// Longest wait for the next message of the other side.
pub const MESSAGE_LIMIT: Duration = Duration::from_secs(5);

/// Longest wait of the running agent for `taken`: in it the new one loads its
/// programs, which takes tens of milliseconds; connections wait that long.
pub const TAKEN_LIMIT: Duration = Duration::from_secs(10);

/// The running agent does not understand the new one's messages.
pub const VERSION: &str = "takeover_version";
/// The new one would have to refuse connections that the running one can serve.
pub const NOT_PREPARED: &str = "takeover_not_prepared";

/// Why a takeover did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeoverError {
    /// The operating system's answer.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// The other side ended the connection.
    #[error("the other agent ended the takeover")]
    Ended,
    /// The other side said nothing in time.
    #[error("the other agent said nothing for {0:?}")]
    Silent(Duration),
    /// It said what makes no sense.
    #[error("message of the other agent: {0}")]
    Malformed(String),
    /// It is not root's process.
    #[error("a process of user {0} asked")]
    NotRoot(u32),
    /// It does not agree.
    #[error("refused: {message}")]
    Refused {
        /// Stable label.
        reason: String,
        /// Details.
        message: String,
    },
    /// This agent's enrolment is ending.
    #[error("the agent is ending")]
    Ending,
}

impl TakeoverError {
    /// The stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "takeover_failed",
            Self::Ended => "takeover_ended",
            Self::Silent(_) => "takeover_timeout",
            Self::Malformed(_) => "takeover_malformed",
            Self::NotRoot(_) => "takeover_not_root",
            Self::Refused { reason, .. } if reason == NOT_PREPARED => "takeover_not_prepared",
            Self::Refused { .. } => "takeover_version",
            Self::Ending => "shutdown",
        }
    }
}

pub(crate) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> TakeoverError {
    move |source| TakeoverError::Io { action, source }
}

/// Where the agent with this state directory is asked.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("takeover.sock")
}

#[cfg(test)]
#[path = "takeover/tests.rs"]
mod tests;
