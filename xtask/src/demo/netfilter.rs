//! Counts packet filter rules, to show that the mesh adds none.

use std::process::Command;

use anyhow::{Context, Result, bail};
use karst_harness::Lab;

/// The rules in the machine's own namespace and in every node's and pod's.
pub fn rules(lab: &Lab) -> Result<usize> {
    let status = lab.status()?;
    let nodes = status.nodes.iter().map(|node| &node.netns);
    let pods = status.pods.iter().map(|pod| &pod.netns);
    let mut rules = in_namespace(None)?;
    for netns in nodes.chain(pods) {
        rules += in_namespace(Some(netns))?;
    }
    Ok(rules)
}

/// The nftables rules of a namespace, and its legacy iptables tables, which nft does not show.
fn in_namespace(netns: Option<&str>) -> Result<usize> {
    let ruleset = output(netns, &["nft", "-j", "list", "ruleset"])?;
    // Each file is there only once its kernel module is; no file, no table.
    let tables = output(
        netns,
        &[
            "sh",
            "-c",
            "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null; true",
        ],
    )?;
    Ok(count_rules(&ruleset)? + tables.lines().count())
}

fn output(netns: Option<&str>, argv: &[&str]) -> Result<String> {
    let inside = netns.map(|netns| ["ip", "netns", "exec", netns]);
    let mut words = inside.iter().flatten().chain(argv);
    let mut command = Command::new(words.next().context("no command")?);
    let output = command
        .args(words)
        .output()
        .with_context(|| format!("starting {}", argv.join(" ")))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            argv.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn count_rules(ruleset: &str) -> Result<usize> {
    let ruleset: serde_json::Value =
        serde_json::from_str(ruleset).context("reading nft's answer")?;
    let objects = ruleset["nftables"]
        .as_array()
        .context("nft's answer has no list of objects")?;
    Ok(objects
        .iter()
        .filter(|object| object.get("rule").is_some())
        .count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_rules_and_nothing_else() {
        let ruleset = r#"{"nftables": [{"metainfo": {}}, {"table": {}}, {"chain": {}}, {"rule": {}}, {"rule": {}}]}"#;
        assert_eq!(count_rules(ruleset).unwrap(), 2);
        assert!(count_rules("{}").is_err());
    }
}
