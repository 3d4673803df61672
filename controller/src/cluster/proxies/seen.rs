//! What there is of the objects that run for Gateways, as the API server says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use karst_core::GatewayName;
use kube::{Api, core::DynamicObject};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use super::{
    GATEWAY_LABEL,
    objects::{APPLIED, Made, Part},
};
use crate::{
    cluster::{
        Cluster, FIELD_MANAGER,
        follow::{Event, Follower},
    },
    feed::Feed,
};

/// Part, namespace and name.
type Key = (Part, String, String);

/// See the module's description.
pub struct Seen {
    state: Mutex<State>,
    /// Parts whose first list is complete.
    complete: watch::Sender<BTreeSet<Part>>,
}

#[derive(Default)]
struct State {
    objects: HashMap<Key, There>,
    /// Objects of the list that is under way, of each part.
    listed: BTreeMap<Part, BTreeSet<Key>>,
}

/// An object that there is.
#[derive(Debug, Clone, PartialEq)]
struct There {
    uid: String,
    /// The Gateway that it says it is for, of its own namespace.
    gateway: String,
    /// Metadata and spec, as far as they can be ours.
    object: Value,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            complete: watch::Sender::new(BTreeSet::new()),
        }
    }
}

/// Follows all of it, for ever; `feed` is told of Gateways of which something has changed.
pub async fn follow(cluster: &Cluster, seen: &Arc<Seen>, feed: &Arc<Feed<GatewayName>>) {
    let one = |part: Part| follow_part(cluster, part, seen, feed);
    // Each waits for the API server most of the time.
    tokio::join!(
        one(Part::ServiceAccount),
        one(Part::Service),
        one(Part::DisruptionBudget),
        one(Part::Deployment),
        one(Part::Autoscaler),
    );
}

async fn follow_part(cluster: &Cluster, part: Part, seen: &Seen, feed: &Feed<GatewayName>) {
    let resource = part.resource();
    let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
    let selector = format!("app.kubernetes.io/managed-by={FIELD_MANAGER},{GATEWAY_LABEL}");
    let mut follower = Follower::new(cluster, api, part.label()).labels(&selector);
    loop {
        let event = follower.next().await;
        feed.add(seen.take(part, event));
    }
}

impl Seen {
    /// Waits until it is known what there is.
    pub async fn complete(&self) {
        // An error means that the sender is gone, and the writer with it.
        let mut complete = self.complete.subscribe();
        let all = |parts: &BTreeSet<Part>| parts.len() == Part::ALL.len();
        let _ = complete.wait_for(all).await;
    }

    /// Takes an event; returns the Gateways of which something is not as it was.
    pub fn take(&self, part: Part, event: Event<DynamicObject>) -> BTreeSet<GatewayName> {
        let mut state = self.state();
        let mut changed = BTreeSet::new();
        match event {
            Event::Started => {
                state.listed.insert(part, BTreeSet::new());
            }
            Event::Listed(object) => {
                let (key, there) = read(part, object);
                state.listed.entry(part).or_default().insert(key.clone());
                state.set(key, there, &mut changed);
            }
            Event::Applied(object) => {
                let (key, there) = read(part, object);
                state.set(key, there, &mut changed);
            }
            Event::Deleted(object) => {
                let (key, _) = read(part, object);
                state.forget(&key, &mut changed);
            }
            Event::Synced => {
                let listed = state.listed.remove(&part).unwrap_or_default();
                let gone = state.objects.keys();
                let gone = gone.filter(|key| key.0 == part && !listed.contains(*key));
                let gone: Vec<Key> = gone.cloned().collect();
                for key in gone {
                    state.forget(&key, &mut changed);
                }
                drop(state);
                self.complete.send_modify(|parts| {
                    parts.insert(part);
                });
            }
            Event::Unreadable(problem) => {
                let kind = part.kind();
                warn!(
                    reason = "object_invalid",
                    kind, problem, "object unreadable"
                );
            }
        }
        changed
    }

    /// Whether an object of ours is there under the Gateway's name.
    pub fn has(&self, part: Part, gateway: &GatewayName) -> bool {
        self.state().objects.contains_key(&key(part, gateway))
    }

    /// Whether an object is there as it should be.
    pub fn is_right(&self, gateway: &GatewayName, made: &Made) -> bool {
        let state = self.state();
        state
            .objects
            .get(&key(made.part, gateway))
            .is_some_and(|there| {
                let applied = |object: &Value| object["metadata"]["annotations"][APPLIED].clone();
                applied(&there.object) == applied(&made.object)
                    && contains(&there.object, &made.object)
            })
    }

    /// Name and uid of the objects that are for a Gateway.
    pub fn all(&self, part: Part, gateway: &GatewayName) -> Vec<(String, String)> {
        let state = self.state();
        let own = state.objects.iter().filter(|((of, namespace, _), there)| {
            *of == part && *namespace == gateway.namespace && there.gateway == gateway.name
        });
        own.map(|((_, _, name), there)| (name.clone(), there.uid.clone()))
            .collect()
    }

    /// The same, without the one of that name.
    pub fn others(&self, part: Part, gateway: &GatewayName, but: &str) -> Vec<(String, String)> {
        let mut others = self.all(part, gateway);
        others.retain(|(name, _)| name != but);
        others
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set(&mut self, key: Key, there: There, changed: &mut BTreeSet<GatewayName>) {
        let gateway = GatewayName::new(&key.1, &there.gateway);
        let former = self.objects.insert(key, there.clone());
        // Most events are about a status, which is nobody's business here.
        if former.as_ref() != Some(&there) {
            if let Some(former) = former {
                changed.insert(GatewayName::new(&gateway.namespace, former.gateway));
            }
            changed.insert(gateway);
        }
    }

    fn forget(&mut self, key: &Key, changed: &mut BTreeSet<GatewayName>) {
        if let Some(there) = self.objects.remove(key) {
            changed.insert(GatewayName::new(&key.1, there.gateway));
        }
    }
}

fn key(part: Part, gateway: &GatewayName) -> Key {
    (part, gateway.namespace.clone(), gateway.name.clone())
}

fn read(part: Part, object: DynamicObject) -> (Key, There) {
    let mut metadata = object.metadata;
    let key = (
        part,
        metadata.namespace.take().unwrap_or_default(),
        metadata.name.take().unwrap_or_default(),
    );
    let labels = metadata.labels.unwrap_or_default();
    let gateway = labels.get(GATEWAY_LABEL).cloned().unwrap_or_default();
    let mut content = json!({
        "metadata": {
            "labels": labels,
            "annotations": metadata.annotations.unwrap_or_default(),
            "ownerReferences": metadata.owner_references.unwrap_or_default(),
        },
    });
    for field in ["spec", "automountServiceAccountToken"] {
        if let Some(value) = object.data.get(field) {
            content[field] = value.clone();
        }
    }
    let there = There {
        uid: metadata.uid.unwrap_or_default(),
        gateway,
        object: content,
    };
    (key, there)
}

/// Whether everything that is wanted is there; more may be. What tells the object itself is not compared.
fn contains(there: &Value, wanted: &Value) -> bool {
    let fields = |wanted: &Value| match wanted {
        Value::Object(fields) => fields.clone(),
        _ => serde_json::Map::new(),
    };
    fields(wanted)
        .iter()
        .all(|(field, value)| match field.as_str() {
            "apiVersion" | "kind" => true,
            "metadata" => fields(value).iter().all(|(field, value)| {
                matches!(field.as_str(), "name" | "namespace")
                    || has(&there["metadata"][field], value)
            }),
            field => has(&there[field], value),
        })
}

fn has(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted.iter().all(|(name, value)| {
            let there = there.get(name).unwrap_or(&Value::Null);
            has(there, value)
        }),
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(a, b)| has(a, b))
        }
        // The server leaves out what is empty.
        (Value::Null, Value::Object(wanted)) => {
            wanted.values().all(|value| has(&Value::Null, value))
        }
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::Null, Value::String(wanted)) => wanted.is_empty(),
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, gateway: &str, port: u16) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
                "labels": {GATEWAY_LABEL: gateway}, "annotations": {APPLIED: "1"}},
            "spec": {"ports": [{"port": port, "nodePort": 30000}], "clusterIP": "10.0.0.1"},
            "status": {"loadBalancer": {}},
        }))
        .unwrap()
    }

    fn made(port: u16, applied: &str) -> Made {
        Made {
            part: Part::Service,
            object: json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "front", "annotations": {APPLIED: applied}},
                "spec": {"ports": [{"port": port}], "externalIPs": []}}),
        }
    }

    fn taken(seen: &Seen, event: Event<DynamicObject>) -> Vec<String> {
        let changed = seen.take(Part::Service, event);
        changed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wanted_must_be_there_and_more_may_be() {
        let seen = Seen::default();
        let front = GatewayName::new("shop", "front");
        assert!(!seen.has(Part::Service, &front));
        assert!(!seen.is_right(&front, &made(80, "1")));
        taken(&seen, Event::Applied(service("front", "front", 80)));
        assert!(seen.has(Part::Service, &front));
        assert!(seen.is_right(&front, &made(80, "1")));
        assert!(
            !seen.is_right(&front, &made(80, "2")),
            "something else was wanted then"
        );
        assert!(
            !seen.is_right(&front, &made(81, "1")),
            "somebody has changed it"
        );
    }

    #[test]
    fn only_changes_that_matter_are_told() {
        let seen = Seen::default();
        let event = || Event::Applied(service("front", "front", 80));
        assert_eq!(taken(&seen, event()), ["shop/front"]);
        assert!(taken(&seen, event()).is_empty());
        let mut moved = service("front", "front", 80);
        moved.data["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
        assert!(taken(&seen, Event::Applied(moved)).is_empty(), "a status");
        let other = Event::Applied(service("front", "other", 80));
        assert_eq!(taken(&seen, other), ["shop/front", "shop/other"]);
        let gone = Event::Deleted(service("front", "other", 80));
        assert_eq!(taken(&seen, gone), ["shop/other"]);
    }

    #[test]
    fn what_is_missing_in_a_list_is_gone() {
        let seen = Seen::default();
        let front = GatewayName::new("shop", "front");
        taken(&seen, Event::Applied(service("front", "front", 80)));
        taken(&seen, Event::Applied(service("old", "front", 80)));
        assert_eq!(
            seen.others(Part::Service, &front, "front"),
            [("old".to_owned(), "uid-old".to_owned())]
        );
        assert!(taken(&seen, Event::Started).is_empty());
        taken(&seen, Event::Listed(service("old", "front", 80)));
        assert_eq!(taken(&seen, Event::Synced), ["shop/front"]);
        assert!(!seen.has(Part::Service, &front));
        assert_eq!(seen.all(Part::Service, &front).len(), 1);
    }

    #[tokio::test]
    async fn it_is_complete_with_the_last_list() {
        let seen = Seen::default();
        for part in Part::ALL {
            let wait = std::time::Duration::from_millis(10);
            let waiting = tokio::time::timeout(wait, seen.complete()).await;
            assert!(waiting.is_err(), "{part:?} is missing");
            seen.take(part, Event::Synced);
        }
        seen.complete().await;
    }
}
