//! All backends, by name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::{HashMap, HashSet};
use karst_api::FieldError;
use karst_api::waypoint as wire;

use super::cluster::Cluster;
use super::endpoint::{Description, PortOf};
use super::settings::ClusterSettings;
use crate::upstream::BackendTlsConfig;
use crate::workload::WorkloadLabels;

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
        let workloads = backend.workloads.iter().map(WorkloadLabels::from);
        let workloads: Vec<_> = workloads.map(Arc::new).collect();
        let endpoints = backend.endpoints.iter().map(|endpoint| {
            let workload = workload(&workloads, endpoint.workload)?;
            Description::from_wire(endpoint, PortOf::Endpoint, workload)
        });
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
    pub fn single(
        &self,
        endpoint: &wire::Endpoint,
        workload: Option<&wire::Workload>,
    ) -> Result<Arc<Cluster>, FieldError> {
        let workload = workload.map(|workload| Arc::new(WorkloadLabels::from(workload)));
        let description = Description::from_wire(endpoint, PortOf::Request, workload)?;
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

    /// What all endpoints are parts of.
    #[must_use]
    pub fn workloads(&self) -> HashSet<Arc<WorkloadLabels>> {
        let mut workloads = HashSet::new();
        for cluster in self.list() {
            let view = cluster.view();
            let of = view.members.all.iter().filter_map(|one| one.workload());
            for workload in of {
                workloads.get_or_insert_with(workload, Arc::clone);
            }
        }
        workloads
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

/// The workload at a place that an endpoint names.
fn workload(
    all: &[Arc<WorkloadLabels>],
    place: u32,
) -> Result<Option<Arc<WorkloadLabels>>, FieldError> {
    let Some(index) = place.checked_sub(1) else {
        return Ok(None);
    };
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    match all.get(index) {
        Some(workload) => Ok(Some(Arc::clone(workload))),
        None => {
            let problem = format!("{place} is beyond the {} there are", all.len());
            Err(FieldError::new("endpoints.workload", problem))
        }
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
