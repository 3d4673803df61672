//! What an image is made of, as a CycloneDX document: every crate that is compiled into its
//! binaries, with version, licence and the hash that `Cargo.lock` has of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, PackageId};
use serde_json::{Value, json};

use crate::workspace::Workspace;

/// Cargo's view of the workspace.
pub struct Packages {
    metadata: Metadata,
    /// Name and version to the hash of the crate's archive.
    checksums: BTreeMap<(String, String), String>,
}

/// A crate in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    name: String,
    version: String,
    license: Option<String>,
    checksum: Option<String>,
}

impl Packages {
    /// Asks cargo, for this machine's target only.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let output = workspace
            .cargo()
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform",
            ])
            .arg(super::host_target()?)
            .output()
            .context("starting cargo metadata")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let lock = workspace.root().join("Cargo.lock");
        let lock =
            fs::read_to_string(&lock).with_context(|| format!("reading {}", lock.display()))?;
        Ok(Self {
            metadata: serde_json::from_slice(&output.stdout).context("reading cargo metadata")?,
            checksums: checksums(&lock),
        })
    }

    /// The version of a package of the workspace.
    pub fn version(&self, name: &str) -> Result<String> {
        let package = self
            .metadata
            .packages
            .iter()
            .find(|package| package.name.as_str() == name)
            .with_context(|| format!("there is no package {name}"))?;
        Ok(package.version.to_string())
    }

    /// What `roots` are compiled from: their normal dependencies, all the way down.
    pub fn of(&self, roots: &[&str], target: &str) -> Result<BTreeSet<Component>> {
        let graph = self
            .metadata
            .resolve
            .as_ref()
            .with_context(|| format!("cargo metadata has no graph for {target}"))?;
        let edges: BTreeMap<&PackageId, Vec<&PackageId>> = graph
            .nodes
            .iter()
            .map(|node| {
                let normal = node.deps.iter().filter(|dependency| {
                    let mut kinds = dependency.dep_kinds.iter();
                    kinds.any(|kind| kind.kind == DependencyKind::Normal)
                });
                (&node.id, normal.map(|dependency| &dependency.pkg).collect())
            })
            .collect();
        let packages: BTreeMap<_, _> = self.metadata.packages.iter().map(|p| (&p.id, p)).collect();
        let mut open: Vec<&PackageId> = Vec::new();
        for root in roots {
            let mut members = self.metadata.workspace_packages().into_iter();
            let package = members
                .find(|package| package.name.as_str() == *root)
                .with_context(|| format!("there is no package {root}"))?;
            open.push(&package.id);
        }
        let mut seen = BTreeSet::new();
        let mut components = BTreeSet::new();
        while let Some(id) = open.pop() {
            let Some(package) = packages.get(id).filter(|_| seen.insert(id)) else {
                continue;
            };
            // Macros run in the compiler and leave nothing of themselves in the binary.
            if package.targets.iter().any(|target| target.is_proc_macro()) {
                continue;
            }
            let key = (package.name.to_string(), package.version.to_string());
            components.insert(Component {
                license: package.license.clone(),
                checksum: self.checksums.get(&key).cloned(),
                name: key.0,
                version: key.1,
            });
            open.extend(edges.get(id).into_iter().flatten());
        }
        Ok(components)
    }
}

/// The `[[package]]` entries of a lock file that have a checksum.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.trim().strip_prefix('=')?.trim();
            Some(value.trim_matches('"').to_owned())
        })
    };
    lock.split("[[package]]")
        .filter_map(|block| {
            let key = (field(block, "name")?, field(block, "version")?);
            Some((key, field(block, "checksum")?))
        })
        .collect()
}

/// The document, with a newline at its end. It has neither time nor serial number: those would make
/// every build another one.
pub fn document(image: &str, components: &BTreeSet<Component>) -> Result<Vec<u8>> {
    let components: Vec<Value> = components.iter().map(component).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": format!("karst/{image}")}},
        "components": components,
    });
    let mut text = serde_json::to_vec_pretty(&document).context("writing the SBOM")?;
    text.push(b'\n');
    Ok(text)
}

fn component(component: &Component) -> Value {
    let Component {
        name,
        version,
        license,
        checksum,
    } = component;
    let purl = format!("pkg:cargo/{name}@{version}");
    let mut value = json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    });
    if let Some(fields) = value.as_object_mut() {
        if let Some(license) = license {
            // Cargo allows a slash where SPDX has "OR".
            let expression = license.replace('/', " OR ");
            fields.insert("licenses".to_owned(), json!([{"expression": expression}]));
        }
        if let Some(checksum) = checksum {
            let hashes = json!([{"alg": "SHA-256", "content": checksum}]);
            fields.insert("hashes".to_owned(), hashes);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\n\
                        checksum = \"abc\"\ndependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\n";

    #[test]
    fn checksums_are_those_of_the_lock_file() {
        let found = checksums(LOCK);
        assert_eq!(found.len(), 1);
        assert_eq!(found[&("a".to_owned(), "1.0.0".to_owned())], "abc");
    }

    #[test]
    fn a_document_names_every_crate() {
        let components = BTreeSet::from([Component {
            name: "a".to_owned(),
            version: "1.0.0".to_owned(),
            license: Some("MIT/Apache-2.0".to_owned()),
            checksum: Some("abc".to_owned()),
        }]);
        let text = document("x", &components).unwrap();
        let value: Value = serde_json::from_slice(&text).unwrap();
        let component = &value["components"][0];
        assert_eq!(component["purl"], "pkg:cargo/a@1.0.0");
        assert_eq!(component["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(component["hashes"][0]["content"], "abc");
    }

    #[test]
    fn an_image_lists_what_it_is_compiled_from() {
        let workspace = Workspace::locate().unwrap();
        let packages = Packages::read(&workspace).unwrap();
        let components = packages.of(&["karst-controller"], "x").unwrap();
        let has = |name: &str| components.iter().any(|component| component.name == name);
        assert!(has("karst-controller") && has("karst-core") && has("tokio"));
        assert!(!has("aya"), "the controller loads no eBPF");
        assert!(!has("serde_derive"), "macros are not in the binary");
        assert!(
            !has("tempfile"),
            "what only tests need is not in the binary"
        );
        assert!(packages.of(&["nope"], "x").is_err());
    }
}
