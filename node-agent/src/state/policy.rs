//! Authorization policies: which of them apply to a workload, and what they decide.
//!
//! The one writer publishes all policies at once. What applies to a workload is compiled when it is
//! first asked for after a change, once for all workloads of a namespace that list the same
//! ([`Cache::get`]); a decision then takes no lock and allocates nothing. The matcher is
//! `karst_bpf_common::policy`.
//!
//! Nothing that is unknown opens anything: a policy that a workload names and that has not come, or
//! one that came in a form that cannot be used, refuses what it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use karst_bpf_common::policy::model::{self, Action};
use karst_bpf_common::policy::{Attributes, Hit, PolicySet, Verdict};
use serde::Serialize;

use super::workload::Workload;
use crate::reason::Reason;

/// Names of ALLOW policies that the detail of an implicit denial has at most.
const NAMES_IN_DETAIL: usize = 4;

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

impl PolicyScope {
    /// Whether a policy applies to workloads of a namespace that do not list it.
    fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::Global => true,
            Self::Namespace(own) => **own == *namespace,
            Self::Selector => false,
        }
    }

    fn as_str(&self) -> &'static str {
        match self {
            Self::Global => "mesh",
            Self::Namespace(_) => "namespace",
            Self::Selector => "selector",
        }
    }
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// What it applies to.
    pub scope: PolicyScope,
    /// It decides nothing: what it would have refused is counted and logged.
    pub dry_run: bool,
    /// What it says; `None` when that came in a form that cannot be used.
    pub rules: Option<model::Policy>,
}

impl Policy {
    /// What is left of a policy of which not even the scope can be read: by its name it is of a
    /// namespace, which is then refused, and the whole mesh if that is `root`, whose policies are for
    /// all. Less might leave out what it is for; more would be what no policy of its namespace can do.
    pub fn unreadable(name: &Arc<str>, root: &str) -> Self {
        let namespace = name
            .split_once('/')
            .map_or(&**name, |(namespace, _)| namespace);
        let scope = match namespace == root {
            true => PolicyScope::Global,
            false => PolicyScope::Namespace(Arc::from(namespace)),
        };
        Self {
            name: Arc::clone(name),
            scope,
            dry_run: false,
            rules: None,
        }
    }

    /// For the admin socket.
    pub fn view(&self) -> PolicyView<'_> {
        let rules = self.rules.as_ref();
        PolicyView {
            name: &self.name,
            scope: self.scope.as_str(),
            action: rules.map(|rules| match rules.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
            }),
            dry_run: self.dry_run,
            rules: rules.map_or(0, |rules| rules.rules.len()),
            usable: rules.is_some(),
            digest: self.digest(),
        }
    }

    /// A number for what the policy says, the same in every process of this version: for comparisons of what
    /// is in force with what should be.
    fn digest(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.name, self.scope.as_str(), self.dry_run, &self.rules).hash(&mut hasher);
        if let PolicyScope::Namespace(namespace) = &self.scope {
            namespace.hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }
}

/// A policy in `GET /v1/policies`.
#[derive(Debug, Serialize)]
pub struct PolicyView<'a> {
    /// `namespace/name`.
    pub name: &'a str,
    /// `mesh`, `namespace` or `selector`.
    pub scope: &'static str,
    /// `ALLOW` or `DENY`; `null` when it came in a form that cannot be used.
    pub action: Option<&'static str>,
    /// Whether it decides nothing.
    pub dry_run: bool,
    /// How many rules it has.
    pub rules: usize,
    /// Whether it can be used; if not, what it applies to is refused.
    pub usable: bool,
    /// A number for all that it says; to be compared between processes of one version only.
    pub digest: String,
}

/// All policies, by name.
pub type PolicyTable = BTreeMap<Arc<str>, Arc<Policy>>;

#[derive(Debug, Default)]
struct Published {
    generation: u64,
    global: Vec<Arc<Policy>>,
    namespaces: HashMap<Arc<str>, Vec<Arc<Policy>>>,
    all: PolicyTable,
    /// By namespace and what is listed. The lock is held to find a place, not to fill it.
    compiled: Mutex<HashMap<Selected, Arc<OnceLock<Arc<Effective>>>>>,
}

/// What decides which policies apply to a workload.
type Selected = (Arc<str>, Vec<Arc<str>>);

impl Published {
    fn effective(&self, workload: &Workload) -> Arc<Effective> {
        let listed = workload.authorization_policies.clone();
        let selected = (Arc::clone(&workload.namespace), listed);
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if !compiled.contains_key(&selected) {
            // What nobody uses any more goes when there is something new: pods come and go, policies
            // may stay as they are for weeks.
            compiled.retain(|_, place| is_used(place));
        }
        let place = Arc::clone(compiled.entry(selected).or_default());
        drop(compiled);
        // Another worker that asks for the same meanwhile waits, instead of doing it again.
        Arc::clone(place.get_or_init(|| Arc::new(Effective::compile(self, workload))))
    }
}

/// Whether somebody fills a place, waits for that, or has what is in it.
fn is_used(place: &Arc<OnceLock<Arc<Effective>>>) -> bool {
    let filled = place.get();
    Arc::strong_count(place) > 1 || filled.is_some_and(|effective| Arc::strong_count(effective) > 1)
}

/// The policies this node knows.
#[derive(Debug, Default)]
pub struct Policies {
    published: ArcSwap<Published>,
    generations: AtomicU64,
}

impl Policies {
    /// Publishes `policies` in place of those before.
    pub fn publish(&self, policies: &PolicyTable) {
        let mut published = Published {
            generation: self.generations.fetch_add(1, Ordering::Relaxed) + 1,
            all: policies.clone(),
            ..Published::default()
        };
        for policy in policies.values() {
            match &policy.scope {
                PolicyScope::Global => published.global.push(Arc::clone(policy)),
                PolicyScope::Namespace(namespace) => published
                    .namespaces
                    .entry(Arc::clone(namespace))
                    .or_default()
                    .push(Arc::clone(policy)),
                PolicyScope::Selector => {}
            }
        }
        self.published.store(Arc::new(published));
    }

    /// What applies to `workload`; for who asks again and again there is [`Cache`].
    pub fn effective(&self, workload: &Workload) -> Arc<Effective> {
        self.published.load().effective(workload)
    }

    /// Whether a denial may name this policy, and this rule of it. One that came in a form that cannot be used
    /// refuses without naming a rule.
    pub fn has_rule(&self, policy: &str, rule: Option<u32>) -> bool {
        let published = self.published.load();
        let Some(policy) = published.all.get(policy) else {
            return false;
        };
        let Some(rule) = rule else { return true };
        let rules = policy.rules.as_ref().map_or(0, |rules| rules.rules.len());
        usize::try_from(rule).is_ok_and(|rule| rule < rules)
    }

    /// All policies, for the admin socket.
    pub fn all(&self) -> Vec<Arc<Policy>> {
        self.published.load().all.values().cloned().collect()
    }
}

/// What applies to one workload, kept until something changes.
#[derive(Debug, Default)]
pub struct Cache(Option<(u64, u64, Arc<Effective>)>);

impl Cache {
    /// What applies to `workload` now.
    pub fn get(&mut self, policies: &Policies, workload: &Workload) -> Arc<Effective> {
        let published = policies.published.load();
        let now = (published.generation, workload.revision);
        if let Some((generation, revision, effective)) = &self.0
            && (*generation, *revision) == now
        {
            return Arc::clone(effective);
        }
        let effective = published.effective(workload);
        self.0 = Some((now.0, now.1, Arc::clone(&effective)));
        effective
    }
}

/// The policies of a workload, compiled.
#[derive(Debug)]
pub struct Effective {
    enforced: Compiled,
    dry_run: Option<Compiled>,
    /// A policy that the workload names and that has not come.
    missing: Option<Arc<str>>,
    /// Why nothing can be decided at all.
    unusable: Option<(Arc<str>, String)>,
    /// Ports that a condition names.
    named_ports: BTreeSet<u16>,
}

impl Effective {
    fn compile(published: &Published, workload: &Workload) -> Self {
        let mut effective = Self {
            enforced: Compiled::default(),
            dry_run: None,
            missing: None,
            unusable: None,
            named_ports: BTreeSet::new(),
        };
        let own = published.namespaces.get(&workload.namespace);
        let mut applies: Vec<&Arc<Policy>> = published
            .global
            .iter()
            .chain(own.into_iter().flatten())
            .collect();
        for name in &workload.authorization_policies {
            match published.all.get(name) {
                // One that is in force by its scope already counts once.
                Some(policy) if policy.scope.covers(&workload.namespace) => {}
                Some(policy) => applies.push(policy),
                None => effective.missing = Some(Arc::clone(name)),
            }
        }
        let rules = applies.iter().filter_map(|policy| policy.rules.as_ref());
        effective.named_ports = rules.flat_map(ports_of).collect();
        let (dry_run, enforced): (Vec<&Arc<Policy>>, _) =
            applies.into_iter().partition(|policy| policy.dry_run);
        match Compiled::new(&enforced) {
            Ok(compiled) => effective.enforced = compiled,
            Err(problem) => effective.unusable = Some(problem),
        }
        if !dry_run.is_empty() {
            // What only watches refuses nothing when it cannot be used; the resource was rejected by name.
            effective.dry_run = Compiled::new(&dry_run).ok();
        }
        effective
    }

    /// Whether a policy that the workload names has not come (yet).
    pub fn is_incomplete(&self) -> bool {
        self.missing.is_some()
    }

    /// Ports that a condition of any of the policies names, those on trial included: connections that differ in
    /// nothing but a port that is not among them are decided alike.
    pub fn named_ports(&self) -> impl Iterator<Item = u16> {
        self.named_ports.iter().copied()
    }

    /// Whether a connection may pass.
    ///
    /// # Errors
    /// Why not.
    pub fn decide(&self, connection: &Attributes<'_>) -> Result<(), Denial> {
        if let Some((policy, detail)) = &self.unusable {
            return Err(Denial {
                reason: Reason::PolicyUnusable,
                policy: Some(Arc::clone(policy)),
                rule: None,
                detail: Some(Arc::from(detail.as_str())),
            });
        }
        if let Some(missing) = &self.missing {
            return Err(Denial {
                reason: Reason::PolicyUnknown,
                policy: Some(Arc::clone(missing)),
                rule: None,
                detail: None,
            });
        }
        self.enforced.decide(connection)
    }

    /// What the policies that only watch would have refused.
    pub fn would_deny(&self, connection: &Attributes<'_>) -> Option<Denial> {
        self.dry_run.as_ref()?.decide(connection).err()
    }
}

fn ports_of(policy: &model::Policy) -> impl Iterator<Item = u16> {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let matches = clauses.flat_map(|clause| &clause.matches);
    matches.flat_map(|one| {
        let named = one.destination_ports.iter();
        named.chain(&one.not_destination_ports).copied()
    })
}

#[derive(Debug, Default)]
struct Compiled {
    set: PolicySet,
    /// Names in the order in which the set was given the policies.
    names: Box<[Arc<str>]>,
    /// The detail of a denial because no ALLOW policy matches.
    none_matches: Option<Arc<str>>,
}

impl Compiled {
    fn new(policies: &[&Arc<Policy>]) -> Result<Self, (Arc<str>, String)> {
        let mut rules = Vec::with_capacity(policies.len());
        for policy in policies {
            let Some(known) = &policy.rules else {
                let detail = "the policy came in a form that cannot be used".to_owned();
                return Err((Arc::clone(&policy.name), detail));
            };
            rules.push(known);
        }
        let set = PolicySet::compile(&rules).map_err(|error| {
            let first = policies.first().map(|policy| Arc::clone(&policy.name));
            (first.unwrap_or_default(), error.to_string())
        })?;
        let allowing: Vec<&str> = rules
            .iter()
            .filter(|policy| policy.action == Action::Allow)
            .map(|policy| policy.name.as_str())
            .collect();
        Ok(Self {
            set,
            names: policies.iter().map(|p| Arc::clone(&p.name)).collect(),
            none_matches: (!allowing.is_empty()).then(|| Arc::from(none_matches(&allowing))),
        })
    }

    fn decide(&self, connection: &Attributes<'_>) -> Result<(), Denial> {
        match self.set.decide(connection) {
            Verdict::Allow { .. } => Ok(()),
            Verdict::Deny {
                by: Some(Hit { policy, rule }),
            } => Err(Denial {
                reason: Reason::PolicyDenied,
                policy: self.names.get(policy as usize).cloned(),
                rule: Some(rule),
                detail: None,
            }),
            Verdict::Deny { by: None } => Err(Denial {
                reason: Reason::PolicyDenied,
                policy: None,
                rule: None,
                detail: self.none_matches.clone(),
            }),
        }
    }
}

fn none_matches(names: &[&str]) -> String {
    let shown = names.get(..NAMES_IN_DETAIL).unwrap_or(names).join(", ");
    match names.len().saturating_sub(NAMES_IN_DETAIL) {
        0 => format!("no ALLOW policy matches: {shown}"),
        more => format!("no ALLOW policy matches: {shown} and {more} more"),
    }
}

/// Why policies refuse a connection. Making one copies pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The label.
    pub reason: Reason,
    /// The policy, `namespace/name`; `None` when there are ALLOW policies and none matches.
    pub policy: Option<Arc<str>>,
    /// Index of its rule.
    pub rule: Option<u32>,
    /// More about it.
    pub detail: Option<Arc<str>>,
}

/// What stands for the policy where no ALLOW policy matches. No policy is called so: a name has a slash.
pub const IMPLICIT_DENY: &str = "implicit_deny";

impl Denial {
    /// The policy's name, or [`IMPLICIT_DENY`].
    pub fn policy_name(&self) -> &str {
        self.policy.as_deref().unwrap_or(IMPLICIT_DENY)
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.policy, self.reason) {
            (_, _) if self.detail.is_some() => {
                if let Some(policy) = &self.policy {
                    write!(f, "{policy}: ")?;
                }
                f.write_str(self.detail.as_deref().unwrap_or_default())
            }
            (Some(policy), Reason::PolicyUnknown) => {
                write!(f, "{policy} applies and has not come from the controller")
            }
            (Some(policy), _) => match self.rule {
                Some(rule) => write!(f, "{policy}, rule {rule}"),
                None => f.write_str(policy),
            },
            (None, _) => f.write_str(IMPLICIT_DENY),
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
