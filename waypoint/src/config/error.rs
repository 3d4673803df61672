//! What is wrong with a resource.

use std::fmt::Display;

use karst_api::FieldError;

/// A field whose value cannot be used. The sender is at fault; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ConfigError {
    /// The field, as a path inside of the resource.
    pub field: String,
    /// What is wrong with it; it continues the sentence that the field begins.
    pub problem: String,
}

impl ConfigError {
    /// An error about `field`; `problem` continues the sentence.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same error, seen from the message that holds the field.
    #[must_use]
    pub fn within(mut self, parent: impl Display) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }

    /// Stable label for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "config_invalid_field"
    }
}

impl From<FieldError> for ConfigError {
    fn from(error: FieldError) -> Self {
        Self::new(error.field, error.problem)
    }
}

/// Refuses a list that is longer than `limit`.
pub(crate) fn at_most(field: &str, length: usize, limit: usize) -> Result<(), ConfigError> {
    if length <= limit {
        return Ok(());
    }
    let problem = format!("has {length} entries, at most {limit} are allowed");
    Err(ConfigError::new(field, problem))
}
