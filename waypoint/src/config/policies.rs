//! AuthorizationPolicies by name.

use std::sync::Arc;

use hashbrown::HashMap;
use karst_api::waypoint as wire;

use super::attached::Findings;
use super::secret::Lookup;
use super::{ConfigError, at_most};
use crate::authz::{Authorization, MAX_POLICIES, Policy};
use crate::balance::Clusters;

/// AuthorizationPolicies by name; `None`: the newest version was not valid. An older one is not kept: it may allow
/// what the newer one was to refuse.
#[derive(Default)]
pub(super) struct Policies {
    by_name: HashMap<String, Option<Arc<Policy>>>,
}

impl Policies {
    pub(super) fn update(
        &mut self,
        wire: &wire::AuthorizationPolicy,
        clusters: &Clusters,
    ) -> Result<(), ConfigError> {
        let policy = Policy::new(wire, clusters)?;
        self.by_name
            .insert(wire.name.clone(), Some(Arc::new(policy)));
        Ok(())
    }

    /// Notes that the newest version cannot be used.
    pub(super) fn reject(&mut self, name: &str) {
        self.by_name.insert(name.to_owned(), None);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Whether the provider of one of them is this backend.
    pub(super) fn refer_to(&self, backend: &str) -> bool {
        let mut policies = self.by_name.values().flatten();
        policies.any(|policy| {
            let provider = policy.provider();
            provider.is_some_and(|provider| provider.backend() == Some(backend))
        })
    }

    fn get(&self, name: &str) -> Lookup<&Arc<Policy>> {
        match self.by_name.get(name) {
            None => Lookup::Missing,
            Some(None) => Lookup::Rejected,
            Some(Some(policy)) => Lookup::Found(policy),
        }
    }

    /// What is attached under these names. One that is not there, or not valid, refuses everything.
    pub(super) fn attached(&self, names: &[String], findings: &mut Findings) -> Authorization {
        let mut found = Vec::with_capacity(names.len());
        let mut unusable = None;
        for name in names {
            match self.get(name) {
                Lookup::Found(policy) => found.push(Arc::clone(policy)),
                Lookup::Missing => {
                    findings.missing("policy", name);
                    unusable = Some(name);
                }
                Lookup::Rejected => {
                    let problem = format!("policy {name:?} is invalid, what it is for is refused");
                    findings.problems.push(problem);
                    unusable = Some(name);
                }
            }
        }
        let mut authorization = Authorization::new(found);
        if let Some(name) = unusable {
            authorization.add_unusable(name);
        }
        authorization
    }
}

/// Names of policies as a frontend has them.
pub(super) fn names(wire: &[String]) -> Result<Vec<String>, ConfigError> {
    at_most("policies", wire.len(), MAX_POLICIES)?;
    if let Some(index) = wire.iter().position(String::is_empty) {
        return Err(ConfigError::new(format!("policies[{index}]"), "is empty"));
    }
    Ok(wire.to_vec())
}
