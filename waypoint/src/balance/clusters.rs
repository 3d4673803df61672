//! All backends, by name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::HashMap;
use karst_api::FieldError;
use karst_api::waypoint as wire;

use super::cluster::Cluster;
use super::endpoint::{Description, PortOf};
use super::settings::ClusterSettings;
use crate::upstream::BackendTlsConfig;

/// Where this proxy runs; empty where it is not known, which is near to nothing.
#[derive(Clone, Debug, Default)]
pub struct OwnPlace {
    /// Name of its node.
    pub node: String,
    /// Zone of the node.
    pub zone: String,
}

/// The backends that are held. Requests do not come here: they find their cluster in the table.
#[derive(Default)]
pub struct Clusters {
    own: OwnPlace,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Also those that are not held but named by somebody, as placeholders.
    named: HashMap<String, Named>,
    /// By uid, as long as somebody holds them.
    workloads: HashMap<String, Weak<Cluster>>,
}

struct Named {
    cluster: Arc<Cluster>,
    held: bool,
}

impl Clusters {
    /// No backends.
    #[must_use]
    pub fn new(own: OwnPlace) -> Self {
        Self {
            own,
            inner: Mutex::default(),
        }
    }

    /// The backend of that name. One that is not held has no endpoints until it is.
    #[must_use]
    pub fn get(&self, name: &str) -> Arc<Cluster> {
        let mut inner = self.lock();
        Arc::clone(&self.named(&mut inner, name).cluster)
    }

    /// Takes over what the wire says of a backend. Endpoints that stay keep their state.
    ///
    /// # Errors
    /// Names the field that is wrong; the backend is as it was before.
    pub fn update(
        &self,
        backend: &wire::Backend,
        tls: Option<Arc<BackendTlsConfig>>,
    ) -> Result<(), FieldError> {
        if backend.name.is_empty() {
            return Err(FieldError::new("name", "is empty"));
        }
        let settings = ClusterSettings::from_wire(backend, tls)?;
        let endpoints = backend.endpoints.iter();
        let endpoints =
            endpoints.map(|endpoint| Description::from_wire(endpoint, PortOf::Endpoint));
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        let mut inner = self.lock();
        let named = self.named(&mut inner, &backend.name);
        named.held = true;
        named.cluster.update(settings, endpoints);
        Ok(())
    }

    /// Forgets a backend: for those who still hold it it has no endpoints any more.
    pub fn remove(&self, name: &str) {
        let mut inner = self.lock();
        if let Some(named) = inner.named.get_mut(name) {
            named.held = false;
            named.cluster.update(ClusterSettings::default(), Vec::new());
        }
        inner.forget();
    }

    /// The cluster of one workload that is reached by its own address: one endpoint, whose port each
    /// request names. There is one for each uid, so that its state outlives tables.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn single(&self, endpoint: &wire::Endpoint) -> Result<Arc<Cluster>, FieldError> {
        let description = Description::from_wire(endpoint, PortOf::Request)?;
        let mut inner = self.lock();
        let known = inner.workloads.get(&endpoint.uid).and_then(Weak::upgrade);
        let cluster = known.unwrap_or_else(|| {
            let name = format!("workload/{}", endpoint.uid);
            let cluster = Arc::new(Cluster::new(&name, &self.own));
            let weak = Arc::downgrade(&cluster);
            inner.workloads.insert(endpoint.uid.clone(), weak);
            cluster
        });
        cluster.update(ClusterSettings::default(), vec![description]);
        Ok(cluster)
    }

    /// The backends that are held, and the workloads, for listings and metrics.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Cluster>> {
        let mut inner = self.lock();
        inner.forget();
        let held = inner.named.values().filter(|named| named.held);
        let held = held.map(|named| Arc::clone(&named.cluster));
        let workloads = inner.workloads.values().filter_map(Weak::upgrade);
        held.chain(workloads).collect()
    }

    fn named<'a>(&self, inner: &'a mut Inner, name: &str) -> &'a mut Named {
        inner.named.entry_ref(name).or_insert_with(|| Named {
            cluster: Arc::new(Cluster::new(name, &self.own)),
            held: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Drops what nobody holds any more.
    fn forget(&mut self) {
        self.named
            .retain(|_, named| named.held || Arc::strong_count(&named.cluster) > 1);
        self.workloads.retain(|_, weak| weak.strong_count() > 0);
    }
}
