//! kubectl as the cluster's administrator.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use karst_harness::host::{self, SEARCH_PATH};
use karst_harness::until;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::lifecycle;
use crate::network::CONTROL;
use crate::paths::Paths;

/// `kubectl`, to be given arguments: in the control plane's network namespace, as administrator.
pub fn command(paths: &Paths) -> Result<Command> {
    let kubectl = paths.bin().join("kubectl").display().to_string();
    user_command(paths, &[&kubectl])
}

/// Any program there, with `kubectl` in its `PATH` and the administrator's configuration.
pub fn user_command(paths: &Paths, argv: &[&str]) -> Result<Command> {
    let mut command = lifecycle::inside(paths, CONTROL, None, argv)?;
    command
        .env("PATH", format!("{}:{}", paths.bin().display(), SEARCH_PATH))
        .env("KUBECONFIG", paths.kubeconfig("admin"))
        .env("HOME", paths.dir())
        .env("KUBECACHEDIR", paths.dir().join("kubectl-cache"));
    Ok(command)
}

impl Cluster {
    /// `kubectl`, to be given arguments and run.
    pub fn kubectl_command(&self) -> Result<Command> {
        command(self.paths())
    }

    /// Any program in the control plane's network namespace, with `kubectl` in its `PATH`.
    pub fn exec_command(&self, argv: &[&str]) -> Result<Command> {
        user_command(self.paths(), argv)
    }

    /// Runs kubectl and gives what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        host::run(command(self.paths())?.args(arguments))
    }

    /// Runs kubectl with `input` on its standard input.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        host::run_with_input(command(self.paths())?.args(arguments), input.as_bytes())
    }

    /// Runs `kubectl get ... -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = command(self.paths())?;
        command.arg("get").args(arguments).args(["-o", "json"]);
        serde_json::from_str(&host::run(&mut command)?).context("reading kubectl's answer")
    }

    /// Applies manifests, server-side.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with_input(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            yaml,
        )
    }

    /// Waits until `kubectl wait --for=CONDITION` (`condition=Ready`, `delete`,
    /// `jsonpath=...`) holds for `what` (`["pod", "-l", "app=x"]`). Objects that do not exist yet
    /// are waited for, too.
    pub fn wait_for(&self, what: &[&str], condition: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        if condition != "delete" {
            until(&format!("{what:?} to exist"), limit, || {
                let mut command = command(self.paths())?;
                let found = host::run(command.arg("get").args(what).args(["-o", "name"]))?;
                ensure!(!found.trim().is_empty(), "there is none");
                Ok(())
            })?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut command = command(self.paths())?;
        command
            .arg("wait")
            .args(what)
            .arg(format!("--for={condition}"))
            .arg(format!("--timeout={}s", left.as_secs().max(1)));
        host::run(&mut command).map(drop)
    }
}
