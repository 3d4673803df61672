//! Status of objects, as it should be written.

use serde_json::Value;

/// The status that an object should have. Times are the writer's: a condition keeps its
/// `lastTransitionTime` while its status is the same.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectStatus {
    /// Generation of the object that was looked at.
    pub generation: i64,
    /// What to say.
    pub content: StatusContent,
}

/// Where conditions go.
#[derive(Debug, Clone, PartialEq)]
pub enum StatusContent {
    /// GatewayClass, Gateway, ListenerSet.
    Object {
        /// `status.conditions`.
        conditions: Vec<Condition>,
        /// Other fields of the status, set as they are.
        fields: Value,
    },
    /// Security policies and ServiceEntries: our entries of `status.conditions`. Those of types that are not ours stay as they
    /// are.
    Conditions(Vec<Condition>),
    /// Routes: our entries of `status.parents`. Those of other controllers stay as they are; entries of
    /// ours that are not among these are removed.
    Parents(Vec<ParentStatus>),
    /// Policies: our entries of `status.ancestors`, likewise.
    Ancestors(Vec<AncestorStatus>),
}

/// How a route stands with a parent.
#[derive(Debug, Clone, PartialEq)]
pub struct ParentStatus {
    /// The parent, as the route names it.
    pub parent_ref: Value,
    /// `controllerName`.
    pub controller: &'static str,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// How a policy stands with what it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct AncestorStatus {
    /// What it is for.
    pub ancestor_ref: Value,
    /// `controllerName`.
    pub controller: &'static str,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// One condition, without times and generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, and what to do about it.
    pub message: String,
}

impl Condition {
    /// A condition that holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: ConditionStatus::True,
            reason,
            message: message.into(),
        }
    }

    /// A condition that does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: ConditionStatus::False,
            reason,
            message: message.into(),
        }
    }

    /// A condition of which nothing is known so far.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: ConditionStatus::Unknown,
            reason,
            message: message.into(),
        }
    }
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows yet.
    Unknown,
}

impl ConditionStatus {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}
