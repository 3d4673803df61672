//! All resources of the proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashSet;
use karst_api::waypoint as wire;
use karst_api::{
    AUTHORIZATION_POLICY_TYPE, BACKEND_TYPE, LISTENER_TYPE, REQUEST_AUTHENTICATION_TYPE,
    ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_client::{Resource, ResourceHandler};

use super::ConfigError;
use super::attached::Findings;
use super::authentications::Authentications;
use super::backends::Backends;
use super::frontend::{Frontend, Held};
use super::listener::Parsed;
use super::listing::{Kind, Listing, State};
use super::policies::Policies;
use super::routes::Routes;
use super::secret::Secrets;
use crate::authn::source::{KeySources, NewSources, Timing};
use crate::balance::Clusters;
use crate::table::{Table, Tables};

/// Takes resources from the controller and keeps the table up to date with them.
pub struct Store {
    clusters: Arc<Clusters>,
    tables: Arc<Tables>,
    listing: Listing,
    listeners: BTreeMap<String, Listener>,
    routes: Routes,
    backends: Backends,
    secrets: Secrets,
    policies: Policies,
    authentications: Authentications,
}

struct Listener {
    /// The newest version.
    parsed: Parsed,
    /// What is served.
    active: Option<Frontend>,
    /// Of what is served.
    quality: Quality,
    /// What is served is the newest version with everything that belongs to it.
    settled: bool,
}

/// Whether a frontend is a good state to stay at.
#[derive(Clone, Copy, PartialEq)]
enum Quality {
    /// Everything it refers to was there when it was put together.
    Complete,
    /// Something was not.
    Incomplete,
}

/// What a response changed.
#[derive(Default)]
struct Changed {
    listeners: HashSet<String>,
    routes: HashSet<String>,
    secrets: HashSet<String>,
    policies: HashSet<String>,
    authentications: HashSet<String>,
    backends: bool,
    /// The table misses something, or has something too much.
    table: bool,
}

impl Store {
    /// A store without resources that writes to `clusters` and `tables`.
    #[must_use]
    pub fn new(clusters: Arc<Clusters>, tables: Arc<Tables>) -> Self {
        Self {
            clusters,
            tables,
            listing: Listing::default(),
            listeners: BTreeMap::new(),
            routes: Routes::default(),
            backends: Backends::default(),
            secrets: Secrets::default(),
            policies: Policies::default(),
            authentications: Authentications::default(),
        }
    }

    /// Fetches keys at other times than usual.
    #[must_use]
    pub fn with_key_timing(mut self, timing: Timing) -> Self {
        self.authentications = Authentications::with(timing);
        self
    }

    /// Keys that must be fetched, for metrics.
    #[must_use]
    pub fn key_sources(&self) -> Arc<KeySources> {
        Arc::clone(self.authentications.sources())
    }

    /// Those that a fetch is to be begun for; for [`crate::authn::fetch::run`], once.
    pub fn take_new_key_sources(&mut self) -> Option<NewSources> {
        self.authentications.take_new_sources()
    }

    /// What is held, at all times.
    #[must_use]
    pub fn listing(&self) -> Listing {
        self.listing.clone()
    }

    /// Takes a resource over. Returns what is wrong although it was taken over.
    fn update(
        &mut self,
        kind: Kind,
        resource: &Resource,
        changed: &mut Changed,
    ) -> Result<Option<ConfigError>, ConfigError> {
        let name = resource.name.clone();
        match kind {
            Kind::Listener => {
                let wire: wire::Listener = resource.unpack(LISTENER_TYPE)?;
                same_name(resource, &wire.name)?;
                self.listener(&wire)?;
                changed.listeners.insert(name);
            }
            Kind::Route => {
                let wire: wire::Route = resource.unpack(ROUTE_TYPE)?;
                same_name(resource, &wire.name)?;
                self.routes.update(&wire, &self.clusters)?;
                changed.routes.insert(name);
            }
            Kind::Backend => {
                let wire: wire::Backend = resource.unpack(BACKEND_TYPE)?;
                same_name(resource, &wire.name)?;
                changed.backends = true;
                return self.backends.update(wire, &self.secrets, &self.clusters);
            }
            Kind::TlsSecret => {
                let wire: wire::TlsSecret = resource.unpack(TLS_SECRET_TYPE)?;
                same_name(resource, &wire.name)?;
                self.secrets.update(&wire)?;
                changed.secrets.insert(name);
            }
            Kind::AuthorizationPolicy => {
                let wire: wire::AuthorizationPolicy = resource.unpack(AUTHORIZATION_POLICY_TYPE)?;
                same_name(resource, &wire.name)?;
                self.policies.update(&wire, &self.clusters)?;
                changed.policies.insert(name);
            }
            Kind::RequestAuthentication => {
                let wire: wire::RequestAuthentication =
                    resource.unpack(REQUEST_AUTHENTICATION_TYPE)?;
                same_name(resource, &wire.name)?;
                self.authentications.update(&wire)?;
                changed.authentications.insert(name);
            }
        }
        Ok(None)
    }

    /// A new version stands beside the frontend of the former one until it is put together.
    fn listener(&mut self, wire: &wire::Listener) -> Result<(), ConfigError> {
        let mut parsed = Parsed::new(wire, &self.clusters)?;
        let listener = match self.listeners.remove(&wire.name) {
            None => Listener {
                parsed,
                active: None,
                quality: Quality::Incomplete,
                settled: false,
            },
            Some(mut former) => {
                parsed.inherit(&mut former.parsed);
                Listener { parsed, ..former }
            }
        };
        self.listeners.insert(wire.name.clone(), listener);
        Ok(())
    }

    /// Notes that a version could not be used: nothing needs to wait for it. What waited is looked at again.
    fn reject(&mut self, kind: Kind, name: &str, changed: &mut Changed) {
        match kind {
            Kind::Listener => {}
            Kind::Route => {
                self.routes.reject(name);
                changed.routes.insert(name.to_owned());
            }
            Kind::Backend => {
                self.backends.reject(name);
                changed.backends = true;
            }
            Kind::TlsSecret => {
                self.secrets.reject(name);
                changed.secrets.insert(name.to_owned());
            }
            Kind::AuthorizationPolicy => {
                self.policies.reject(name);
                changed.policies.insert(name.to_owned());
            }
            Kind::RequestAuthentication => {
                self.authentications.reject(name);
                changed.authentications.insert(name.to_owned());
            }
        }
    }

    fn remove(&mut self, kind: Kind, name: &str, changed: &mut Changed) {
        match kind {
            Kind::Listener => changed.table |= self.listeners.remove(name).is_some(),
            Kind::Route => {
                self.routes.remove(name);
                changed.routes.insert(name.to_owned());
            }
            Kind::Backend => {
                self.backends.remove(name);
                changed.backends = true;
            }
            Kind::TlsSecret => {
                self.secrets.remove(name);
                changed.secrets.insert(name.to_owned());
            }
            Kind::AuthorizationPolicy => {
                self.policies.remove(name);
                changed.policies.insert(name.to_owned());
            }
            Kind::RequestAuthentication => {
                self.authentications.remove(name);
                changed.authentications.insert(name.to_owned());
            }
        }
        self.listing.removed(kind, name);
    }

    /// Carries changes to all that refer to what has changed.
    fn settle(&mut self, mut changed: Changed) {
        if !changed.secrets.is_empty() {
            let backends = self.backends.secrets_changed(&self.secrets, &self.clusters);
            for (name, problem) in backends {
                self.note_backend(&name, problem);
            }
        }
        if changed.backends || !changed.routes.is_empty() {
            let promoted = self.routes.promote(|name| self.backends.is_known(name));
            changed.routes.extend(promoted);
            self.note_routes(&changed.routes);
        }
        self.put_together(&mut changed);
        if changed.table {
            self.publish();
        }
        if self.backends.has_retired() {
            let listeners: HashSet<&str> = self
                .listeners
                .values()
                .filter_map(|listener| listener.parsed.backend())
                .collect();
            let (routes, policies) = (&self.routes, &self.policies);
            self.backends.sweep(&self.clusters, |name| {
                listeners.contains(name) || routes.refer_to(name) || policies.refer_to(name)
            });
        }
    }

    fn put_together(&mut self, changed: &mut Changed) {
        let held = Held {
            routes: &self.routes,
            secrets: &self.secrets,
            backends: &self.backends,
            policies: &self.policies,
            authentications: &self.authentications,
        };
        for (name, listener) in &mut self.listeners {
            let concerned = changed.listeners.contains(name)
                || listener.parsed.refers_to(
                    |route| changed.routes.contains(route),
                    |secret| changed.secrets.contains(secret),
                    |policy| changed.policies.contains(policy),
                    |authentication| changed.authentications.contains(authentication),
                )
                || (!listener.settled && changed.backends);
            if !concerned {
                continue;
            }
            let mut findings = Findings::default();
            let frontend = Frontend::new(&mut listener.parsed, &held, &mut findings);
            listener.settled = !findings.incomplete;
            let has_good = listener.active.is_some() && listener.quality == Quality::Complete;
            let state = if findings.incomplete && has_good {
                State::Waiting
            } else {
                listener.active = Some(frontend);
                listener.quality = if findings.incomplete {
                    Quality::Incomplete
                } else {
                    Quality::Complete
                };
                changed.table = true;
                State::Active
            };
            self.listing
                .resolved(Kind::Listener, name, state, findings.problems);
        }
    }

    /// Swaps the table.
    fn publish(&self) {
        let mut table = Table::default();
        for (name, listener) in &self.listeners {
            let taken = listener
                .active
                .as_ref()
                .and_then(|frontend| frontend.add_to(&mut table));
            if let Some(taken) = taken {
                tracing::warn!(listener = %name, %taken, "another listener has the same address; that one is served");
            }
        }
        self.tables.store(table);
    }

    fn note_backend(&self, name: &str, problem: Option<ConfigError>) {
        let state = if self.backends.is_waiting(name) {
            State::Waiting
        } else {
            State::Active
        };
        let problems = problem.iter().map(ToString::to_string).collect();
        self.listing.resolved(Kind::Backend, name, state, problems);
    }

    fn note_routes(&self, changed: &HashSet<String>) {
        for name in changed {
            self.listing
                .resolved(Kind::Route, name, State::Active, Vec::new());
        }
        for (name, backends) in self.routes.waiting() {
            let missing = backends.iter().filter(|name| !self.backends.is_known(name));
            let problems = missing.map(|name| format!("waits for backend {name:?}"));
            let problems = problems.collect();
            self.listing
                .resolved(Kind::Route, name, State::Waiting, problems);
        }
    }
}

impl ResourceHandler for Store {
    fn apply(
        &mut self,
        type_url: &str,
        updates: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<(String, String)> {
        let kind = match type_url {
            LISTENER_TYPE => Kind::Listener,
            ROUTE_TYPE => Kind::Route,
            BACKEND_TYPE => Kind::Backend,
            TLS_SECRET_TYPE => Kind::TlsSecret,
            AUTHORIZATION_POLICY_TYPE => Kind::AuthorizationPolicy,
            REQUEST_AUTHENTICATION_TYPE => Kind::RequestAuthentication,
            other => {
                let refused = |resource: Resource| {
                    (resource.name, format!("type {other:?} was not asked for"))
                };
                return updates.into_iter().map(refused).collect();
            }
        };
        let mut changed = Changed::default();
        let mut rejected = Vec::new();
        for resource in updates {
            let outcome = self.update(kind, &resource, &mut changed);
            let error = outcome.as_ref().err().map(ToString::to_string);
            let (name, version) = (&resource.name, &resource.version);
            self.listing.received(kind, name, version, error.clone());
            match outcome {
                Ok(problem) if kind == Kind::Backend => self.note_backend(name, problem),
                Ok(_) => {}
                Err(error) => {
                    self.reject(kind, name, &mut changed);
                    rejected.push((resource.name, error.to_string()));
                }
            }
        }
        for name in &removed {
            self.remove(kind, name, &mut changed);
        }
        self.settle(changed);
        rejected
    }
}

/// A resource is removed by its name: one under another name could never go.
fn same_name(resource: &Resource, name: &str) -> Result<(), ConfigError> {
    if resource.name == name {
        return Ok(());
    }
    let problem = format!("is {name:?}, but the resource is {:?}", resource.name);
    Err(ConfigError::new("name", problem))
}
