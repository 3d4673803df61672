//! Programs that are there in Go alone: built from the Go modules of this crate, once, and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use karst_harness::host::run;
use sha2::{Digest, Sha256};

/// The version of Kubernetes that `binaries/go.mod` asks for, told to the programs.
const KUBERNETES_VERSION: &str = "v1.35.4";

/// One Go program.
pub(crate) struct Program {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Its module's folder, and the package in it.
    pub(crate) module: &'static str,
    pub(crate) package: &'static str,
    /// What it is made of.
    pub(crate) source: Source,
    /// How long its first build takes, for people who wait for it.
    pub(crate) takes: &'static str,
}

/// What a program is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A package `main`.
    Main,
    /// The tests of a package.
    Tests,
}

const KUBERNETES: Program = Program {
    name: "kubernetes",
    module: "binaries",
    package: "./cmd/kubernetes",
    source: Source::Main,
    takes: "10 to 25 minutes on two cores, once",
};

const PAUSE: Program = Program {
    name: "pause",
    module: "binaries",
    package: "./cmd/pause",
    source: Source::Main,
    takes: "seconds",
};

pub(crate) const COREDNS: Program = Program {
    name: "coredns",
    module: "dns",
    package: ".",
    source: Source::Main,
    takes: "a few minutes, once",
};

const COLLECTOR: Program = Program {
    name: "otelcol",
    module: "collector",
    package: ".",
    source: Source::Main,
    takes: "a few minutes, once",
};

/// The path of OpenTelemetry's collector, built if need be: it takes OTLP over gRPC and writes what it gets.
///
/// # Errors
/// It cannot be built.
pub fn collector(say: &dyn Fn(&str)) -> Result<PathBuf> {
    COLLECTOR.ensure(say)
}

/// The built programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// etcd, API server, controller manager, scheduler, kubelet, kube-proxy and kubectl in one.
    pub kubernetes: PathBuf,
    /// The program that holds a pod's namespaces.
    pub pause: PathBuf,
    /// The cluster's DNS server.
    pub coredns: PathBuf,
}

impl Binaries {
    /// Builds what is not there yet; `say` is told what is done. Nothing but the compiler's own
    /// folders and `target/tools` is written.
    pub fn ensure(say: &dyn Fn(&str)) -> Result<Self> {
        Ok(Self {
            kubernetes: KUBERNETES.ensure(say)?,
            pause: PAUSE.ensure(say)?,
            coredns: COREDNS.ensure(say)?,
        })
    }
}

impl Program {
    /// The path of the program as the module's files are now, built if need be.
    pub(crate) fn ensure(&self, say: &dyn Fn(&str)) -> Result<PathBuf> {
        let module = crate_dir().join(self.module);
        let tools = tools_dir();
        let path = tools.join(format!("{}-{}", self.name, self.key(&module)?));
        if path.is_file() {
            return Ok(path);
        }
        let go = find_go()?;
        say(&format!("building {} ({})", self.name, self.takes));
        let started = Instant::now();
        fs::create_dir_all(&tools).with_context(|| format!("making {}", tools.display()))?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        download(&go, &module)?;
        let verb: &[&str] = match self.source {
            Source::Main => &["build"],
            Source::Tests => &["test", "-c"],
        };
        let status = go_command(&go, &module)
            .args(verb)
            .args(["-trimpath", "-buildvcs=false", "-tags", "providerless"])
            .args(["-ldflags", &linker_flags()])
            .arg("-o")
            .arg(&temporary)
            .arg(self.package)
            .stdout(std::io::stderr())
            .status()
            .context("starting go")?;
        ensure!(status.success(), "{} does not build ({status})", self.name);
        // Another process may have built it meanwhile: the same program.
        fs::rename(&temporary, &path).with_context(|| format!("making {}", path.display()))?;
        let took = started.elapsed().as_secs();
        say(&format!("building {}: {took} s", self.name));
        Ok(path)
    }

    /// Changes whenever a file of the module, or how it is built, does.
    fn key(&self, module: &Path) -> Result<String> {
        let mut files = Vec::new();
        collect(module, &mut files)?;
        files.sort();
        let mut hash = Sha256::new();
        hash.update(linker_flags());
        for file in files {
            hash.update(file.strip_prefix(module)?.as_os_str().as_encoded_bytes());
            hash.update([0]);
            hash.update(fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
        }
        let digest = hash.finalize();
        Ok(digest
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

/// Names, addresses and line tables of the Kubernetes programs are of no use here; their versions
/// are what they tell each other.
fn linker_flags() -> String {
    let mut flags = "-s -w".to_owned();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        flags += &format!(" -X {package}.gitVersion={KUBERNETES_VERSION}");
    }
    flags += " -X k8s.io/component-base/version.gitMajor=1";
    flags + " -X k8s.io/component-base/version.gitMinor=35"
}

/// Fetches the module's dependencies first, so that a machine without a module proxy is told so
/// and not shown a compiler's errors.
fn download(go: &Path, module: &Path) -> Result<()> {
    let output = go_command(go, module)
        .args(["mod", "download"])
        .output()
        .context("starting go")?;
    if !output.status.success() {
        bail!(
            "the Go modules of {} cannot be fetched; the build needs a module proxy (GOPROXY) that answers, once: {}",
            module.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn go_command(go: &Path, module: &Path) -> Command {
    let mut command = Command::new(go);
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        // The machine's own flags could change what is built.
        .env("GOFLAGS", "-mod=readonly");
    command
}

/// The folder of a dependency's sources.
pub(crate) fn module_dir(module: &str, dependency: &str) -> Result<PathBuf> {
    let (go, module) = (find_go()?, crate_dir().join(module));
    download(&go, &module)?;
    let said = run(go_command(&go, &module).args(["list", "-m", "-f", "{{.Dir}}", dependency]))?;
    Ok(PathBuf::from(said.trim()))
}

/// Fails, saying what to do, where there is no Go compiler; gives its version.
pub fn check_go() -> Result<String> {
    let mut command = Command::new(find_go()?);
    // Never another compiler that it would have to fetch.
    command.arg("version").env("GOTOOLCHAIN", "local");
    let said = run(&mut command)?;
    let version = said.split_whitespace().nth(2).unwrap_or("go of no version");
    Ok(version.to_owned())
}

/// The Go compiler, wherever `PATH` or its own installer put it.
fn find_go() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/local/go/bin")])
        .map(|dir| dir.join("go"))
        .find(|candidate| candidate.is_file())
        .context(
            "the test cluster's Kubernetes is built from Go modules, and there is no Go compiler: \
             install Go 1.26 or newer (https://go.dev/dl) so that `go` is in PATH",
        )
}

fn crate_dir() -> PathBuf {
    // Inside a moved clone cargo tells where the crate is now; only this crate's own tests are
    // told this crate's folder.
    let built_at = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let told = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let moved = told.into_iter().flat_map(|dir| {
        let beside = dir.parent().map(|root| root.join("tests/cluster"));
        [Some(dir), beside]
    });
    moved
        .flatten()
        .find(|dir| dir.join("binaries/go.mod").is_file())
        .unwrap_or(built_at)
}

/// In the clone, so that the programs need not be built again for another `CARGO_TARGET_DIR`.
fn tools_dir() -> PathBuf {
    crate_dir().join("../../target/tools")
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_is_told_is_the_one_that_is_built() {
        let text = fs::read_to_string(crate_dir().join("binaries/go.mod")).unwrap();
        assert!(text.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}\n")));
    }

    #[test]
    fn another_source_is_another_program() {
        let dir = std::env::temp_dir().join(format!("karst-key-{}", std::process::id()));
        fs::create_dir_all(dir.join("cmd")).unwrap();
        fs::write(dir.join("cmd/main.go"), "package main").unwrap();
        let before = PAUSE.key(&dir).unwrap();
        assert_eq!(before, PAUSE.key(&dir).unwrap());
        fs::write(dir.join("cmd/main.go"), "package other").unwrap();
        assert_ne!(before, PAUSE.key(&dir).unwrap());
        fs::remove_dir_all(dir).unwrap();
    }
}
