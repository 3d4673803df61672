//! Follows one kind of object and reduces its objects.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use karst_core::{Kind, Object, ObjectError, ObjectKey};
use kube::{
    Api,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Message;
use crate::{
    cluster::{
        Cluster,
        facts::Facts,
        follow::{Event, Follower},
    },
    metrics::Metrics,
};

/// Faulty objects of a kind that are remembered, so that each fault is logged once. With more, new
/// ones are logged again whenever the object changes.
const MAX_FAULTY: usize = 10_000;

/// Follows one kind.
pub struct Follow {
    kind: Kind,
    follower: Follower<DynamicObject>,
    messages: mpsc::Sender<Message>,
    facts: Arc<Facts>,
    metrics: Metrics,
    objects: Objects,
}

/// What is known of the objects of a kind: their names, and what is wrong with the faulty ones.
#[derive(Default)]
struct Objects {
    /// Whether the first list is complete.
    started: bool,
    known: HashSet<ObjectKey>,
    /// Names in the list that is under way.
    listed: HashSet<ObjectKey>,
    /// The first list, until it is complete.
    first: Vec<Object>,
    faulty: HashMap<ObjectKey, Vec<ObjectError>>,
}

impl Follow {
    /// Prepares to follow a kind.
    pub fn new(
        kind: Kind,
        cluster: &Cluster,
        messages: mpsc::Sender<Message>,
        facts: Arc<Facts>,
    ) -> Self {
        let label = match kind {
            Kind::Namespace => "namespace",
            Kind::Node => "node",
            Kind::ServiceAccount => "service_account",
            Kind::GatewayClass => "gateway_class",
            Kind::Gateway => "gateway",
            Kind::ListenerSet => "listener_set",
            Kind::ReferenceGrant => "reference_grant",
            Kind::Secret => "secret",
            Kind::ConfigMap => "config_map",
            Kind::BackendTlsPolicy => "backend_tls_policy",
            Kind::BackendTrafficPolicy => "backend_traffic_policy",
            Kind::HttpRoute => "http_route",
            Kind::GrpcRoute => "grpc_route",
            Kind::TlsRoute => "tls_route",
            Kind::TcpRoute => "tcp_route",
            Kind::Service => "service",
            Kind::Pod => "pod",
            Kind::EndpointSlice => "endpoint_slice",
        };
        let gvk = GroupVersionKind::gvk(kind.group(), "v1", kind.name());
        let resource = ApiResource::from_gvk(&gvk);
        let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
        Self {
            kind,
            follower: Follower::new(cluster, api, label),
            messages,
            facts,
            metrics: cluster.metrics().clone(),
            objects: Objects::default(),
        }
    }

    /// Follows until nobody listens any more.
    pub async fn run(mut self) {
        loop {
            let event = self.follower.next().await;
            for message in self.take(event) {
                if self.messages.send(message).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What an event means.
    fn take(&mut self, event: Event<DynamicObject>) -> Vec<Message> {
        match event {
            Event::Started => {
                self.objects.listed.clear();
                self.objects.first.clear();
                Vec::new()
            }
            Event::Listed(raw) => {
                let key = key(self.kind, &raw);
                self.objects.listed.insert(key.clone());
                // Known from now on, as the list may break off before it is complete.
                self.objects.known.insert(key.clone());
                match self.reduce(key, raw) {
                    Some(object) if !self.objects.started => {
                        self.objects.first.push(object);
                        Vec::new()
                    }
                    object => object.map(Message::Apply).into_iter().collect(),
                }
            }
            Event::Synced => self.synced(),
            Event::Applied(raw) => {
                let key = key(self.kind, &raw);
                self.objects.known.insert(key.clone());
                let object = self.reduce(key, raw);
                object.map(Message::Apply).into_iter().collect()
            }
            Event::Deleted(raw) => {
                let key = key(self.kind, &raw);
                self.objects.known.remove(&key);
                self.forget(&key);
                vec![Message::Delete(key)]
            }
            Event::Unreadable(problem) => {
                self.metrics.source_faults.inc();
                let kind = self.kind.name();
                warn!(
                    reason = "object_invalid",
                    kind, problem, "object unreadable"
                );
                Vec::new()
            }
        }
    }

    /// The list is complete: what was known and is not in it is gone.
    fn synced(&mut self) -> Vec<Message> {
        let listed = std::mem::take(&mut self.objects.listed);
        let known = std::mem::replace(&mut self.objects.known, listed);
        let gone = known.difference(&self.objects.known).cloned();
        let gone: Vec<ObjectKey> = gone.collect();
        for key in &gone {
            self.forget(key);
        }
        if !self.objects.started {
            self.objects.started = true;
            let first = std::mem::take(&mut self.objects.first);
            return vec![Message::Initial(self.kind, first)];
        }
        gone.into_iter().map(Message::Delete).collect()
    }

    fn forget(&mut self, key: &ObjectKey) {
        if self.objects.faulty.remove(key).is_some() {
            self.metrics.source_faulty.dec();
        }
        self.facts.forget(key);
    }

    /// Reduces an object and reports what is wrong with it.
    fn reduce(&mut self, key: ObjectKey, raw: DynamicObject) -> Option<Object> {
        self.facts.note(&key, &raw.metadata);
        let (object, faults) = match Object::from_value(value(self.kind, raw)) {
            Ok(Some(object)) => {
                let findings = object.findings.clone();
                (Some(object), findings)
            }
            Ok(None) => (None, Vec::new()),
            Err(error) => (None, vec![error]),
        };
        self.report(key, faults);
        object
    }

    fn report(&mut self, key: ObjectKey, faults: Vec<ObjectError>) {
        let former = self.objects.faulty.get(&key);
        if former.map_or(faults.is_empty(), |former| *former == faults) {
            return;
        }
        for fault in &faults {
            super::report(&self.metrics, fault, "object faulty");
        }
        if faults.is_empty() {
            info!(object = %key, "object corrected");
            self.objects.faulty.remove(&key);
            self.metrics.source_faulty.dec();
        } else if self.objects.faulty.contains_key(&key) {
            self.objects.faulty.insert(key, faults);
        } else if self.objects.faulty.len() < MAX_FAULTY {
            self.objects.faulty.insert(key, faults);
            self.metrics.source_faulty.inc();
        }
    }
}

fn key(kind: Kind, raw: &DynamicObject) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: raw.metadata.namespace.clone().unwrap_or_default(),
        name: raw.metadata.name.clone().unwrap_or_default(),
    }
}

/// The object as a document, without what nobody reads. Its memory is given back as soon as it has
/// been reduced.
fn value(kind: Kind, raw: DynamicObject) -> Value {
    let mut metadata = raw.metadata;
    metadata.managed_fields = None;
    metadata.finalizers = None;
    let api_version = match kind {
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        _ => "v1",
    };
    let mut document = match raw.data {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    document.insert("apiVersion".to_owned(), Value::from(api_version));
    document.insert("kind".to_owned(), Value::from(kind.name()));
    // Metadata is text and lists of text, which always have a JSON form.
    let metadata = serde_json::to_value(metadata).unwrap_or_default();
    document.insert("metadata".to_owned(), metadata);
    Value::Object(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::annotations::ENROLLED;
    use serde_json::json;

    /// Follows pods of a server that is not there: events are handed over by hand.
    fn follow() -> Follow {
        let cluster = Cluster::at("http://127.0.0.1:1", Metrics::default());
        let (messages, _) = mpsc::channel(1);
        Follow::new(Kind::Pod, &cluster, messages, Arc::new(Facts::default()))
    }

    fn pod(name: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "a", "uid": format!("uid-{name}"),
                "annotations": {ENROLLED: "true"},
            },
            "spec": {"containers": []},
        }))
        .unwrap()
    }

    fn taken(follow: &mut Follow, event: Event<DynamicObject>) -> Vec<String> {
        let said = |message: Message| match message {
            Message::Initial(_, objects) => {
                let names = objects.into_iter().map(|object| object.key.name);
                format!("initial {}", names.collect::<Vec<_>>().join(" "))
            }
            Message::Apply(object) => format!("apply {}", object.key.name),
            Message::Delete(key) => format!("delete {}", key.name),
        };
        follow.take(event).into_iter().map(said).collect()
    }

    #[tokio::test]
    async fn what_only_a_broken_list_had_is_deleted_by_the_next() {
        let mut follow = follow();
        for event in [Event::Started, Event::Listed(pod("a"))] {
            assert!(taken(&mut follow, event).is_empty());
        }
        assert_eq!(taken(&mut follow, Event::Synced), ["initial a"]);
        assert!(taken(&mut follow, Event::Started).is_empty());
        assert_eq!(taken(&mut follow, Event::Listed(pod("x"))), ["apply x"]);
        // It breaks off here, and the pod is gone before the next one.
        assert!(taken(&mut follow, Event::Started).is_empty());
        assert_eq!(taken(&mut follow, Event::Listed(pod("a"))), ["apply a"]);
        assert_eq!(taken(&mut follow, Event::Synced), ["delete x"]);
        assert_eq!(follow.facts.annotated().len(), 1);
    }

    #[tokio::test]
    async fn what_only_a_broken_first_list_had_is_forgotten() {
        let mut follow = follow();
        taken(&mut follow, Event::Started);
        taken(&mut follow, Event::Listed(pod("x")));
        taken(&mut follow, Event::Started);
        taken(&mut follow, Event::Listed(pod("a")));
        assert_eq!(taken(&mut follow, Event::Synced), ["initial a"]);
        let annotated = follow.facts.annotated();
        let names: Vec<&str> = annotated.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["a"]);
    }
}
