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
                "no node has programs pinned under {place}"
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

/// Entries of one map, as JSON.
///
/// # Errors
/// There is no such map on the node.
pub fn entries(root: &Path, node: &str, map: &str) -> Result<Value, Failure> {
    let maps = inspect::maps(root, node).map_err(failure)?;
    let Some(info) = maps.iter().find(|m| m.name.eq_ignore_ascii_case(map)) else {
        let names: Vec<_> = maps.iter().map(|m| m.name.as_str()).collect();
        let message = format!("no map '{map}' on {node}: there are {}", names.join(", "));
        return Err(Failure::not_found(message));
    };
    value(inspect::dump_map(root, node, &info.name))
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
