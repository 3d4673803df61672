//! What a ReferenceGrant permits.

use serde::Deserialize;

use super::{Body, gateway_api::Resource};
use crate::error::{Faults, ObjectError};

/// Who of other namespaces may refer to what is in the grant's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ReferenceGrant {
    from: Vec<GrantFrom>,
    to: Vec<GrantTo>,
}

/// Who may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct GrantFrom {
    group: String,
    kind: String,
    namespace: String,
}

/// To what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct GrantTo {
    group: String,
    kind: String,
    /// `None`: any.
    name: Option<String>,
}

/// A reference from one object to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference<'a> {
    pub(crate) from_group: &'a str,
    pub(crate) from_kind: &'a str,
    pub(crate) from_namespace: &'a str,
    pub(crate) to_group: &'a str,
    pub(crate) to_kind: &'a str,
    pub(crate) to_name: &'a str,
}

impl ReferenceGrant {
    pub(crate) fn body(
        object: Resource<Self>,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        let mut grant = object.spec;
        for (field, empty) in [
            ("spec.from", grant.from.is_empty()),
            ("spec.to", grant.to.is_empty()),
        ] {
            if empty {
                findings.push(faults.error(
                    field,
                    "is empty, so the grant permits nothing",
                    "say from which kinds and namespaces, and to which kinds, references are permitted",
                ));
            }
        }
        for target in &mut grant.to {
            target.name = target.name.take().filter(|name| !name.is_empty());
        }
        Ok(Body::ReferenceGrant(grant))
    }

    /// Whether it permits the reference; it must be a grant in the namespace that is referred to.
    pub(crate) fn permits(&self, reference: &Reference<'_>) -> bool {
        let from = self.from.iter().any(|from| {
            from.group == reference.from_group
                && from.kind == reference.from_kind
                && from.namespace == reference.from_namespace
        });
        from && self.to.iter().any(|to| {
            to.group == reference.to_group
                && to.kind == reference.to_kind
                && to
                    .name
                    .as_deref()
                    .is_none_or(|name| name == reference.to_name)
        })
    }
}
