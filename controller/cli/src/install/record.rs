//! What was installed with which values, kept in the cluster: ConfigMap `karst-install`. It lets a
//! repair or an upgrade keep the values of the installation.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::kinds::{Item, ordered};
use crate::cluster::{SYSTEM_NAMESPACE, failure, is_not_found};
use crate::failure::Failure;

/// Name of the ConfigMap.
pub const NAME: &str = "karst-install";

/// An installation.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Version of the command that made it.
    pub version: String,
    /// What was given beyond the chart's own values.
    pub values: Value,
}

impl Record {
    /// What this command installs.
    pub fn new(values: Value) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            values,
        }
    }

    /// The record in the cluster, if there is one.
    ///
    /// # Errors
    /// The server does not answer, or the record cannot be read.
    pub async fn read(client: &Client) -> Result<Option<Self>, Failure> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let doing = format!("reading ConfigMap {SYSTEM_NAMESPACE}/{NAME}");
        let map = match api.get_opt(NAME).await {
            Err(error) if is_not_found(&error) => None,
            other => other.map_err(|e| failure(&doing, &e))?,
        };
        let Some(map) = map else { return Ok(None) };
        let data = map.data.unwrap_or_default();
        let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
        let values = serde_json::from_str(text("values.json")).map_err(|error| {
            Failure::failed(
                "record_unreadable",
                format!(
                    "{doing}: data[values.json]: {error}; use --reset-values after deleting it"
                ),
            )
        })?;
        Ok(Some(Self {
            version: text("version").to_owned(),
            values,
        }))
    }

    /// The record as an object to apply.
    ///
    /// # Errors
    /// None that could come from outside.
    pub fn item(&self) -> Result<Item, Failure> {
        let labels = json!({
            "app.kubernetes.io/part-of": "karst",
            "app.kubernetes.io/managed-by": "karst",
            "app.kubernetes.io/version": self.version,
        });
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": SYSTEM_NAMESPACE, "labels": labels},
            "data": {"version": self.version, "values.json": self.values.to_string()},
        });
        ordered(vec![object])?
            .pop()
            .ok_or_else(|| Failure::failed("record", "no record was made"))
    }
}
