//! Authorization policies, as far as this agent understands them.
//!
//! The resources are subscribed to, but no rule is evaluated yet. Until then
//! the only safe answer for a workload that any enforcing policy selects is to
//! refuse its traffic: [`Policies::check`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use hashbrown::{HashMap, HashSet};

use super::workload::Workload;
use crate::reason::Reason;

/// Which workloads a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of a namespace.
    Namespace(Arc<str>),
    /// Workloads that list the policy by name.
    Selector,
}

/// An immutable summary of all enforcing policies.
#[derive(Debug, Default)]
struct Summary {
    global: bool,
    namespaces: HashSet<Arc<str>>,
}

/// The policies this node knows.
#[derive(Debug, Default)]
pub struct Policies {
    summary: ArcSwap<Summary>,
}

impl Policies {
    /// Whether traffic to `workload` may pass. A policy a workload names counts
    /// even before its resource arrives: otherwise there would be a gap in
    /// which nothing is enforced.
    pub fn check(&self, workload: &Workload) -> Result<(), Reason> {
        let summary = self.summary.load();
        let selected = summary.global
            || summary.namespaces.contains(&workload.namespace)
            || !workload.authorization_policies.is_empty();
        if selected {
            Err(Reason::PolicyUnsupported)
        } else {
            Ok(())
        }
    }

    /// Publishes the set of enforcing policies, by name. Dry-run policies do
    /// not belong in it.
    pub fn publish(&self, policies: &HashMap<Arc<str>, PolicyScope>) {
        let mut summary = Summary::default();
        for scope in policies.values() {
            match scope {
                PolicyScope::Global => summary.global = true,
                PolicyScope::Namespace(ns) => {
                    summary.namespaces.insert(Arc::clone(ns));
                }
                PolicyScope::Selector => {}
            }
        }
        self.summary.store(Arc::new(summary));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hashbrown::HashMap;

    use super::{Policies, PolicyScope};
    use crate::reason::Reason;
    use crate::state::workload::Workload;

    fn workload(namespace: &str, policies: &[&str]) -> Workload {
        Workload {
            namespace: Arc::from(namespace),
            authorization_policies: policies.iter().map(|p| Arc::from(*p)).collect(),
            ..Workload::default()
        }
    }

    #[test]
    fn only_selected_workloads_are_refused() {
        let policies = Policies::default();
        assert_eq!(policies.check(&workload("a", &[])), Ok(()));
        let one = HashMap::from([(Arc::from("a/p"), PolicyScope::Namespace(Arc::from("a")))]);
        policies.publish(&one);
        assert_eq!(
            policies.check(&workload("a", &[])),
            Err(Reason::PolicyUnsupported)
        );
        assert_eq!(policies.check(&workload("b", &[])), Ok(()));
        let global = HashMap::from([(Arc::from("root/p"), PolicyScope::Global)]);
        policies.publish(&global);
        assert_eq!(
            policies.check(&workload("b", &[])),
            Err(Reason::PolicyUnsupported)
        );
        policies.publish(&HashMap::new());
        assert_eq!(policies.check(&workload("b", &[])), Ok(()));
    }

    #[test]
    fn a_named_policy_counts_before_it_arrives() {
        let policies = Policies::default();
        assert_eq!(
            policies.check(&workload("b", &["b/p"])),
            Err(Reason::PolicyUnsupported)
        );
    }
}
