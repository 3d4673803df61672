//! One policy, checked and compiled.

use std::sync::Arc;

use karst_api::waypoint as wire;
use karst_api::waypoint::PolicyAction;

use super::Action;
use super::attributes::Attributes;
use super::condition::{Condition, Effect};
use super::external::Provider;
use crate::balance::Clusters;
use crate::config::{ConfigError, at_most};

/// Rules of a policy: the CRD's limit.
const MAX_RULES: usize = 512;

/// Entries of `from` or `to` of a rule: the CRD's limit.
const MAX_SETS: usize = 512;

/// Conditions of an entry, or of `when`. There are not many more attributes; headers can be any.
const MAX_CONDITIONS: usize = 256;

/// Longest name of a policy: two names of Kubernetes objects and a slash.
const MAX_NAME_BYTES: usize = 253 + 1 + 253;

/// A policy.
#[derive(Debug)]
pub struct Policy {
    name: Arc<str>,
    action: Action,
    trial: bool,
    rules: Vec<Rule>,
    asks_headers: bool,
    /// Of action CUSTOM.
    provider: Option<Arc<Provider>>,
}

#[derive(Debug)]
struct Rule {
    index: u32,
    from: Vec<Vec<Condition>>,
    to: Vec<Vec<Condition>>,
    when: Vec<Condition>,
}

impl Policy {
    /// Checks and compiles a policy.
    ///
    /// # Errors
    /// Something in it is wrong, or not known to this version.
    pub fn new(wire: &wire::AuthorizationPolicy, clusters: &Clusters) -> Result<Self, ConfigError> {
        let action = match wire.action() {
            PolicyAction::ActionAllow => Action::Allow,
            PolicyAction::ActionDeny => Action::Deny,
            PolicyAction::ActionAudit => Action::Audit,
            PolicyAction::ActionCustom => Action::Custom,
            PolicyAction::ActionUnspecified => {
                let problem = "is missing, or not known to this version";
                return Err(ConfigError::new("action", problem));
            }
        };
        check_name(&wire.name)?;
        let provider = match (&wire.provider, action) {
            (Some(provider), Action::Custom) => {
                let provider = Provider::new(provider, clusters);
                let provider = provider.map_err(|error| error.within("provider"))?;
                Some(Arc::new(provider))
            }
            (None, Action::Custom) => return Err(ConfigError::new("provider", "is missing")),
            (Some(_), _) => {
                return Err(ConfigError::new(
                    "provider",
                    "is of no use with this action",
                ));
            }
            (None, _) => None,
        };
        at_most("rules", wire.rules.len(), MAX_RULES)?;
        let rule = |(index, wire): (usize, &wire::AuthorizationRule)| {
            Rule::new(wire).map_err(|error| error.within(format_args!("rules[{index}]")))
        };
        let rules = wire.rules.iter().enumerate().map(rule);
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        if action == Action::Custom && rules.iter().any(|rule| rule.any(Condition::asks_token)) {
            let problem =
                "ask for what a token says, which is not known before a provider is asked";
            return Err(ConfigError::new("rules", problem));
        }
        Ok(Self {
            name: wire.name.as_str().into(),
            action,
            trial: wire.dry_run,
            asks_headers: rules.iter().any(|rule| rule.any(Condition::asks_headers)),
            rules,
            provider,
        })
    }

    /// Who is asked, of action CUSTOM.
    #[must_use]
    pub fn provider(&self) -> Option<&Arc<Provider>> {
        self.provider.as_ref()
    }

    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn action(&self) -> Action {
        self.action
    }

    pub(super) fn is_trial(&self) -> bool {
        self.trial
    }

    pub(super) fn asks_headers(&self) -> bool {
        self.asks_headers
    }

    /// The place of the first rule that matches.
    pub(super) fn first_match(&self, attributes: &Attributes<'_>, effect: Effect) -> Option<u32> {
        let mut rules = self.rules.iter();
        let rule = rules.find(|rule| rule.matches(attributes, effect))?;
        Some(rule.index)
    }
}

impl Rule {
    fn new(wire: &wire::AuthorizationRule) -> Result<Self, ConfigError> {
        Ok(Self {
            index: wire.index,
            from: sets("from", &wire.from)?,
            to: sets("to", &wire.to)?,
            when: conditions("when", &wire.when)?,
        })
    }

    fn any(&self, is_so: fn(&Condition) -> bool) -> bool {
        let sets = self.from.iter().chain(&self.to).flatten();
        sets.chain(&self.when).any(is_so)
    }

    fn matches(&self, attributes: &Attributes<'_>, effect: Effect) -> bool {
        let all = |conditions: &[Condition]| {
            let mut conditions = conditions.iter();
            conditions.all(|condition| condition.holds(attributes, effect))
        };
        let any = |sets: &[Vec<Condition>]| sets.is_empty() || sets.iter().any(|set| all(set));
        any(&self.from) && any(&self.to) && all(&self.when)
    }
}

fn sets(field: &str, wire: &[wire::AttributeMatches]) -> Result<Vec<Vec<Condition>>, ConfigError> {
    at_most(field, wire.len(), MAX_SETS)?;
    let set = |(index, wire): (usize, &wire::AttributeMatches)| {
        conditions("matches", &wire.matches)
            .map_err(|error| error.within(format_args!("{field}[{index}]")))
    };
    wire.iter().enumerate().map(set).collect()
}

fn conditions(field: &str, wire: &[wire::AttributeMatch]) -> Result<Vec<Condition>, ConfigError> {
    at_most(field, wire.len(), MAX_CONDITIONS)?;
    let condition = |(index, wire): (usize, &wire::AttributeMatch)| {
        Condition::new(wire).map_err(|error| error.within(format_args!("{field}[{index}]")))
    };
    wire.iter().enumerate().map(condition).collect()
}

/// A name goes into answers and logs as it is.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let valid = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        !part.is_empty() && part.bytes().all(allowed)
    };
    let parts = name
        .split_once('/')
        .filter(|_| name.len() <= MAX_NAME_BYTES);
    if parts.is_some_and(|(namespace, name)| valid(namespace) && valid(name)) {
        return Ok(());
    }
    let problem = format!("is {name:?}, which is not NAMESPACE/NAME");
    Err(ConfigError::new("name", problem))
}
