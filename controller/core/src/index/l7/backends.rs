//! Backends: where requests for a port of a Service go.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use karst_api::{
    convert::address_bytes,
    waypoint as wire,
    workload::{self, AppProtocol, PortList, TunnelProtocol},
};

use super::{BackendKey, GatewayName, Index, NsName, Service, tls::BackendTls};
use crate::{
    index::{PodEntry, relations::service_of},
    object::{
        endpoint_slice::EndpointSlice,
        pod::{PodNetwork, PodPhase},
        service::{Reach, ServicePort, Unready},
    },
    proxy::WAYPOINT_PORT,
};

/// An endpoint, and what it is a part of.
type Member = (wire::Endpoint, wire::Workload);

impl Index {
    /// A pod has changed, or is about to.
    pub(in crate::index) fn pod_changed(&mut self, key: &NsName) {
        self.gateway_pod_changed(key);
        self.l7.dirty.pods.insert(key.clone());
        let Some(entry) = self.pods.get(key) else {
            return;
        };
        let proxy = self.proxy_of_pod(key, &entry.pod);
        if !self.l7.backend_users.is_empty() {
            let services = self.services_of_pod(key, &entry.pod).into_keys();
            let services: Vec<NsName> = services.collect();
            self.l7.dirty.backends.extend(services);
        }
        if let Some((gateway, _)) = proxy {
            self.proxies_changed(gateway);
        }
    }

    /// Other pods than before are the proxies of a Gateway, or may be.
    pub(super) fn proxies_changed(&mut self, gateway: GatewayName) {
        // Services behind a waypoint are reached by way of its pods.
        let behind = self.l7.bound_services.get(&gateway).into_iter().flatten();
        self.l7.dirty.backends.extend(behind.cloned());
        self.l7.dirty.gateways.insert(gateway);
    }

    /// A slice has changed, or is about to.
    pub(in crate::index) fn slice_changed(&mut self, key: &NsName) {
        let slice = self.slices.get(key);
        let service = slice.and_then(|slice| service_of(key, slice));
        self.l7.dirty.backends.extend(service);
    }

    /// The backend for a port of a Service, as the proxy of a Gateway sees it, and the names of the
    /// TlsSecrets that it refers to.
    pub(super) fn backend(
        &self,
        gateway: &GatewayName,
        (key, number): &BackendKey,
    ) -> (wire::Backend, BTreeSet<String>) {
        let mut backend = wire::Backend {
            name: self.backend_name(key, *number),
            namespace: key.namespace.clone(),
            service: key.name.clone(),
            hostname: self.config.hostname(&key.namespace, &key.name),
            port: (*number).into(),
            ..wire::Backend::default()
        };
        let service = self.services.get(key);
        let service = service.filter(|service| service.reach == Reach::Endpoints);
        let port = service.and_then(|service| {
            let mut ports = service.ports.iter();
            ports
                .find(|port| port.port == *number)
                .map(|port| (service, port))
        });
        let Some((service, port)) = port else {
            backend.invalid = "BackendNotFound".to_owned();
            return (backend, BTreeSet::new());
        };
        backend.protocol = protocol(port.app_protocol).into();
        let mesh = self.l7.services.get(key);
        if let Some(waypoint) = mesh.and_then(|mesh| mesh.in_force.as_ref())
            && waypoint != gateway
        {
            // TLS towards the application, and its policy, are that waypoint's to apply.
            let usable = mesh.and_then(|mesh| mesh.binding.as_ref());
            if usable.is_some_and(super::binding::Binding::is_usable) {
                let endpoints = self.waypoint_endpoints(waypoint, key, service, *number);
                set_endpoints(&mut backend, endpoints);
            }
            return (backend, BTreeSet::new());
        }
        let endpoints = self.endpoints(key, service, port);
        set_endpoints(&mut backend, endpoints);
        backend.policy = self.traffic_policy(key, port);
        let secrets = match self.backend_tls(gateway, key, port) {
            BackendTls::None => BTreeSet::new(),
            BackendTls::Tls(tls, secrets) => {
                backend.tls = Some(tls);
                // The policy sees to the TLS that is declared; what is spoken inside is not.
                if backend.protocol() == wire::Protocol::Tls {
                    backend.set_protocol(wire::Protocol::Undeclared);
                }
                secrets
            }
            BackendTls::Invalid(reason) => {
                backend.invalid = reason.to_owned();
                BTreeSet::new()
            }
        };
        (backend, secrets)
    }

    /// Pods of another waypoint, asked for the Service.
    fn waypoint_endpoints(
        &self,
        waypoint: &GatewayName,
        key: &NsName,
        service: &Service,
        port: u16,
    ) -> Vec<Member> {
        let host = match service.vips.first() {
            Some(IpAddr::V6(ip)) => format!("[{ip}]"),
            Some(ip) => ip.to_string(),
            None => self.config.hostname(&key.namespace, &key.name),
        };
        let authority = format!("{host}:{port}");
        let pods = self.proxy_pods(waypoint);
        let endpoints = pods.iter().filter_map(|pod| {
            let health = self.health(self.pods.get(pod)?, Unready::Avoided)?;
            let endpoint = self.pod_endpoint(pod, service.vips.first().copied(), WAYPOINT_PORT)?;
            let endpoint = wire::Endpoint {
                tunnel: wire::Tunnel::Hbone.into(),
                identity: self.proxy_identity(waypoint),
                authority: authority.clone(),
                port: port.into(),
                health: health.into(),
                ..endpoint
            };
            Some((endpoint, self.pod_workload(pod)?))
        });
        endpoints.collect()
    }

    fn endpoints(&self, key: &NsName, service: &Service, port: &ServicePort) -> Vec<Member> {
        let mut endpoints = Vec::new();
        for pod in self.pods_of_service(key) {
            let Some(entry) = self.pods.get(&pod) else {
                continue;
            };
            let Some(health) = self.health(entry, service.unready) else {
                continue;
            };
            let lists = self.services_of_pod(&pod, &entry.pod);
            let Some(target) = lists.get(key).and_then(|list| target(list, port.port)) else {
                continue;
            };
            let near = service.vips.first().copied();
            if let (Some(endpoint), Some(workload)) = (
                self.pod_endpoint(&pod, near, target),
                self.pod_workload(&pod),
            ) {
                let endpoint = wire::Endpoint {
                    health: health.into(),
                    ..endpoint
                };
                endpoints.push((endpoint, workload));
            }
        }
        for name in self.relations.slices_of_service(key) {
            if let Some(slice) = self.slices.get(name) {
                self.slice_endpoints((name, slice), key, (service, port), &mut endpoints);
            }
        }
        endpoints
            .sort_by(|(one, _), (other, _)| (&one.uid, one.port).cmp(&(&other.uid, other.port)));
        endpoints.dedup_by(|(one, _), (other, _)| one.uid == other.uid && one.port == other.port);
        endpoints
    }

    /// Endpoints of a slice that are no pods.
    fn slice_endpoints(
        &self,
        (name, slice): (&NsName, &EndpointSlice),
        key: &NsName,
        (service, port): (&Service, &ServicePort),
        endpoints: &mut Vec<Member>,
    ) {
        let mut ports = slice.ports.iter();
        let Some(target) = ports.find(|each| each.name == port.name) else {
            return;
        };
        for endpoint in slice.endpoints.iter().filter(|each| each.pod.is_none()) {
            let health = match (endpoint.ready, endpoint.draining, service.unready) {
                (true, _, _) | (_, _, Unready::Published) => wire::Health::Healthy,
                (false, true, Unready::Avoided) => wire::Health::Draining,
                (false, false, Unready::Avoided) => continue,
            };
            let others = endpoint.ips.iter();
            for ip in others.filter(|ip| self.relations.pod_of_ip(**ip).is_none()) {
                let endpoint = wire::Endpoint {
                    uid: self
                        .config
                        .endpoint_workload_uid(&name.namespace, &name.name, *ip),
                    address: address_bytes(*ip),
                    port: target.port.into(),
                    tunnel: wire::Tunnel::None.into(),
                    locality: self.wire_locality(endpoint.node.as_deref()),
                    node: endpoint.node.clone().unwrap_or_default(),
                    health: health.into(),
                    ..wire::Endpoint::default()
                };
                // As agents are told.
                let workload = wire::Workload {
                    namespace: name.namespace.clone(),
                    name: name.name.clone(),
                    canonical_name: key.name.clone(),
                    canonical_revision: "latest".to_owned(),
                    cluster: self.config.cluster_id.clone(),
                };
                endpoints.push((endpoint, workload));
            }
        }
    }

    fn health(&self, entry: &PodEntry, unready: Unready) -> Option<wire::Health> {
        match (entry.pod.phase, unready) {
            (PodPhase::Terminal, _) | (PodPhase::NotReady, Unready::Avoided) => None,
            (PodPhase::Ready, _) | (PodPhase::NotReady, Unready::Published) => {
                Some(wire::Health::Healthy)
            }
            (PodPhase::Draining, _) => Some(wire::Health::Draining),
        }
    }

    /// How to reach a pod; of several addresses the one that is of the same family as `near`.
    pub(super) fn pod_endpoint(
        &self,
        key: &NsName,
        near: Option<IpAddr>,
        port: u16,
    ) -> Option<wire::Endpoint> {
        let entry = self.pods.get(key)?;
        let pod = &entry.pod;
        let fits = |ip: &&IpAddr| near.is_none_or(|near| near.is_ipv4() == ip.is_ipv4());
        let address = pod.ips.iter().find(fits).or(pod.ips.first())?;
        let hbone =
            entry.tunnel.protocol() == TunnelProtocol::Hbone && pod.network == PodNetwork::Own;
        Some(wire::Endpoint {
            uid: self.config.pod_workload_uid(&key.namespace, &key.name),
            address: address_bytes(*address),
            port: port.into(),
            tunnel: if hbone {
                wire::Tunnel::Hbone
            } else {
                wire::Tunnel::None
            }
            .into(),
            identity: if hbone {
                self.identity(&key.namespace, &pod.service_account)
            } else {
                String::new()
            },
            authority: String::new(),
            locality: self.wire_locality(pod.node.as_deref()),
            node: pod.node.clone().unwrap_or_default(),
            health: wire::Health::Healthy.into(),
            workload: 0,
        })
    }

    /// What a pod is a part of.
    pub(super) fn pod_workload(&self, key: &NsName) -> Option<wire::Workload> {
        let pod = &self.pods.get(key)?.pod;
        Some(wire::Workload {
            namespace: key.namespace.clone(),
            name: pod.workload_name.clone(),
            canonical_name: pod.canonical_name.clone(),
            canonical_revision: pod.canonical_revision.clone(),
            cluster: self.config.cluster_id.clone(),
        })
    }

    fn wire_locality(&self, node: Option<&str>) -> Option<wire::Locality> {
        let workload::Locality { region, zone, .. } = self.locality(node)?;
        Some(wire::Locality { region, zone })
    }

    /// Pods that are endpoints of a Service: those that its selector matches, or, without one, those in its
    /// slices.
    pub(super) fn pods_of_service(&self, key: &NsName) -> BTreeSet<NsName> {
        let Some(service) = self.services.get(key) else {
            return BTreeSet::new();
        };
        if service.selector.is_some() {
            return self.selected_pods(key);
        }
        let slices = self.relations.slices_of_service(key);
        slices.flat_map(|slice| self.slice_pods(slice)).collect()
    }
}

/// Puts endpoints into a backend; what they are parts of is there once, however many there are.
fn set_endpoints(backend: &mut wire::Backend, members: Vec<Member>) {
    let mut places = HashMap::new();
    for (mut endpoint, workload) in members {
        endpoint.workload = *places.entry(workload).or_insert_with_key(|workload| {
            backend.workloads.push(workload.clone());
            // There is no way to have as many endpoints.
            u32::try_from(backend.workloads.len()).unwrap_or(0)
        });
        backend.endpoints.push(endpoint);
    }
}

fn target(list: &PortList, service_port: u16) -> Option<u16> {
    let mut ports = list.ports.iter();
    let port = ports.find(|port| port.service_port == u32::from(service_port))?;
    u16::try_from(port.target_port).ok()
}

/// The declared protocol, for proxies.
pub(super) fn protocol(declared: AppProtocol) -> wire::Protocol {
    match declared {
        AppProtocol::Unknown => wire::Protocol::Undeclared,
        AppProtocol::Http11 => wire::Protocol::Http1,
        AppProtocol::Http2 => wire::Protocol::Http2,
        AppProtocol::Grpc => wire::Protocol::Grpc,
        AppProtocol::Tcp => wire::Protocol::Tcp,
        AppProtocol::Tls => wire::Protocol::Tls,
    }
}
