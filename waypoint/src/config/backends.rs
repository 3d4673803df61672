//! Backends by name. Their endpoints are in [`Clusters`]; here is what must be there before those may be used.

use hashbrown::{HashMap, HashSet};
use karst_api::waypoint as wire;

use super::secret::Secrets;
use super::{ConfigError, client_tls};
use crate::balance::Clusters;

/// Why requests to a backend fail whose TLS cannot be set up.
const TLS_NOT_READY: &str = "backend_tls_not_ready";

/// Backends by name.
#[derive(Default)]
pub(super) struct Backends {
    by_name: HashMap<String, Backend>,
    /// Those no version of which was valid. Nothing waits for them.
    rejected: HashSet<String>,
}

#[derive(Default)]
struct Backend {
    /// Of the version in force, if it has TLS: kept to be set up anew when secrets change.
    tls: Option<Box<Tls>>,
    /// Newer; waits for secrets.
    waiting: Option<wire::Backend>,
    /// It is gone, and kept only for routes that still refer to it.
    retired: bool,
}

struct Tls {
    backend: wire::Backend,
    built: Option<client_tls::Built>,
}

impl Backends {
    /// Takes a backend over, or keeps the last good version of its name. Returns what is wrong with its TLS;
    /// requests fail then.
    pub(super) fn update(
        &mut self,
        wire: wire::Backend,
        secrets: &Secrets,
        clusters: &Clusters,
    ) -> Result<Option<ConfigError>, ConfigError> {
        let known = self.by_name.get_mut(&wire.name);
        let held = known.is_some();
        if let Some(backend) = known {
            backend.retired = false;
            let tls = wire.tls.as_ref();
            let missing = |tls: &wire::BackendTls| {
                client_tls::secrets(tls).any(|name| secrets.is_missing(name))
            };
            if tls.is_some_and(missing) {
                backend.waiting = Some(wire);
                return Ok(None);
            }
        }
        let name = wire.name.clone();
        let former = self
            .by_name
            .get_mut(&name)
            .and_then(|known| known.tls.take());
        match apply(wire, former, secrets, clusters) {
            Ok((tls, problem)) => {
                self.rejected.remove(&name);
                let backend = Backend {
                    tls,
                    ..Backend::default()
                };
                self.by_name.insert(name, backend);
                Ok(problem)
            }
            Err((former, error)) => {
                match self.by_name.get_mut(&name) {
                    Some(known) if held => known.tls = former,
                    _ => self.reject(&name),
                }
                Err(error)
            }
        }
    }

    /// Notes that a version of a backend cannot be used.
    pub(super) fn reject(&mut self, name: &str) {
        if !self.by_name.contains_key(name) {
            self.rejected.insert(name.to_owned());
        }
    }

    /// Marks a backend as gone. It goes when nothing refers to it any more ([`Backends::sweep`]).
    pub(super) fn remove(&mut self, name: &str) {
        self.rejected.remove(name);
        if let Some(backend) = self.by_name.get_mut(name) {
            backend.retired = true;
        }
    }

    pub(super) fn has_retired(&self) -> bool {
        self.by_name.values().any(|backend| backend.retired)
    }

    /// Removes what is gone and not referred to.
    pub(super) fn sweep(&mut self, clusters: &Clusters, is_used: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, backend| {
            let stays = !backend.retired || is_used(name);
            if !stays {
                clusters.remove(name);
            }
            stays
        });
    }

    /// Sets the TLS of backends up anew after secrets have changed; returns the names of those that have TLS,
    /// with what is wrong with it.
    pub(super) fn secrets_changed(
        &mut self,
        secrets: &Secrets,
        clusters: &Clusters,
    ) -> Vec<(String, Option<ConfigError>)> {
        let mut changed = Vec::new();
        for (name, backend) in &mut self.by_name {
            let ready = |waiting: &mut wire::Backend| {
                let mut names = waiting.tls.iter().flat_map(client_tls::secrets);
                names.all(|name| !secrets.is_missing(name))
            };
            let former = backend.tls.take();
            let newest = backend
                .waiting
                .take_if(ready)
                .or_else(|| former.as_ref().map(|tls| tls.backend.clone()));
            let Some(newest) = newest else {
                continue;
            };
            match apply(newest, former, secrets, clusters) {
                Ok((tls, problem)) => {
                    backend.tls = tls;
                    changed.push((name.clone(), problem));
                }
                Err((former, error)) => {
                    backend.tls = former;
                    changed.push((name.clone(), Some(error)));
                }
            }
        }
        changed
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.by_name.contains_key(name) || self.rejected.contains(name)
    }

    pub(super) fn is_waiting(&self, name: &str) -> bool {
        self.by_name
            .get(name)
            .is_some_and(|backend| backend.waiting.is_some())
    }
}

type Applied = (Option<Box<Tls>>, Option<ConfigError>);

/// Hands a backend over. With TLS that cannot be set up it is handed over as invalid: nothing goes out in clear.
fn apply(
    mut backend: wire::Backend,
    former: Option<Box<Tls>>,
    secrets: &Secrets,
    clusters: &Clusters,
) -> Result<Applied, (Option<Box<Tls>>, ConfigError)> {
    let Some(tls) = &backend.tls else {
        return match clusters.update(&backend, None) {
            Ok(()) => Ok((None, None)),
            Err(error) => Err((former, error.into())),
        };
    };
    let former_built = former.as_ref().and_then(|former| former.built.clone());
    let (built, problem) = match client_tls::build(tls, secrets, former_built) {
        Ok(built) => (Some(built), None),
        Err(error) => (None, Some(error.within("tls"))),
    };
    let config = built.as_ref().map(|built| built.config.clone());
    let declared = backend.invalid.clone();
    if built.is_none() && declared.is_empty() {
        TLS_NOT_READY.clone_into(&mut backend.invalid);
    }
    let outcome = clusters.update(&backend, config);
    backend.invalid = declared;
    match outcome {
        Ok(()) => Ok((Some(Box::new(Tls { backend, built })), problem)),
        Err(error) => Err((former, error.into())),
    }
}
