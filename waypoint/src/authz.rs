//! Authorization: whether a request or connection may go on, by the AuthorizationPolicies of its frontend.
//!
//! [`Policy`] is one policy with everything checked and compiled; [`Authorization`] is what is attached to one
//! frontend. A decision allocates nothing and takes no lock. A DENY policy that matches refuses whatever else
//! allows; where there are ALLOW policies, one of them must match. Policies on trial (dry run) and AUDIT policies
//! decide nothing and are told to who asks ([`Authorization::observe`]).
//!
//! An attribute that cannot be known (everything of HTTP on a connection of bytes) never opens anything: a rule
//! that allows does not match with it, and a rule that refuses matches as if the condition were not there.
//!
//! A CUSTOM policy that matches has its provider asked first ([`external`]), by who can: [`Authorization::to_ask`] and
//! then [`Authorization::decide_locally`]. For everybody else it refuses.
//!
//! What is decided about is described by [`Attributes`]; who comes back to a decision when policies change is
//! in [`recheck`].

mod address;
mod attributes;
mod compile;
mod condition;
pub mod explain;
pub mod external;
mod octets;
pub mod recheck;
mod remote;
pub mod scope;
mod strings;
mod template;

use std::fmt;
use std::sync::{Arc, LazyLock};

pub use attributes::{Attributes, Destination, RequestAttributes, ServerName};
pub use compile::Policy;
use condition::Effect;
use external::Ask;

/// Policies attached to one frontend. The controller attaches those of a namespace, a gateway and a class, which
/// are far fewer.
pub const MAX_POLICIES: usize = 1024;

/// What logs and metrics call the policy that refuses where none of those that allow has matched.
pub const IMPLICIT_DENY: &str = "implicit_deny";

/// Likewise, for denials: a decision allocates nothing.
static IMPLICIT: LazyLock<Arc<str>> = LazyLock::new(|| IMPLICIT_DENY.into());

/// Most forward proxies in front of this one that can be trusted to tell their client's address.
pub const MAX_TRUSTED_HOPS: usize = 32;

/// What a policy does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allows it.
    Allow,
    /// Refuses it.
    Deny,
    /// Has it logged.
    Audit,
    /// Has its provider decide.
    Custom,
}

/// The policies of one frontend.
#[derive(Default)]
pub struct Authorization {
    custom: Vec<Arc<Policy>>,
    deny: Vec<Arc<Policy>>,
    allow: Vec<Arc<Policy>>,
    audit: Vec<Arc<Policy>>,
    trial_deny: Vec<Arc<Policy>>,
    trial_allow: Vec<Arc<Policy>>,
    trial_custom: Vec<Arc<Policy>>,
    /// A policy that is attached and cannot be used: nothing passes.
    unusable: Option<Arc<str>>,
    asks_headers: bool,
}

/// Who refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Name of the policy, or [`IMPLICIT_DENY`].
    pub policy: Arc<str>,
    /// Place of the rule among those of the policy.
    pub rule: Option<u32>,
    /// The policy is not there, or no version that could be used.
    pub unusable: bool,
    /// Of a CUSTOM policy: why.
    pub external: Option<external::Why>,
}

impl Denial {
    /// Stable label for log and metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if let Some(why) = self.external {
            why.reason()
        } else if self.unusable {
            "policy_not_ready"
        } else {
            "policy_denied"
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rule, self.unusable) {
            (_, true) => write!(f, "policy {} is not ready", self.policy),
            (Some(rule), false) => write!(f, "policy {}, rules[{rule}]", self.policy),
            (None, false) => f.write_str(&self.policy),
        }
    }
}

/// What happened to a policy that decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed<'a> {
    /// Name of the policy, or [`IMPLICIT_DENY`].
    pub policy: &'a str,
    /// Place of the rule that matched.
    pub rule: Option<u32>,
    /// What it would have done.
    pub outcome: Outcome,
}

/// What a policy has done, or would have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It refused.
    Denied,
    /// It is an AUDIT policy and matched.
    Audited,
    /// On trial: it would have refused.
    TrialDenied,
    /// On trial: it would have allowed.
    TrialAllowed,
    /// On trial: its provider would have been asked.
    TrialAsked,
}

impl Outcome {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Audited => "audited",
            Self::TrialDenied => "dry_run_denied",
            Self::TrialAllowed => "dry_run_allowed",
            Self::TrialAsked => "dry_run_asked",
        }
    }
}

impl Authorization {
    /// Puts policies together.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let mut all = Self::default();
        for policy in policies {
            all.asks_headers |= policy.asks_headers();
            let list = match (policy.action(), policy.is_trial()) {
                (Action::Deny, false) => &mut all.deny,
                (Action::Allow, false) => &mut all.allow,
                (Action::Deny, true) => &mut all.trial_deny,
                (Action::Allow, true) => &mut all.trial_allow,
                (Action::Audit, _) => &mut all.audit,
                (Action::Custom, false) => &mut all.custom,
                (Action::Custom, true) => &mut all.trial_custom,
            };
            list.push(policy);
        }
        all
    }

    /// Notes a policy that is attached and cannot be used. Nothing passes then.
    pub fn add_unusable(&mut self, name: &str) {
        self.unusable.get_or_insert_with(|| name.into());
    }

    /// Whether a condition asks for what only the headers of a request say.
    #[must_use]
    pub fn asks_headers(&self) -> bool {
        self.asks_headers
    }

    /// Whether policies that decide nothing are to be asked.
    #[must_use]
    pub fn has_observers(&self) -> bool {
        !(self.audit.is_empty()
            && self.trial_deny.is_empty()
            && self.trial_allow.is_empty()
            && self.trial_custom.is_empty())
    }

    /// Whether a provider may have to be asked.
    #[must_use]
    pub fn has_custom(&self) -> bool {
        !self.custom.is_empty()
    }

    /// Whom to ask about a request before anything else decides; `None`: nobody.
    ///
    /// # Errors
    /// It may not go on, as nobody can be asked.
    pub fn to_ask(&self, attributes: &Attributes<'_>) -> Result<Option<Ask>, Denial> {
        self.usable()?;
        let mut ask: Option<Ask> = None;
        for policy in &self.custom {
            let Some(rule) = policy.first_match(attributes, Effect::Closes) else {
                continue;
            };
            let refuse = |why| Err(external_denial(policy, rule, why));
            let Some(provider) = policy.provider().filter(|it| it.cluster.is_ok()) else {
                return refuse(external::Why::ProviderInvalid);
            };
            match &mut ask {
                Some(ask) => ask.policies.push(Arc::clone(policy.name())),
                None => {
                    ask = Some(Ask {
                        provider: Arc::clone(provider),
                        policy: Arc::clone(policy.name()),
                        rule,
                        policies: vec![Arc::clone(policy.name())],
                    });
                }
            }
        }
        if let Some(ask) = &ask
            && self.names_other_than(&ask.provider.name)
        {
            return Err(Denial {
                policy: Arc::clone(&ask.policy),
                rule: Some(ask.rule),
                unusable: false,
                external: Some(external::Why::ProviderConflict),
            });
        }
        Ok(ask)
    }

    /// Whether policies of one frontend name several providers: then none of them counts, whichever match.
    fn names_other_than(&self, provider: &str) -> bool {
        let mut names = self.custom.iter().filter_map(|policy| policy.provider());
        names.any(|other| *other.name != *provider)
    }

    /// A CUSTOM policy that matches and is none of those whose provider was asked.
    #[must_use]
    pub fn not_asked(&self, attributes: &Attributes<'_>, asked: &[Arc<str>]) -> Option<Denial> {
        let mut policies = self.custom.iter();
        policies.find_map(|policy| {
            if asked.contains(policy.name()) {
                return None;
            }
            let rule = policy.first_match(attributes, Effect::Closes)?;
            Some(external_denial(policy, rule, external::Why::NotAsked))
        })
    }

    fn usable(&self) -> Result<(), Denial> {
        match &self.unusable {
            None => Ok(()),
            Some(policy) => Err(Denial {
                policy: Arc::clone(policy),
                rule: None,
                unusable: true,
                external: None,
            }),
        }
    }

    /// Whether something may go on about which no provider can be asked.
    ///
    /// # Errors
    /// It may not; who says so.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Result<(), Denial> {
        self.usable()?;
        match self.not_asked(attributes, &[]) {
            Some(denial) => Err(denial),
            None => self.decide_locally(attributes),
        }
    }

    /// Whether a request may go on, as far as it is not for a provider to say.
    ///
    /// # Errors
    /// It may not; who says so.
    pub fn decide_locally(&self, attributes: &Attributes<'_>) -> Result<(), Denial> {
        self.usable()?;
        if let Some((policy, rule)) = first_match(&self.deny, attributes, Effect::Closes) {
            return Err(Denial {
                policy: Arc::clone(policy.name()),
                rule: Some(rule),
                unusable: false,
                external: None,
            });
        }
        if self.allow.is_empty() || first_match(&self.allow, attributes, Effect::Opens).is_some() {
            return Ok(());
        }
        Err(Denial {
            policy: Arc::clone(&IMPLICIT),
            rule: None,
            unusable: false,
            external: None,
        })
    }

    /// Asks the policies that decide nothing, and tells what they have to say.
    pub fn observe(&self, attributes: &Attributes<'_>, mut tell: impl FnMut(Observed<'_>)) {
        for policy in &self.audit {
            // On trial an AUDIT policy does what it always does: it logs.
            if let Some(rule) = policy.first_match(attributes, Effect::Closes) {
                tell(Observed {
                    policy: policy.name(),
                    rule: Some(rule),
                    outcome: Outcome::Audited,
                });
            }
        }
        for policy in &self.trial_custom {
            if let Some(rule) = policy.first_match(attributes, Effect::Closes) {
                tell(Observed {
                    policy: policy.name(),
                    rule: Some(rule),
                    outcome: Outcome::TrialAsked,
                });
            }
        }
        for policy in &self.trial_deny {
            if let Some(rule) = policy.first_match(attributes, Effect::Closes) {
                tell(Observed {
                    policy: policy.name(),
                    rule: Some(rule),
                    outcome: Outcome::TrialDenied,
                });
            }
        }
        if self.trial_allow.is_empty() {
            return;
        }
        if let Some((policy, rule)) = first_match(&self.trial_allow, attributes, Effect::Opens) {
            tell(Observed {
                policy: policy.name(),
                rule: Some(rule),
                outcome: Outcome::TrialAllowed,
            });
        } else if first_match(&self.allow, attributes, Effect::Opens).is_none() {
            tell(Observed {
                policy: IMPLICIT_DENY,
                rule: None,
                outcome: Outcome::TrialDenied,
            });
        }
    }
}

fn external_denial(policy: &Policy, rule: u32, why: external::Why) -> Denial {
    Denial {
        policy: Arc::clone(policy.name()),
        rule: Some(rule),
        unusable: false,
        external: Some(why),
    }
}

fn first_match<'a>(
    policies: &'a [Arc<Policy>],
    attributes: &Attributes<'_>,
    effect: Effect,
) -> Option<(&'a Policy, u32)> {
    policies
        .iter()
        .find_map(|policy| Some((&**policy, policy.first_match(attributes, effect)?)))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
#[path = "authz/tests.rs"]
mod tests;
