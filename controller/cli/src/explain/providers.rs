//! The providers of CUSTOM policies.

use std::io::Read as _;
use std::path::Path;

use karst_core::ExtensionProviders;
use serde_json::Value;

use crate::cluster::SYSTEM_NAMESPACE;
use crate::failure::Failure;
use crate::source::Input;

/// Most bytes of a mesh configuration: as many as a ConfigMap holds.
const MAX_BYTES: u64 = 1 << 20;

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
        let wrong = |error: String| Failure::failed("mesh_config", format!("{shown}: {error}"));
        let text = read(path).map_err(wrong)?;
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

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let mut limited = file.take(MAX_BYTES + 1);
    limited
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<ExtensionProviders, String> {
    let value = match text.trim() {
        "" => Value::Null,
        text => serde_saphyr::from_str::<Value>(text).map_err(|error| {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().to_owned()
        })?,
    };
    ExtensionProviders::read(&value).map(|(providers, _)| providers)
}
