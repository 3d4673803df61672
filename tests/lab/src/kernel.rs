//! What a node's kernel holds of the mesh, by the user's own command.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::world::World;

/// What `karst inspect` shows of the kernel, less what counts or names a program's load.
pub fn kernel_view(world: &World, node: &str) -> Result<(Value, Value)> {
    let show = |what: &str| -> Result<Value> {
        let output = world.lab.inspect(node, &[what, "show", "-j"])?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let mut links = show("link")?;
    for link in links.as_array_mut().context("links are no list")? {
        let fields = link.as_object_mut().context("a link is no object")?;
        // A new agent brings its own programs; the links stay and are pointed at them.
        fields.remove("prog_id");
    }
    let mut pods = show("pod")?;
    for pod in pods.as_array_mut().context("pods are no list")? {
        let fields = pod.as_object_mut().context("a pod is no object")?;
        // What the agent knows beyond the kernel, and only while it lives.
        for field in ["connections", "identity", "name", "namespace"] {
            fields.remove(field);
        }
    }
    Ok((links, pods))
}

/// No hook of the node's cgroup has two programs of ours.
pub fn once_attached(world: &World, node: &str) -> Result<()> {
    let output = world.lab.inspect(node, &["link", "show", "-j"])?;
    let links: Value = serde_json::from_slice(&output.stdout)?;
    let mut hooks = BTreeMap::new();
    for link in links.as_array().context("links are no list")? {
        let hook = format!(
            "{} {} {} {}",
            link["attach_type"], link["cgroup_id"], link["netns_ino"], link["ifindex"]
        );
        *hooks.entry(hook).or_insert(0) += 1;
    }
    ensure!(
        hooks.values().all(|count| *count == 1),
        "attached twice: {hooks:?}"
    );
    Ok(())
}
