//! The one cluster of this test program. Making one takes half a minute and a gigabyte, so it is made
//! once; a guard process takes it down when this process ends, however it ends.

use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use karst_cluster::{Audit, Cluster, ClusterOptions, Image};
use serde_json::Value;

/// How long pods may take to become ready on a machine that does other things as well.
pub const LIMIT: Duration = Duration::from_secs(120);

/// `karst-testapp`: servers of many protocols, and clients that tell in JSON what they saw.
pub const APP_IMAGE: &str = "karst.dev/test/app:1";

static CLUSTER: OnceLock<RwLock<Arc<Cluster>>> = OnceLock::new();

fn cluster() -> &'static RwLock<Arc<Cluster>> {
    CLUSTER.get_or_init(|| {
        let name = format!("test{}", std::process::id());
        let options = ClusterOptions {
            audit: Audit::Metadata,
            ..ClusterOptions::new(&name)
        };
        let cluster = Cluster::up(&options, &|line| eprintln!("{line}"))
            .unwrap_or_else(|error| panic!("no cluster: {error:#}"));
        let program = karst_cluster::binary("karst-testapp").unwrap();
        let image = Image::new(APP_IMAGE, &["/karst-testapp"])
            .program("/karst-testapp", &program)
            .unwrap();
        cluster.add_image(&image).unwrap();
        RwLock::new(Arc::new(cluster))
    })
}

/// The cluster, for tests that leave it whole; they may run at the same time.
pub fn shared() -> RwLockReadGuard<'static, Arc<Cluster>> {
    // A test that failed while it had the cluster to itself may have left it broken, which the next
    // one then says better than a poisoned lock.
    cluster()
        .read()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The cluster, for a test that breaks parts of it: no other test runs meanwhile.
pub fn alone() -> RwLockWriteGuard<'static, Arc<Cluster>> {
    cluster()
        .write()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Makes a namespace with a Deployment and a Service `app` (port 80) of one pod on each node, and
/// waits until both are ready. Gives the pods' names and addresses.
pub fn two_apps(cluster: &Cluster, namespace: &str) -> Vec<(String, String)> {
    let yaml = include_str!("two_apps.yaml")
        .replace("NAMESPACE", namespace)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&yaml).unwrap();
    let what = ["deployment/app", "-n", namespace];
    cluster
        .wait_for(&what, "condition=Available", LIMIT)
        .unwrap();
    let pods = cluster
        .get(&["pods", "-n", namespace, "-l", "app=app"])
        .unwrap();
    let text = |pod: &Value, path: &str| pod.pointer(path).unwrap().as_str().unwrap().to_owned();
    let mut nodes: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for pod in pods["items"].as_array().unwrap() {
        nodes.push(text(pod, "/spec/nodeName"));
        found.push((text(pod, "/metadata/name"), text(pod, "/status/podIP")));
    }
    nodes.sort();
    assert_eq!(nodes, ["node1", "node2"]);
    found
}

/// Asks for a page from inside a pod; gives what the client tells.
pub fn http(cluster: &Cluster, namespace: &str, pod: &str, target: &str) -> Value {
    ask(cluster, namespace, pod, target).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The same, for a caller that asks until there is an answer.
pub fn ask(cluster: &Cluster, namespace: &str, pod: &str, target: &str) -> Result<Value> {
    let client = ["exec", "-n", namespace, pod, "--"];
    let said = cluster
        .kubectl(&[&client[..], &["/karst-testapp", "http", target]].concat())
        .with_context(|| format!("{pod} asks {target}"))?;
    serde_json::from_str(said.trim()).context("what the client tells")
}
