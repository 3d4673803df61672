//! Which waypoint a service or a pod is behind.
//!
//! A binding that cannot be used fails closed: sources are still told of the waypoint, and destinations
//! still require it, so that nothing passes without it. With enforcement switched off by its label, a
//! waypoint that is missing or not ready is passed over.

use std::collections::{BTreeMap, BTreeSet};

use karst_api::{
    convert::address_bytes,
    node::WaypointRequirement,
    waypoint as wire,
    workload::{GatewayAddress, NamespacedHostname, PortList, gateway_address::Destination},
};

use super::{Changes, GatewayName, Index, Namespace, NsName, Service};
use crate::{
    labels::{self, DataplaneMode, Enforcement, WaypointChoice, WaypointLabels},
    object::pod::{Pod, PodNetwork, PodPhase},
    proxy::{ProxyClass, WAYPOINT_PORT},
};

/// What a waypoint is for (`karst.dev/waypoint-for`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Serves {
    services: bool,
    workloads: bool,
}

impl Serves {
    /// What a waypoint is for that says nothing about it.
    const SERVICES: Self = Self {
        services: true,
        workloads: false,
    };
}

/// What bindings look at of a waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waypoint {
    pub(super) serves: Serves,
    pub(super) readiness: Readiness,
}

/// Whether a waypoint can take traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Its Service has no address, or none of its pods is ready.
    NotReady,
}

/// A waypoint that something asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index) struct Binding {
    pub(in crate::index) gateway: GatewayName,
    pub(in crate::index) state: BindingState,
    pub(super) enforcement: Enforcement,
}

/// How it stands with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::index) enum BindingState {
    Ready,
    NotReady,
    /// There is no such Gateway, or it is none of ours.
    NoWaypoint,
    /// The Gateway does not let the namespace in.
    NotPermitted,
    /// The Gateway is not for this kind of traffic.
    NotMeant,
}

/// What a destination thinks of connections from a waypoint, and of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trust {
    /// Whether the waypoint's identity is believed.
    pub(super) believed: bool,
    /// Whether others are refused.
    pub(super) required: bool,
}

impl Binding {
    /// Whether traffic goes through the waypoint, or nowhere.
    pub(super) fn is_in_force(&self) -> bool {
        match self.state {
            BindingState::Ready => true,
            BindingState::NotMeant => false,
            BindingState::NotReady | BindingState::NoWaypoint | BindingState::NotPermitted => {
                self.enforcement == Enforcement::Enabled
            }
        }
    }

    /// Whether the waypoint may have the traffic, ready or not.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.state, BindingState::Ready | BindingState::NotReady)
    }

    pub(super) fn trust(&self) -> Trust {
        Trust {
            believed: self.is_usable(),
            required: self.enforcement == Enforcement::Enabled,
        }
    }
}

/// What there is about a pod besides the pod itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PodMesh {
    /// The waypoint for traffic to the pod's own addresses that labels ask for.
    binding: Option<Binding>,
    /// The waypoint that such traffic goes through.
    waypoint: Option<GatewayName>,
    /// That waypoint, if it may have the traffic.
    served_by: Option<GatewayName>,
    requirements: Vec<WaypointRequirement>,
}

impl PodMesh {
    /// The waypoint that takes the traffic to the pod's own addresses.
    pub(super) fn served_by(&self) -> Option<&GatewayName> {
        self.served_by.as_ref()
    }
}

impl Index {
    /// The Gateway whose proxy a pod is, by its labels and its service account, which is what others trust.
    pub(in crate::index) fn proxy_of_pod(
        &self,
        key: &NsName,
        pod: &Pod,
    ) -> Option<(GatewayName, ProxyClass)> {
        let gateway = pod.labels.get(labels::GATEWAY_NAME)?;
        let class = self.class_of(pod.labels.get(labels::GATEWAY_CLASS_NAME)?)?;
        let name = GatewayName::new(key.namespace.as_str(), gateway.as_str());
        let own = pod.service_account == *gateway && !name.shares_its_account();
        own.then_some((name, class))
    }

    /// Pods that are proxies of a Gateway.
    pub(super) fn proxy_pods(&self, gateway: &GatewayName) -> Vec<NsName> {
        let service = NsName::new(gateway.namespace.as_str(), gateway.name.as_str());
        // Those that its Service selects, as nothing else sends traffic to them.
        let pods = self.selected_pods(&service).into_iter();
        pods.filter(|key| {
            let entry = self.pods.get(key);
            let proxy = entry.and_then(|entry| self.proxy_of_pod(key, &entry.pod));
            proxy.is_some_and(|(of, _)| of == *gateway)
        })
        .collect()
    }

    /// Labels of a namespace, or what it is, have changed.
    pub(in crate::index) fn namespace_changed(&mut self, name: &str, former: &Namespace) {
        if self.namespaces.get(name).is_some_and(|now| now == former) {
            return;
        }
        self.namespace_selected_anew(name);
        let services = self.services.range(NsName::new(name, "")..);
        let services = services.take_while(|(key, _)| key.namespace == name);
        let services: Vec<NsName> = services.map(|(key, _)| key.clone()).collect();
        self.l7.dirty.services.extend(services);
        for pod in self.pods_of_namespace(name) {
            self.pod_changed(&pod);
        }
    }

    /// Works out anew what bindings look at of a Gateway, and notes what may change by it.
    pub(super) fn refresh_waypoint(&mut self, gateway: &GatewayName) {
        let now = self.waypoint_of(gateway);
        match now {
            Some(now) => self.l7.waypoints.insert(gateway.clone(), now),
            None => self.l7.waypoints.remove(gateway),
        };
        // Whom it lets in may have changed even if nothing else did.
        let dirty = &mut self.l7.dirty;
        let services = self.l7.bound_services.get(gateway).into_iter().flatten();
        dirty.services.extend(services.cloned());
        let pods = self.l7.bound_pods.get(gateway).into_iter().flatten();
        dirty.pods.extend(pods.cloned());
        // The Service of a Gateway is itself behind no waypoint.
        let own = NsName::new(gateway.namespace.as_str(), gateway.name.as_str());
        dirty.services.insert(own);
    }

    fn waypoint_of(&self, gateway: &GatewayName) -> Option<Waypoint> {
        if self.gateway_class(gateway)? != ProxyClass::Waypoint {
            return None;
        }
        let labels = &self.l7.gateways.get(gateway)?.body.labels;
        let serves = match labels::first(labels, &labels::WAYPOINT_FOR) {
            Some("workload") => Serves {
                services: false,
                workloads: true,
            },
            Some("all") => Serves {
                services: true,
                workloads: true,
            },
            Some("none") => Serves {
                services: false,
                workloads: false,
            },
            _ => Serves::SERVICES,
        };
        let service = NsName::new(gateway.namespace.as_str(), gateway.name.as_str());
        let service = self.services.get(&service);
        let has_address = service.is_some_and(|service| !service.vips.is_empty());
        let is_ready = |key: &NsName| {
            let entry = self.pods.get(key);
            entry.is_some_and(|entry| entry.pod.phase == PodPhase::Ready)
        };
        let readiness = if has_address && self.proxy_pods(gateway).iter().any(is_ready) {
            Readiness::Ready
        } else {
            Readiness::NotReady
        };
        Some(Waypoint { serves, readiness })
    }

    /// The waypoint that labels ask for: the object's own, else its namespace's.
    fn binding(
        &self,
        namespace: &str,
        own: &WaypointLabels,
        meant: impl Fn(Serves) -> bool,
    ) -> Option<Binding> {
        let above = self.namespaces.get(namespace).map(|found| &found.waypoint);
        let choice = own.choice.as_ref();
        let choice = choice.or_else(|| above.and_then(|above| above.choice.as_ref()));
        let WaypointChoice::Named(gateway) = choice? else {
            return None;
        };
        let enforcement = own.enforcement;
        let enforcement = enforcement.or_else(|| above.and_then(|above| above.enforcement));
        let state = match self.l7.waypoints.get(gateway) {
            // What a Gateway that is not there would be for, nobody knows: it is taken for one of services,
            // and for whatever names it itself.
            None if own.choice.is_none() && !meant(Serves::SERVICES) => BindingState::NotMeant,
            None => BindingState::NoWaypoint,
            Some(waypoint) if !meant(waypoint.serves) => BindingState::NotMeant,
            Some(_) if !self.waypoint_admits(gateway, namespace) => BindingState::NotPermitted,
            Some(waypoint) => match waypoint.readiness {
                Readiness::Ready => BindingState::Ready,
                Readiness::NotReady => BindingState::NotReady,
            },
        };
        Some(Binding {
            gateway: gateway.clone(),
            state,
            enforcement: enforcement.unwrap_or(Enforcement::Enabled),
        })
    }

    pub(super) fn service_binding(&self, key: &NsName, service: &Service) -> Option<Binding> {
        let own = GatewayName::new(key.namespace.as_str(), key.name.as_str());
        if self.gateway_class(&own).is_some() {
            return None;
        }
        let serves = |serves: Serves| serves.services;
        self.binding(&key.namespace, &service.waypoint, serves)
    }

    /// Whether a waypoint lets the objects of a namespace be behind it.
    fn waypoint_admits(&self, gateway: &GatewayName, namespace: &str) -> bool {
        let Some(view) = self.l7.views.get(gateway) else {
            return false;
        };
        let labels = self.namespace_labels(namespace);
        view.entries.iter().any(|entry| {
            let allowed = &entry.listener.allowed_namespaces;
            entry.is_served() && allowed.allows(&gateway.namespace, namespace, labels)
        })
    }

    pub(super) fn flush_pods(&mut self, changes: &mut Changes) {
        for key in std::mem::take(&mut self.l7.dirty.pods) {
            let now = self.pod_mesh(&key);
            let former = match now.clone() {
                now if now == PodMesh::default() => self.l7.pods.remove(&key),
                now => self.l7.pods.insert(key.clone(), now),
            };
            let former = former.unwrap_or_default();
            if former != now {
                if let Some(binding) = &former.binding {
                    super::unlink(&mut self.l7.bound_pods, &binding.gateway, &key);
                }
                if let Some(binding) = &now.binding {
                    super::link(&mut self.l7.bound_pods, &binding.gateway, &key);
                }
                self.server_changed(&key, former.served_by.as_ref(), now.served_by.as_ref());
                self.render_pod(&key, changes);
            }
            // A pod whose waypoint is the same may have other addresses or ports.
            let servers: BTreeSet<&GatewayName> =
                former.served_by.iter().chain(&now.served_by).collect();
            for gateway in servers {
                self.put_workload_listener(gateway, &key, changes);
            }
        }
    }

    /// The waypoint that takes a pod's traffic is another one. What it needs depends on the namespaces that it serves.
    fn server_changed(
        &mut self,
        pod: &NsName,
        former: Option<&GatewayName>,
        now: Option<&GatewayName>,
    ) {
        if former == now {
            return;
        }
        if let Some(gateway) = former {
            super::unlink(&mut self.l7.served_pods, gateway, pod);
        }
        for gateway in former.into_iter().chain(now) {
            if !self.l7.is_namespace_served(gateway, &pod.namespace) {
                self.l7.dirty.proxies.insert(gateway.clone());
            }
        }
        if let Some(gateway) = now {
            super::link(&mut self.l7.served_pods, gateway, pod);
        }
    }

    /// A pod without workload traffic of its own to guard, or outside of the mesh, has no waypoint: nobody
    /// would enforce it.
    fn pod_mesh(&self, key: &NsName) -> PodMesh {
        let Some(entry) = self.pods.get(key) else {
            return PodMesh::default();
        };
        let pod = &entry.pod;
        if pod.network == PodNetwork::Host || self.mode(key, pod) != DataplaneMode::Ambient {
            return PodMesh::default();
        }
        let binding = self.binding(&key.namespace, &pod.waypoint, |serves| serves.workloads);
        let own = binding.as_ref().filter(|binding| binding.is_in_force());
        let mut requirements = Requirements::default();
        let mut waypoint = own.map(|binding| (binding.gateway.clone(), binding.trust()));
        if let Some(binding) = own {
            requirements.add(&binding.gateway, binding.trust(), None);
        }
        for (service, ports) in self.services_of_pod(key, pod) {
            let Some(mesh) = self.l7.services.get(&service) else {
                continue;
            };
            let Some((gateway, trust)) = mesh.requirement() else {
                continue;
            };
            requirements.add(gateway, trust, Some(&ports));
            if trust.required && waypoint.is_none() {
                waypoint = Some((gateway.clone(), trust));
            }
        }
        let served_by = waypoint.as_ref().filter(|(_, trust)| trust.believed);
        PodMesh {
            binding,
            served_by: served_by.map(|(gateway, _)| gateway.clone()),
            waypoint: waypoint.map(|(gateway, _)| gateway),
            requirements: requirements.to_wire(|gateway| self.proxy_identity(gateway)),
        }
    }

    /// What every proxy of a Gateway proves to be.
    pub(super) fn proxy_identity(&self, gateway: &GatewayName) -> String {
        self.identity(&gateway.namespace, &gateway.name)
    }

    /// SPIFFE ID of a service account.
    pub(super) fn identity(&self, namespace: &str, service_account: &str) -> String {
        let domain = &self.config.trust_domain;
        format!("spiffe://{domain}/ns/{namespace}/sa/{service_account}")
    }

    /// The waypoint of a service, as sources are told.
    pub(in crate::index) fn service_waypoint(&self, key: &NsName) -> Option<GatewayAddress> {
        let gateway = self.l7.services.get(key)?.in_force.as_ref()?;
        Some(self.gateway_address(gateway))
    }

    /// The waypoint for a pod's own addresses, as sources are told.
    pub(in crate::index) fn pod_waypoint(&self, key: &NsName) -> Option<GatewayAddress> {
        let gateway = self.l7.pods.get(key)?.waypoint.as_ref()?;
        Some(self.gateway_address(gateway))
    }

    /// The waypoints of a pod, as its own node is told.
    pub(in crate::index) fn pod_requirements(&self, key: &NsName) -> Vec<WaypointRequirement> {
        let mesh = self.l7.pods.get(key);
        mesh.map(|mesh| mesh.requirements.clone())
            .unwrap_or_default()
    }

    fn gateway_address(&self, gateway: &GatewayName) -> GatewayAddress {
        GatewayAddress {
            hbone_mtls_port: WAYPOINT_PORT.into(),
            destination: Some(Destination::Hostname(NamespacedHostname {
                namespace: gateway.namespace.clone(),
                hostname: self.config.hostname(&gateway.namespace, &gateway.name),
            })),
        }
    }

    /// What a waypoint listens on for a pod's own addresses; `None` if it does not.
    pub(super) fn workload_listener(
        &self,
        gateway: &GatewayName,
        key: &NsName,
    ) -> Option<wire::Listener> {
        if self.l7.pods.get(key)?.served_by.as_ref() != Some(gateway) {
            return None;
        }
        let pod = &self.pods.get(key)?.pod;
        if pod.ips.is_empty() {
            return None;
        }
        let mut ports = BTreeMap::new();
        for (_, list) in self.services_of_pod(key, pod) {
            for port in list.ports {
                let protocol = super::backends::protocol(port.app_protocol());
                ports.entry(port.target_port).or_insert(protocol);
            }
        }
        let uid = self.config.pod_workload_uid(&key.namespace, &key.name);
        let ports = ports
            .into_iter()
            .map(|(port, protocol)| wire::WorkloadPort {
                port,
                protocol: protocol.into(),
            });
        Some(wire::Listener {
            name: format!("workload/{uid}"),
            frontend: Some(wire::listener::Frontend::Workload(wire::WorkloadFrontend {
                addresses: pod.ips.iter().copied().map(address_bytes).collect(),
                endpoint: self.pod_endpoint(key, None, 0),
                workload: self.pod_workload(key),
                ports: ports.collect(),
                policies: self.policies_at(gateway, ProxyClass::Waypoint, None),
                authentications: self.authentications_at(gateway, ProxyClass::Waypoint, None),
                telemetry: self.telemetry_at(gateway, ProxyClass::Waypoint, &key.namespace, None),
            })),
        })
    }
}

/// Requirements of a pod, put together: all waypoints that have to do with it are believed on all ports that
/// any of them has to do with, because traffic to the pod's own addresses comes through one of them whatever
/// its port.
#[derive(Default)]
struct Requirements {
    believed: BTreeSet<GatewayName>,
    /// Ports, and whether connections of others are refused. `None`: all ports.
    ports: BTreeMap<Option<u32>, bool>,
}

impl Requirements {
    fn add(&mut self, gateway: &GatewayName, trust: Trust, ports: Option<&PortList>) {
        if trust.believed {
            self.believed.insert(gateway.clone());
        }
        let mut require = |port| *self.ports.entry(port).or_default() |= trust.required;
        match ports {
            None => require(None),
            Some(list) => {
                for port in &list.ports {
                    require(Some(port.target_port));
                }
            }
        }
    }

    fn to_wire(&self, identity: impl Fn(&GatewayName) -> String) -> Vec<WaypointRequirement> {
        let identities: Vec<String> = self.believed.iter().map(identity).collect();
        let entry = |ports: Vec<u32>, required| WaypointRequirement {
            ports,
            identities: identities.clone(),
            required,
        };
        let all = self.ports.get(&None).copied();
        let mut entries: Vec<WaypointRequirement> = all
            .into_iter()
            .map(|required| entry(Vec::new(), required))
            .collect();
        for required in [true, false] {
            // What holds for all ports need not be said of some.
            if all == Some(true) || all == Some(required) {
                continue;
            }
            let ports = self.ports.iter().filter(|(_, each)| **each == required);
            let ports: Vec<u32> = ports.filter_map(|(port, _)| *port).collect();
            if !ports.is_empty() {
                entries.push(entry(ports, required));
            }
        }
        entries
    }
}
