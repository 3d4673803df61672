//! Asks the kernel, through the pins of a node.

use std::path::Path;

use karst_datapath::{DatapathError, inspect};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// The node to look at: the one named, or the only one there is.
///
/// # Errors
/// None or several.
pub fn node(bpffs_root: &Path, named: Option<&str>) -> Result<String, Failure> {
    if let Some(name) = named {
        return Ok(name.to_owned());
    }
    let mut nodes = inspect::nodes(bpffs_root).map_err(failure)?;
    match (nodes.pop(), nodes.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            let names = format!("{}, {last}", nodes.join(", "));
            Err(Failure::usage(format!(
                "several nodes on this machine ({names}): use --node"
            )))
        }
        (None, _) => {
            let place = bpffs_root.display();
            Err(Failure::not_found(format!(
                "no node has programs pinned under {place}; of another machine name a node (--node NODE), a pod or \
                 waypoint (--pod NAMESPACE/POD), which are reached through the API server, or a waypoint's admin \
                 port (--waypoint, of inspect --waypoint-address)"
            )))
        }
    }
}

/// Programs, as JSON.
pub fn programs(root: &Path, node: &str) -> Result<Value, Failure> {
    value(inspect::programs(root, node))
}

/// Links, as JSON.
pub fn links(root: &Path, node: &str) -> Result<Value, Failure> {
    value(inspect::links(root, node))
}

/// Maps, as JSON.
pub fn maps(root: &Path, node: &str) -> Result<Value, Failure> {
    value(inspect::maps(root, node))
}

/// Enrolled pods, as JSON.
pub fn pods(root: &Path, node: &str) -> Result<Value, Failure> {
    value(inspect::pods(root, node))
}

/// Makes the kernel count runs of programs until the answer is dropped.
pub fn count_runs() -> Result<inspect::RunStats, Failure> {
    inspect::count_runs().map_err(failure)
}

/// The items of a list.
pub fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// Entries of one map, which [`maps`] has shown, as JSON.
///
/// # Errors
/// It is gone, or cannot be read.
pub fn entries(root: &Path, node: &str, map: &Value) -> Result<Value, Failure> {
    let name = map.get("name").and_then(Value::as_str).unwrap_or_default();
    if map.get("pinned").is_some_and(|pin| !pin.is_null()) {
        return value(inspect::dump_map(root, node, name));
    }
    let id = map.get("id").and_then(Value::as_u64);
    let id = id.and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
    let entries = inspect::dump_by_id(id).map_err(failure)?;
    let entries = entries.ok_or_else(|| Failure::not_found(format!("no map with id {id}")))?;
    value(Ok(entries))
}

fn value<T: Serialize>(result: Result<T, DatapathError>) -> Result<Value, Failure> {
    let list = result.map_err(failure)?;
    serde_json::to_value(list).map_err(|e| Failure::failed("json", e.to_string()))
}

/// The error with its causes.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is the argument of map_err"
)]
pub fn failure(error: DatapathError) -> Failure {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Failure::failed(error.reason(), message)
}
