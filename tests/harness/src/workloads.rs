//! The controllers a cluster brings: Deployments become pods, pods get nodes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::manifests::Key;
use crate::state::State;

/// Letters that Kubernetes uses in generated names: no vowels, nothing easily confused.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What a Deployment asks of its pods now.
pub struct Plan {
    /// Pods to make, with their keys.
    pub create: Vec<(Key, Value)>,
    /// Pods to remove.
    pub remove: Vec<Key>,
}

/// Compares a Deployment with its pods.
pub fn plan(state: &State, key: &Key, deployment: &Value) -> Result<Plan> {
    let spec = &deployment["spec"];
    let wanted = usize::try_from(spec["replicas"].as_u64().unwrap_or(1))?;
    let template = &spec["template"];
    let hash = template_hash(template);
    let owner = format!("{}-{hash}", key.name);
    let mut kept = 0;
    let mut remove = Vec::new();
    for pod in pods_of(state, key) {
        let object = state.objects.get(&pod).context("a pod vanished")?;
        let current = object["metadata"]["ownerReferences"][0]["name"] == owner.as_str();
        if current && kept < wanted {
            kept += 1;
        } else {
            remove.push(pod);
        }
    }
    let mut create = Vec::new();
    for _ in kept..wanted {
        let name = format!("{owner}-{}", random_letters(5));
        let pod = pod_object(key, template, &name, &owner, &hash);
        create.push((Key::new("Pod", &key.namespace, &name), pod));
    }
    Ok(Plan { create, remove })
}

/// The pods a Deployment made.
pub fn pods_of(state: &State, deployment: &Key) -> Vec<Key> {
    let id = format!("{}/{}", deployment.namespace, deployment.name);
    state
        .pods
        .values()
        .filter(|pod| state.deployment_of(pod).as_deref() == Some(&id))
        .map(|pod| Key::new("Pod", &pod.namespace, &pod.name))
        .collect()
}

fn pod_object(deployment: &Key, template: &Value, name: &str, owner: &str, hash: &str) -> Value {
    let mut metadata = template["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(deployment.namespace);
    metadata["generateName"] = json!(format!("{owner}-"));
    if !metadata["labels"].is_object() {
        metadata["labels"] = json!({});
    }
    metadata["labels"]["pod-template-hash"] = json!(hash);
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner,
        "controller": true, "blockOwnerDeletion": true,
    }]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

fn template_hash(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    letters(hasher.finish(), 10)
}

fn random_letters(count: usize) -> String {
    letters(rand::random(), count)
}

fn letters(mut bits: u64, count: usize) -> String {
    let base = NAME_LETTERS.len() as u64;
    (0..count)
        .map(|_| {
            let letter = NAME_LETTERS[(bits % base) as usize];
            bits /= base;
            char::from(letter)
        })
        .collect()
}

/// The node for a pod: the one it names, else the one with the fewest pods of its owner,
/// then with the fewest pods.
pub fn schedule(state: &State, pod: &Value) -> Result<String> {
    let spec = &pod["spec"];
    let named = spec["nodeName"]
        .as_str()
        .or(spec["nodeSelector"]["kubernetes.io/hostname"].as_str());
    if let Some(node) = named {
        state.node_number(node)?;
        return Ok(node.to_owned());
    }
    let owner = &pod["metadata"]["ownerReferences"][0]["name"];
    let mut load: BTreeMap<String, (usize, usize)> = state
        .node_names()
        .into_iter()
        .map(|node| (node, (0, 0)))
        .collect();
    for record in state.pods.values() {
        let Some(entry) = load.get_mut(&record.node) else {
            continue;
        };
        entry.1 += 1;
        let key = Key::new("Pod", &record.namespace, &record.name);
        let other = state
            .objects
            .get(&key)
            .map(|o| &o["metadata"]["ownerReferences"][0]["name"]);
        if owner.is_string() && other == Some(owner) {
            entry.0 += 1;
        }
    }
    let best = load
        .into_iter()
        .min_by_key(|(name, load)| (*load, name.clone()));
    best.map(|(node, _)| node).context("the lab has no node")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Mesh;
    use crate::state::PodRecord;

    fn deployment(replicas: u64, image: &str) -> (Key, Value) {
        let key = Key::new("Deployment", "shop", "web");
        let object = json!({"spec": {"replicas": replicas, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image}]}}}});
        (key, object)
    }

    fn run(state: &mut State, key: &Key, object: &Value) -> Plan {
        let plan = plan(state, key, object).unwrap();
        for gone in &plan.remove {
            state
                .pods
                .remove(&format!("{}/{}", gone.namespace, gone.name));
            state.objects.remove(gone);
        }
        for (key, pod) in &plan.create {
            let node = schedule(state, pod).unwrap();
            let record = PodRecord {
                uid: String::new(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                node,
                netns: String::new(),
                own_netns: true,
                addresses: Vec::new(),
                process: None,
                ended: false,
                ready: false,
                spec: Value::Null,
            };
            state.pods.insert(record.id(), record);
            state.objects.insert(key.clone(), pod.clone());
        }
        plan
    }

    #[test]
    fn replicas_spread_scale_and_roll() {
        let mut state = State::new(Mesh::Off);
        state.nodes = 2;
        let (key, object) = deployment(4, "a");
        assert_eq!(run(&mut state, &key, &object).create.len(), 4);
        let on = |state: &State, node: &str| state.pods.values().filter(|p| p.node == node).count();
        assert_eq!((on(&state, "node1"), on(&state, "node2")), (2, 2));
        let again = run(&mut state, &key, &object);
        assert_eq!((again.create.len(), again.remove.len()), (0, 0));
        let (_, fewer) = deployment(1, "a");
        assert_eq!(run(&mut state, &key, &fewer).remove.len(), 3);
        let (_, rolled) = deployment(1, "b");
        let roll = run(&mut state, &key, &rolled);
        assert_eq!((roll.create.len(), roll.remove.len()), (1, 1));
        assert!(state.pod("shop/web").unwrap().name.starts_with("web-"));
    }
}
