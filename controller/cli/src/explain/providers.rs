//! The providers of CUSTOM policies.

use std::path::Path;

use karst_core::{ExtensionProviders, MAX_MESH_CONFIG_BYTES};
use serde_json::Value;

use crate::cluster::SYSTEM_NAMESPACE;
use crate::failure::Failure;
use crate::input;
use crate::source::Input;

/// The ConfigMap that the controller mounts, and its key.
const CONFIG_MAP: &str = "karst-mesh-config";
const KEY: &str = "mesh";

/// The providers of a file, else of the ConfigMap among the objects; `None`: there is neither.
///
/// # Errors
/// The configuration cannot be read, or is none.
pub fn find(file: Option<&Path>, input: &Input) -> Result<Option<ExtensionProviders>, Failure> {
    if let Some(path) = file {
        let shown = path.display().to_string();
        let wrong = |error: String| Failure::failed("mesh_config", format!("{shown} {error}"));
        let text = input::text(path, MAX_MESH_CONFIG_BYTES).map_err(wrong)?;
        return parse(&text).map(Some).map_err(wrong);
    }
    let is_ours = |value: &&Value| {
        let of = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        of("/kind") == Some("ConfigMap")
            && of("/metadata/name") == Some(CONFIG_MAP)
            && of("/metadata/namespace") == Some(SYSTEM_NAMESPACE)
    };
    let found = input.documents.iter().map(|one| &one.value).find(is_ours);
    let Some(map) = found else {
        return Ok(None);
    };
    let text = map["data"][KEY].as_str().unwrap_or_default();
    let wrong = |error| Failure::failed("mesh_config", format!("ConfigMap {CONFIG_MAP}: {error}"));
    parse(text).map(Some).map_err(wrong)
}

fn parse(text: &str) -> Result<ExtensionProviders, String> {
    ExtensionProviders::parse(text).map(|(providers, _)| providers)
}
