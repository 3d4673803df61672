//! ReferenceGrants: who may refer to what in another namespace.

use super::{Index, NsName, put};
use crate::object::reference_grant::{Reference, ReferenceGrant};

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
            self.material_changed(|_, material| material.namespace == name.namespace);
        }
    }

    /// Whether a reference is permitted: within a namespace always, else by a grant in that referred to.
    pub(super) fn is_granted(&self, from: From<'_>, to: To<'_>) -> bool {
        let reference = Reference {
            from_group: from.group,
            from_kind: from.kind,
            from_namespace: from.namespace,
            to_group: to.group,
            to_kind: to.kind,
            to_name: to.name,
        };
        let mut grants = self
            .l7
            .grants
            .range(NsName::new(to.namespace, "")..)
            .take_while(|(name, _)| name.namespace == to.namespace);
        from.namespace == to.namespace || grants.any(|(_, grant)| grant.permits(&reference))
    }
}
