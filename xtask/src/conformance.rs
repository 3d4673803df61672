//! `cargo xtask conformance`: the Gateway API's own conformance suite, unchanged, against Karst on a real
//! Kubernetes cluster. Upstream's report is written as upstream writes it.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use karst_api::features::{FEATURES, Support};
use karst_cluster::{Channel, Cluster, ClusterOptions, Lifetime, LoadBalancer, Suite};

use crate::{
    image,
    setup::{self, Need},
    workspace::{Workspace, require_root, say, step},
};

/// Arguments of `conformance`.
#[derive(clap::Args)]
pub struct Args {
    /// Profiles to run, of MESH-HTTP, MESH-GRPC, GATEWAY-HTTP, GATEWAY-GRPC, GATEWAY-TLS and GATEWAY-TCP; all
    /// unless said. Those of the mesh and those of gateways are run apart, with a report each.
    #[arg(long = "profile", value_name = "PROFILE", value_parser = profile)]
    profiles: Vec<String>,
    /// Only this test, by upstream's short name; there is no report then.
    #[arg(long)]
    test: Option<String>,
    /// Stable kinds and fields only; unless said, experimental ones as well.
    #[arg(long)]
    standard: bool,
    /// Folder for the reports; target/conformance by default.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The cluster to run on; one that is up with Karst installed is used as it is.
    #[arg(long, default_value = "conformance")]
    name: String,
    /// Leave the cluster up; `cargo xtask cluster --name conformance down` takes it down.
    #[arg(long)]
    keep: bool,
    /// Use binaries and images as they are, without building them first.
    #[arg(long)]
    no_build: bool,
}

/// Profiles whose traffic is between pods.
const MESH: &[&str] = &["MESH-HTTP", "MESH-GRPC"];

/// Profiles whose traffic comes through a gateway.
const GATEWAY: &[&str] = &["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS", "GATEWAY-TCP"];

/// Namespaces of the suite's mesh tests; each needs a waypoint, which is not upstream's to make.
const MESH_NAMESPACES: [&str; 2] = [
    "gateway-conformance-mesh",
    "gateway-conformance-mesh-consumer",
];

/// Namespaces in which the suite waits for a pod before the first test of a mesh, though such tests use none.
const IDLE_NAMESPACES: [&str; 2] = [
    "gateway-conformance-app-backend",
    "gateway-conformance-web-backend",
];

/// One of the images that the suite brings.
const IDLE_IMAGE: &str = "registry.k8s.io/gateway-api/echo-basic:v1.5.1";

fn profile(name: &str) -> Result<String, String> {
    let known = [MESH, GATEWAY].concat();
    match known.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("profiles are {}", known.join(", "))),
    }
}

/// Brings everything up, runs the suite, and fails if a test does.
pub fn run(args: &Args) -> Result<()> {
    require_root(
        "cargo xtask conformance",
        "makes namespaces, cgroups and mounts",
    )?;
    let workspace = Workspace::locate()?;
    setup::ensure(&workspace, &[Need::Cluster])?;
    if !args.no_build {
        workspace.build_all()?;
        image::pack(&workspace, &image::Args::default(), &workspace.release()?)?;
    }
    let suite = Suite::ensure(&say)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => workspace.target().join("conformance"),
    };
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let cluster = Cluster::up(
        &ClusterOptions {
            lifetime: match args.keep {
                true => Lifetime::UntilDown,
                false => Lifetime::WithCaller,
            },
            ..ClusterOptions::new(&args.name)
        },
        &say,
    )?;
    prepare(&workspace, args, &cluster, &suite)?;
    let _balancer = LoadBalancer::start(&cluster)?;
    let mut failed = Vec::new();
    for (group, of_group) in [("mesh", MESH), ("gateway", GATEWAY)] {
        let wanted: Vec<&str> = of_group
            .iter()
            .copied()
            .filter(|name| args.profiles.is_empty() || args.profiles.iter().any(|one| one == name))
            .collect();
        if !wanted.is_empty() && !run_group(args, &cluster, &suite, (group, &wanted), &out)? {
            failed.push(group);
        }
    }
    list_unsupported();
    ensure!(failed.is_empty(), "tests failed: {}", failed.join(", "));
    Ok(())
}

/// Images, definitions and Karst itself.
fn prepare(workspace: &Workspace, args: &Args, cluster: &Cluster, suite: &Suite) -> Result<()> {
    let channel = match args.standard {
        true => Channel::Standard,
        false => Channel::Experimental,
    };
    say("images into the nodes");
    for image in suite.images()? {
        cluster.add_image(&image)?;
    }
    let images = workspace.target().join("images");
    for name in ["controller", "node-agent", "waypoint"] {
        cluster.import_image(&images.join(format!("{name}.tar")))?;
    }
    say("kinds of the Gateway API");
    for file in Suite::definitions(channel)? {
        let file = file.display().to_string();
        cluster.kubectl(&["apply", "--server-side", "-f", &file])?;
    }
    let program = karst_cluster::binary("karst")?.display().to_string();
    step(
        "install Karst",
        &mut cluster.exec_command(&[
            &program,
            "install",
            "--set",
            "agent.cgroupPath=/sys/fs/cgroup/unified",
            // One proxy a Gateway is enough here, and starts sooner.
            "--set",
            "proxy.minReplicas=1",
        ])?,
    )
}

/// Runs the suite for some profiles. Gives whether all tests passed.
fn run_group(
    args: &Args,
    cluster: &Cluster,
    suite: &Suite,
    (group, profiles): (&str, &[&str]),
    out: &std::path::Path,
) -> Result<bool> {
    let mut labels = "karst.dev/dataplane-mode=ambient".to_owned();
    if group == "mesh" {
        make_waypoints(cluster)?;
        labels += ",karst.dev/use-waypoint=waypoint";
    }
    let features: Vec<&str> = FEATURES
        .iter()
        .filter(|feature| feature.support == Support::Yes && is_of(group, feature.name))
        .map(|feature| feature.name)
        .collect();
    let report = out.join(format!("{group}-report.yaml"));
    let flags = [
        "-test.run=TestConformance".to_owned(),
        "-test.v".to_owned(),
        "-test.timeout=90m".to_owned(),
        "--gateway-class=karst".to_owned(),
        format!("--conformance-profiles={}", profiles.join(",")),
        format!("--supported-features={}", features.join(",")),
        format!("--namespace-labels={labels}"),
        format!("--usable-address={}", LoadBalancer::usable()),
        format!("--unusable-address={}", LoadBalancer::unusable()),
        "--organization=karst".to_owned(),
        "--project=karst".to_owned(),
        "--url=https://karst.dev".to_owned(),
        format!("--version={}", env!("CARGO_PKG_VERSION")),
        "--contact=https://karst.dev".to_owned(),
        match &args.test {
            Some(test) => format!("--run-test={test}"),
            None => format!("--report-output={}", report.display()),
        },
    ];
    let log = out.join(format!("{group}.log"));
    say(&format!(
        "{}: the suite's own words go to {}",
        profiles.join(", "),
        log.display()
    ));
    let program = suite.program.display().to_string();
    let mut argv = vec![program.as_str()];
    argv.extend(flags.iter().map(String::as_str));
    let output = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let status = cluster
        .exec_command(&argv)?
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("starting the suite")?;
    summarise(&fs::read_to_string(&log)?);
    if args.test.is_none() {
        ensure!(
            report.is_file(),
            "the suite wrote no report: see {}",
            log.display()
        );
        println!("{}", report.display());
    }
    Ok(status.success())
}

/// Whether a feature is tried with a group's profiles. Features of the other group would bring its tests
/// along, for which nothing is prepared.
fn is_of(group: &str, feature: &str) -> bool {
    let mesh = feature.starts_with("Mesh");
    match group {
        // What routes can do, the tests of both groups ask for.
        "mesh" => mesh || feature.starts_with("HTTPRoute") || feature.starts_with("GRPCRoute"),
        _ => !mesh,
    }
}

/// A waypoint in each namespace of the mesh tests, before the suite's own objects come.
fn make_waypoints(cluster: &Cluster) -> Result<()> {
    for namespace in MESH_NAMESPACES {
        cluster.apply(&format!(
            "apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: {{karst.dev/dataplane-mode: ambient, karst.dev/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: {namespace}}}
spec:
  gatewayClassName: karst-waypoint
  listeners:
  - {{name: mesh, port: 15008, protocol: HBONE}}
"
        ))?;
    }
    for namespace in IDLE_NAMESPACES {
        cluster.apply(&format!(
            "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: idle, namespace: {namespace}}}
spec:
  containers: [{{name: idle, image: {IDLE_IMAGE}}}]
"
        ))?;
    }
    for namespace in MESH_NAMESPACES {
        let what = ["gateway/waypoint", "-n", namespace];
        cluster
            .wait_for(
                &what,
                "condition=Programmed",
                std::time::Duration::from_secs(120),
            )
            .with_context(|| format!("the waypoint of {namespace}"))?;
    }
    Ok(())
}

/// The outcome of each of the suite's tests, which are subtests of one.
fn summarise(log: &str) {
    let mut passed = 0;
    for line in log.lines().filter_map(|line| line.strip_prefix("    --- ")) {
        match line.split_once(": ") {
            Some(("PASS", _)) => passed += 1,
            Some((outcome, test)) => say(&format!("{outcome} {test}")),
            None => {}
        }
    }
    say(&format!("{passed} tests passed"));
}

fn list_unsupported() {
    println!("not supported:");
    for feature in FEATURES {
        if let Support::No(reason) = feature.support {
            println!("  {}: {reason}", feature.name);
        }
    }
}
