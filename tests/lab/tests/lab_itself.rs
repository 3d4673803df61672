//! The lab as its users meet it: it reconciles, stays within itself, and leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, LabOptions, Mesh, until};
use karst_lab_tests::manifest;

fn name(tag: &str) -> String {
    format!("t{}_{tag}", std::process::id())
}

fn up(name: &str) -> Result<Lab> {
    Lab::up(LabOptions {
        mesh: Mesh::Off,
        ..LabOptions::new(name)
    })
}

/// What is left of a lab on this machine, by its name in paths.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for dir in [
        "/run/netns",
        "/run/karst-lab",
        "/sys/fs/bpf/karst-lab",
        "/sys/fs/cgroup/unified/karst-lab",
        "/sys/fs/cgroup/karst-lab",
    ] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.to_string_lossy().contains(name) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}

#[test]
fn a_second_up_reconciles_and_restarts_nothing() -> Result<()> {
    let name = name("again");
    let lab = up(&name)?;
    lab.apply(&manifest("a", "pod", "node1", "default", "serve"))?;
    let pid = |lab: &Lab| Ok::<_, anyhow::Error>(lab.status()?.pods.first().context("no pod")?.pid);
    let before = pid(&lab)?;
    let again = up(&name)?;
    again.apply(&manifest("a", "pod", "node1", "default", "serve"))?;
    ensure!(
        before.is_some() && pid(&again)? == before,
        "the pod was restarted"
    );
    drop(again);
    Ok(())
}

#[test]
fn two_labs_live_side_by_side_with_the_same_addresses() -> Result<()> {
    let (one, two) = (up(&name("one"))?, up(&name("two"))?);
    for lab in [&one, &two] {
        lab.apply(&manifest("a", "server", "node2", "default", "serve"))?;
        lab.apply(&manifest("a", "client", "node1", "default", "wait"))?;
    }
    let address = one.pod_addresses("a/server")?;
    ensure!(
        address == two.pod_addresses("a/server")?,
        "the address plan is not the same"
    );
    two.delete_pod("a/server")?;
    let http = format!("{}:8080", address.first().context("no address")?);
    one.exec_ok("a/client", &["karst-testapp", "http", &http])?;
    let gone = two.exec(
        "a/client",
        &["karst-testapp", "connect", &http, "--limit-ms", "300"],
    )?;
    ensure!(!gone.status.success(), "lab two reached a pod of lab one");
    Ok(())
}

#[test]
fn down_leaves_nothing_even_without_its_record() -> Result<()> {
    let name = name("crash");
    let lab = up(&name)?;
    lab.apply(&manifest("a", "pod", "node1", "default", "serve"))?;
    ensure!(
        !traces(&name)?.is_empty(),
        "this test looks in the wrong places"
    );
    fs::remove_file(lab.dir().join("state.json"))?;
    lab.down()?;
    let left = traces(&name)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
fn a_lab_ends_with_the_process_that_made_it() -> Result<()> {
    // This test runs itself as the process that dies.
    const CHILD: &str = "KARST_LAB_TEST_CHILD";
    if let Ok(name) = std::env::var(CHILD) {
        let lab = up(&name)?;
        lab.apply(&manifest("a", "pod", "node1", "default", "serve"))?;
        // Aborting runs no destructor, as a kill would not either.
        std::process::abort();
    }
    let name = name("guard");
    let status = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_lab_ends_with_the_process_that_made_it"])
        .env(CHILD, &name)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(!status.success(), "the child did not die");
    until("the guard to clean up", Duration::from_secs(30), || {
        let left = traces(&name)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    })
}

#[test]
fn service_names_follow_the_services_in_running_pods() -> Result<()> {
    let lab = up(&name("names"))?;
    lab.apply(&manifest("a", "server", "node2", "default", "serve"))?;
    lab.apply(&manifest("a", "client", "node1", "default", "wait"))?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\n\
                   spec: {clusterIP: None, selector: {app: server}, ports: [{port: 8080}]}\n";
    let unknown = lab.exec("a/client", &["getent", "hosts", "web.a"])?;
    ensure!(
        !unknown.status.success(),
        "the name is known before its Service"
    );
    lab.apply(service)?;
    for name in ["web", "web.a", "web.a.svc", "web.a.svc.cluster.local"] {
        let page = lab.exec_ok(
            "a/client",
            &["karst-testapp", "http", &format!("{name}:8080")],
        )?;
        ensure!(page.contains("\"pod\":\"server\""), "{page}");
    }
    lab.delete(service)?;
    let gone = lab.exec("a/client", &["getent", "hosts", "web.a"])?;
    ensure!(!gone.status.success(), "the name outlived its Service");
    Ok(())
}

#[test]
fn a_deployment_is_spread_over_the_nodes_and_scales() -> Result<()> {
    let lab = up(&name("deploy"))?;
    let deployment = |replicas: u32| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: a}}\n\
             spec:\n  replicas: {replicas}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
             spec: {{containers: [{{name: app, image: x, command: [karst-testapp, serve], ports: [{{containerPort: 8080}}]}}]}}\n"
        )
    };
    let per_node = |lab: &Lab| -> Result<BTreeMap<String, usize>> {
        let mut count = BTreeMap::new();
        for pod in lab.status()?.pods {
            ensure!(pod.name.starts_with("web-") && pod.pid.is_some(), "{pod:?}");
            *count.entry(pod.node).or_default() += 1;
        }
        Ok(count)
    };
    let count = |one, two| BTreeMap::from([("node1".to_owned(), one), ("node2".to_owned(), two)]);
    lab.apply(&deployment(4))?;
    ensure!(per_node(&lab)? == count(2, 2));
    lab.apply(&deployment(6))?;
    ensure!(per_node(&lab)? == count(3, 3));
    lab.exec_ok("a/web", &["true"])?;
    lab.delete(&deployment(6))?;
    ensure!(per_node(&lab)?.is_empty());
    Ok(())
}

#[test]
fn programs_run_in_their_pod_and_answer_with_their_exit_code() -> Result<()> {
    let lab = up(&name("exec"))?;
    lab.apply(&manifest("a", "pod", "node1", "default", "wait"))?;
    ensure!(lab.exec("a/pod", &["sh", "-c", "exit 7"])?.status.code() == Some(7));
    let routes = lab.exec_ok("a/pod", &["ip", "route"])?;
    ensure!(
        routes.starts_with("default via 10.244.1.1 dev eth0"),
        "{routes}"
    );
    let uid = lab.pod_uid("a/pod")?;
    let cgroup = lab.exec_ok("a/pod", &["cat", "/proc/self/cgroup"])?;
    ensure!(
        cgroup.contains(&format!("/node1/kubepods/pod{uid}")),
        "{cgroup}"
    );
    let node = lab.node_exec("node1", &["ip", "route", "show", "default"])?;
    ensure!(node.stdout.is_empty(), "a node has a default route");
    Ok(())
}

#[test]
fn a_manifest_without_a_command_is_refused_with_the_reason() -> Result<()> {
    let lab = up(&name("refuse"))?;
    let image = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: nginx}]}\n";
    let Err(error) = lab.apply(image) else {
        anyhow::bail!("it was taken")
    };
    ensure!(format!("{error:#}").contains("has no command"), "{error:#}");
    ensure!(lab.status()?.pods.is_empty());
    ensure!(
        !Path::new(&lab.manifests_dir())
            .join("pod.default.p.json")
            .exists()
    );
    Ok(())
}
