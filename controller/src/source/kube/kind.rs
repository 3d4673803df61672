//! Follows one kind of object and reduces its objects.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use karst_core::{Kind, Object, ObjectError, ObjectKey};
use kube::{
    Api, Resource as _,
    core::{ApiResource, GroupVersionKind},
};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{
    Message,
    raw::Raw,
    served::{Place, Served},
};
use crate::{
    cluster::{
        Cluster,
        facts::Facts,
        follow::{Event, Follower},
    },
    metrics::{Metrics, Watched},
};

/// Faulty objects of a kind that are remembered, so that each fault is logged once. With more, new
/// ones are logged again whenever the object changes.
const MAX_FAULTY: usize = 10_000;

/// Objects in a page of Secrets or ConfigMaps, which may have a megabyte each.
const LARGE_PAGE: u32 = 50;

/// Secrets that are read: no others leave the API server. Authorities in a Secret are read from this type too.
const TLS_SECRETS: &str = "type=kubernetes.io/tls";

/// ConfigMaps that are not read: our own, of which each namespace has one.
const OTHER_CONFIG_MAPS: &str = "metadata.name!=karst-ca-root-cert";

/// Follows one kind.
pub struct Follow {
    kind: Kind,
    cluster: Cluster,
    /// Where the objects are had from now; `None`: it is not known yet, `Some(None)`: nowhere.
    place: Option<Option<Place>>,
    /// What is asked; none where the kind is not served.
    follower: Option<Follower<Raw>>,
    resource: Arc<ApiResource>,
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
        Self {
            kind,
            cluster: cluster.clone(),
            place: None,
            follower: None,
            resource: Arc::new(resource(kind, &usual(kind))),
            messages,
            facts,
            metrics: cluster.metrics().clone(),
            objects: Objects::default(),
        }
    }

    /// Follows until nobody listens any more: where `served` says, or else where every cluster has it.
    pub async fn run(mut self, mut served: Option<watch::Receiver<Served>>) {
        if served.is_none() {
            self.follow(Some(usual(self.kind)));
        }
        loop {
            let messages = tokio::select! {
                biased;
                place = moved(&mut served, self.kind, self.place.as_ref()) => self.follow(place),
                event = next(&mut self.follower) => self.take(event),
            };
            for message in messages {
                if self.messages.send(message).await.is_err() {
                    return;
                }
            }
        }
    }

    /// From now on the objects are had from there.
    fn follow(&mut self, place: Option<Place>) -> Vec<Message> {
        let (kind, former) = (self.kind.name(), self.place.replace(place.clone()));
        let Some(place) = place else {
            info!(kind, "kind is not served");
            let label = label(self.kind);
            let synced = &self.metrics.watch_synced;
            synced.get_or_create(&Watched { kind: label }).set(0);
            self.follower = None;
            self.objects.listed.clear();
            self.objects.first.clear();
            return self.synced();
        };
        if former.is_some() {
            info!(kind, version = place.version, "kind is served");
        }
        let resource = resource(self.kind, &place);
        let api: Api<Raw> = Api::all_with(self.cluster.client(), &resource);
        let follower = Follower::new(&self.cluster, api, label(self.kind));
        self.follower = Some(match self.kind {
            Kind::Secret => follower.fields(TLS_SECRETS).page(LARGE_PAGE),
            Kind::ConfigMap => follower.fields(OTHER_CONFIG_MAPS).page(LARGE_PAGE),
            _ => follower,
        });
        self.resource = Arc::new(resource);
        Vec::new()
    }

    /// What an event means.
    fn take(&mut self, event: Event<Raw>) -> Vec<Message> {
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
    fn reduce(&mut self, key: ObjectKey, raw: Raw) -> Option<Object> {
        self.facts.note(&key, raw.meta());
        if has_status(self.kind) {
            let version = raw.meta().resource_version.clone().unwrap_or_default();
            self.facts
                .note_status(&key, &self.resource, version, raw.status());
        }
        let (object, faults) = match Object::from_value(raw.into_value(&self.resource)) {
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

fn key(kind: Kind, raw: &Raw) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: raw.meta().namespace.clone().unwrap_or_default(),
        name: raw.meta().name.clone().unwrap_or_default(),
    }
}

/// Whether the mesh writes the status of objects of a kind.
fn has_status(kind: Kind) -> bool {
    match kind {
        Kind::GatewayClass
        | Kind::Gateway
        | Kind::ListenerSet
        | Kind::BackendTlsPolicy
        | Kind::BackendTrafficPolicy
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::Telemetry
        | Kind::ServiceEntry => true,
        Kind::Namespace
        | Kind::Node
        | Kind::ServiceAccount
        | Kind::ReferenceGrant
        | Kind::Secret
        | Kind::ConfigMap
        | Kind::Service
        | Kind::Pod
        | Kind::EndpointSlice => false,
    }
}

/// Name of a kind in metrics.
fn label(kind: Kind) -> &'static str {
    match kind {
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
        Kind::AuthorizationPolicy => "authorization_policy",
        Kind::PeerAuthentication => "peer_authentication",
        Kind::RequestAuthentication => "request_authentication",
        Kind::Telemetry => "telemetry",
        Kind::ServiceEntry => "service_entry",
        Kind::Service => "service",
        Kind::Pod => "pod",
        Kind::EndpointSlice => "endpoint_slice",
    }
}

/// Where a kind is had from unless somebody says otherwise.
fn usual(kind: Kind) -> Place {
    Place {
        version: kind.versions().first().copied().unwrap_or("v1"),
        plural: None,
    }
}

fn resource(kind: Kind, place: &Place) -> ApiResource {
    let gvk = GroupVersionKind::gvk(kind.group(), place.version, kind.name());
    match &place.plural {
        Some(plural) => ApiResource::from_gvk_with_plural(&gvk, plural),
        None => ApiResource::from_gvk(&gvk),
    }
}

/// Waits until the kind is had from elsewhere than `now`. May be dropped while it waits.
async fn moved(
    served: &mut Option<watch::Receiver<Served>>,
    kind: Kind,
    now: Option<&Option<Place>>,
) -> Option<Place> {
    let Some(served) = served else {
        return std::future::pending().await;
    };
    loop {
        if let Some(all) = &*served.borrow_and_update() {
            let place = all.get(&kind).cloned();
            if now != Some(&place) {
                return place;
            }
        }
        if served.changed().await.is_err() {
            // The source ends, and this with it.
            return std::future::pending().await;
        }
    }
}

async fn next(follower: &mut Option<Follower<Raw>>) -> Event<Raw> {
    match follower {
        Some(follower) => follower.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
