//! Kubernetes objects as the lab sees them: JSON values with a kind, a name and the few
//! fields it reads.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Kinds that live in no namespace.
const CLUSTER_SCOPED: &[&str] = &["Namespace", "Node", "GatewayClass", "PersistentVolume"];

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key {
    /// Its kind, e.g. `Pod`.
    pub kind: String,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The name of the file that shows the object to the controller.
    pub fn file_name(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.namespace.is_empty() {
            format!("{kind}.{}.json", self.name)
        } else {
            format!("{kind}.{}.{}.json", self.namespace, self.name)
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for Key {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let mut parts = text.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(namespace), Some(name)) => Ok(Self::new(kind, namespace, name)),
            _ => bail!("{text:?} is no object key"),
        }
    }
}

/// The objects of a YAML (or JSON) text of several documents, Lists opened.
pub fn parse(text: &str) -> Result<Vec<(Key, Value)>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("reading YAML")?;
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        if document.is_null() {
            continue;
        }
        let items = match document["kind"].as_str() {
            Some("List") => document["items"].as_array().cloned().unwrap_or_default(),
            _ => vec![document],
        };
        for item in items {
            objects.push(admit(item).with_context(|| format!("document {}", index + 1))?);
        }
    }
    Ok(objects)
}

/// The text of a manifest file, or of all manifest files in a directory, by name.
pub fn read_path(path: &Path) -> Result<Vec<(Key, Value)>> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            let file = entry?.path();
            let extension = file.extension().and_then(|e| e.to_str());
            if matches!(extension, Some("yaml" | "yml" | "json")) {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    let mut objects = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        objects.extend(parse(&text).with_context(|| format!("{}", file.display()))?);
    }
    Ok(objects)
}

fn admit(mut object: Value) -> Result<(Key, Value)> {
    let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let kind = text(&object["kind"]).context("no kind")?;
    text(&object["apiVersion"]).with_context(|| format!("{kind}: no apiVersion"))?;
    let name =
        text(&object["metadata"]["name"]).with_context(|| format!("{kind}: no metadata.name"))?;
    let namespace = if CLUSTER_SCOPED.contains(&kind.as_str()) {
        String::new()
    } else {
        text(&object["metadata"]["namespace"]).unwrap_or_else(|| "default".to_owned())
    };
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    Ok((
        Key {
            kind,
            namespace,
            name,
        },
        object,
    ))
}

/// Whether a selector of plain labels (`{"app": "x"}`) matches an object's labels.
pub fn selects(selector: &Value, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    selector
        .as_object()
        .is_some_and(|wanted| !wanted.is_empty() && wanted.iter().all(|(k, v)| labels[k] == *v))
}

/// Sets (`key=value`) or removes (`key-`) a label.
pub fn set_label(object: &mut Value, label: &str) -> Result<()> {
    let labels = &mut object["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    let Some(labels) = labels.as_object_mut() else {
        bail!("labels are no object")
    };
    match label.split_once('=') {
        Some((key, value)) => {
            labels.insert(key.to_owned(), json!(value));
        }
        None => {
            let key = label.strip_suffix('-').with_context(|| {
                format!("a label is set with key=value and removed with key-; got {label:?}")
            })?;
            labels.remove(key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_namespaces() {
        let objects = parse(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}}\n\
             - {apiVersion: v1, kind: Service, metadata: {name: s}}\n",
        )
        .unwrap();
        let keys: Vec<String> = objects.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, ["Namespace//a", "Pod/a/p", "Service/default/s"]);
    }

    #[test]
    fn quoted_scalars_stay_strings() {
        let objects =
            parse("{apiVersion: v1, kind: X, metadata: {name: x}, a: \"80\", b: 80, c: 'true'}")
                .unwrap();
        let object = &objects[0].1;
        assert_eq!(
            (&object["a"], &object["b"], &object["c"]),
            (&json!("80"), &json!(80), &json!("true"))
        );
    }

    #[test]
    fn a_bad_document_is_named() {
        let error =
            parse("{apiVersion: v1, kind: Pod, metadata: {name: p}}\n---\nkind: Pod").unwrap_err();
        assert_eq!(format!("{error:#}"), "document 2: Pod: no apiVersion");
    }

    #[test]
    fn labels_are_set_and_removed() {
        let mut object = json!({"metadata": {}});
        set_label(&mut object, "a/b=c=d").unwrap();
        assert_eq!(object["metadata"]["labels"], json!({"a/b": "c=d"}));
        set_label(&mut object, "a/b-").unwrap();
        assert_eq!(object["metadata"]["labels"], json!({}));
        assert!(set_label(&mut object, "nonsense").is_err());
    }
}
