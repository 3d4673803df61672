//! The mesh's roots in a ConfigMap of each namespace, for whatever runs there to trust. Written by
//! the leader only: made where it is missing, and repaired where somebody changed it. That of our own
//! namespace also says under which of the roots certificates are signed, for controllers that start.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::{
    CallError, Cluster, FIELD_MANAGER,
    follow::{Event, Follower},
    retry::Retry,
};
use crate::store::Store;

/// Name of the ConfigMap.
pub const NAME: &str = "karst-ca-root-cert";

/// The key that has the roots.
const KEY: &str = "root-cert.pem";

/// The annotation that says under which root certificates are signed.
const SIGNED_UNDER: &str = "karst.dev/signed-under";

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The roots to be trusted, PEM.
    pub roots: String,
    /// What stands for the root that certificates are signed under.
    pub signed_under: Option<String>,
}

/// Changes that come closer together than this are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Writes under way at a time.
const MAX_WRITES: usize = 8;

/// What is known and under way.
#[derive(Default)]
struct State {
    /// Namespaces whose ConfigMap is right.
    right: HashSet<String>,
    /// The same in the list that is under way.
    listed: HashSet<String>,
    complete: bool,
    /// Namespaces that could not be written to, and when to try again.
    failed: HashMap<String, (Retry, Instant)>,
}

impl State {
    fn take(&mut self, event: Event<ConfigMap>, is_right: impl Fn(&ConfigMap) -> bool) {
        match event {
            Event::Started => self.listed.clear(),
            Event::Listed(map) => {
                if is_right(&map) {
                    self.listed.extend(map.metadata.namespace);
                }
            }
            Event::Synced => {
                self.right = std::mem::take(&mut self.listed);
                self.complete = true;
            }
            Event::Applied(map) => {
                let right = is_right(&map);
                let Some(namespace) = map.metadata.namespace else {
                    return;
                };
                if right {
                    self.failed.remove(&namespace);
                    self.right.insert(namespace);
                } else if self.right.remove(&namespace) {
                    info!(namespace, "root bundle was changed; repairing it");
                }
            }
            Event::Deleted(map) => {
                if let Some(namespace) = map.metadata.namespace
                    && self.right.remove(&namespace)
                {
                    debug!(namespace, "root bundle was deleted");
                }
            }
            Event::Unreadable(problem) => {
                warn!(reason = "object_invalid", problem, "root bundle unreadable");
            }
        }
    }

    /// Namespaces to write to now.
    fn missing(&mut self, store: &Store, now: Instant) -> Vec<String> {
        if !self.complete {
            return Vec::new();
        }
        let index = store.index();
        self.failed
            .retain(|name, _| index.has_namespace(name) && !self.right.contains(name));
        let waits = |name: &str| self.failed.get(name).is_some_and(|(_, at)| now < *at);
        let missing = index
            .namespaces()
            .filter(|name| !self.right.contains(*name) && !waits(name));
        missing.map(str::to_owned).collect()
    }

    fn written(&mut self, namespace: String, result: Result<(), CallError>) {
        let Err(error) = result else {
            self.failed.remove(&namespace);
            self.right.insert(namespace);
            return;
        };
        let reason = error.reason();
        // What is forbidden or not found is almost always a namespace that is ending.
        if matches!(error, CallError::Forbidden(_) | CallError::NotFound(_)) {
            info!(reason, namespace, %error, "root bundle not written");
        } else {
            warn!(reason, namespace, %error, "root bundle not written");
        }
        let failed = self.failed.entry(namespace);
        let (retry, at) = failed.or_insert_with(|| (Retry::default(), Instant::now()));
        *at = Instant::now() + retry.next();
    }

    /// When a failed namespace is to be tried again.
    fn next_attempt(&self) -> Option<Instant> {
        self.failed.values().map(|(_, at)| *at).min()
    }
}

impl Bundle {
    fn read(map: &ConfigMap) -> Self {
        let data = map.data.as_ref().and_then(|data| data.get(KEY));
        let annotations = map.metadata.annotations.as_ref();
        Self {
            roots: data.cloned().unwrap_or_default(),
            signed_under: annotations.and_then(|all| all.get(SIGNED_UNDER)).cloned(),
        }
    }

    /// Whether a ConfigMap is as it must be.
    fn is_in(&self, map: &ConfigMap, system_namespace: &str) -> bool {
        let found = Self::read(map);
        let of_system = map.metadata.namespace.as_deref() == Some(system_namespace);
        found.roots == self.roots && (!of_system || found.signed_under == self.signed_under)
    }
}

/// What is published in our own namespace. Listed, because that is what the controller may do.
pub async fn published(cluster: &Cluster) -> Result<Option<Bundle>, CallError> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client(), &cluster.system_namespace);
    let params = ListParams::default().fields(&format!("metadata.name={NAME}"));
    let maps = cluster.call("list", api.list(&params)).await?;
    Ok(maps.items.first().map(Bundle::read))
}

/// Keeps the ConfigMaps right, for ever. Dropped when this replica leads no more.
pub async fn write(cluster: Cluster, store: Arc<Store>, bundle: Arc<Bundle>) {
    let api: Api<ConfigMap> = Api::all(cluster.client());
    let selector = format!("metadata.name={NAME}");
    // In a task of its own: revisions of a busy cluster come faster than the server answers.
    let follower = Follower::new(&cluster, api, "root_bundle").fields(&selector);
    let mut bundles = follower.spawn();
    let mut revisions = store.revisions();
    let mut state = State::default();
    let mut writes: JoinSet<(String, Result<(), CallError>)> = JoinSet::new();
    let mut due: Vec<String> = Vec::new();
    let mut look_at: Option<Instant> = None;
    loop {
        while writes.len() < MAX_WRITES
            && let Some(namespace) = due.pop()
        {
            let (cluster, bundle) = (cluster.clone(), bundle.clone());
            writes.spawn(async move {
                let result = apply(&cluster, &namespace, &bundle).await;
                (namespace, result)
            });
        }
        let idle = due.is_empty() && writes.is_empty();
        let wake = [look_at, state.next_attempt()].into_iter().flatten().min();
        let wait = async {
            match wake {
                Some(at) if idle => tokio::time::sleep_until(at.into()).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            event = bundles.next() => {
                state.take(event, |map| bundle.is_in(map, &cluster.system_namespace));
                look_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
            }
            changed = revisions.changed() => {
                if changed.is_err() {
                    return;
                }
                look_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
            }
            Some(ended) = writes.join_next() => {
                if let Ok((namespace, result)) = ended {
                    state.written(namespace, result);
                }
            }
            () = wait => {
                look_at = None;
                due = state.missing(&store, Instant::now());
                if due.is_empty() {
                    continue;
                }
                debug!(namespaces = due.len(), "writing root bundles");
            }
        }
    }
}

async fn apply(cluster: &Cluster, namespace: &str, bundle: &Bundle) -> Result<(), CallError> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client(), namespace);
    let mut metadata = json!({"name": NAME, "labels": super::labels()});
    if *namespace == *cluster.system_namespace
        && let Some(root) = &bundle.signed_under
    {
        metadata["annotations"] = json!({SIGNED_UNDER: root});
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
        "data": {KEY: bundle.roots},
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&map);
    cluster
        .call("patch", api.patch(NAME, &params, &patch))
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::fake::{Answer, Asked, Fake},
        store::Update,
    };
    use karst_core::{Index, MeshConfig, Object};
    use std::collections::BTreeMap;

    fn map(namespace: &str, roots: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some(namespace.to_owned());
        map.data = Some(BTreeMap::from([(KEY.to_owned(), roots.to_owned())]));
        map
    }

    fn store(namespaces: &[&str]) -> Store {
        let store = Store::new(Index::new(MeshConfig::default()));
        let object = |name: &&str| {
            let value =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            Update::Apply(Object::from_value(value).unwrap().unwrap())
        };
        store.update(namespaces.iter().map(object).collect());
        store
    }

    fn is_right(map: &ConfigMap) -> bool {
        Bundle::read(map).roots == "R"
    }

    fn missing(state: &mut State, store: &Store) -> Vec<String> {
        let mut missing = state.missing(store, Instant::now());
        missing.sort();
        missing
    }

    #[test]
    fn missing_changed_and_deleted_bundles_are_written() {
        let store = store(&["a", "b", "c"]);
        let mut state = State::default();
        state.take(Event::Started, is_right);
        state.take(Event::Listed(map("a", "R")), is_right);
        state.take(Event::Listed(map("b", "old")), is_right);
        assert!(missing(&mut state, &store).is_empty(), "not complete yet");
        state.take(Event::Synced, is_right);
        assert_eq!(missing(&mut state, &store), ["b", "c"]);
        state.written("b".to_owned(), Ok(()));
        state.take(Event::Applied(map("c", "R")), is_right);
        assert!(missing(&mut state, &store).is_empty());
        state.take(Event::Applied(map("a", "mine")), is_right);
        state.take(Event::Deleted(map("c", "R")), is_right);
        assert_eq!(missing(&mut state, &store), ["a", "c"]);
    }

    #[test]
    fn our_own_namespaces_bundle_says_what_is_signed_under() {
        let bundle = Bundle {
            roots: "R".to_owned(),
            signed_under: Some("1".to_owned()),
        };
        let mut own = map("karst-system", "R");
        assert!(!bundle.is_in(&own, "karst-system"));
        assert!(bundle.is_in(&own, "elsewhere"));
        let said = (SIGNED_UNDER.to_owned(), "1".to_owned());
        own.metadata.annotations = Some(BTreeMap::from([said]));
        assert!(bundle.is_in(&own, "karst-system"));
        assert_eq!(Bundle::read(&own), bundle);
    }

    #[test]
    fn a_failed_namespace_waits_and_does_not_stop_others() {
        let store = store(&["a", "b"]);
        let mut state = State::default();
        state.take(Event::Synced, is_right);
        let forbidden = CallError::Forbidden("ending".to_owned());
        state.written("a".to_owned(), Err(forbidden));
        assert_eq!(missing(&mut state, &store), ["b"]);
        let at = state.next_attempt().unwrap();
        assert_eq!(state.missing(&store, at).len(), 2);
        store.update(vec![Update::Delete(
            Object::from_value(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}),
            )
            .unwrap()
            .unwrap()
            .key,
        )]);
        assert_eq!(state.missing(&store, at), ["b"]);
        assert!(state.failed.is_empty());
    }

    #[tokio::test]
    async fn a_busy_cluster_does_not_keep_bundles_from_being_written() {
        // The server takes longer to answer than the cluster takes to change.
        let fake = Fake::start(|asked| {
            if asked.method == "PATCH" {
                return Answer::text(200, &asked.body);
            }
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            let end = json!({"resourceVersion": "5", "annotations": annotations});
            let bookmark = json!({"type": "BOOKMARK", "object": {
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": end,
            }});
            Answer::events(&[bookmark]).after(Duration::from_millis(400))
        })
        .await;
        let store = Arc::new(store(&["a", "karst-system"]));
        let bundle = Arc::new(Bundle {
            roots: "R".to_owned(),
            signed_under: Some("1".to_owned()),
        });
        let writing = write(fake.cluster.clone(), store.clone(), bundle);
        let changing = async {
            let written = |asked: &Asked| asked.method == "PATCH";
            while fake.count(written) < 2 {
                store.update(Vec::new());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = writing => panic!("it goes on for ever"),
            () = changing => {}
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("nothing was written"),
        }
        for asked in fake.asked().iter().filter(|asked| asked.method == "PATCH") {
            let own = asked.path == format!("/api/v1/namespaces/karst-system/configmaps/{NAME}");
            assert!(asked.body.contains(r#""root-cert.pem":"R""#), "{asked:?}");
            assert_eq!(asked.body.contains(SIGNED_UNDER), own, "{asked:?}");
        }
    }
}
