//! The mesh as node agents and proxies would know it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use karst_api::discovery::Resource;
use karst_api::node::{DataplaneMode, NodePod};
use karst_api::security::Authorization;
use karst_api::workload::{Address, address};
use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, BACKEND_TYPE, LISTENER_TYPE,
    NODE_POD_TYPE, REQUEST_AUTHENTICATION_TYPE, ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_client::ResourceHandler;
use karst_core::{GatewayName, Index, ProxyKind};
use karst_node_agent::egress::Egress;
use karst_node_agent::state::policy::PolicyTable;
use karst_node_agent::state::store::{Change, Store};
use karst_node_agent::state::workload::{Locality, Workload};
use karst_node_agent::state::{MeshState, convert};
use karst_node_agent::waypoints::Waypoints;
use karst_waypoint::authn::keys::KeySet;
use karst_waypoint::balance::{Clusters, OwnPlace};
use karst_waypoint::table::{Table, Tables};

use crate::failure::Failure;

/// Everything a proxy is served, what others refer to first.
const PROXY_KINDS: [ProxyKind; 6] = [
    ProxyKind::TlsSecret,
    ProxyKind::RequestAuthentication,
    ProxyKind::Backend,
    ProxyKind::AuthorizationPolicy,
    ProxyKind::Route,
    ProxyKind::Listener,
];

/// The type's URL of what a proxy is served.
pub fn type_url(kind: ProxyKind) -> &'static str {
    match kind {
        ProxyKind::Listener => LISTENER_TYPE,
        ProxyKind::Route => ROUTE_TYPE,
        ProxyKind::Backend => BACKEND_TYPE,
        ProxyKind::AuthorizationPolicy => AUTHORIZATION_POLICY_TYPE,
        ProxyKind::RequestAuthentication => REQUEST_AUTHENTICATION_TYPE,
        ProxyKind::TlsSecret => TLS_SECRET_TYPE,
    }
}

/// The mesh.
pub struct World {
    /// The controller's index.
    pub index: Index,
    /// What a node agent makes of its resources.
    pub state: Arc<MeshState>,
    /// Resources that an agent rejects, with the reasons.
    pub rejected: BTreeMap<String, String>,
    /// The key set that rules which have theirs fetched are taken to have.
    pub keys: Option<Vec<u8>>,
}

/// A proxy of a Gateway, with its configuration.
pub struct Proxy {
    /// What it serves.
    pub table: Arc<Table>,
    /// The policies that it has, by name.
    pub policies: BTreeMap<String, karst_api::waypoint::AuthorizationPolicy>,
    /// Its backends, by name.
    pub backends: BTreeMap<String, karst_api::waypoint::Backend>,
    /// Resources that it rejects, with the reasons.
    pub rejected: Vec<(String, String)>,
}

/// What is enrolled of a pod, as its node's agent is told.
pub struct Enrolled {
    /// What connections to it must satisfy.
    pub waypoints: Waypoints,
    /// Where it may connect to.
    pub egress: Egress,
}

impl World {
    /// Takes the index over and gives its resources to an agent's state.
    pub fn new(index: Index) -> Self {
        Self::at(index, Locality::default())
    }

    /// The same as an agent at that place sees it.
    pub fn at(index: Index, locality: Locality) -> Self {
        let state = Arc::new(MeshState::default());
        let mut rejected = BTreeMap::new();
        let network = index.config().network.clone();
        let mut changes = Vec::new();
        for resource in index.addresses() {
            match change(&resource.to_resource(ADDRESS_TYPE), &network) {
                Ok(change) => changes.push(change),
                Err(error) => {
                    rejected.insert(resource.name.clone(), error);
                }
            }
        }
        let mut store = Store::new(Arc::clone(&state), locality);
        store.apply(changes);
        let mut policies = PolicyTable::new();
        let root = index.config().root_namespace.as_str();
        for resource in index.authorizations() {
            let name: Arc<str> = Arc::from(resource.name.as_str());
            let wire = resource.to_resource(AUTHORIZATION_TYPE);
            let (policy, error) = match wire.unpack::<Authorization>(AUTHORIZATION_TYPE) {
                Ok(wire) => convert::policy(&name, &wire, root),
                Err(error) => (
                    karst_node_agent::state::policy::Policy::unreadable(&name, root),
                    Some(error),
                ),
            };
            if let Some(error) = error {
                rejected.insert(resource.name.clone(), error.to_string());
            }
            policies.insert(name, Arc::new(policy));
        }
        state.publish_policies(&policies);
        state.set_ready();
        Self {
            index,
            state,
            rejected,
            keys: None,
        }
    }

    /// The workload of a pod.
    pub fn workload_of_pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        let uid = self.index.config().pod_workload_uid(namespace, name);
        self.state.workload(&uid)
    }

    /// What the agent of a workload's node is told of it; `None`: no agent stands before it.
    ///
    /// # Errors
    /// The agent could not use it.
    pub fn enrolled(&self, workload: &Workload) -> Result<Option<Enrolled>, Failure> {
        for resource in self.index.node_pods(&workload.locality.node) {
            let pod: NodePod = resource
                .to_resource(NODE_POD_TYPE)
                .unpack(NODE_POD_TYPE)
                .map_err(|error| Failure::failed("resource", error.to_string()))?;
            if *pod.workload_uid != *workload.uid {
                continue;
            }
            if pod.dataplane_mode() == DataplaneMode::None {
                return Ok(None);
            }
            let waypoints = convert::waypoints(&pod.waypoints)
                .map_err(|error| Failure::failed("resource", error.to_string()))?;
            let egress = Egress::from_wire(pod.egress_mode);
            return Ok(Some(Enrolled { waypoints, egress }));
        }
        Ok(None)
    }

    /// The proxy of a Gateway, as it is configured.
    pub fn proxy(&self, gateway: &GatewayName) -> Proxy {
        let tables = Arc::new(Tables::default());
        let clusters = Arc::new(Clusters::new(OwnPlace::default()));
        let mut store = karst_waypoint::config::Store::new(clusters, Arc::clone(&tables));
        let (mut policies, mut backends) = (BTreeMap::new(), BTreeMap::new());
        let mut rejected = Vec::new();
        for kind in PROXY_KINDS {
            let url = type_url(kind);
            let resources: Vec<Resource> = self
                .index
                .proxy_resources(gateway, kind)
                .map(|one| one.to_resource(url))
                .collect();
            for resource in &resources {
                if kind == ProxyKind::AuthorizationPolicy
                    && let Ok(policy) = resource.unpack(url)
                {
                    policies.insert(resource.name.clone(), policy);
                } else if kind == ProxyKind::Backend
                    && let Ok(backend) = resource.unpack(url)
                {
                    backends.insert(resource.name.clone(), backend);
                }
            }
            rejected.extend(store.apply(url, resources, Vec::new()));
        }
        // In place of fetching, which would be done by nobody: requests would wait for it.
        if let Some(mut sources) = store.take_new_key_sources() {
            while let Ok(source) = sources.try_recv() {
                let keys = self.keys.as_deref().map(KeySet::read);
                if let Some(source) = source.upgrade() {
                    source.fetched(keys.and_then(Result::ok));
                }
            }
        }
        Proxy {
            table: tables.load(),
            policies,
            backends,
            rejected,
        }
    }
}

fn change(resource: &Resource, network: &str) -> Result<Change, String> {
    let address: Address = resource
        .unpack(ADDRESS_TYPE)
        .map_err(|error| error.to_string())?;
    let converted = match address.r#type {
        Some(address::Type::Workload(one)) => {
            convert::workload(&one, network).map(Change::Workload)
        }
        Some(address::Type::Service(one)) => convert::service(&one, network).map(Change::Service),
        None => return Err("is neither workload nor service".to_owned()),
    };
    converted.map_err(|error| error.to_string())
}

/// The address of an endpoint as the wire has it.
pub fn endpoint_address(endpoint: &karst_api::waypoint::Endpoint) -> Option<SocketAddr> {
    let ip: IpAddr = karst_api::convert::ip_address("address", &endpoint.address).ok()?;
    Some(SocketAddr::new(ip, u16::try_from(endpoint.port).ok()?))
}
