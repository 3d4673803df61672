//! Why a policy matches a request or does not, for people.
//!
//! Nothing here knows what a condition means: each rule, and where a rule does not match each of its conditions, is
//! compiled alone and asked as a request's policies are, so that what is said cannot differ from what is done.

use std::sync::Arc;

use karst_api::waypoint as wire;

use super::attributes::Attributes;
use super::compile::Policy;
use super::condition::Effect;
use super::{Action, Authorization};
use crate::balance::Clusters;
use crate::config::ConfigError;

/// What of a rule does not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Unmet {
    /// `from`, `to` or `when`.
    pub part: &'static str,
    /// Of each alternative of `from` or `to` the first condition that does not hold; of `when` the one.
    pub conditions: Vec<wire::AttributeMatch>,
}

/// How it stands with a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its place among those of the policy.
    pub index: u32,
    /// Why it does not match; `None` if it does.
    pub unmet: Option<Unmet>,
}

/// For each rule of a policy, why it does not match.
///
/// # Errors
/// The policy cannot be compiled; then what it is attached to is refused.
pub fn explain(
    policy: &wire::AuthorizationPolicy,
    attributes: &Attributes<'_>,
) -> Result<Vec<Rule>, ConfigError> {
    let asked = Asked { policy, attributes };
    let rules = policy.rules.iter().map(|rule| {
        let unmet = if asked.matches(rule.clone())? {
            None
        } else {
            Some(asked.unmet(rule)?)
        };
        Ok(Rule {
            index: rule.index,
            unmet,
        })
    });
    rules.collect()
}

impl Authorization {
    /// Everything that is attached, in the order in which it is asked: what refuses, what allows, then what decides
    /// nothing.
    pub fn attached(&self) -> impl Iterator<Item = &Arc<Policy>> {
        let enforced = self.custom.iter().chain(&self.deny).chain(&self.allow);
        let watching = self.audit.iter().chain(&self.trial_deny);
        enforced.chain(watching).chain(&self.trial_allow)
    }

    /// The policy that is attached and cannot be used, for which everything is refused.
    #[must_use]
    pub fn unusable(&self) -> Option<&str> {
        self.unusable.as_deref()
    }
}

struct Asked<'a> {
    policy: &'a wire::AuthorizationPolicy,
    attributes: &'a Attributes<'a>,
}

impl Asked<'_> {
    /// Whether the policy matches with that rule alone.
    fn matches(&self, rule: wire::AuthorizationRule) -> Result<bool, ConfigError> {
        let mut alone = wire::AuthorizationPolicy {
            rules: vec![rule],
            ..self.policy.clone()
        };
        if alone.action() == wire::PolicyAction::ActionCustom {
            // Its rules match as those of a policy that refuses; whom it asks is another question.
            alone.action = wire::PolicyAction::ActionDeny.into();
            alone.provider = None;
        }
        let policy = Policy::new(&alone, &Clusters::default())?;
        let effect = match policy.action() {
            Action::Allow => Effect::Opens,
            _ => Effect::Closes,
        };
        Ok(policy.first_match(self.attributes, effect).is_some())
    }

    fn holds(&self, condition: &wire::AttributeMatch) -> Result<bool, ConfigError> {
        self.matches(wire::AuthorizationRule {
            when: vec![condition.clone()],
            ..wire::AuthorizationRule::default()
        })
    }

    fn unmet(&self, rule: &wire::AuthorizationRule) -> Result<Unmet, ConfigError> {
        for (part, sets) in [("from", &rule.from), ("to", &rule.to)] {
            let mut conditions = Vec::new();
            for set in sets {
                match self.first_unmet(&set.matches)? {
                    Some(condition) => conditions.push(condition),
                    None => {
                        conditions.clear();
                        break;
                    }
                }
            }
            if !conditions.is_empty() {
                return Ok(Unmet { part, conditions });
            }
        }
        let condition = self.first_unmet(&rule.when)?;
        Ok(Unmet {
            part: "when",
            conditions: condition.into_iter().collect(),
        })
    }

    fn first_unmet(
        &self,
        conditions: &[wire::AttributeMatch],
    ) -> Result<Option<wire::AttributeMatch>, ConfigError> {
        for condition in conditions {
            if !self.holds(condition)? {
                return Ok(Some(condition.clone()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
pub(super) mod tests;
