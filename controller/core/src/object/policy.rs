//! What Istio's security policies have in common: they are read leniently, so that a faulty one still
//! refuses what it was meant to refuse.
//!
//! Other kinds are left out as a whole when they cannot be read. A policy that is left out opens what it
//! closed, so one whose name is known always becomes an object; what is wrong with it is among its
//! faults, and decides together with what was in force before what it does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

/// Fields that are named in one message; it must fit into a status.
const MAX_NAMED: usize = 20;

/// A policy's document with metadata that can be used.
#[derive(Debug, Clone)]
pub(crate) struct PolicyDocument {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Value,
    /// What is wrong with the metadata: it was read without labels and annotations.
    pub(crate) metadata_fault: Option<String>,
}

impl PolicyDocument {
    pub(crate) fn read(mut value: Value) -> Self {
        let spec = value.get_mut("spec").map(Value::take).unwrap_or_default();
        let metadata = value.get_mut("metadata").map(Value::take);
        let metadata = metadata.unwrap_or_else(|| json!({}));
        match serde_json::from_value(metadata.clone()) {
            Ok(metadata) => Self {
                metadata,
                spec,
                metadata_fault: None,
            },
            Err(error) => {
                let text = |field: &str| metadata[field].as_str().map(str::to_owned);
                Self {
                    metadata: ObjectMeta {
                        name: text("name"),
                        namespace: text("namespace"),
                        ..ObjectMeta::default()
                    },
                    spec,
                    metadata_fault: Some(error.to_string()),
                }
            }
        }
    }
}

/// Notes what is wrong with a policy, and what of it is not supported.
pub(crate) struct Reader<'a> {
    faults: &'a Faults,
    findings: &'a mut Vec<ObjectError>,
    /// What its author must correct.
    pub(crate) problems: Vec<String>,
    /// Fields that the mesh does not support.
    pub(crate) unsupported: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(faults: &'a Faults, findings: &'a mut Vec<ObjectError>) -> Self {
        Self {
            faults,
            findings,
            problems: Vec::new(),
            unsupported: Vec::new(),
        }
    }

    /// The author's fault.
    pub(crate) fn fault(&mut self, field: &str, problem: impl Into<String>, hint: &str) {
        let fault = self.faults.error(field, problem, hint);
        self.problems
            .push(format!("{} {}; {hint}", fault.field, fault.problem));
        self.findings.push(fault);
    }

    /// A field that its kind does not have.
    pub(crate) fn unknown(&mut self, field: &str) {
        self.fault(
            field,
            "is not known",
            "see `kubectl explain` for the fields",
        );
    }

    /// Whether the document's metadata could be read whole.
    pub(crate) fn metadata(&mut self, document: &PolicyDocument) -> bool {
        if let Some(problem) = &document.metadata_fault {
            let problem = format!("has the wrong type: {problem}");
            let hint = "labels and annotations are text: quote \"true\" and numbers";
            self.fault("metadata", problem, hint);
        }
        document.metadata_fault.is_none()
    }

    /// A field that is right, and not supported.
    pub(crate) fn unsupported(&mut self, field: &str, problem: &str, hint: &str) {
        self.unsupported.push(field.to_owned());
        self.note(field, problem, hint);
    }

    /// To be reported, with no effect of its own.
    pub(crate) fn note(&mut self, field: &str, problem: &str, hint: &str) {
        self.findings.push(self.faults.error(field, problem, hint));
    }

    /// The fields of an object; absent or null is an empty one.
    pub(crate) fn fields<'v>(
        &mut self,
        value: &'v Value,
        field: &str,
    ) -> Option<Vec<(&'v str, &'v Value)>> {
        match value {
            Value::Null => Some(Vec::new()),
            Value::Object(fields) => Some(present(fields)),
            _ => {
                self.fault(
                    field,
                    "is no object",
                    "see `kubectl explain` for the field's type",
                );
                None
            }
        }
    }

    /// The elements of a list; absent or null is an empty one.
    pub(crate) fn items<'v>(&mut self, value: &'v Value, field: &str) -> Option<&'v [Value]> {
        match value {
            Value::Null => Some(&[]),
            Value::Array(items) => Some(items),
            _ => {
                self.fault(
                    field,
                    "is no list",
                    "see `kubectl explain` for the field's type",
                );
                None
            }
        }
    }

    /// Labels that a pod must have. What cannot be read of a selector is left out, so that it selects
    /// more; then the second is false.
    pub(crate) fn selector(&mut self, value: &Value) -> (Labels, bool) {
        let mut labels = Labels::new();
        let Some(fields) = self.fields(value, "spec.selector") else {
            return (labels, false);
        };
        let mut whole = true;
        for (name, value) in fields {
            let field = format!("spec.selector.{name}");
            if name != "matchLabels" {
                let hint = "a selector of a policy has matchLabels only";
                self.fault(&field, "is not known", hint);
                whole = false;
                continue;
            }
            let Some(wanted) = self.fields(value, &field) else {
                whole = false;
                continue;
            };
            for (key, value) in wanted {
                match value.as_str() {
                    Some(text) if !text.contains('*') && !key.is_empty() => {
                        labels.insert(key.to_owned(), text.to_owned());
                    }
                    _ => {
                        let field = format!("{field}[{key:?}]");
                        let hint = "write a label's whole value; there are no wildcards here";
                        self.fault(&field, "is no label", hint);
                        whole = false;
                    }
                }
            }
        }
        (labels, whole)
    }
}

fn present(fields: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    fields.map(|(name, value)| (name.as_str(), value)).collect()
}

/// The first of them, for a message.
pub(crate) fn listed(fields: &[String], separator: &str) -> String {
    let mut text = fields
        .iter()
        .take(MAX_NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(separator);
    if fields.len() > MAX_NAMED {
        text.push_str(&format!("{separator}and {} more", fields.len() - MAX_NAMED));
    }
    text
}
