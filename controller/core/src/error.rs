//! What can be wrong with an object.

/// A fault in one field of one object. Its author is at fault; a retry does not help. As the error
/// of a function it means that the object was not taken; as a finding, that the object was taken
/// without that field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field} {problem}; {hint}")]
pub struct ObjectError {
    /// `Kind namespace/name`, or as much of it as is known.
    pub object: String,
    /// Path of the field, as in `spec.ports[0].port`.
    pub field: String,
    /// What is wrong; continues the field's name into a sentence.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

impl ObjectError {
    /// Stable label for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "object_invalid"
    }
}

/// Collects faults of one object.
pub(crate) struct Faults {
    object: String,
}

impl Faults {
    pub(crate) fn of(object: impl ToString) -> Self {
        Self {
            object: object.to_string(),
        }
    }

    pub(crate) fn error(
        &self,
        field: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> ObjectError {
        ObjectError {
            object: self.object.clone(),
            field: field.into(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}
