//! Fields that a kind does not have, by the definitions of kinds: those of Karst's own chart, those among the
//! objects, and those of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use karst_core::{Kind, ObjectKey};
use karst_deploy::chart::{KARST_CRDS, Release};
use serde_json::Value;

use super::codes;
use super::context::Context;
use super::finding::Finding;
use crate::failure::Failure;

/// Fields that every object has, which are not of its own definition.
const COMMON: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// Schemas, by group, version and kind.
#[derive(Default)]
pub struct Schemas(BTreeMap<(String, String, String), Value>);

impl Schemas {
    /// Those of the chart.
    ///
    /// # Errors
    /// The chart cannot be rendered.
    pub fn of_chart() -> Result<Self, Failure> {
        let failed =
            |error: karst_deploy::Error| Failure::failed(error.reason(), error.to_string());
        let values = KARST_CRDS.values_with(Vec::new()).map_err(failed)?;
        let rendered = KARST_CRDS
            .render(&Release::by_karst("karst-system"), &values)
            .map_err(failed)?;
        let mut schemas = Self::default();
        for object in rendered.iter().flat_map(|file| &file.objects) {
            schemas.add(object);
        }
        Ok(schemas)
    }

    /// Adds a CustomResourceDefinition; what is none is passed over. One that is there stays.
    pub fn add(&mut self, definition: &Value) {
        let text = |value: &Value, pointer: &str| {
            let text = value.pointer(pointer).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let (group, kind) = (
            text(definition, "/spec/group"),
            text(definition, "/spec/names/kind"),
        );
        let versions = definition
            .pointer("/spec/versions")
            .and_then(Value::as_array);
        for version in versions.into_iter().flatten() {
            if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
                let name = (group.clone(), text(version, "/name"), kind.clone());
                self.0.entry(name).or_insert_with(|| schema.clone());
            }
        }
    }

    fn of(&self, value: &Value) -> Option<&Value> {
        let api_version = value.get("apiVersion")?.as_str()?;
        let (group, version) = api_version.split_once('/')?;
        let kind = value.get("kind")?.as_str()?;
        self.0
            .get(&(group.to_owned(), version.to_owned(), kind.to_owned()))
    }
}

/// Kinds whose definitions are custom ones.
fn is_custom(kind: Kind) -> bool {
    !kind.group().is_empty() && kind.group() != "discovery.k8s.io"
}

/// Looks at all objects of custom kinds. Returns the fields that are unknown.
pub fn all(
    context: &Context<'_>,
    schemas: &Schemas,
    findings: &mut Vec<Finding>,
) -> BTreeSet<(String, String)> {
    let (mut unknown, mut unchecked) = (BTreeSet::new(), BTreeMap::new());
    for (key, value) in context.taken().filter(|(key, _)| is_custom(key.kind)) {
        let Some(schema) = schemas.of(value) else {
            let version = value
                .get("apiVersion")
                .and_then(Value::as_str)
                .unwrap_or_default();
            unchecked.entry((key.kind.name(), version)).or_insert(key);
            continue;
        };
        let mut fields = Vec::new();
        walk(schema, value, "", &mut fields);
        for (path, near) in fields {
            let hint = match near {
                Some(near) => format!("did you mean {near}?"),
                None => "remove it; `kubectl explain` lists the fields of its kind".to_owned(),
            };
            findings.push(Finding::on(
                key,
                &codes::UNKNOWN_FIELD,
                path.clone(),
                "is no field of its kind, and has no effect",
                hint,
            ));
            unknown.insert((key.to_string(), path));
        }
    }
    for ((kind, version), first) in unchecked {
        findings.push(no_schema(first, kind, version));
    }
    unknown
}

fn no_schema(first: &ObjectKey, kind: &str, version: &str) -> Finding {
    let message = format!(
        "and others of kind {kind} ({version}) were not looked through for unknown fields, as the kind's definition is not at hand"
    );
    let advice =
        "put its CustomResourceDefinition among the manifests, or analyze a cluster that has it";
    Finding::on(first, &codes::NO_SCHEMA, "", message, advice)
}

fn walk(schema: &Value, value: &Value, path: &str, unknown: &mut Vec<(String, Option<String>)>) {
    match value {
        Value::Object(fields) => {
            let known = schema.get("properties").and_then(Value::as_object);
            let keeps =
                schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
            for (name, value) in fields {
                if path.is_empty() && COMMON.contains(&name.as_str()) {
                    continue;
                }
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                if let Some(schema) = known.and_then(|known| known.get(name)) {
                    walk(schema, value, &path, unknown);
                    continue;
                }
                match schema.get("additionalProperties") {
                    Some(Value::Bool(true)) => {}
                    Some(schema @ Value::Object(_)) => walk(schema, value, &path, unknown),
                    _ if keeps || (known.is_none() && !path.contains('.')) => {}
                    _ => {
                        let near = known.and_then(|known| nearest(name, known.keys()));
                        unknown.push((path, near));
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    walk(schema, item, &format!("{path}[{index}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

/// The known name that is closest, if any is close: at most two letters differ, and less than half of them.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let found = known
        .map(|one| (distance(&lower, &one.to_ascii_lowercase()), one))
        .min()?;
    (found.0 <= 2 && found.0 * 2 < name.len()).then(|| found.1.clone())
}

/// How many letters must be put in, left out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, b) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or_default();
            let cost = (diagonal + usize::from(a != *b))
                .min(left + 1)
                .min(above + 1);
            diagonal = above;
            if let Some(place) = row.get_mut(j) {
                *place = left;
            }
            left = cost;
        }
        if let Some(last) = row.last_mut() {
            *last = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn typing_mistakes_are_recognised() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "ab"), 2);
        assert_eq!(distance("ab", "ab"), 0);
        let known = ["methods".to_owned(), "paths".to_owned(), "ports".to_owned()];
        assert_eq!(nearest("method", known.iter()).as_deref(), Some("methods"));
        assert_eq!(nearest("pathes", known.iter()).as_deref(), Some("paths"));
        assert_eq!(nearest("hosts2x", known.iter()), None);
    }
}
