//! Routes by name.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use karst_api::waypoint as wire;

use super::ConfigError;
use super::secret::Lookup;
use crate::balance::Clusters;
use crate::route::CompiledRoute;

/// Routes by name.
#[derive(Default)]
pub(super) struct Routes {
    by_name: HashMap<String, Route>,
}

/// What there is under a name; neither: no version was valid.
#[derive(Default)]
struct Route {
    /// In force. All its backends were there when it was taken over.
    active: Option<Version>,
    /// Newer; waits for backends.
    waiting: Option<Version>,
}

struct Version {
    route: Arc<CompiledRoute>,
    /// Names of backends it refers to.
    backends: HashSet<String>,
}

/// A route, as far as it can be used.
pub(super) struct Usable<'a> {
    pub(super) route: &'a Arc<CompiledRoute>,
    /// Whether all its backends are there.
    pub(super) complete: bool,
}

impl Routes {
    /// Takes a route over, or keeps the last good version of its name.
    pub(super) fn update(
        &mut self,
        wire: &wire::Route,
        clusters: &Clusters,
    ) -> Result<(), ConfigError> {
        let backends = RefCell::new(HashSet::new());
        let resolve = |name: &str| {
            backends.borrow_mut().insert(name.to_owned());
            clusters.get(name)
        };
        let route = CompiledRoute::new(wire, &resolve);
        let known = self.by_name.entry(wire.name.clone()).or_default();
        let route = Arc::new(route?);
        let backends = backends.into_inner();
        known.waiting = Some(Version { route, backends });
        Ok(())
    }

    /// Notes that a version of a route cannot be used.
    pub(super) fn reject(&mut self, name: &str) {
        self.by_name.entry_ref(name).or_default();
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Puts versions in force whose backends are known now; returns the names of their routes.
    pub(super) fn promote(&mut self, is_known: impl Fn(&str) -> bool) -> Vec<String> {
        let mut promoted = Vec::new();
        for (name, route) in &mut self.by_name {
            let complete =
                |version: &mut Version| version.backends.iter().all(|name| is_known(name));
            if let Some(version) = route.waiting.take_if(complete) {
                route.active = Some(version);
                promoted.push(name.clone());
            }
        }
        promoted
    }

    pub(super) fn get(&self, name: &str) -> Lookup<Usable<'_>> {
        let Some(route) = self.by_name.get(name) else {
            return Lookup::Missing;
        };
        match (&route.active, &route.waiting) {
            (Some(version), _) => Lookup::Found(Usable {
                route: &version.route,
                complete: true,
            }),
            (None, Some(version)) => Lookup::Found(Usable {
                route: &version.route,
                complete: false,
            }),
            (None, None) => Lookup::Rejected,
        }
    }

    /// Names of routes with a version that waits.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&str, &HashSet<String>)> {
        self.by_name.iter().filter_map(|(name, route)| {
            let version = route.waiting.as_ref()?;
            Some((name.as_str(), &version.backends))
        })
    }

    /// Whether a version that is in force, or will be, refers to a backend.
    pub(super) fn refer_to(&self, backend: &str) -> bool {
        self.by_name.values().any(|route| {
            let mut versions = route.active.iter().chain(&route.waiting);
            versions.any(|version| version.backends.contains(backend))
        })
    }
}
