//! All objects, and the resources they make.
//!
//! [`Index::apply`] and [`Index::delete`] update the objects and then render again exactly the
//! resources that depend on what changed. Which those are is in `index/relations.rs`; what a
//! resource looks like is in `index/render.rs`; the rule that keeps traffic encrypted while a pod
//! changes sides is in `index/tunnel.rs`. Security policies are in `index/policies.rs`. Waypoints and gateways are in `index/l7.rs`.

mod explain;
mod l7;
mod policies;
mod relations;
mod render;
mod service_entries;
mod tunnel;

#[cfg(test)]
mod tests;

pub use self::{
    explain::{MeshPod, WaypointBinding},
    policies::explain::PeerMode,
};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use karst_api::workload::Locality;

use self::{
    l7::L7,
    policies::Policies,
    relations::{Concerned, Relations, node_ips, service_of},
    service_entries::ServiceEntries,
    tunnel::Tunnel,
};
use crate::{
    config::MeshConfig,
    error::{Faults, ObjectError},
    extension::ExtensionProviders,
    labels::{DataplaneMode, Egress},
    object::{
        Body, Kind, Metadata, Object, ObjectKey,
        endpoint_slice::EndpointSlice,
        namespace::Namespace,
        pod::{Pod, PodNetwork, PodPhase},
        service::Service,
    },
    proxy::{GatewayName, ProxyChange},
    resource::Rendered,
};

/// Namespace and name of a namespaced object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NsName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl NsName {
    fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// Names of what is new, changed or gone; look each up to see which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names of `istio.workload.Address` resources.
    pub addresses: BTreeSet<String>,
    /// Names of `istio.security.Authorization` resources.
    pub authorizations: BTreeSet<String>,
    /// Node and name of `karst.node.v1.NodePod` resources.
    pub node_pods: BTreeSet<(String, String)>,
    /// Resources of proxies.
    pub proxies: BTreeSet<ProxyChange>,
    /// Objects that should have another status: see [`Index::status`].
    pub statuses: BTreeSet<ObjectKey>,
    /// Gateways for which something else should run: see [`Index::proxy_wanted`].
    pub workloads_wanted: BTreeSet<GatewayName>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            addresses,
            authorizations,
            node_pods,
            proxies,
            statuses,
            workloads_wanted,
        } = self;
        addresses.is_empty()
            && authorizations.is_empty()
            && node_pods.is_empty()
            && proxies.is_empty()
            && statuses.is_empty()
            && workloads_wanted.is_empty()
    }

    /// Adds the changes of another call.
    pub fn merge(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.authorizations.extend(other.authorizations);
        self.node_pods.extend(other.node_pods);
        self.proxies.extend(other.proxies);
        self.statuses.extend(other.statuses);
        self.workloads_wanted.extend(other.workloads_wanted);
    }
}

/// What is known of an identity on a node; decides whether the node's agent may have a certificate
/// for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeIdentity {
    /// A pod with that service account is in the mesh and runs on the node.
    InMesh,
    /// Pods with that service account run on the node, but none is in the mesh.
    NotInMesh,
    /// No pod with that service account runs on the node.
    Absent,
}

/// A pod as callers outside the index see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRef<'a> {
    /// The API server's uid of it.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The node it runs on, once there is one.
    pub node: Option<&'a str>,
    /// Its service account.
    pub service_account: &'a str,
}

/// A pod as it is stored, with what the index knows besides the object.
#[derive(Debug)]
struct PodEntry {
    pod: Pod,
    tunnel: Tunnel,
    /// Node and name of its [`karst_api::node::NodePod`], while there is one.
    listed: Option<(String, String)>,
}

/// All objects, and the resources they make. See the module's description.
#[derive(Debug)]
pub struct Index {
    config: MeshConfig,
    namespaces: HashMap<String, Namespace>,
    nodes: HashMap<String, Option<Locality>>,
    service_accounts: HashSet<NsName>,
    pods: BTreeMap<NsName, PodEntry>,
    services: BTreeMap<NsName, Service>,
    slices: BTreeMap<NsName, EndpointSlice>,
    relations: Relations,
    addresses: BTreeMap<String, Arc<Rendered>>,
    aliases: HashMap<String, BTreeSet<String>>,
    /// Node, then name of the resource.
    node_pods: BTreeMap<String, BTreeMap<String, Arc<Rendered>>>,
    policies: Policies,
    entries: ServiceEntries,
    providers: ExtensionProviders,
    l7: L7,
}

impl Index {
    /// An index without objects.
    #[must_use]
    pub fn new(config: MeshConfig) -> Self {
        Self {
            config,
            namespaces: HashMap::new(),
            nodes: HashMap::new(),
            service_accounts: HashSet::new(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            relations: Relations::default(),
            addresses: BTreeMap::new(),
            aliases: HashMap::new(),
            node_pods: BTreeMap::new(),
            policies: Policies::default(),
            entries: ServiceEntries::default(),
            providers: ExtensionProviders::default(),
            l7: L7::default(),
        }
    }

    /// What is the same for the whole mesh.
    #[must_use]
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// Adds an object or replaces it. Of several objects that come together, apply those of the
    /// smaller [`Kind`] first: a pod that is seen before its namespace's label looks like one that
    /// was put into the mesh later.
    ///
    /// # Errors
    /// When the object contradicts another one. It is then not taken, and its former state stays.
    pub fn apply(&mut self, object: Object) -> Result<Changes, ObjectError> {
        let mut changes = self.stage(object)?;
        changes.merge(self.flush());
        Ok(changes)
    }

    /// Removes an object; nothing happens if it is not there.
    pub fn delete(&mut self, key: &ObjectKey) -> Changes {
        let mut changes = self.stage_delete(key);
        changes.merge(self.flush());
        changes
    }

    /// Like [`Index::apply`], but what waypoints and gateways make of it is not worked out before
    /// [`Index::flush`]: for objects that come together.
    ///
    /// # Errors
    /// As [`Index::apply`].
    pub fn stage(&mut self, object: Object) -> Result<Changes, ObjectError> {
        let mut changes = Changes::default();
        let key = NsName::new(object.key.namespace.as_str(), object.key.name.as_str());
        match object.body {
            Body::Namespace(namespace) => {
                self.set_namespace(key.name, namespace, &mut changes);
            }
            Body::Node(node) => self.set_node(key.name, node.locality, &mut changes),
            Body::ServiceAccount => {
                self.service_accounts.insert(key);
            }
            Body::Service(service) => self.set_service(key, Some(*service), &mut changes),
            Body::EndpointSlice(slice) => self.set_slice(key, Some(slice), &mut changes),
            Body::AuthorizationPolicy(policy) => {
                self.set_authorization_policy(key, Some((object.meta, *policy)), &mut changes);
            }
            Body::PeerAuthentication(policy) => {
                self.set_peer_authentication(key, Some((object.meta, *policy)), &mut changes);
            }
            Body::RequestAuthentication(policy) => {
                self.set_request_authentication(key, Some((object.meta, *policy)), &mut changes);
            }
            Body::Telemetry(telemetry) => {
                self.set_telemetry(key, Some((object.meta, *telemetry)), &mut changes);
            }
            Body::ServiceEntry(entry) => {
                self.set_service_entry(key, Some((object.meta, *entry)));
            }
            Body::Pod(pod) => {
                self.check_uid(&object.key, &key, &pod)?;
                self.set_pod(key, *pod, &mut changes);
            }
            body => self.set_l7(&object.key, object.meta, Some(body)),
        }
        Ok(changes)
    }

    /// Like [`Index::delete`], but what waypoints and gateways make of it is not worked out before
    /// [`Index::flush`].
    pub fn stage_delete(&mut self, key: &ObjectKey) -> Changes {
        let mut changes = Changes::default();
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        match key.kind {
            Kind::Namespace => {
                // Its labels go with it; its pods, which have manifests of their own, stay.
                self.set_namespace(name.name.clone(), Namespace::default(), &mut changes);
                self.namespaces.remove(&name.name);
                self.namespace_selected_anew(&name.name);
            }
            Kind::Node => {
                self.set_node(name.name.clone(), None, &mut changes);
                self.nodes.remove(&name.name);
            }
            Kind::ServiceAccount => {
                self.service_accounts.remove(&name);
            }
            Kind::Service => self.set_service(name, None, &mut changes),
            Kind::EndpointSlice => self.set_slice(name, None, &mut changes),
            Kind::AuthorizationPolicy => self.set_authorization_policy(name, None, &mut changes),
            Kind::PeerAuthentication => self.set_peer_authentication(name, None, &mut changes),
            Kind::RequestAuthentication => {
                self.set_request_authentication(name, None, &mut changes);
            }
            Kind::Telemetry => self.set_telemetry(name, None, &mut changes),
            Kind::ServiceEntry => self.set_service_entry(name, None),
            Kind::Pod => self.remove_pod(&name, &mut changes),
            _ => self.set_l7(key, Metadata::default(), None),
        }
        changes
    }

    /// Takes a node's report of the pods (by their uids on that node) that are enrolled there. Returns how
    /// many of them are pods of that node, and what the report changed.
    pub fn report_enrolled(&mut self, node: &str, pod_uids: &[String]) -> (usize, Changes) {
        let mut changes = Changes::default();
        let mut known = 0;
        for uid in pod_uids {
            let Some(key) = self.relations.pod_by_node_uid(node, uid).cloned() else {
                continue;
            };
            let Some(entry) = self.pods.get_mut(&key) else {
                continue;
            };
            // A node speaks for its own pods only.
            if entry.pod.node.as_deref() != Some(node) {
                continue;
            }
            known += 1;
            if entry.tunnel.reported_enrolled() {
                self.pod_changed(&key);
                self.render_pod(&key, &mut changes);
            }
        }
        changes.merge(self.flush());
        (known, changes)
    }

    /// The address resource of that primary name.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<&Arc<Rendered>> {
        self.addresses.get(name)
    }

    /// The address resources that have an alias, `network/ip`.
    pub fn aliased<'a>(&'a self, alias: &str) -> impl Iterator<Item = &'a Arc<Rendered>> + use<'a> {
        let names = self.aliases.get(alias).into_iter().flatten();
        names.filter_map(|name| self.addresses.get(name))
    }

    /// All address resources, by name.
    pub fn addresses(&self) -> impl Iterator<Item = &Arc<Rendered>> {
        self.addresses.values()
    }

    /// The pod of that name on that node.
    #[must_use]
    pub fn node_pod(&self, node: &str, name: &str) -> Option<&Arc<Rendered>> {
        self.node_pods.get(node)?.get(name)
    }

    /// The pods of a node, by name.
    pub fn node_pods(&self, node: &str) -> impl Iterator<Item = &Arc<Rendered>> {
        self.node_pods
            .get(node)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// Whether an identity is one of a node's.
    #[must_use]
    pub fn identity_on_node(
        &self,
        node: &str,
        namespace: &str,
        service_account: &str,
    ) -> NodeIdentity {
        let mut found = NodeIdentity::Absent;
        for key in self.relations.pods_of_node(node) {
            let Some(entry) = self.pods.get(key) else {
                continue;
            };
            if key.namespace != namespace
                || entry.pod.service_account != service_account
                || entry.pod.phase == PodPhase::Terminal
            {
                continue;
            }
            if self.mode(key, &entry.pod) == DataplaneMode::Ambient {
                return NodeIdentity::InMesh;
            }
            found = NodeIdentity::NotInMesh;
        }
        found
    }

    /// The pod of that Kubernetes uid, if there is one and it has not ended.
    #[must_use]
    pub fn live_pod(&self, uid: &str) -> Option<PodRef<'_>> {
        self.pod_ref(self.relations.pod_by_uid(uid)?)
    }

    /// The pod that a node's agent means by a uid, if there is one and it has not ended. A static pod
    /// has another uid there than in the API.
    #[must_use]
    pub fn reported_pod(&self, node: &str, uid: &str) -> Option<PodRef<'_>> {
        self.pod_ref(self.relations.pod_by_node_uid(node, uid)?)
    }

    fn pod_ref<'a>(&'a self, key: &'a NsName) -> Option<PodRef<'a>> {
        let pod = &self.pods.get(key)?.pod;
        (pod.phase != PodPhase::Terminal).then_some(PodRef {
            uid: &pod.uid,
            namespace: &key.namespace,
            name: &key.name,
            node: pod.node.as_deref(),
            service_account: &pod.service_account,
        })
    }

    /// Whether there is a pod of that name, ended or not.
    #[must_use]
    pub fn has_pod(&self, namespace: &str, name: &str) -> bool {
        self.pods.contains_key(&NsName::new(namespace, name))
    }

    /// Whether there is a namespace of that name.
    #[must_use]
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// The namespaces, in no order.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    /// Nodes with pods that were put into the mesh and have not been reported enrolled so far.
    #[must_use]
    pub fn nodes_awaited(&self) -> BTreeSet<&str> {
        let awaited = self.pods.values();
        let awaited = awaited.filter(|entry| entry.tunnel == Tunnel::Awaited);
        awaited
            .filter_map(|entry| entry.pod.node.as_deref())
            .collect()
    }

    /// Number of objects held, for metrics.
    #[must_use]
    pub fn object_count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::ServiceAccount => self.service_accounts.len(),
            Kind::Service => self.services.len(),
            Kind::Pod => self.pods.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::ServiceEntry => self.entry_count(),
            kind => match self.policy_count(kind) {
                Some(count) => count,
                None => self.l7.object_count(kind),
            },
        }
    }

    /// What the operator wants for a pod: its own label, else its namespace's. A pod without a
    /// network of its own, with a sidecar, or of a waypoint or gateway, is never in the mesh.
    fn mode(&self, key: &NsName, pod: &Pod) -> DataplaneMode {
        if pod.network == PodNetwork::Host
            || pod.has_sidecar
            || pod.phase == PodPhase::Terminal
            || self.proxy_of_pod(key, pod).is_some()
        {
            return DataplaneMode::None;
        }
        let namespace = || self.namespaces.get(&key.namespace);
        pod.mode
            .or_else(|| namespace().and_then(|namespace| namespace.mode))
            .unwrap_or(DataplaneMode::None)
    }

    /// Where pods of a namespace may connect to.
    fn egress(&self, namespace: &str) -> Egress {
        let own = self.namespaces.get(namespace);
        own.and_then(|namespace| namespace.egress)
            .unwrap_or(self.config.egress_default)
    }

    fn set_namespace(&mut self, name: String, namespace: Namespace, changes: &mut Changes) {
        let (mode, egress) = (namespace.mode, namespace.egress);
        let former = self.namespaces.insert(name.clone(), namespace);
        if former.is_none() {
            self.namespace_selected_anew(&name);
        }
        let former = former.unwrap_or_default();
        self.namespace_changed(&name, &former);
        if former.mode == mode && former.egress == egress {
            return;
        }
        for key in self.pods_of_namespace(&name) {
            if former.mode != mode {
                self.update_mode(&key);
            }
            self.render_pod(&key, changes);
        }
    }

    fn set_node(&mut self, name: String, locality: Option<Locality>, changes: &mut Changes) {
        let former = self.nodes.insert(name.clone(), locality.clone());
        if former.flatten() == locality {
            return;
        }
        let pods: Vec<NsName> = self.relations.pods_of_node(&name).cloned().collect();
        for key in pods {
            self.pod_changed(&key);
            self.render_pod(&key, changes);
        }
        let on_node = |slice: &EndpointSlice| {
            let mut endpoints = slice.endpoints.iter();
            endpoints.any(|endpoint| endpoint.node.as_deref() == Some(&name))
        };
        let slices = self.slices.iter().filter(|(_, slice)| on_node(slice));
        let slices: Vec<NsName> = slices.map(|(key, _)| key.clone()).collect();
        for key in slices {
            self.slice_changed(&key);
            self.render_slice(&key, changes);
        }
    }

    fn set_pod(&mut self, key: NsName, pod: Pod, changes: &mut Changes) {
        let mode = self.mode(&key, &pod);
        self.pod_changed(&key);
        let former = self.pods.remove(&key);
        let before = former.as_ref().map_or(&[][..], |it| node_ips(&it.pod));
        self.node_ips_changed(before, node_ips(&pod));
        let mut concerned = match &former {
            Some(former) => self.relations.remove_pod(&key, &former.pod),
            None => Concerned::default(),
        };
        let (tunnel, listed) = match former {
            Some(former) if former.pod.uid == pod.uid => (former.tunnel.after(mode), former.listed),
            former => {
                // Another pod under the same name: it shares nothing with the former one.
                self.unlist_pod(former.and_then(|former| former.listed), changes);
                (Tunnel::first_seen(mode), None)
            }
        };
        concerned.merge(self.relations.add_pod(&key, &pod));
        let entry = PodEntry {
            pod,
            tunnel,
            listed,
        };
        self.pods.insert(key.clone(), entry);
        self.pod_changed(&key);
        // The others first: one of them may have to give up a name that is this one's now.
        self.render_concerned(concerned, changes);
        self.render_pod(&key, changes);
    }

    fn remove_pod(&mut self, key: &NsName, changes: &mut Changes) {
        self.pod_changed(key);
        let Some(former) = self.pods.remove(key) else {
            return;
        };
        self.node_ips_changed(node_ips(&former.pod), &[]);
        let concerned = self.relations.remove_pod(key, &former.pod);
        self.unlist_pod(former.listed, changes);
        self.render_pod(key, changes);
        self.render_concerned(concerned, changes);
    }

    /// Addresses and uids have come or gone, and may have become, or ceased to be, those of another pod.
    fn render_concerned(&mut self, concerned: Concerned, changes: &mut Changes) {
        for slice in concerned.slices {
            self.slice_changed(&slice);
            self.render_slice(&slice, changes);
        }
        for pod in concerned.pods {
            self.pod_changed(&pod);
            self.render_pod(&pod, changes);
        }
    }

    fn set_service(&mut self, key: NsName, service: Option<Service>, changes: &mut Changes) {
        let slices: Vec<NsName> = self.relations.slices_of_service(&key).cloned().collect();
        let mut touched = self.selected_pods(&key);
        touched.extend(slices.iter().flat_map(|slice| self.slice_pods(slice)));
        self.service_changed(&key, service.as_ref());
        match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(&key),
        };
        touched.extend(self.selected_pods(&key));

        self.collector_service_changed(&key, changes);
        self.render_service(&key, changes);
        for pod in touched {
            self.l7.dirty.pods.insert(pod.clone());
            self.render_pod(&pod, changes);
        }
        for slice in slices {
            self.render_slice(&slice, changes);
        }
    }

    fn set_slice(&mut self, key: NsName, slice: Option<EndpointSlice>, changes: &mut Changes) {
        let mut touched = self.slice_members(&key);
        self.slice_changed(&key);
        if let Some(former) = self.slices.remove(&key) {
            self.relations.remove_slice(&key, &former);
        }
        if let Some(slice) = slice {
            self.relations.add_slice(&key, &slice);
            self.slices.insert(key.clone(), slice);
        }
        touched.extend(self.slice_members(&key));
        self.slice_changed(&key);
        self.render_slice(&key, changes);
        for pod in touched {
            self.l7.dirty.pods.insert(pod.clone());
            self.render_pod(&pod, changes);
        }
    }

    /// Pods that are endpoints of a Service because a slice says so. Where the Service has a selector, it decides, and
    /// the slice, which changes with each of its pods, says nothing of them.
    fn slice_members(&self, key: &NsName) -> BTreeSet<NsName> {
        let slice = self.slices.get(key);
        let service = slice.and_then(|slice| service_of(key, slice));
        let service = service.and_then(|service| self.services.get(&service));
        match service.is_some_and(|service| service.selector.is_none()) {
            true => self.slice_pods(key),
            false => BTreeSet::new(),
        }
    }

    fn update_mode(&mut self, key: &NsName) {
        let Some(entry) = self.pods.get(key) else {
            return;
        };
        let mode = self.mode(key, &entry.pod);
        if let Some(entry) = self.pods.get_mut(key) {
            entry.tunnel = entry.tunnel.after(mode);
        }
    }

    fn check_uid(&self, object: &ObjectKey, key: &NsName, pod: &Pod) -> Result<(), ObjectError> {
        match self.relations.pod_by_uid(&pod.uid) {
            Some(other) if other != key => Err(Faults::of(object).error(
                "metadata.uid",
                format!("is that of Pod {}/{} too", other.namespace, other.name),
                "give each pod a uid of its own, or leave it out",
            )),
            _ => Ok(()),
        }
    }

    fn pods_of_namespace(&self, namespace: &str) -> Vec<NsName> {
        self.pods
            .range(NsName::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Pods that a service's selector matches.
    fn selected_pods(&self, service: &NsName) -> BTreeSet<NsName> {
        let Some(found) = self.services.get(service) else {
            return BTreeSet::new();
        };
        self.pods
            .range(NsName::new(service.namespace.as_str(), "")..)
            .take_while(|(key, _)| key.namespace == service.namespace)
            .filter(|(_, entry)| found.selects(&entry.pod.labels))
            .map(|(key, _)| key.clone())
            .collect()
    }
}
