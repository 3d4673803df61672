//! Who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata};

use crate::workspace::Workspace;

/// Only these may depend on the eBPF libraries: the loader, and what runs in the kernel.
const EBPF_USERS: &[(&str, &[&str])] = &[
    ("karst-datapath", &["aya", "aya-obj", "aya-log"]),
    ("karst-bpf-programs", &["aya-ebpf", "aya-log-ebpf"]),
];

/// Optional dependencies that a feature turns on, for crates that must build without any.
const OPTIONAL_ONLY: (&str, &[&str]) = ("karst-bpf-common", &["aya"]);

/// Folders whose packages may know Kubernetes objects.
const KUBERNETES_USERS: &[&str] = &[
    "controller",
    "controller/core",
    "controller/crds",
    "controller/cli",
];
const KUBERNETES: &[&str] = &[
    "kube",
    "kube-client",
    "kube-core",
    "kube-runtime",
    "k8s-openapi",
];

/// The data plane's programs: they never compile Kubernetes types, and never each other.
const DATA_PLANE: &[&str] = &["karst-node-agent", "karst-waypoint"];

/// One crypto provider, maintained parsers: these may not come in by any path.
const BANNED: &[&str] = &[
    "native-tls",
    "openssl",
    "openssl-sys",
    "reqwest",
    "ring",
    "serde_yaml",
];

/// A declared dependency of a workspace package.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dependency {
    name: String,
    optional: bool,
    /// For tests and examples only.
    dev: bool,
}

/// A package of the workspace.
#[derive(Debug)]
pub struct Package {
    name: String,
    /// Relative to the root.
    folder: String,
    dependencies: Vec<Dependency>,
}

/// What the rules look at.
#[derive(Default, Debug)]
pub struct Graph {
    packages: Vec<Package>,
    /// From each package, ours or not, to what it is compiled with (features resolved, dev
    /// dependencies left out), by name.
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Asks cargo.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let ask = |arguments: &[&str]| -> Result<Vec<u8>> {
            let output = workspace
                .cargo()
                .args(arguments)
                .output()
                .context("starting cargo")?;
            if !output.status.success() {
                bail!(
                    "cargo {} failed: {}",
                    arguments.join(" "),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            Ok(output.stdout)
        };
        let metadata = ask(&["metadata", "--format-version=1", "--no-deps"])?;
        let metadata: Metadata =
            serde_json::from_slice(&metadata).context("reading cargo metadata")?;
        let mut graph = Self::from_metadata(&metadata)?;
        let tree = ask(&[
            "tree",
            "--workspace",
            "--edges=normal,build",
            "--prefix=depth",
            "--format={p}",
        ])?;
        graph.add_edges(&String::from_utf8_lossy(&tree));
        Ok(graph)
    }

    fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let mut graph = Self::default();
        for package in metadata.workspace_packages() {
            let folder = package
                .manifest_path
                .parent()
                .context("a manifest without a folder")?;
            let folder = folder
                .strip_prefix(&metadata.workspace_root)
                .unwrap_or(folder);
            graph.packages.push(Package {
                name: package.name.to_string(),
                folder: folder.to_string(),
                dependencies: package
                    .dependencies
                    .iter()
                    .map(|dependency| Dependency {
                        name: dependency.name.clone(),
                        optional: dependency.optional,
                        dev: dependency.kind == DependencyKind::Development,
                    })
                    .collect(),
            });
        }
        Ok(graph)
    }

    /// Reads the edges from `cargo tree`, whose lines begin with their depth. `cargo metadata` has
    /// a graph too, but with dependencies in it that no enabled feature turns on.
    fn add_edges(&mut self, tree: &str) {
        let mut path: Vec<&str> = Vec::new();
        for line in tree.lines() {
            let digits = line.len() - line.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (depth, rest) = line.split_at(digits);
            let (Ok(depth), Some(name)) = (depth.parse::<usize>(), rest.split(' ').next()) else {
                continue;
            };
            path.truncate(depth);
            if let Some(parent) = path.last() {
                self.edges
                    .entry((*parent).to_owned())
                    .or_default()
                    .insert(name.to_owned());
            }
            self.edges.entry(name.to_owned()).or_default();
            path.push(name);
        }
    }

    /// Everything that `package` is compiled with.
    fn reachable(&self, package: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![package];
        while let Some(name) = open.pop() {
            for next in self.edges.get(name).into_iter().flatten() {
                if seen.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        seen
    }
}

/// Every broken rule.
pub fn problems(graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    for package in &graph.packages {
        problems.extend(
            package
                .dependencies
                .iter()
                .filter_map(|dependency| declared(graph, package, dependency)),
        );
    }
    for program in DATA_PLANE {
        let reachable = graph.reachable(program);
        let never = KUBERNETES
            .iter()
            .chain(DATA_PLANE)
            .filter(|name| *name != program);
        for name in never.filter(|name| reachable.contains(**name)) {
            problems.push(format!(
                "{program} is compiled with {name}, which the data plane must never be"
            ));
        }
    }
    for name in BANNED
        .iter()
        .filter(|name| graph.edges.contains_key(**name))
    {
        let by: Vec<_> = graph
            .edges
            .iter()
            .filter(|(_, to)| to.contains(*name))
            .map(|(from, _)| from.as_str())
            .collect();
        problems.push(format!(
            "{name} is banned, and comes in by {}",
            by.join(", ")
        ));
    }
    problems
}

/// What is wrong with one declared dependency.
fn declared(graph: &Graph, package: &Package, dependency: &Dependency) -> Option<String> {
    let (owner, name) = (&package.name, dependency.name.as_str());
    if let Some((user, _)) = EBPF_USERS.iter().find(|(_, names)| names.contains(&name))
        && owner != user
        && !(owner == OPTIONAL_ONLY.0 && dependency.optional)
    {
        return Some(format!("{owner} depends on {name}; only {user} may"));
    }
    if owner == OPTIONAL_ONLY.0
        && !dependency.dev
        && !(dependency.optional && OPTIONAL_ONLY.1.contains(&name))
    {
        return Some(format!(
            "{owner} depends on {name}; without its feature it must have no dependency"
        ));
    }
    if KUBERNETES.contains(&name)
        && !is_unshipped(&package.folder)
        && !KUBERNETES_USERS.contains(&&*package.folder)
    {
        return Some(format!(
            "{owner} depends on {name}; only the controller may know Kubernetes"
        ));
    }
    let other = graph.packages.iter().find(|other| other.name == name)?;
    if !dependency.dev && is_unshipped(&other.folder) && !is_unshipped(&package.folder) {
        return Some(format!(
            "{owner} ships and depends on {name}, which does not"
        ));
    }
    None
}

/// Whether a folder holds what only developers run.
fn is_unshipped(folder: &str) -> bool {
    folder == "xtask" || folder.starts_with("tests/")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds graphs: packages with declared dependencies, which are also the edges.
    #[derive(Default)]
    struct Build(Graph);

    impl Build {
        fn package(mut self, name: &str, folder: &str, dependencies: &[&str]) -> Self {
            self.0.packages.push(Package {
                name: name.into(),
                folder: folder.into(),
                dependencies: dependencies
                    .iter()
                    .map(|text| Dependency {
                        name: text.trim_start_matches(['?', '~']).into(),
                        optional: text.starts_with('?'),
                        dev: text.starts_with('~'),
                    })
                    .collect(),
            });
            let compiled = dependencies.iter().filter(|text| !text.starts_with('~'));
            let compiled = compiled.map(|text| text.trim_start_matches('?').to_owned());
            self.0
                .edges
                .entry(name.into())
                .or_default()
                .extend(compiled);
            self
        }

        fn problems(self) -> String {
            problems(&self.0).join("\n")
        }
    }

    #[test]
    fn the_intended_shape_is_fine() {
        let problems = Build::default()
            .package("karst-bpf-common", "ebpf/common", &["?aya", "~proptest"])
            .package(
                "karst-bpf-programs",
                "ebpf/programs",
                &["aya-ebpf", "aya-log-ebpf", "karst-bpf-common"],
            )
            .package(
                "karst-datapath",
                "node-agent/datapath",
                &["aya", "aya-log", "karst-bpf-common"],
            )
            .package(
                "karst-node-agent",
                "node-agent",
                &["karst-datapath", "~karst-harness"],
            )
            .package("karst-waypoint", "waypoint", &["clap"])
            .package("karst-core", "controller/core", &["k8s-openapi"])
            .package("karst-harness", "tests/harness", &["k8s-openapi"])
            .package("xtask", "xtask", &["karst-harness"])
            .problems();
        assert_eq!(problems, "");
    }

    #[test]
    fn edges_follow_the_depths_of_the_tree() {
        let mut graph = Graph::default();
        graph.add_edges("0karst-a v0.1.0 (/x)\n1h2 v0.4\n2bytes v1\n1ring v0.17 (*)\n0karst-b v0.1.0 (/y)\n1h2 v0.4 (*)\n");
        assert_eq!(
            graph.reachable("karst-a").into_iter().collect::<Vec<_>>(),
            ["bytes", "h2", "ring"]
        );
        assert_eq!(
            graph.reachable("karst-b").into_iter().collect::<Vec<_>>(),
            ["bytes", "h2"]
        );
        assert!(
            graph.edges.contains_key("bytes"),
            "a package without dependencies is known too"
        );
    }

    #[test]
    fn only_the_datapath_loads_ebpf() {
        let problems = Build::default()
            .package("karst-node-agent", "node-agent", &["aya"])
            .problems();
        assert!(
            problems.contains("karst-node-agent depends on aya"),
            "{problems}"
        );
    }

    #[test]
    fn the_common_crate_has_no_plain_dependency() {
        let aya = Build::default()
            .package("karst-bpf-common", "ebpf/common", &["aya"])
            .problems();
        assert!(aya.contains("only karst-datapath may"), "{aya}");
        let libc = Build::default()
            .package("karst-bpf-common", "ebpf/common", &["libc"])
            .problems();
        assert!(libc.contains("must have no dependency"), "{libc}");
        let optional = Build::default()
            .package("karst-bpf-common", "ebpf/common", &["?libc"])
            .problems();
        assert!(optional.contains("must have no dependency"), "{optional}");
    }

    #[test]
    fn kubernetes_stays_in_the_controller() {
        let problems = Build::default()
            .package("karst-client", "controller/client", &["k8s-openapi"])
            .problems();
        assert!(
            problems.contains("only the controller may know Kubernetes"),
            "{problems}"
        );
    }

    #[test]
    fn the_data_plane_compiles_no_kubernetes_by_any_path() {
        let problems = Build::default()
            .package("karst-core", "controller/core", &["k8s-openapi"])
            .package("karst-client", "controller/client", &["karst-core"])
            .package("karst-node-agent", "node-agent", &["karst-client"])
            .problems();
        assert!(
            problems.contains("karst-node-agent is compiled with k8s-openapi"),
            "{problems}"
        );
    }

    #[test]
    fn agent_and_waypoint_are_apart() {
        let problems = Build::default()
            .package("karst-node-agent", "node-agent", &[])
            .package("karst-waypoint", "waypoint", &["karst-node-agent"])
            .problems();
        assert!(
            problems.contains("karst-waypoint is compiled with karst-node-agent"),
            "{problems}"
        );
    }

    #[test]
    fn what_ships_does_not_need_what_does_not() {
        let problems = Build::default()
            .package("karst-harness", "tests/harness", &[])
            .package("karst-controller", "controller", &["karst-harness"])
            .problems();
        assert!(
            problems.contains("karst-controller ships and depends on karst-harness"),
            "{problems}"
        );
    }

    #[test]
    fn banned_crates_are_found_wherever_they_come_in() {
        let problems = Build::default()
            .package("ring", "elsewhere", &[])
            .package("some-tls", "elsewhere", &["ring"])
            .problems();
        assert!(
            problems.contains("ring is banned, and comes in by some-tls"),
            "{problems}"
        );
    }
}
