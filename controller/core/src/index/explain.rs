//! What people ask about single objects.

use std::net::IpAddr;

use super::{Index, NsName, l7::BindingState};
use crate::{
    labels::DataplaneMode,
    object::pod::PodPhase,
    proxy::{GatewayName, ProxyClass},
};

/// A pod as people ask about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPod {
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on, once there is one.
    pub node: Option<String>,
    /// Its connections are carried by the mesh.
    pub in_mesh: bool,
    /// It has ended.
    pub has_ended: bool,
    /// The Gateway whose proxy it is.
    pub proxy_of: Option<GatewayName>,
}

/// The waypoint that a Service is to be behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaypointBinding {
    /// The Gateway that labels name.
    pub gateway: GatewayName,
    /// It is there and may have the traffic, ready or not.
    pub is_usable: bool,
    /// It has an address and a pod that is ready.
    pub is_ready: bool,
    /// What is wrong, as the rest of a sentence about the Gateway.
    pub problem: Option<&'static str>,
}

impl Index {
    /// A pod of that name.
    #[must_use]
    pub fn mesh_pod(&self, namespace: &str, name: &str) -> Option<MeshPod> {
        let key = NsName::new(namespace, name);
        let pod = &self.pods.get(&key)?.pod;
        Some(MeshPod {
            service_account: pod.service_account.clone(),
            addresses: pod.ips.clone(),
            node: pod.node.clone(),
            in_mesh: self.mode(&key, pod) == DataplaneMode::Ambient,
            has_ended: pod.phase == PodPhase::Terminal,
            proxy_of: self.proxy_of_pod(&key, pod).map(|(gateway, _)| gateway),
        })
    }

    /// Namespace and name of every pod.
    pub fn pod_names(&self) -> impl Iterator<Item = (&str, &str)> {
        let keys = self.pods.keys();
        keys.map(|key| (key.namespace.as_str(), key.name.as_str()))
    }

    /// The waypoint that labels ask for a Service; `None` if they ask for none.
    #[must_use]
    pub fn service_waypoint_binding(&self, namespace: &str, name: &str) -> Option<WaypointBinding> {
        let key = NsName::new(namespace, name);
        let binding = self.l7.binding_of_service(&key)?;
        let problem = match binding.state {
            BindingState::Ready => None,
            BindingState::NotReady => Some("has no address or no pod that is ready"),
            BindingState::NoWaypoint => Some("is not there, or is not of class karst-waypoint"),
            BindingState::NotPermitted => Some("does not let the namespace in"),
            BindingState::NotMeant => {
                Some("is not for services, says its label karst.dev/waypoint-for")
            }
        };
        Some(WaypointBinding {
            gateway: binding.gateway.clone(),
            is_usable: matches!(binding.state, BindingState::Ready | BindingState::NotReady),
            is_ready: binding.state == BindingState::Ready,
            problem,
        })
    }

    /// What a Gateway is for; `None` if there is none of that name, or it is not ours.
    #[must_use]
    pub fn proxy_class(&self, gateway: &GatewayName) -> Option<ProxyClass> {
        self.class_of_gateway(gateway)
    }
}
