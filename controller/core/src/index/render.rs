//! What the resources look like.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use karst_api::{
    DEFAULT_TRUST_DOMAIN,
    convert::address_bytes,
    node::{DataplaneMode as WireMode, EgressMode, NodePod},
    workload::{
        self, Address, IpFamilies, LoadBalancing, NetworkAddress, NetworkMode, Port, PortList,
        TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
        address::Type,
        ip_alias,
        load_balancing::{HealthPolicy, Mode, Scope},
        service::Visibility,
    },
};

use super::{Changes, Index, NsName, PodEntry, relations::service_of};
use crate::{
    labels::{DataplaneMode, Egress},
    object::{
        endpoint_slice::{Endpoint, EndpointSlice},
        pod::{Pod, PodNetwork, PodPhase},
        service::{Families, Preference, Reach, Service, ServicePort, TargetPort, Unready},
    },
    proxy::ProxyClass,
    resource::Rendered,
};

impl Index {
    /// Renders both resources of a pod, or removes them if it has none.
    pub(super) fn render_pod(&mut self, key: &NsName, changes: &mut Changes) {
        let uid = self.config.pod_workload_uid(&key.namespace, &key.name);
        let entry = self.pods.get(key);
        let workload = entry
            .and_then(|entry| self.workload(key, entry, &uid))
            .map(|workload| self.address_resource(uid.clone(), Type::Workload(workload)));
        let node_pod = entry.and_then(|entry| self.node_pod_of(key, entry, &uid));

        self.put_address(uid, workload, changes);
        self.list_pod(key, node_pod, changes);
    }

    /// Puts a pod on its node's list under its present name alone.
    fn list_pod(
        &mut self,
        key: &NsName,
        node_pod: Option<(String, Rendered)>,
        changes: &mut Changes,
    ) {
        let Some(entry) = self.pods.get_mut(key) else {
            return;
        };
        let listed = node_pod
            .as_ref()
            .map(|(node, rendered)| (node.clone(), rendered.name.clone()));
        if entry.listed != listed {
            let former = std::mem::replace(&mut entry.listed, listed);
            self.unlist_pod(former, changes);
        }
        if let Some((node, rendered)) = node_pod {
            let pods = self.node_pods.entry(node.clone()).or_default();
            if pods.get(&rendered.name).map(|former| &former.version) != Some(&rendered.version) {
                changes.node_pods.insert((node, rendered.name.clone()));
                pods.insert(rendered.name.clone(), Arc::new(rendered));
            }
        }
    }

    /// Renders a service, or removes it.
    pub(super) fn render_service(&mut self, key: &NsName, changes: &mut Changes) {
        let hostname = self.config.hostname(&key.namespace, &key.name);
        let name = workload::service_key(&key.namespace, &hostname);
        let rendered = self
            .services
            .get(key)
            .filter(|service| service.reach == Reach::Endpoints)
            .map(|service| self.service(key, service, hostname))
            .map(|service| self.address_resource(name.clone(), Type::Service(service)));
        self.put_address(name, rendered, changes);
    }

    /// Renders the endpoints of a slice that are no pods, and removes those it has no more.
    pub(super) fn render_slice(&mut self, key: &NsName, changes: &mut Changes) {
        let mut wanted = BTreeMap::new();
        if let Some(slice) = self.slices.get(key) {
            for endpoint in slice.endpoints.iter().filter(|each| each.pod.is_none()) {
                for &ip in &endpoint.ips {
                    // A pod's address is the pod, whoever wrote it down.
                    if self.relations.pod_of_ip(ip).is_none()
                        && let Some(workload) = self.endpoint(key, slice, endpoint, ip)
                    {
                        let uid = workload.uid.clone();
                        let rendered = self.address_resource(uid.clone(), Type::Workload(workload));
                        wanted.insert(uid, rendered);
                    }
                }
            }
        }
        // Every endpoint of a slice has the slice's name before the address.
        let prefix = format!(
            "{}/discovery.k8s.io/EndpointSlice/{}/{}/",
            self.config.cluster_id, key.namespace, key.name
        );
        let held: Vec<String> = self
            .addresses
            .range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(name, _)| name.clone())
            .collect();
        for name in held.into_iter().filter(|name| !wanted.contains_key(name)) {
            self.put_address(name, None, changes);
        }
        for (name, rendered) in wanted {
            self.put_address(name, Some(rendered), changes);
        }
    }

    /// Pods that are endpoints of a slice, by name or by address.
    pub(super) fn slice_pods(&self, key: &NsName) -> BTreeSet<NsName> {
        let Some(slice) = self.slices.get(key) else {
            return BTreeSet::new();
        };
        let mut pods = BTreeSet::new();
        for endpoint in &slice.endpoints {
            match &endpoint.pod {
                Some(name) => {
                    pods.insert(NsName::new(key.namespace.as_str(), name.as_str()));
                }
                None => {
                    let owners = endpoint.ips.iter();
                    let owners = owners.filter_map(|ip| self.relations.pod_of_ip(*ip));
                    pods.extend(owners.cloned());
                }
            }
        }
        pods
    }

    /// Removes a pod from its node's list, where it is `listed`.
    pub(super) fn unlist_pod(&mut self, listed: Option<(String, String)>, changes: &mut Changes) {
        let Some((node, name)) = listed else { return };
        let Some(pods) = self.node_pods.get_mut(&node) else {
            return;
        };
        let was_there = pods.remove(&name).is_some();
        if pods.is_empty() {
            self.node_pods.remove(&node);
        }
        if was_there {
            changes.node_pods.insert((node, name));
        }
    }

    pub(super) fn put_address(
        &mut self,
        name: String,
        rendered: Option<Rendered>,
        changes: &mut Changes,
    ) {
        let former = self.addresses.get(&name).cloned();
        match (&former, &rendered) {
            (None, None) => return,
            (Some(former), Some(now)) if former.version == now.version => return,
            _ => {}
        }
        let both = [former.as_deref(), rendered.as_ref()];
        let aliases = both.into_iter().flatten().flat_map(|one| &one.aliases);
        self.entries.aliases_changed(aliases);
        for alias in former.iter().flat_map(|former| &former.aliases) {
            if let Some(names) = self.aliases.get_mut(alias) {
                names.remove(&name);
                if names.is_empty() {
                    self.aliases.remove(alias);
                }
            }
        }
        match rendered {
            Some(rendered) => {
                for alias in &rendered.aliases {
                    let names = self.aliases.entry(alias.clone()).or_default();
                    names.insert(name.clone());
                }
                self.addresses.insert(name.clone(), Arc::new(rendered));
            }
            None => {
                self.addresses.remove(&name);
            }
        }
        changes.addresses.insert(name);
    }

    pub(super) fn address_resource(&self, name: String, address: Type) -> Rendered {
        let aliases = match &address {
            Type::Workload(workload) => workload.aliases(),
            Type::Service(service) => service.aliases(),
        };
        let message = Address {
            r#type: Some(address),
        };
        // The addresses were written from `IpAddr`, so they are valid.
        Rendered::new(name, aliases.unwrap_or_default(), &message)
    }

    fn workload(&self, key: &NsName, entry: &PodEntry, uid: &str) -> Option<Workload> {
        let pod = &entry.pod;
        if pod.phase == PodPhase::Terminal || pod.ips.is_empty() {
            return None;
        }
        let services = self.services_of_pod(key, pod);
        Some(Workload {
            uid: uid.to_owned(),
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            addresses: pod.ips.iter().copied().map(address_bytes).collect(),
            network: self.config.network.clone(),
            tunnel_protocol: self.tunnel_protocol(key, entry).into(),
            waypoint: self.pod_waypoint(key),
            trust_domain: self.wire_trust_domain(),
            service_account: pod.service_account.clone(),
            node: pod.node.clone().unwrap_or_default(),
            canonical_name: pod.canonical_name.clone(),
            canonical_revision: pod.canonical_revision.clone(),
            workload_type: pod.workload_type.into(),
            workload_name: pod.workload_name.clone(),
            services: services
                .into_iter()
                .map(|(service, ports)| (self.service_resource_name(&service), ports))
                .collect(),
            status: status(pod.phase == PodPhase::Ready).into(),
            authorization_policies: self.policies_of_pod(key, pod),
            cluster_id: self.config.cluster_id.clone(),
            locality: self.locality(pod.node.as_deref()),
            network_mode: match pod.network {
                PodNetwork::Own => NetworkMode::Standard,
                PodNetwork::Host => NetworkMode::HostNetwork,
            }
            .into(),
            ..Default::default()
        })
    }

    /// The node's view of a pod. Host-network pods are left out: there is nothing an agent could
    /// do for them, and their address is the node's.
    fn node_pod_of(&self, key: &NsName, entry: &PodEntry, uid: &str) -> Option<(String, Rendered)> {
        let pod = &entry.pod;
        let node = pod.node.clone()?;
        if pod.phase == PodPhase::Terminal || pod.network == PodNetwork::Host {
            return None;
        }
        // What the container runtime calls it by.
        let node_uid = self.relations.node_uid(key, pod).to_owned();
        let message = NodePod {
            uid: node_uid.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            pod_uid: node_uid.clone(),
            service_account: pod.service_account.clone(),
            trust_domain: self.config.trust_domain.clone(),
            addresses: pod.ips.iter().copied().map(address_bytes).collect(),
            dataplane_mode: match self.mode(key, pod) {
                DataplaneMode::Ambient => WireMode::Ambient,
                DataplaneMode::None => WireMode::None,
            }
            .into(),
            workload_uid: uid.to_owned(),
            waypoints: self.pod_requirements(key),
            egress_mode: match self.egress(&key.namespace) {
                Egress::AllowAny => EgressMode::AllowAny,
                Egress::RegistryOnly => EgressMode::RegistryOnly,
            }
            .into(),
            telemetry: self.telemetry_of_pod(key, pod),
        };
        Some((node, Rendered::new(node_uid, Vec::new(), &message)))
    }

    fn service(&self, key: &NsName, service: &Service, hostname: String) -> workload::Service {
        workload::Service {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            hostname,
            addresses: service
                .vips
                .iter()
                .map(|ip| NetworkAddress {
                    network: self.config.network.clone(),
                    address: address_bytes(*ip),
                    length: None,
                })
                .collect(),
            ports: service
                .ports
                .iter()
                .map(|port| Port {
                    service_port: port.port.into(),
                    target_port: match port.target {
                        TargetPort::Number(number) => number.into(),
                        TargetPort::Name(_) => 0,
                    },
                    app_protocol: port.app_protocol.into(),
                })
                .collect(),
            load_balancing: load_balancing(service),
            waypoint: self.service_waypoint(key),
            ip_families: match service.families {
                Families::Unknown => IpFamilies::Automatic,
                Families::V4 => IpFamilies::Ipv4Only,
                Families::V6 => IpFamilies::Ipv6Only,
                Families::Dual => IpFamilies::Dual,
            }
            .into(),
            canonical: true,
            visibility: Visibility::Public.into(),
            ..Default::default()
        }
    }

    fn endpoint(
        &self,
        key: &NsName,
        slice: &EndpointSlice,
        endpoint: &Endpoint,
        ip: IpAddr,
    ) -> Option<Workload> {
        let service_key = service_of(key, slice)?;
        let service = self.services.get(&service_key)?;
        if service.reach != Reach::Endpoints {
            return None;
        }
        let uid = self
            .config
            .endpoint_workload_uid(&key.namespace, &key.name, ip);
        Some(Workload {
            uid,
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            addresses: vec![address_bytes(ip)],
            network: self.config.network.clone(),
            tunnel_protocol: TunnelProtocol::None.into(),
            trust_domain: self.wire_trust_domain(),
            node: endpoint.node.clone().unwrap_or_default(),
            canonical_name: service_key.name.clone(),
            canonical_revision: "latest".to_owned(),
            workload_type: WorkloadType::Pod.into(),
            workload_name: key.name.clone(),
            services: BTreeMap::from([(
                self.service_resource_name(&service_key),
                slice_ports(service, slice),
            )]),
            status: status(endpoint.ready).into(),
            cluster_id: self.config.cluster_id.clone(),
            locality: self.locality(endpoint.node.as_deref()),
            ..Default::default()
        })
    }

    /// A waypoint's own pods take tunnels themselves, whatever the mode of their namespace.
    fn tunnel_protocol(&self, key: &NsName, entry: &PodEntry) -> TunnelProtocol {
        match self.proxy_of_pod(key, &entry.pod) {
            Some((_, ProxyClass::Waypoint)) => TunnelProtocol::Hbone,
            _ => entry.tunnel.protocol(),
        }
    }

    /// The services of which a pod is an endpoint: those whose selector matches, and those without
    /// a selector whose slices have the pod.
    pub(super) fn services_of_pod(&self, key: &NsName, pod: &Pod) -> BTreeMap<NsName, PortList> {
        let selecting = self
            .services
            .range(NsName::new(key.namespace.as_str(), "")..)
            .take_while(|(service, _)| service.namespace == key.namespace)
            .filter(|(_, service)| service.selects(&pod.labels));
        let mut services: BTreeMap<NsName, PortList> = selecting
            .map(|(name, service)| (name.clone(), pod_ports(service, pod)))
            .collect();
        for slice_key in self.relations.slices_of_pod(key, pod) {
            let Some(slice) = self.slices.get(&slice_key) else {
                continue;
            };
            let Some(name) = service_of(&slice_key, slice) else {
                continue;
            };
            let Some(service) = self.services.get(&name) else {
                continue;
            };
            // With a selector, the selector decides; its slices only repeat it, later.
            if service.reach == Reach::Endpoints && service.selector.is_none() {
                services.insert(name, slice_ports(service, slice));
            }
        }
        services
    }

    pub(super) fn service_resource_name(&self, key: &NsName) -> String {
        let hostname = self.config.hostname(&key.namespace, &key.name);
        workload::service_key(&key.namespace, &hostname)
    }

    pub(super) fn locality(&self, node: Option<&str>) -> Option<workload::Locality> {
        self.nodes.get(node?).cloned().flatten()
    }

    fn wire_trust_domain(&self) -> String {
        if self.config.trust_domain == DEFAULT_TRUST_DOMAIN {
            String::new()
        } else {
            self.config.trust_domain.clone()
        }
    }

    /// The alias of an address in this mesh's network.
    #[must_use]
    pub fn alias(&self, ip: IpAddr) -> String {
        ip_alias(&self.config.network, ip)
    }
}

fn status(ready: bool) -> WorkloadStatus {
    if ready {
        WorkloadStatus::Healthy
    } else {
        WorkloadStatus::Unhealthy
    }
}

fn load_balancing(service: &Service) -> Option<LoadBalancing> {
    let (preferences, mode): (&[Scope], Mode) = match service.preference {
        Preference::Any => (&[], Mode::UnspecifiedMode),
        Preference::OwnNode => (&[Scope::Node], Mode::Strict),
        Preference::SameZone => (
            &[Scope::Network, Scope::Region, Scope::Zone],
            Mode::Failover,
        ),
        Preference::SameNode => (
            &[
                Scope::Network,
                Scope::Region,
                Scope::Zone,
                Scope::Subzone,
                Scope::Node,
            ],
            Mode::Failover,
        ),
    };
    let health_policy = match service.unready {
        Unready::Avoided => HealthPolicy::OnlyHealthy,
        Unready::Published => HealthPolicy::AllowAll,
    };
    let load_balancing = LoadBalancing {
        routing_preference: preferences.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
    };
    (load_balancing != LoadBalancing::default()).then_some(load_balancing)
}

/// The service's ports as the pod serves them. A port whose target is a name that the pod does not
/// have is left out: the pod does not serve it.
fn pod_ports(service: &Service, pod: &Pod) -> PortList {
    let target = |port: &ServicePort| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod
            .named_ports
            .iter()
            .find(|(named, _)| named == name)
            .map(|(_, number)| *number),
    };
    port_list(service, target)
}

/// The service's ports as a slice maps them, by port name.
fn slice_ports(service: &Service, slice: &EndpointSlice) -> PortList {
    port_list(service, |port| {
        slice
            .ports
            .iter()
            .find(|candidate| candidate.name == port.name)
            .map(|found| found.port)
    })
}

fn port_list(service: &Service, target: impl Fn(&ServicePort) -> Option<u16>) -> PortList {
    PortList {
        ports: service
            .ports
            .iter()
            .filter_map(|port| {
                Some(Port {
                    service_port: port.port.into(),
                    target_port: target(port)?.into(),
                    app_protocol: port.app_protocol.into(),
                })
            })
            .collect(),
    }
}
