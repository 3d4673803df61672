//! The API server's part: admission, defaults, Service addresses, and the files that show
//! the objects to the controller.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::addresses;
use crate::files::write_atomic;
use crate::manifests::Key;
use crate::paths::Paths;
use crate::state::{State, new_uid};

/// Kinds that the lab itself acts upon and the controller need not see.
const LAB_ONLY: &[&str] = &["Deployment", "ConfigMap"];

/// Stores an object, new or changed, and shows it to the controller.
pub fn put(paths: &Paths, state: &mut State, key: &Key, mut object: Value) -> Result<()> {
    if !key.namespace.is_empty() {
        ensure_namespace(paths, state, &key.namespace)?;
    }
    if key.kind == "Service" {
        admit_service(state, key, &mut object).with_context(|| format!("{key}"))?;
    }
    let old = state.objects.get(key);
    if !object["metadata"]["uid"].is_string() {
        let kept = old
            .map(|old| old["metadata"]["uid"].clone())
            .filter(Value::is_string);
        object["metadata"]["uid"] = kept.unwrap_or_else(|| json!(new_uid()));
    }
    if old == Some(&object) {
        return Ok(());
    }
    show(paths, key, &object)?;
    state.objects.insert(key.clone(), object);
    if key.kind == "Namespace" {
        put_service_account(paths, state, &key.name, "default")?;
    }
    Ok(())
}

/// Merges an applied object with the live one: labels and annotations are added to, status
/// and what the lab filled in are kept.
pub fn merge(live: Option<&Value>, mut applied: Value) -> Value {
    let Some(live) = live else { return applied };
    for field in ["labels", "annotations"] {
        let mut merged = live["metadata"][field]
            .as_object()
            .cloned()
            .unwrap_or_default();
        merged.extend(
            applied["metadata"][field]
                .as_object()
                .cloned()
                .unwrap_or_default(),
        );
        if !merged.is_empty() {
            applied["metadata"][field] = Value::Object(merged);
        }
    }
    for field in ["uid", "creationTimestamp", "ownerReferences"] {
        if !live["metadata"][field].is_null() && applied["metadata"][field].is_null() {
            applied["metadata"][field] = live["metadata"][field].clone();
        }
    }
    if !live["status"].is_null() && applied["status"].is_null() {
        applied["status"] = live["status"].clone();
    }
    applied
}

/// Removes an object; fine if there is none.
pub fn delete(paths: &Paths, state: &mut State, key: &Key) -> Result<()> {
    state.objects.remove(key);
    let file = paths.manifests().join(key.file_name());
    match fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Makes the namespace unless it exists.
pub fn ensure_namespace(paths: &Paths, state: &mut State, name: &str) -> Result<()> {
    let key = Key::new("Namespace", "", name);
    if state.objects.contains_key(&key) {
        return Ok(());
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    });
    put(paths, state, &key, object)
}

/// Makes the service account unless it exists.
pub fn put_service_account(
    paths: &Paths,
    state: &mut State,
    namespace: &str,
    name: &str,
) -> Result<()> {
    let key = Key::new("ServiceAccount", namespace, name);
    if state.objects.contains_key(&key) {
        return Ok(());
    }
    let object = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    });
    put(paths, state, &key, object)
}

fn show(paths: &Paths, key: &Key, object: &Value) -> Result<()> {
    if LAB_ONLY.contains(&key.kind.as_str()) {
        return Ok(());
    }
    let mut text = serde_json::to_string_pretty(object)?;
    text.push('\n');
    write_atomic(&paths.manifests().join(key.file_name()), text.as_bytes())
}

/// Gives a Service what an API server would: families, addresses, ports filled in.
fn admit_service(state: &State, key: &Key, object: &mut Value) -> Result<()> {
    let spec = &mut object["spec"];
    ensure!(spec.is_object(), "no spec");
    let kind = spec["type"].as_str().unwrap_or("ClusterIP").to_owned();
    spec["type"] = json!(kind);
    if kind == "ExternalName" {
        return Ok(());
    }
    for port in spec["ports"]
        .as_array_mut()
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
    {
        ensure!(port["port"].is_u64(), "a port has no number");
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
        if port["targetPort"].is_null() {
            port["targetPort"] = port["port"].clone();
        }
    }
    let families = families(spec);
    spec["ipFamilies"] = json!(families);
    if spec["clusterIP"] == "None" {
        spec["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let previous = state.objects.get(key).map(|old| &old["spec"]["clusterIPs"]);
    let asked = if spec["clusterIPs"].is_array() {
        spec["clusterIPs"].clone()
    } else if spec["clusterIP"].is_string() {
        json!([spec["clusterIP"]])
    } else {
        previous.cloned().unwrap_or(Value::Null)
    };
    let mut taken = service_addresses(state, key);
    let mut chosen = Vec::new();
    for family in families {
        let known = asked.as_array().into_iter().flatten().filter_map(parse_ip);
        let address = match known
            .into_iter()
            .find(|ip| ip.is_ipv4() == (family == "IPv4"))
        {
            Some(address) => address,
            None if family == "IPv4" => addresses::allot_service_v4(&taken)?,
            None => addresses::allot_service_v6(&taken)?,
        };
        ensure!(
            taken.insert(address),
            "{address} belongs to another Service"
        );
        chosen.push(address);
    }
    spec["clusterIP"] = json!(chosen.first());
    spec["clusterIPs"] = json!(chosen);
    Ok(())
}

fn families(spec: &Value) -> Vec<String> {
    let named: Vec<String> = spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f.as_str().map(str::to_owned))
        .collect();
    let dual = matches!(
        spec["ipFamilyPolicy"].as_str(),
        Some("PreferDualStack" | "RequireDualStack")
    );
    match (named.as_slice(), dual) {
        ([], true) => vec!["IPv4".to_owned(), "IPv6".to_owned()],
        ([], false) => vec!["IPv4".to_owned()],
        ([one], true) => {
            let other = if one == "IPv4" { "IPv6" } else { "IPv4" };
            vec![one.clone(), other.to_owned()]
        }
        _ => named,
    }
}

fn service_addresses(state: &State, except: &Key) -> BTreeSet<IpAddr> {
    state
        .objects
        .iter()
        .filter(|(key, _)| key.kind == "Service" && *key != except)
        .flat_map(|(_, object)| {
            object["spec"]["clusterIPs"]
                .as_array()
                .into_iter()
                .flatten()
        })
        .filter_map(parse_ip)
        .collect()
}

/// An address in a JSON string.
pub fn parse_ip(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

/// A node's object.
pub fn node_object(name: &str, uid: &str, wire: &[IpAddr], pod_ranges: &[String]) -> Value {
    let mut addresses: Vec<Value> = wire
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": name}));
    let labels: Map<String, Value> = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/region", "lab"),
        ("topology.kubernetes.io/zone", name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), json!(value)))
    .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": uid, "labels": labels},
        "spec": {"podCIDR": pod_ranges.first(), "podCIDRs": pod_ranges},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}
