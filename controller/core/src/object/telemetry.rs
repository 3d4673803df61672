//! What the mesh needs of a Telemetry (telemetry.istio.io).
//!
//! What cannot be understood, or is not supported, is left out so that more is logged and less traced. As with security
//! policies the last version without a mistake stays in force.

mod read;

use karst_api::telemetry::SpanTag;
use serde_json::Value;

use super::{
    Body,
    authorization::{Target, read_targets},
    policy::{PolicyDocument, Reader},
};
use crate::{
    error::{Faults, ObjectError},
    labels::Labels,
};

/// Share of the access log, percent. Istio has nothing of that name.
pub(crate) const SAMPLING: &str = "karst.dev/access-log-sampling";

/// What is reported of connections and requests.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Telemetry {
    /// Labels of the pods that it is for; none for all.
    pub(crate) selector: Labels,
    /// What waypoints and gateways serve, or are; none for pods.
    pub(crate) targets: Vec<Target>,
    /// Whom it is for could not be read, so that it is for nobody: it must not say anything of all others.
    pub(crate) is_for_nobody: bool,
    pub(crate) logging: Vec<Logging>,
    /// Share of the access log, in millionths.
    pub(crate) log_sampling: Option<u32>,
    pub(crate) tracing: Vec<Tracing>,
    /// What is left out, and why.
    pub(crate) narrowed: Vec<String>,
    /// The author's mistakes.
    pub(crate) faults: Vec<String>,
}

/// Whose view something is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
    Both,
}

impl Side {
    /// Whether what is for `self` is for that side, too.
    pub(crate) fn is_for(self, side: Self) -> bool {
        self == Self::Both || self == side
    }
}

/// An entry of `spec.accessLogging`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Logging {
    pub(crate) side: Side,
    pub(crate) disabled: bool,
    /// Empty for none.
    pub(crate) filter: String,
}

/// An entry of `spec.tracing`; what it does not say is taken from the level above.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tracing {
    pub(crate) side: Side,
    pub(crate) disabled: Option<bool>,
    pub(crate) provider: Option<String>,
    /// In millionths.
    pub(crate) sampling: Option<u32>,
    pub(crate) tags: Option<Vec<SpanTag>>,
}

impl Telemetry {
    pub(crate) fn body(
        document: &PolicyDocument,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Body {
        let mut reader = Reader::new(faults, findings);
        Body::Telemetry(Box::new(Self::read(document, &mut reader)))
    }

    fn read(document: &PolicyDocument, reader: &mut Reader<'_>) -> Self {
        reader.metadata(document);
        let null = Value::Null;
        let (mut selector, mut logging, mut tracing) = (&null, &null, &null);
        let (mut refs, mut refs_field) = (&null, "spec.targetRefs");
        let mut narrowed = Vec::new();
        let fields = reader.fields(&document.spec, "spec");
        for (name, value) in fields.unwrap_or_default() {
            match name {
                "selector" => selector = value,
                "accessLogging" => logging = value,
                "tracing" => tracing = value,
                "metrics" if value.as_array().is_some_and(Vec::is_empty) => {}
                "metrics" => {
                    let problem = "is not supported: metrics are as they are";
                    reader.note("spec.metrics", problem, "remove it");
                    narrowed.push(format!("spec.metrics {problem}"));
                }
                "targetRef" => (refs, refs_field) = (value, "spec.targetRef"),
                "targetRefs" if value.as_array().is_some_and(Vec::is_empty) => {}
                "targetRefs" => refs = value,
                other => reader.unknown(&format!("spec.{other}")),
            }
        }
        let has_targets = !refs.is_null();
        if has_targets && !selector.is_null() {
            let hint = "write one of them";
            reader.fault("spec.targetRefs", "is there beside spec.selector", hint);
        }
        let (selector, is_whole) = reader.selector(selector);
        let targets = match has_targets {
            true => read_targets(refs, refs_field, reader),
            false => Vec::new(),
        };
        let is_for_nobody = !is_whole || (has_targets && targets.is_empty());
        let logging = read::logging(logging, reader, &mut narrowed);
        let tracing = read::tracing(tracing, reader, &mut narrowed);
        Self {
            selector,
            targets,
            is_for_nobody,
            logging,
            log_sampling: read::log_sampling(document, reader),
            tracing,
            narrowed,
            faults: std::mem::take(&mut reader.problems),
        }
    }

    /// What is logged, by the last entry for that side.
    pub(crate) fn logging(&self, side: Side) -> Option<&Logging> {
        let mut entries = self.logging.iter().rev();
        entries.find(|entry| entry.side.is_for(side))
    }

    /// What is traced, by the last entry for that side.
    pub(crate) fn tracing(&self, side: Side) -> Option<&Tracing> {
        let mut entries = self.tracing.iter().rev();
        entries.find(|entry| entry.side.is_for(side))
    }
}
