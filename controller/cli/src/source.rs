//! Kubernetes objects for the commands that work out what the mesh makes of them: of a cluster, read only, or of
//! manifests.
//!
//! Secrets are not read: nothing here needs a key.

mod kube;
mod manifests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use karst_core::{Egress, Index, Kind, MeshConfig, Object, ObjectError, ObjectKey};
use serde_json::Value;

use crate::args::Objects;
use crate::failure::Failure;

pub use self::kube::{custom_definitions, settings};
pub use self::manifests::text;

/// One object as it was read.
#[derive(Clone, Debug)]
pub struct Document {
    /// The object.
    pub value: Value,
    /// File and number of the document in it, from 1; `None` of a cluster.
    pub place: Option<Place>,
}

/// Where a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file; `-` is standard input.
    pub file: PathBuf,
    /// Number of the document in it, from 1.
    pub document: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (document {})", self.file.display(), self.document)
    }
}

/// Objects, and what is the same for the whole mesh.
#[derive(Debug)]
pub struct Input {
    /// The objects, in the order in which they were read.
    pub documents: Vec<Document>,
    /// Names of the mesh.
    pub config: MeshConfig,
}

/// Reads manifests, where the arguments name any.
///
/// # Errors
/// A file cannot be read, or is no YAML or JSON.
pub fn offline(args: &Objects) -> Result<Option<Input>, Failure> {
    let documents = match &args.source {
        Some(folder) => manifests::folder(folder)?,
        None if args.files.is_empty() => return Ok(None),
        None => manifests::files(&args.files)?,
    };
    Ok(Some(Input {
        documents,
        config: config(args, &BTreeMap::new()),
    }))
}

/// Reads a cluster.
///
/// # Errors
/// It cannot be asked, or does not let the caller list a kind.
pub async fn cluster(args: &Objects, client: &::kube::Client) -> Result<Input, Failure> {
    let settings = settings(client).await?;
    Ok(Input {
        documents: kube::objects(client).await?,
        config: config(args, &settings),
    })
}

/// Names of the mesh: what the arguments say, else what the cluster's controller was started with, else its
/// defaults.
fn config(args: &Objects, settings: &BTreeMap<String, String>) -> MeshConfig {
    let default = MeshConfig::default();
    let choose = |given: &Option<String>, key: &str, default: String| {
        let given = given.clone();
        given
            .or_else(|| settings.get(key).cloned())
            .unwrap_or(default)
    };
    // What the controller would not have started with leaves its default.
    let egress_default = match settings.get("egress-default").map(String::as_str) {
        Some("REGISTRY_ONLY") => Egress::RegistryOnly,
        _ => default.egress_default,
    };
    MeshConfig {
        egress_default,
        trust_domain: choose(&args.trust_domain, "trust-domain", default.trust_domain),
        cluster_domain: choose(
            &args.cluster_domain,
            "cluster-domain",
            default.cluster_domain,
        ),
        root_namespace: choose(
            &args.root_namespace,
            "root-namespace",
            default.root_namespace,
        ),
        cluster_id: choose(&None, "cluster-id", default.cluster_id),
        network: choose(&None, "network", default.network),
    }
}

/// The controller's own index of the objects, and what it says of the bad ones.
pub struct Read {
    /// The index.
    pub index: Index,
    /// Objects that were taken, with the place of their document among those read.
    pub taken: Vec<(ObjectKey, usize)>,
    /// What is wrong: the document, whether the object was left out for it, and the error.
    pub faults: Vec<(usize, Effect, ObjectError)>,
}

/// What came of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The object is left out.
    Refused,
    /// The field is left out, or the whole is read so that it allows less.
    Narrowed,
}

impl Input {
    /// Feeds the objects to the controller's index, as the controller does.
    pub fn read(&self) -> Read {
        let mut read = Read {
            index: Index::new(self.config.clone()),
            taken: Vec::new(),
            faults: Vec::new(),
        };
        let mut objects: Vec<(usize, Object)> = Vec::new();
        for (at, document) in self.documents.iter().enumerate() {
            match Object::from_value(document.value.clone()) {
                Ok(Some(object)) => {
                    let findings = object.findings.iter().cloned();
                    read.faults
                        .extend(findings.map(|error| (at, Effect::Narrowed, error)));
                    objects.push((at, object));
                }
                Ok(None) => {}
                Err(error) => read.faults.push((at, Effect::Refused, error)),
            }
        }
        // The order of kinds is the one in which a batch is applied; within a kind the input's.
        objects.sort_by_key(|(at, object)| (object.key.kind, *at));
        let mut seen: BTreeMap<ObjectKey, usize> = BTreeMap::new();
        for (at, object) in objects {
            let key = object.key.clone();
            if let Some(first) = seen.get(&key) {
                read.faults
                    .push((at, Effect::Refused, self.twice(&key, *first)));
                continue;
            }
            match read.index.stage(object) {
                Ok(_) => {
                    seen.insert(key.clone(), at);
                    read.taken.push((key, at));
                }
                Err(error) => read.faults.push((at, Effect::Refused, error)),
            }
        }
        read.index.flush();
        read
    }

    fn twice(&self, key: &ObjectKey, first: usize) -> ObjectError {
        let place = self
            .documents
            .get(first)
            .and_then(|first| first.place.as_ref());
        let place = place.map_or_else(String::new, |place| format!(" in {place}"));
        ObjectError {
            object: key.to_string(),
            field: "metadata.name".to_owned(),
            problem: format!("is that of another document{place}, which counts"),
            hint: "remove one of them".to_owned(),
        }
    }
}

/// Kinds whose objects are read.
pub fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| *kind != Kind::Secret)
}
