//! What went wrong, for people (text), scripts (exit code) and programs (`-j`).

/// Kinds of failure; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel or the agent could not be asked, or answered with an error.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// What was named is not there.
    NotFound,
    /// What was checked is not well.
    Unhealthy,
    /// What was asked about is not allowed.
    Denied,
    /// `karst inspect diff`: layers do not agree.
    Differs,
    /// `karst analyze` found something.
    Findings,
    /// `karst analyze`: the command line makes no sense.
    AnalyzeUsage,
    /// A file that was named cannot be read.
    Input,
    /// The agent or the waypoint does not answer.
    Unreachable,
    /// Whoever was asked has no such thing.
    Unsupported,
}

impl Kind {
    /// The process exit code. 2 is also what the argument parser itself uses.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unhealthy => 4,
            Self::Denied => 5,
            Self::Differs => 6,
            Self::Unreachable => 7,
            Self::Unsupported => 8,
            // As sysexits.h and istioctl have them.
            Self::AnalyzeUsage => 64,
            Self::Input => 65,
            Self::Findings => 79,
        }
    }
}

impl Kind {
    /// The kind that a command on another machine ended with; one that is not known here counts as
    /// [`Kind::Failed`].
    pub fn of_exit_code(code: u8) -> Self {
        let kinds = [
            Self::Usage,
            Self::NotFound,
            Self::Unhealthy,
            Self::Denied,
            Self::Differs,
            Self::Unreachable,
            Self::Unsupported,
        ];
        let own = kinds.into_iter().find(|kind| kind.exit_code() == code);
        own.unwrap_or(Self::Failed)
    }
}

/// A failure of the whole command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// Stable label.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

impl Failure {
    /// A failure of kind [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Usage,
            reason: "usage".to_owned(),
            message: message.into(),
        }
    }

    /// A failure of kind [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::NotFound,
            reason: "not_found".to_owned(),
            message: message.into(),
        }
    }

    /// A failure of kind [`Kind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unsupported,
            reason: "unsupported".to_owned(),
            message: message.into(),
        }
    }

    /// A failure of kind [`Kind::Failed`].
    pub fn failed(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Failed,
            reason: reason.into(),
            message: message.into(),
        }
    }
}
