//! RequestAuthentications by name.

use std::sync::Arc;

use hashbrown::HashMap;
use karst_api::waypoint as wire;

use super::attached::Findings;
use super::{ConfigError, at_most};
use crate::authn::source::{KeySources, NewSources, Timing};
use crate::authn::{Authentication, Document, MAX_DOCUMENTS};

/// RequestAuthentications by name; `None`: the newest version was not valid. An older one is not kept: it may take
/// tokens that the newer one was to refuse.
pub(super) struct Authentications {
    by_name: HashMap<String, Option<Arc<Document>>>,
    sources: Arc<KeySources>,
    new_sources: Option<NewSources>,
}

impl Default for Authentications {
    fn default() -> Self {
        Self::with(Timing::default())
    }
}

impl Authentications {
    pub(super) fn with(timing: Timing) -> Self {
        let (sources, new_sources) = KeySources::new(timing);
        Self {
            by_name: HashMap::new(),
            sources,
            new_sources: Some(new_sources),
        }
    }

    pub(super) fn sources(&self) -> &Arc<KeySources> {
        &self.sources
    }

    pub(super) fn take_new_sources(&mut self) -> Option<NewSources> {
        self.new_sources.take()
    }

    pub(super) fn update(&mut self, wire: &wire::RequestAuthentication) -> Result<(), ConfigError> {
        let document = Document::new(wire, &self.sources)?;
        let document = Some(Arc::new(document));
        self.by_name.insert(wire.name.clone(), document);
        Ok(())
    }

    /// Notes that the newest version cannot be used.
    pub(super) fn reject(&mut self, name: &str) {
        self.by_name.insert(name.to_owned(), None);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// What is attached under these names. With one that is not there, or not valid, nothing passes.
    pub(super) fn attached(&self, names: &[String], findings: &mut Findings) -> Authentication {
        let mut is_missing = false;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            match self.by_name.get(name) {
                Some(Some(document)) => found.push(Arc::clone(document)),
                Some(None) => {
                    let problem =
                        format!("authentication {name:?} is invalid, what it is for is refused");
                    findings.problems.push(problem);
                    is_missing = true;
                }
                None => {
                    findings.missing("authentication", name);
                    is_missing = true;
                }
            }
        }
        let mut authentication = Authentication::new(found);
        if is_missing {
            authentication.add_missing();
        }
        authentication
    }
}

/// Names of authentications as a frontend has them.
pub(super) fn names(wire: &[String]) -> Result<Vec<String>, ConfigError> {
    at_most("authentications", wire.len(), MAX_DOCUMENTS)?;
    if let Some(index) = wire.iter().position(String::is_empty) {
        return Err(ConfigError::new(
            format!("authentications[{index}]"),
            "is empty",
        ));
    }
    Ok(wire.to_vec())
}
