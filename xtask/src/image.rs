//! `cargo xtask image`: OCI images of what ships, without a container engine.
//!
//! Each image is built from nothing: static binaries, a list of what they are made of (SBOM), and a
//! user that is not root where none is needed. The same sources give the same bytes: times, owners
//! and order in the archives are fixed. The result is a tar of an OCI layout, as `ctr images import`
//! and `skopeo copy oci-archive:` take it. Start with [`run`]; [`layout`] writes, [`sbom`] lists.

mod layout;
mod sbom;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{Workspace, say};

use layout::{Entry, Image};

/// Arguments of `image`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Folder for the archives; target/images by default.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tag of the images; the workspace's version by default.
    #[arg(long)]
    tag: Option<String>,
    /// Only these images (controller, node-agent, waypoint, cli).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Of the binaries that the tests use: built minutes sooner, larger and slower. For a cluster to play with.
    #[arg(long)]
    quick: bool,
}

/// Registry part of the images' names, as in the chart's `image.registry`.
const REGISTRY: &str = "karst.dev";

/// The user of images that need no root: the number that others use for "nonroot", too.
const NON_ROOT: &str = "65532:65532";

/// An image, and what is in it.
struct Recipe {
    name: &'static str,
    title: &'static str,
    /// Package, and binary of it, in the image's root. The first one is what the image runs.
    binaries: &'static [(&'static str, &'static str)],
    user: &'static str,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "controller",
        title: "Karst controller",
        binaries: &[("karst-controller", "karst-controller")],
        user: NON_ROOT,
    },
    Recipe {
        name: "node-agent",
        title: "Karst node agent",
        // The agent copies the CNI plugin to the node from beside itself. `karst inspect` is run there from afar:
        // what is in the kernel needs root on the node.
        binaries: &[
            ("karst-node-agent", "karst-node-agent"),
            ("karst-cni", "karst-cni"),
            ("karst", "karst"),
        ],
        // It loads eBPF programs and enters network namespaces; the chart says with which capabilities.
        user: "0:0",
    },
    Recipe {
        name: "waypoint",
        title: "Karst waypoint",
        binaries: &[("karst-waypoint", "karst-waypoint")],
        user: NON_ROOT,
    },
    Recipe {
        name: "cli",
        title: "karst, the command line of Karst",
        binaries: &[("karst", "karst")],
        user: NON_ROOT,
    },
];

/// Builds the binaries and writes the archives.
pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let recipes = chosen(&args.only)?;
    let binaries = if args.quick {
        workspace.build_all()?;
        workspace.release()?
    } else {
        let programs = recipes.iter().flat_map(|recipe| recipe.binaries);
        workspace.build_dist(programs.map(|(_, binary)| *binary))?
    };
    pack(&workspace, args, &binaries)?;
    say("import with: ctr -n k8s.io images import FILE");
    Ok(())
}

/// Writes the archives from `binaries`, which are built already; returns their folder.
pub fn pack(workspace: &Workspace, args: &Args, binaries: &Path) -> Result<PathBuf> {
    let recipes = chosen(&args.only)?;
    let target = host_target()?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => workspace.target().join("images"),
    };
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let packages = sbom::Packages::read(workspace)?;
    let version = packages.version("karst-controller")?;
    let revision = revision(workspace);
    for recipe in recipes {
        let entries = entries(recipe, binaries, &packages, &target)?;
        let tag = args.tag.as_deref().unwrap_or(&version);
        let image = Image {
            name: format!("{REGISTRY}/{}:{tag}", recipe.name),
            architecture: architecture(&target)?,
            user: recipe.user,
            entrypoint: format!("/{}", recipe.binaries[0].1),
            labels: labels(recipe, &version, &revision),
            entries,
        };
        let file = out.join(format!("{}.tar", recipe.name));
        let archive = layout::archive(&image)?;
        fs::write(&file, &archive.bytes).with_context(|| format!("writing {}", file.display()))?;
        println!(
            "{}  {}  {:.1} MB unpacked, {:.1} MB packed  {}",
            image.name,
            archive.digest,
            megabytes(archive.unpacked),
            megabytes(archive.bytes.len()),
            file.display()
        );
    }
    Ok(out)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "shown with one digit after the point"
)]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn chosen(only: &[String]) -> Result<Vec<&'static Recipe>> {
    for name in only {
        ensure!(
            RECIPES.iter().any(|recipe| recipe.name == name),
            "there is no image {name:?}; there are controller, node-agent, waypoint and cli"
        );
    }
    Ok(RECIPES
        .iter()
        .filter(|recipe| only.is_empty() || only.iter().any(|name| name == recipe.name))
        .collect())
}

/// The target that this compiler builds for: named, so that the flags for static binaries do not
/// reach build scripts and macros.
fn host_target() -> Result<String> {
    let output = Command::new("rustc")
        .args(["-vV"])
        .output()
        .context("asking rustc for its host")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not say its host")
}

fn architecture(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        other => bail!("no images for the architecture {other:?}"),
    }
}

/// The binary without debug information, which would double the images; symbols stay for backtraces.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let copy = path.with_extension("stripped");
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([&copy, path])
        .status()
        .context("starting strip (Debian package binutils)")?;
    ensure!(
        status.success(),
        "strip {} failed ({status})",
        path.display()
    );
    let bytes = fs::read(&copy).with_context(|| format!("reading {}", copy.display()))?;
    fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))?;
    Ok(bytes)
}

fn entries(
    recipe: &Recipe,
    binaries: &Path,
    packages: &sbom::Packages,
    target: &str,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (package, binary) in recipe.binaries {
        let path = binaries.join(binary);
        ensure!(
            path.is_file(),
            "image {} needs the binary {binary} of package {package}, which was not built to {}",
            recipe.name,
            path.display()
        );
        let bytes = stripped(&path)?;
        ensure_static(&bytes).with_context(|| path.display().to_string())?;
        entries.push(Entry::file(binary, 0o755, bytes));
    }
    let roots: Vec<&str> = recipe
        .binaries
        .iter()
        .map(|(package, _)| *package)
        .collect();
    let sbom = sbom::document(recipe.name, &packages.of(&roots, target)?)?;
    entries.push(Entry::file("sbom.json", 0o644, sbom));
    // What programs expect of any root: a place for temporary files, and mount points.
    for folder in ["etc", "proc", "sys", "tmp", "var/run"] {
        entries.push(Entry::folder(folder));
    }
    Ok(entries)
}

/// An ELF file without an interpreter: nothing would be there to load its libraries.
fn ensure_static(bytes: &[u8]) -> Result<()> {
    /// Type of the program header that names the dynamic loader.
    const PT_INTERP: [u8; 4] = 3_u32.to_le_bytes();
    let number = |at: usize, size: usize| -> Result<usize> {
        let field = bytes.get(at..at + size).context("not an ELF file")?;
        Ok(field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    ensure!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in (0..count).map(|index| start + index * size) {
        ensure!(
            bytes.get(header..header + 4) != Some(&PT_INTERP),
            "is linked dynamically, and the image has no libraries"
        );
    }
    Ok(())
}

fn labels(recipe: &Recipe, version: &str, revision: &str) -> Vec<(&'static str, String)> {
    vec![
        ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
        ("org.opencontainers.image.revision", revision.to_owned()),
        ("org.opencontainers.image.title", recipe.title.to_owned()),
        ("org.opencontainers.image.version", version.to_owned()),
    ]
}

/// The commit that is built; marked when there are changes beside it.
fn revision(workspace: &Workspace) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(workspace.root())
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    match git(&["rev-parse", "HEAD"]) {
        None => "unknown".to_owned(),
        Some(commit) => match git(&["status", "--porcelain"]) {
            Some(changes) if changes.is_empty() => commit,
            _ => format!("{commit}-dirty"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap().len(), RECIPES.len());
        assert_eq!(chosen(&["cli".to_owned()]).unwrap()[0].name, "cli");
        assert!(chosen(&["nope".to_owned()]).is_err());
    }

    /// An ELF header and one program header of type `kind`.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[32], bytes[54], bytes[56]) = (64, 56, 1);
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn dynamic_binaries_are_refused() {
        ensure_static(&elf(1)).unwrap();
        let error = ensure_static(&elf(3)).unwrap_err().to_string();
        assert!(error.contains("dynamically"), "{error}");
        assert!(ensure_static(b"#!/bin/sh\n").is_err());
        assert!(ensure_static(b"\x7fELF\x02\x01").is_err());
    }

    #[test]
    fn only_the_agent_runs_as_root() {
        for recipe in RECIPES {
            assert_eq!(
                recipe.user == "0:0",
                recipe.name == "node-agent",
                "{}",
                recipe.name
            );
        }
    }
}
