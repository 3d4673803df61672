//! A pod's `/etc/hosts` and `/etc/resolv.conf`: the names of all Services, kept right while
//! the pod runs, and no name server.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::manifests::{Key, selects};
use crate::paths::Paths;
use crate::state::{PodRecord, State};
use crate::store::parse_ip;

/// The suffix of Service names.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Writes the name files of every pod with a namespace of its own.
pub fn update_all(paths: &Paths, state: &State) -> Result<()> {
    let services = services(state)?;
    for pod in state.pods.values() {
        update(paths, pod, &services)?;
    }
    Ok(())
}

/// Writes one pod's name files; `services` comes from [`services`].
pub fn update(paths: &Paths, pod: &PodRecord, services: &str) -> Result<()> {
    let dir = paths.pod_dir(&pod.uid);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for address in &pod.addresses {
        writeln!(hosts, "{address} {}", pod.name)?;
    }
    hosts.push_str(services);
    rewrite(&dir.join("hosts"), &hosts)?;
    rewrite(
        &dir.join("resolv.conf"),
        "# The lab has no name server: names are in /etc/hosts.\n",
    )
}

/// The lines for all Services, as `NAME`, `NAME.NS`, `NAME.NS.svc` and
/// `NAME.NS.svc.cluster.local`. The bare name goes to the first namespace that has it.
pub fn services(state: &State) -> Result<String> {
    let mut lines = String::new();
    let mut bare_names = BTreeSet::new();
    for (key, service) in state
        .objects
        .iter()
        .filter(|(key, _)| key.kind == "Service")
    {
        let Key {
            namespace, name, ..
        } = key;
        let mut names = format!(
            "{name}.{namespace}.svc.{CLUSTER_DOMAIN} {name}.{namespace}.svc {name}.{namespace}"
        );
        if bare_names.insert(name.clone()) {
            write!(names, " {name}")?;
        }
        for address in service_addresses(state, key, service) {
            writeln!(lines, "{address} {names}")?;
        }
    }
    Ok(lines)
}

fn service_addresses(state: &State, key: &Key, service: &Value) -> Vec<IpAddr> {
    let spec = &service["spec"];
    if spec["clusterIP"] != "None" {
        return spec["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(parse_ip)
            .collect();
    }
    let families: Vec<&str> = spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let not_ready_too = spec["publishNotReadyAddresses"] == true;
    state
        .pods
        .values()
        .filter(|pod| pod.namespace == key.namespace && (pod.ready || not_ready_too))
        .filter(|pod| {
            let object = state
                .objects
                .get(&Key::new("Pod", &pod.namespace, &pod.name));
            object.is_some_and(|object| selects(&spec["selector"], object))
        })
        .flat_map(|pod| pod.addresses.iter().copied())
        .filter(|ip| families.contains(&if ip.is_ipv4() { "IPv4" } else { "IPv6" }))
        .collect()
}

/// Rewrites a file in place: the pods have it mounted, and a renamed one would not reach
/// them. One write, then cut to length, so a reader never meets an empty file.
fn rewrite(path: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    file.write_all(content.as_bytes())?;
    file.set_len(content.len() as u64)?;
    Ok(())
}
