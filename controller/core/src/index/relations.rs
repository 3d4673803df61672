//! Who depends on whom: the reverse look-ups that make updates small.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
};

use super::NsName;
use crate::object::{
    endpoint_slice::EndpointSlice,
    pod::{Pod, PodNetwork, PodPhase},
};

/// Reverse look-ups; every one is exact at all times.
#[derive(Debug, Default)]
pub(super) struct Relations {
    pods_of_node: HashMap<String, BTreeSet<NsName>>,
    pods_of_ip: HashMap<IpAddr, BTreeSet<NsName>>,
    /// Pods that share the address with their node.
    pods_of_node_ip: HashMap<IpAddr, BTreeSet<NsName>>,
    pod_of_uid: HashMap<String, NsName>,
    /// Static pods by the uid they have on their node, with that node.
    static_pods: HashMap<String, BTreeSet<(String, NsName)>>,
    slices_of_service: HashMap<NsName, BTreeSet<NsName>>,
    /// Slices that name the pod.
    slices_of_pod: HashMap<NsName, BTreeSet<NsName>>,
    /// Slices that have the address without naming a pod.
    slices_of_ip: HashMap<IpAddr, BTreeSet<NsName>>,
}

impl Relations {
    /// Records a pod. Returns what else its addresses concern.
    pub(super) fn add_pod(&mut self, key: &NsName, pod: &Pod) -> Concerned {
        if let Some(node) = &pod.node {
            link(&mut self.pods_of_node, node, key);
        }
        self.pod_of_uid.insert(pod.uid.clone(), key.clone());
        if let Some((node, hash)) = static_place(pod) {
            link(&mut self.static_pods, hash, &(node.clone(), key.clone()));
        }
        if identified_by_ip(pod) {
            for ip in &pod.ips {
                link(&mut self.pods_of_ip, ip, key);
            }
        }
        for ip in node_ips(pod) {
            link(&mut self.pods_of_node_ip, ip, key);
        }
        self.concerned(pod)
    }

    /// Forgets a pod. Returns what else its addresses concern.
    pub(super) fn remove_pod(&mut self, key: &NsName, pod: &Pod) -> Concerned {
        if let Some(node) = &pod.node {
            unlink(&mut self.pods_of_node, node, key);
        }
        self.pod_of_uid.remove(&pod.uid);
        if let Some((node, hash)) = static_place(pod) {
            unlink(&mut self.static_pods, hash, &(node.clone(), key.clone()));
        }
        for ip in &pod.ips {
            unlink(&mut self.pods_of_ip, ip, key);
            unlink(&mut self.pods_of_node_ip, ip, key);
        }
        self.concerned(pod)
    }

    pub(super) fn add_slice(&mut self, key: &NsName, slice: &EndpointSlice) {
        let Some(service) = service_of(key, slice) else {
            return;
        };
        link(&mut self.slices_of_service, &service, key);
        for endpoint in &slice.endpoints {
            match &endpoint.pod {
                Some(pod) => {
                    let pod = NsName::new(key.namespace.as_str(), pod.as_str());
                    link(&mut self.slices_of_pod, &pod, key);
                }
                None => {
                    for ip in &endpoint.ips {
                        link(&mut self.slices_of_ip, ip, key);
                    }
                }
            }
        }
    }

    pub(super) fn remove_slice(&mut self, key: &NsName, slice: &EndpointSlice) {
        let Some(service) = service_of(key, slice) else {
            return;
        };
        unlink(&mut self.slices_of_service, &service, key);
        for endpoint in &slice.endpoints {
            if let Some(pod) = &endpoint.pod {
                let pod = NsName::new(key.namespace.as_str(), pod.as_str());
                unlink(&mut self.slices_of_pod, &pod, key);
            }
            for ip in &endpoint.ips {
                unlink(&mut self.slices_of_ip, ip, key);
            }
        }
    }

    pub(super) fn pods_of_node(&self, node: &str) -> impl Iterator<Item = &NsName> {
        self.pods_of_node.get(node).into_iter().flatten()
    }

    /// The pod that has an address. Between the end of one pod and the start of another, two may
    /// claim it; then it is nobody's.
    pub(super) fn pod_of_ip(&self, ip: IpAddr) -> Option<&NsName> {
        let pods = self.pods_of_ip.get(&ip)?;
        if pods.len() == 1 { pods.first() } else { None }
    }

    /// Whether an address is a node's, as far as pods use it that share it with their node.
    pub(super) fn is_node_ip(&self, ip: IpAddr) -> bool {
        self.pods_of_node_ip.contains_key(&ip)
    }

    pub(super) fn pod_by_uid(&self, uid: &str) -> Option<&NsName> {
        self.pod_of_uid.get(uid)
    }

    /// The uid of a pod on its node. That of a static pod is taken from an annotation, which others
    /// may write as well: it counts only if no other pod has it or says so of itself.
    pub(super) fn node_uid<'a>(&self, key: &NsName, pod: &'a Pod) -> &'a str {
        match static_place(pod) {
            Some((node, hash)) if self.static_pod(node, hash) == Some(key) => hash,
            _ => &pod.uid,
        }
    }

    /// The pod that a node knows by a uid.
    pub(super) fn pod_by_node_uid(&self, node: &str, uid: &str) -> Option<&NsName> {
        self.pod_by_uid(uid).or_else(|| self.static_pod(node, uid))
    }

    fn static_pod(&self, node: &str, uid: &str) -> Option<&NsName> {
        let mut pods = self.static_pods.get(uid)?.iter();
        let (_, pod) = pods.find(|(of, _)| of == node)?;
        let alone = pods.all(|(of, _)| of != node);
        (alone && self.pod_by_uid(uid).is_none()).then_some(pod)
    }

    pub(super) fn slices_of_service(&self, service: &NsName) -> impl Iterator<Item = &NsName> {
        self.slices_of_service.get(service).into_iter().flatten()
    }

    /// Slices that have the pod as an endpoint, by name or by address.
    pub(super) fn slices_of_pod(&self, key: &NsName, pod: &Pod) -> BTreeSet<NsName> {
        let named = self.slices_of_pod.get(key).into_iter().flatten().cloned();
        let mut slices: BTreeSet<NsName> = named.collect();
        let own = |ip: &&IpAddr| self.pod_of_ip(**ip) == Some(key);
        for ip in pod.ips.iter().filter(own) {
            slices.extend(self.slices_of_ip.get(ip).into_iter().flatten().cloned());
        }
        slices
    }

    /// Who besides the pod has to do with its addresses and uids.
    fn concerned(&self, pod: &Pod) -> Concerned {
        let slices = pod.ips.iter().filter_map(|ip| self.slices_of_ip.get(ip));
        let slices: BTreeSet<NsName> = slices.flatten().cloned().collect();
        let mut pods = BTreeSet::new();
        if !slices.is_empty() {
            let claimants = pod.ips.iter().filter_map(|ip| self.pods_of_ip.get(ip));
            pods.extend(claimants.flatten().cloned());
        }
        let uids = [Some(&pod.uid), pod.config_hash.as_ref()];
        let others = uids.into_iter().flatten();
        let others = others.filter_map(|uid| self.static_pods.get(uid));
        pods.extend(others.flatten().map(|(_, key)| key.clone()));
        Concerned { slices, pods }
    }
}

/// What depends on whose an address or a uid is.
#[derive(Debug, Default)]
pub(super) struct Concerned {
    /// Slices that have the address.
    pub(super) slices: BTreeSet<NsName>,
    /// Pods that claim the address, if a slice has it, or the uid.
    pub(super) pods: BTreeSet<NsName>,
}

impl Concerned {
    pub(super) fn merge(&mut self, other: Self) {
        self.slices.extend(other.slices);
        self.pods.extend(other.pods);
    }
}

/// The Service a slice belongs to.
pub(super) fn service_of(key: &NsName, slice: &EndpointSlice) -> Option<NsName> {
    let service = slice.service.as_deref()?;
    Some(NsName::new(key.namespace.as_str(), service))
}

/// Whether the pod's address says which pod it is.
fn identified_by_ip(pod: &Pod) -> bool {
    pod.network == PodNetwork::Own && pod.phase != PodPhase::Terminal
}

/// Addresses of its node that the pod uses.
pub(super) fn node_ips(pod: &Pod) -> &[IpAddr] {
    match pod.network == PodNetwork::Host && pod.phase != PodPhase::Terminal {
        true => &pod.ips,
        false => &[],
    }
}

/// Node of a static pod, and its uid there.
fn static_place(pod: &Pod) -> Option<(&String, &String)> {
    pod.node.as_ref().zip(pod.config_hash.as_ref())
}

fn link<K: Hash + Eq + Clone, V: Ord + Clone>(map: &mut HashMap<K, BTreeSet<V>>, from: &K, to: &V) {
    map.entry(from.clone()).or_default().insert(to.clone());
}

fn unlink<K: Hash + Eq + Clone, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, from: &K, to: &V) {
    if let Entry::Occupied(mut entry) = map.entry(from.clone()) {
        entry.get_mut().remove(to);
        if entry.get().is_empty() {
            entry.remove();
        }
    }
}
