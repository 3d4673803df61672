//! Programs from Debian's packages: which are missing, and how they are installed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::Need;
use crate::workspace::{find_program, require_root, say, step};

/// A program that we run, and the Debian package that brings it.
struct Tool {
    program: &'static str,
    package: &'static str,
    need: Need,
}

const fn tool(program: &'static str, package: &'static str, need: Need) -> Tool {
    Tool {
        program,
        package,
        need,
    }
}

/// A program that two needs share is listed for both.
const TOOLS: &[Tool] = &[
    tool("make", "make", Need::Toolchain),
    tool("ip", "iproute2", Need::Lab),
    tool("mount", "mount", Need::Lab),
    // What `karst inspect` is compared with, and what checks its JSON against the schemas.
    tool("bpftool", "bpftool", Need::Lab),
    tool("jsonschema", "python3-jsonschema", Need::Lab),
    tool("tmux", "tmux", Need::Lab),
    tool("nginx", "nginx-light", Need::Demo),
    tool("redis-server", "redis-server", Need::Demo),
    tool("redis-cli", "redis-tools", Need::Demo),
    tool("curl", "curl", Need::Demo),
    tool("tcpdump", "tcpdump", Need::Demo),
    tool("tcpdump", "tcpdump", Need::Cluster),
    tool("pkill", "procps", Need::Cluster),
    tool("nft", "nftables", Need::Demo),
    tool("nginx", "nginx-light", Need::Bench),
    tool("wrk", "wrk", Need::Bench),
    tool("iperf3", "iperf3", Need::Bench),
    tool("h2load", "nghttp2-client", Need::Bench),
    tool("pip3", "python3-pip", Need::Bench),
    tool("curl", "curl", Need::Bench),
    tool("npm", "npm", Need::Helm),
    tool("unzip", "unzip", Need::Helm),
    tool("prometheus", "prometheus", Need::Prometheus),
    tool("promtool", "prometheus", Need::Prometheus),
    tool("curl", "curl", Need::Prometheus),
    tool("ip", "iproute2", Need::Cluster),
    tool("mount", "mount", Need::Cluster),
    tool("nft", "nftables", Need::Cluster),
    tool("containerd", "containerd", Need::Cluster),
    tool("runc", "runc", Need::Cluster),
    // The package brings no program of its own that is in `PATH`.
    tool(
        "/usr/lib/cni/bridge",
        "containernetworking-plugins",
        Need::Cluster,
    ),
];

/// Where Debian's maintainer scripts ask whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the packages of the programs that `needs` want and that are not there.
pub fn ensure(needs: &[Need], found: &mut Vec<String>) -> Result<()> {
    let missing = missing(needs, |program| find_program(program).is_some());
    if !missing.is_empty() {
        install(&missing)?;
        if let Some(tool) = wanted(needs).find(|tool| find_program(tool.program).is_none()) {
            bail!(
                "package {} is installed, but its program {} is not to be found",
                tool.package,
                tool.program
            );
        }
    }
    found.push(format!("{} programs", wanted(needs).count()));
    Ok(())
}

/// Installs Debian packages without starting what they bring.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "missing, and there is no apt-get to install them with; install by hand what these Debian packages hold: {list}"
        );
    }
    require_root(
        "installing packages",
        &format!("runs apt-get install {list}"),
    )?;
    say(&format!(
        "setup: as root, installing with apt-get: {list} (their services are not started)"
    ));
    let _held = HeldServices::hold(Path::new(POLICY))?;
    step("apt-get update", apt().args(["update", "-qq"]))?;
    step(
        &format!("apt-get install {list}"),
        apt()
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn wanted(needs: &[Need]) -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(|tool| needs.contains(&tool.need))
}

/// The packages to install, each once, for the programs that `is_there` does not know.
fn missing(needs: &[Need], is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> = wanted(needs)
        .filter(|tool| !is_there(tool.program))
        .map(|tool| tool.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Forbids maintainer scripts to start services until dropped. A policy that the machine already
/// has is its owner's and stays as it is.
struct HeldServices {
    written: Option<PathBuf>,
}

impl HeldServices {
    fn hold(policy: &Path) -> Result<Self> {
        if policy.exists() {
            return Ok(Self { written: None });
        }
        // 101 is invoke-rc.d's "action forbidden by policy".
        fs::write(policy, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("writing {}", policy.display()))?;
        let held = Self {
            written: Some(policy.to_path_buf()),
        };
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", policy.display()))?;
        Ok(held)
    }
}

impl Drop for HeldServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.written
            && let Err(error) = fs::remove_file(policy)
        {
            say(&format!(
                "setup: remove {} by hand: {error}",
                policy.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missing_when_every_program_is_there() {
        assert!(missing(super::super::ALL, |_| true).is_empty());
    }

    #[test]
    fn a_package_that_two_needs_share_is_installed_once() {
        let packages = missing(&[Need::Demo, Need::Bench], |program| program != "nginx");
        assert_eq!(packages, ["nginx-light"]);
    }

    #[test]
    fn only_what_was_asked_for_is_installed() {
        assert_eq!(
            missing(&[Need::Bench], |_| false),
            [
                "curl",
                "iperf3",
                "nghttp2-client",
                "nginx-light",
                "python3-pip",
                "wrk"
            ]
        );
        assert_eq!(missing(&[Need::Toolchain], |_| false), ["make"]);
    }

    #[test]
    fn services_are_held_back_and_released() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        let held = HeldServices::hold(&policy).unwrap();
        assert_eq!(
            fs::metadata(&policy).unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert!(fs::read_to_string(&policy).unwrap().contains("exit 101"));
        drop(held);
        assert!(!policy.exists());
    }

    #[test]
    fn the_machines_own_policy_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        drop(HeldServices::hold(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
    }
}
