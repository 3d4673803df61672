//! What kinds of the Gateway API have in common.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::labels::Labels;

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

/// Whether a selector matches (`metav1.LabelSelector`): every label and every expression must. An operator
/// that is not known matches nothing.
pub(crate) fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let mut exact = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    exact.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let listed = || {
                value
                    .is_some_and(|value| expression.values.iter().flatten().any(|one| one == value))
            };
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
