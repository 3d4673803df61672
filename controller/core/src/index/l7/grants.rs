//! ReferenceGrants: who may refer to what in another namespace.

use super::{Index, NsName, put};
use crate::object::reference_grant::ReferenceGrant;

/// Who refers.
#[derive(Debug, Clone, Copy)]
pub(super) struct From<'a> {
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    pub(super) namespace: &'a str,
}

/// To what.
#[derive(Debug, Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl Index {
    pub(super) fn set_grant(&mut self, name: NsName, grant: Option<ReferenceGrant>) {
        if put(&mut self.l7.grants, name.clone(), grant) {
            self.grants_changed(&name.namespace);
        }
    }

    /// Whether a reference is permitted: within a namespace always, else by a grant in that referred to.
    pub(super) fn is_granted(&self, from: From<'_>, to: To<'_>) -> bool {
        from.namespace == to.namespace
    }
}
