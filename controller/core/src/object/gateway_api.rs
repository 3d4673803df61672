//! What kinds of the Gateway API have in common.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object: metadata and spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Resource<S> {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: S,
}

/// What a route attaches to (`ParentReference`). What is not there is `None`, so that it is written into
/// the status as the author wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ParentRef {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) section_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
}

impl ParentRef {
    /// Group and kind with their defaults.
    pub(crate) fn group_kind(&self) -> (&str, &str) {
        (
            self.group.as_deref().unwrap_or("gateway.networking.k8s.io"),
            self.kind.as_deref().unwrap_or("Gateway"),
        )
    }

    /// The parent's namespace: that of the route, if it names none.
    pub(crate) fn namespace<'a>(&'a self, own: &'a str) -> &'a str {
        let named = self.namespace.as_deref().filter(|name| !name.is_empty());
        named.unwrap_or(own)
    }

    /// As it is written into a status.
    pub(crate) fn to_value(&self) -> Value {
        // Text and numbers always have a JSON form.
        serde_json::to_value(self).unwrap_or_default()
    }
}
