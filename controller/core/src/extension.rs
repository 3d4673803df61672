//! External authorizers and collectors of spans, as Istio's mesh configuration describes them (`extensionProviders`).
//!
//! A provider that cannot be understood in every field cannot be used: what asks for it refuses then what it
//! would have had decided. Providers of other kinds and all other settings of a mesh configuration are left out and named.

mod read;

use std::collections::{BTreeMap, BTreeSet};

use karst_api::waypoint as wire;
use serde_json::Value;

use crate::documents;

/// Largest mesh configuration, bytes: a ConfigMap's limit.
pub const MAX_MESH_CONFIG_BYTES: u64 = 1 << 20;

/// The external authorizers and the collectors of spans of the mesh, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExtensionProviders {
    by_name: BTreeMap<String, Result<Provider, Unusable>>,
    /// Where spans can go.
    collectors: BTreeMap<String, Result<Place, Unusable>>,
    /// The one of those that counts where nobody names any (`defaultProviders.tracing`).
    default_collector: Option<String>,
}

/// What was found in a mesh configuration besides providers that can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshConfigFindings {
    /// Providers that cannot be used: each names the field and what to do.
    pub faults: Vec<String>,
    /// Settings that have no effect here.
    pub ignored: Vec<String>,
}

/// A provider that can be used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Provider {
    pub(crate) place: Place,
    /// What proxies are told, but for the backend.
    pub(crate) template: wire::ExtensionProvider,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// Namespace before the host name, where one is written.
    pub(crate) namespace: Option<String>,
    /// Fully qualified name of its Service.
    pub(crate) hostname: String,
    pub(crate) port: u16,
}

/// Why a provider cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// Stable.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl ExtensionProviders {
    /// Reads a mesh configuration in YAML: an object with `extensionProviders`, or nothing.
    ///
    /// # Errors
    /// It is none, so that not even names of providers can be told.
    pub fn parse(text: &str) -> Result<(Self, MeshConfigFindings), String> {
        match text.trim() {
            "" => Self::read(&Value::Null),
            text => Self::read(&documents::yaml(text)?),
        }
    }

    pub(crate) fn read(config: &Value) -> Result<(Self, MeshConfigFindings), String> {
        let mut findings = MeshConfigFindings::default();
        let providers = read::providers(config, &mut findings)?;
        Ok((providers, findings))
    }

    /// Number of providers that can be used.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.by_name
            .values()
            .filter(|provider| provider.is_ok())
            .count()
            + self.collectors.values().filter(|it| it.is_ok()).count()
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Provider, Unusable> {
        match self.by_name.get(name) {
            Some(Ok(provider)) => Ok(provider),
            Some(Err(unusable)) => Err(unusable.clone()),
            None if self.collectors.contains_key(name) => Err(Unusable {
                reason: "ProviderNotSupported",
                message: format!(
                    "Extension provider {name:?} takes spans and is no authorizer; use envoyExtAuthzGrpc or \
                     envoyExtAuthzHttp"
                ),
            }),
            None => Err(Unusable {
                reason: "ProviderNotFound",
                message: format!(
                    "The mesh's configuration has no extension provider {name:?}; add it to extensionProviders"
                ),
            }),
        }
    }

    /// Where spans of a provider go.
    pub(crate) fn collector(&self, name: &str) -> Result<&Place, Unusable> {
        match (self.collectors.get(name), self.by_name.get(name)) {
            (Some(Ok(place)), _) => Ok(place),
            (Some(Err(unusable)), _) => Err(unusable.clone()),
            (None, Some(_)) => Err(Unusable {
                reason: "ProviderNotSupported",
                message: format!(
                    "Extension provider {name:?} takes no spans; use one of kind opentelemetry"
                ),
            }),
            (None, None) => Err(Unusable {
                reason: "ProviderNotFound",
                message: format!(
                    "The mesh's configuration has no extension provider {name:?}; add it to extensionProviders"
                ),
            }),
        }
    }

    /// Name of the provider of spans that counts where nobody names any.
    pub(crate) fn default_collector(&self) -> Option<&str> {
        self.default_collector.as_deref()
    }

    /// Whether spans of any provider go to the Service of that name.
    pub(crate) fn has_collector_at(&self, hostname: &str) -> bool {
        let mut places = self.collectors.values().flatten();
        places.any(|place| place.hostname == hostname)
    }

    /// Whether spans may go elsewhere with the others.
    pub(crate) fn collectors_differ(&self, other: &Self) -> bool {
        self.collectors != other.collectors || self.default_collector != other.default_collector
    }

    /// Names of those that differ.
    pub(crate) fn differing(&self, other: &Self) -> BTreeSet<String> {
        let names = self.by_name.keys().chain(other.by_name.keys());
        names
            .filter(|name| self.by_name.get(*name) != other.by_name.get(*name))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests;
