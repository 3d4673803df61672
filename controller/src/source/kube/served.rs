//! In which versions kinds are served that not every cluster has: those of the Gateway API, Istio's
//! and our own.
//!
//! The API server is asked at intervals what it serves. That takes no right that others do not have, and
//! a few small answers; following the definitions themselves would have every replica read megabytes of
//! schemas, to learn less: a definition that exists need not be served.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use karst_core::Kind;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::cluster::{CallError, Cluster, retry::Retry};

/// The server is asked this often: a user who installs a definition and then an object waits no longer.
const INTERVAL: Duration = Duration::from_secs(5);

/// A kind must be missing in so many looks, one after the other, before it counts as gone. A server that
/// starts may not serve everything yet, and all Gateways would be taken for deleted.
const ABSENT_LOOKS: u32 = 3;

/// Where objects of a kind are had from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Version of the kind's group.
    pub version: &'static str,
    /// Name of the kind in paths; `None` for the usual one.
    pub plural: Option<Arc<str>>,
}

/// Kinds that are served, and how. `None` as long as the server has not been asked.
pub type Served = Option<BTreeMap<Kind, Place>>;

/// Whether every cluster has the kind.
pub fn is_everywhere(kind: Kind) -> bool {
    !matches!(
        kind.group(),
        "gateway.networking.k8s.io" | "karst.dev" | "security.istio.io"
    )
}

/// Keeps asking, until nobody listens any more.
pub async fn follow(cluster: Cluster, served: watch::Sender<Served>) {
    let mut looks = Looks::default();
    let mut retry = Retry::default();
    let mut failing = false;
    loop {
        let wait = match look(&cluster).await {
            Ok(found) => {
                retry.reset();
                if std::mem::take(&mut failing) {
                    info!("served kinds are known again");
                }
                let now = looks.take(found);
                served.send_if_modified(|served| {
                    let differs = served.as_ref() != Some(&now);
                    if differs {
                        *served = Some(now);
                    }
                    differs
                });
                INTERVAL
            }
            Err(error) => {
                let reason = error.reason();
                if std::mem::replace(&mut failing, true) {
                    debug!(reason, %error, "served kinds still unknown");
                } else {
                    warn!(reason, %error, "served kinds cannot be asked for; they stay as they were");
                }
                retry.next()
            }
        };
        tokio::select! {
            () = served.closed() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What was found, with what may only seem to be gone.
#[derive(Debug, Default)]
struct Looks {
    known: BTreeMap<Kind, Place>,
    /// How often a known kind has been missing.
    missing: BTreeMap<Kind, u32>,
}

impl Looks {
    fn take(&mut self, found: BTreeMap<Kind, Place>) -> BTreeMap<Kind, Place> {
        let known = std::mem::replace(&mut self.known, found);
        for (kind, place) in known {
            if self.known.contains_key(&kind) {
                self.missing.remove(&kind);
                continue;
            }
            let missing = self.missing.entry(kind).or_default();
            *missing += 1;
            if *missing < ABSENT_LOOKS {
                self.known.insert(kind, place);
            } else {
                self.missing.remove(&kind);
            }
        }
        self.known.clone()
    }
}

/// Asks once.
async fn look(cluster: &Cluster) -> Result<BTreeMap<Kind, Place>, CallError> {
    let client = cluster.client();
    let groups = cluster.call("get", client.list_api_groups()).await?;
    let mut found = BTreeMap::new();
    for group in groups.groups {
        let wanted = Kind::ALL.into_iter().filter(|kind| {
            // Versions are those of the group: all of its kinds are read in the same ones.
            kind.group() == group.name && !is_everywhere(*kind)
        });
        let wanted: Vec<Kind> = wanted.collect();
        let Some(first) = wanted.first() else {
            continue;
        };
        // The best version first; a kind is taken in the first that has it.
        for version in first.versions() {
            if !group.versions.iter().any(|one| one.version == *version) {
                continue;
            }
            let name = format!("{}/{version}", group.name);
            let listed = client.list_api_group_resources(&name);
            let resources = match cluster.call("get", listed).await {
                Ok(list) => list.resources,
                // It went between the two questions.
                Err(CallError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            for resource in resources {
                let can = |verb: &str| resource.verbs.iter().any(|one| one == verb);
                let kind = wanted.iter().find(|kind| kind.name() == resource.kind);
                let Some(kind) = kind.filter(|_| can("list") && can("watch")) else {
                    continue;
                };
                found.entry(*kind).or_insert_with(|| Place {
                    version,
                    plural: Some(resource.name.as_str().into()),
                });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::{Answer, Fake};
    use serde_json::{Value, json};

    fn place(version: &'static str) -> Place {
        Place {
            version,
            plural: None,
        }
    }

    #[test]
    fn a_kind_is_gone_when_it_is_missing_for_a_while() {
        let mut looks = Looks::default();
        let there = || BTreeMap::from([(Kind::Gateway, place("v1"))]);
        for _ in 0..2 {
            assert_eq!(looks.take(there()), there());
            assert_eq!(looks.take(BTreeMap::new()), there());
            assert_eq!(looks.take(BTreeMap::new()), there());
        }
        looks.take(there());
        looks.take(BTreeMap::new());
        looks.take(BTreeMap::new());
        assert!(looks.take(BTreeMap::new()).is_empty());
        assert_eq!(
            looks.take(there()),
            there(),
            "and is there when it comes back"
        );
    }

    #[test]
    fn another_version_counts_at_once() {
        let mut looks = Looks::default();
        looks.take(BTreeMap::from([(Kind::Gateway, place("v1beta1"))]));
        let now = BTreeMap::from([(Kind::Gateway, place("v1"))]);
        assert_eq!(looks.take(now.clone()), now);
    }

    fn groups(list: &[(&str, &[&str])]) -> Value {
        let group = |(name, versions): &(&str, &[&str])| {
            let version = |version: &&str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
            json!({"name": name, "versions": versions.iter().map(version).collect::<Vec<_>>()})
        };
        let groups: Vec<Value> = list.iter().map(group).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    fn resources(version: &str, list: &[(&str, &str, &[&str])]) -> Value {
        let resource = |(name, kind, verbs): &(&str, &str, &[&str])| json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs});
        let resources: Vec<Value> = list.iter().map(resource).collect();
        json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources})
    }

    #[tokio::test]
    async fn the_best_version_of_each_kind_is_found() {
        const ALL: &[&str] = &["get", "list", "watch"];
        let fake = Fake::start(|asked| match asked.path.as_str() {
            "/apis" => Answer::json(&groups(&[
                ("apps", &["v1"]),
                (
                    "gateway.networking.k8s.io",
                    &["v1alpha2", "v1", "v1beta1", "v9"],
                ),
                ("karst.dev", &["v1alpha1"]),
            ])),
            "/apis/gateway.networking.k8s.io/v1" => Answer::json(&resources(
                "gateway.networking.k8s.io/v1",
                &[
                    ("gateways", "Gateway", ALL),
                    ("gateways/status", "Gateway", &["get", "patch"]),
                    ("httproutes", "HTTPRoute", &["get"]),
                    ("others", "Other", ALL),
                ],
            )),
            "/apis/gateway.networking.k8s.io/v1beta1" => Answer::json(&resources(
                "gateway.networking.k8s.io/v1beta1",
                &[
                    ("gateways", "Gateway", ALL),
                    ("httproutes", "HTTPRoute", ALL),
                ],
            )),
            "/apis/gateway.networking.k8s.io/v1alpha2" => Answer::json(&resources(
                "gateway.networking.k8s.io/v1alpha2",
                &[("tcproutes", "TCPRoute", ALL)],
            )),
            _ => Answer::refusal(404, "not there"),
        })
        .await;
        let found = look(&fake.cluster).await.unwrap();
        let shown: Vec<String> = found
            .iter()
            .map(|(kind, place)| {
                let plural = place.plural.as_deref().unwrap_or_default();
                format!("{} {} {plural}", kind.name(), place.version)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "Gateway v1 gateways",
                "HTTPRoute v1beta1 httproutes",
                "TCPRoute v1alpha2 tcproutes"
            ]
        );
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_changes_nothing() {
        let mut asked = 0;
        let fake = Fake::start(move |_| {
            asked += 1;
            match asked {
                1 => Answer::json(&groups(&[])),
                _ => Answer::refusal(500, "broken"),
            }
        })
        .await;
        assert!(look(&fake.cluster).await.unwrap().is_empty());
        assert!(look(&fake.cluster).await.is_err());
    }
}
