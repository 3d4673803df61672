//! What the user's command says is wrong. A test stages a fault in a scene of its own; how `karst` is run there is
//! all that is asked of the scene, so that the same questions can be put to a lab and to a cluster.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Lab, until};

/// How long a fault may take to be said, and a mesh to be well again.
const SAID_WITHIN: Duration = Duration::from_secs(40);

/// Exit code of `karst inspect diff` where something differs.
const DIFFERS: i32 = 6;

/// Exit code of `karst explain` for a refusal.
const DENIED: i32 = 5;

/// Runs `karst inspect diff` about a node.
type Diff<'a> = Box<dyn Fn(&str) -> Result<Output> + 'a>;

/// Runs `karst explain` with arguments.
type Explain<'a> = Box<dyn Fn(&[&str]) -> Result<Output> + 'a>;

/// Asks `karst`.
pub struct Doctor<'a> {
    diff: Diff<'a>,
    explain: Explain<'a>,
}

impl<'a> Doctor<'a> {
    /// For a scene in which `diff` compares the layers of a node, and `explain` explains, both as JSON.
    pub fn new(
        diff: impl Fn(&str) -> Result<Output> + 'a,
        explain: impl Fn(&[&str]) -> Result<Output> + 'a,
    ) -> Self {
        Self {
            diff: Box::new(diff),
            explain: Box::new(explain),
        }
    }

    /// For a lab.
    pub fn of_lab(lab: &'a Lab) -> Self {
        let manifests = lab.manifests_dir().display().to_string();
        let source = manifests.clone();
        Self::new(
            move |node| lab.inspect(node, &["diff", "--source", &source, "--settle=3", "-j"]),
            move |args| {
                let all = [&["explain"], args, &["--source", &manifests, "-j"]].concat();
                lab.karst(&all)
            },
        )
    }

    /// What differs on a node.
    pub fn differences(&self, node: &str) -> Result<Vec<Value>> {
        let output = (self.diff)(node)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&text).with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("karst inspect diff: {}: {text}{errors}", output.status)
        })?;
        let list = report["differences"].as_array();
        let list = list.with_context(|| format!("no differences in {report}"))?;
        let expected = if list.is_empty() { 0 } else { DIFFERS };
        ensure!(
            output.status.code() == Some(expected),
            "{}: {report}",
            output.status
        );
        Ok(list.clone())
    }

    /// Waits until nothing differs on any of the nodes.
    pub fn healthy(&self, nodes: &[&str]) -> Result<()> {
        until("nothing to differ", SAID_WITHIN, || {
            for node in nodes {
                let found = self.differences(node)?;
                ensure!(found.is_empty(), "on {node}: {}", summary(&found));
            }
            Ok(())
        })
    }

    /// Waits until a difference with this code, whose object contains `object`, is said; gives it.
    pub fn finds(&self, node: &str, code: &str, object: &str) -> Result<Value> {
        self.finds_kept(node, (code, object), || Ok(()))
    }

    /// The same of a fault that the agent mends when it looks next: it is staged again, by `stage`, before each look.
    pub fn finds_kept(
        &self,
        node: &str,
        (code, object): (&str, &str),
        stage: impl Fn() -> Result<()>,
    ) -> Result<Value> {
        until(&format!("{code} {object}"), SAID_WITHIN, || {
            stage()?;
            let found = self.differences(node)?;
            let named = found.iter().find(|one| {
                let text = one["object"].as_str().unwrap_or_default();
                one["code"] == code && text.contains(object)
            });
            named
                .cloned()
                .with_context(|| format!("only {}", summary(&found)))
        })
    }

    /// Waits until no difference with this code is said of an object that contains `object`.
    pub fn finds_no(&self, node: &str, code: &str, object: &str) -> Result<()> {
        until(&format!("no {code} {object}"), SAID_WITHIN, || {
            let mut found = self.differences(node)?;
            found.retain(|one| {
                let text = one["object"].as_str().unwrap_or_default();
                one["code"] == code && text.contains(object)
            });
            ensure!(found.is_empty(), "{}", summary(&found));
            Ok(())
        })
    }

    /// The verdict must be that it is allowed.
    pub fn allows(&self, client: &str, destination: &str) -> Result<()> {
        let explained = self.explain(client, destination)?;
        ensure!(explained["allowed"] == true, "{}", explained["verdict"]);
        Ok(())
    }

    /// The verdict must be a refusal with this reason that names `cause`; gives it.
    pub fn denies(&self, client: &str, destination: &str, why: (&str, &str)) -> Result<Value> {
        let (reason, cause) = why;
        let explained = self.explain(client, destination)?;
        ensure!(explained["allowed"] == false, "{}", explained["verdict"]);
        let hops = explained["hops"].as_array().context("no hops")?;
        let hop = hops.iter().find(|hop| hop["reason"] == reason);
        let hop = hop.with_context(|| format!("no hop refuses with {reason}: {explained}"))?;
        let verdict = explained["verdict"].as_str().unwrap_or_default();
        ensure!(
            verdict.contains(cause) || hop["at"].to_string().contains(cause),
            "{cause} is not named: {explained}"
        );
        Ok(explained)
    }

    fn explain(&self, client: &str, destination: &str) -> Result<Value> {
        let output = (self.explain)(&[client, destination])?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !matches!(output.status.code(), Some(0 | DENIED)) {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("karst explain: {}: {text}{errors}", output.status);
        }
        serde_json::from_str(&text).with_context(|| format!("karst explain says {text}"))
    }
}

fn summary(found: &[Value]) -> String {
    let one = |one: &Value| {
        format!(
            "{} {}: expected {}; found {}",
            one["code"], one["object"], one["expected"], one["found"]
        )
    };
    found.iter().map(one).collect::<Vec<_>>().join(" | ")
}
