//! An object as it comes from the API server, without what nobody reads.
//!
//! Half of a pod is the record of who wrote which field; with 100,000 of them it matters that it is never built.

use std::{borrow::Cow, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::cluster::annotations::ENROLLED;

/// An object of any kind.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Name, namespace, uid, version, and our own annotation.
    meta: ObjectMeta,
    document: Map<String, Value>,
}

impl Raw {
    /// Its status; null if it has none.
    pub fn status(&self) -> &Value {
        self.document.get("status").unwrap_or(&Value::Null)
    }

    /// The object as a document of a kind. Its memory is given back as soon as it has been reduced.
    pub fn into_value(mut self, resource: &ApiResource) -> Value {
        for (field, value) in [
            ("apiVersion", &resource.api_version),
            ("kind", &resource.kind),
        ] {
            self.document
                .insert(field.to_owned(), Value::from(value.as_str()));
        }
        Value::Object(self.document)
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut document = deserializer.deserialize_map(Fields::OfObject)?;
        let metadata = document
            .entry("metadata")
            .or_insert_with(|| Value::Object(Map::new()));
        let text = |field: &str| metadata.get(field)?.as_str().map(str::to_owned);
        let enrolled = metadata
            .pointer("/annotations")
            .and_then(|all| all.get(ENROLLED)?.as_str())
            .map(|value| [(ENROLLED.to_owned(), value.to_owned())].into());
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            annotations: enrolled,
            ..ObjectMeta::default()
        };
        Ok(Self { meta, document })
    }
}

/// Reads a map without the fields that nobody reads.
#[derive(Clone, Copy)]
enum Fields {
    OfObject,
    OfMetadata,
}

impl<'de> Visitor<'de> for Fields {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfObject => "an object",
            Self::OfMetadata => "the metadata of an object",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some(field) = map.next_key::<String>()? {
            let value = match (self, field.as_str()) {
                (Self::OfObject, "metadata") => {
                    Value::Object(map.next_value_seed(Self::OfMetadata)?)
                }
                (Self::OfMetadata, "managedFields" | "finalizers") => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => map.next_value()?,
            };
            fields.insert(field, value);
        }
        Ok(fields)
    }
}

impl<'de> DeserializeSeed<'de> for Fields {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

#[cfg(test)]
mod tests {
    use kube::{ResourceExt as _, core::GroupVersionKind};
    use serde_json::json;

    use super::*;

    #[test]
    fn all_is_kept_but_what_nobody_reads() {
        let text = json!({
            "apiVersion": "v9", "kind": "Other",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "labels": {"app": "web"}, "annotations": {ENROLLED: "true", "more": "x"},
                "managedFields": [{"fieldsV1": {"f:spec": {}}}], "finalizers": ["f"],
            },
            "spec": {"nodeName": "x"}, "status": {"phase": "Running"},
        });
        let raw: Raw = serde_json::from_str(&text.to_string()).unwrap();
        assert_eq!(
            (raw.name_any(), raw.namespace()),
            ("a".to_owned(), Some("n".to_owned()))
        );
        assert_eq!(
            (raw.uid(), raw.resource_version()),
            (Some("u".to_owned()), Some("7".to_owned()))
        );
        assert!(raw.annotations().contains_key(ENROLLED));
        assert_eq!(raw.status()["phase"], "Running");
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
        let mut expected = text;
        expected["apiVersion"] = json!("v1");
        expected["kind"] = json!("Pod");
        let metadata = expected["metadata"].as_object_mut().unwrap();
        metadata.remove("managedFields");
        metadata.remove("finalizers");
        assert_eq!(raw.into_value(&resource), expected);
    }

    #[test]
    fn what_is_no_object_is_refused_and_metadata_may_be_missing() {
        assert!(serde_json::from_str::<Raw>("[]").is_err());
        assert!(serde_json::from_str::<Raw>(r#"{"metadata": 1}"#).is_err());
        let raw: Raw = serde_json::from_str("{}").unwrap();
        assert!(raw.status().is_null() && raw.resource_version().is_none());
    }
}
