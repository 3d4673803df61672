//! The authority's key in a Secret.
//!
//! The operator's own, `cacerts`, is used if it is there. Otherwise `karst-ca` is made once: of
//! replicas that start together each makes a root, one creates the Secret, and the others read it.
//! What is read is used only if the mesh can trust it: see `rotation`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{
    authority::{Material, make_root},
    rotation,
};
use crate::cluster::{
    CallError, Cluster, FIELD_MANAGER,
    follow::{Event, Follower},
    labels,
    retry::Retry,
    roots::{self, Bundle},
};

/// Brought by the operator, in Istio's form.
const PLUGGED_IN: &str = "cacerts";

/// Made by the controller, in the same form.
const SELF_MADE: &str = "karst-ca";

const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOTS: &str = "root-cert.pem";
const CHAIN: &str = "cert-chain.pem";

type Data = BTreeMap<String, ByteString>;

/// Which Secret was read, and what stands for its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    name: &'static str,
    digest: [u8; 32],
}

/// Reads the authority's Secret, or makes it. Waits for an API server that cannot be reached.
///
/// # Errors
/// When the Secret is there and lacks something, or does not go with the roots that are published:
/// waiting would not mend it.
pub async fn load(cluster: &Cluster, trust_domain: &str) -> anyhow::Result<(Material, Origin)> {
    let api: Api<Secret> = Api::namespaced(cluster.client(), &cluster.system_namespace);
    let mut retry = Retry::default();
    loop {
        match attempt(cluster, &api, trust_domain).await {
            Ok((name, data, published)) => {
                let context = || format!("reading the Secret {}/{name}", cluster.system_namespace);
                let material = material(&data).with_context(context)?;
                if let Some(published) = published {
                    rotation::check(&published, &material).with_context(context)?;
                }
                info!(secret = name, "authority read");
                let digest = digest(&data);
                return Ok((material, Origin { name, digest }));
            }
            Err(Problem::Ours(error)) => return Err(error),
            Err(Problem::Call(error)) => {
                let reason = error.reason();
                warn!(reason, %error, "authority's Secret not read; retrying");
                tokio::time::sleep(retry.next()).await;
            }
        }
    }
}

enum Problem {
    Call(CallError),
    Ours(anyhow::Error),
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

async fn attempt(
    cluster: &Cluster,
    api: &Api<Secret>,
    trust_domain: &str,
) -> Result<(&'static str, Data, Option<Bundle>), Problem> {
    // Before the Secret: where roots are published already, there is one.
    let published = roots::published(cluster).await?;
    for name in [PLUGGED_IN, SELF_MADE] {
        match cluster.call("get", api.get(name)).await {
            Ok(secret) => return Ok((name, secret.data.unwrap_or_default(), published)),
            Err(CallError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if published.is_some_and(|bundle| rotation::has_roots(&bundle)) {
        return Err(Problem::Ours(lost(&cluster.system_namespace)));
    }
    let root = make_root(trust_domain).map_err(Problem::Ours)?;
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let data = Data::from([
        (CERTIFICATE.to_owned(), bytes(&root.certificate)),
        (KEY.to_owned(), bytes(&root.key)),
        (ROOTS.to_owned(), bytes(&root.certificate)),
        (CHAIN.to_owned(), bytes(&root.certificate)),
    ]);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SELF_MADE.to_owned()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let created = api.create(&params, &secret);
    match cluster.call("create", created).await {
        Ok(secret) => {
            info!(secret = SELF_MADE, "authority's Secret made");
            Ok((SELF_MADE, secret.data.unwrap_or_default(), None))
        }
        // Another replica was first: what it made is the mesh's authority.
        Err(CallError::Conflict(_)) => {
            let secret = cluster.call("get", api.get(SELF_MADE)).await?;
            Ok((SELF_MADE, secret.data.unwrap_or_default(), None))
        }
        Err(error) => Err(error.into()),
    }
}

fn lost(namespace: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "there is neither a Secret {PLUGGED_IN} nor a Secret {SELF_MADE} in {namespace}, but the \
         mesh trusts the roots in the ConfigMap {namespace}/{}, and nobody would trust a new one: \
         put the Secret back; or, if it is lost, begin anew as controller/deploy/README.md says \
         under 'Certificates', which interrupts the mesh",
        roots::NAME
    )
}

fn material(data: &Data) -> anyhow::Result<Material> {
    let text = |key: &str| -> anyhow::Result<Option<String>> {
        data.get(key)
            .map(|bytes| String::from_utf8(bytes.0.clone()))
            .transpose()
            // Without the cause, which has the content.
            .map_err(|_| anyhow::anyhow!("{key} is not text"))
    };
    let needed = |key: &str| -> anyhow::Result<String> {
        match text(key)? {
            Some(text) if !text.trim().is_empty() => Ok(text),
            _ => bail!("{key} is missing or empty"),
        }
    };
    let mut certificates = needed(CERTIFICATE)?;
    if let Some(chain) = text(CHAIN)? {
        if !certificates.ends_with('\n') {
            certificates.push('\n');
        }
        certificates.push_str(&chain);
    }
    Ok(Material {
        key: needed(KEY)?,
        certificates,
        roots: needed(ROOTS)?,
    })
}

/// Stands for the content, without revealing any of it.
fn digest(data: &Data) -> [u8; 32] {
    let mut hash = Sha256::new();
    for key in [CERTIFICATE, KEY, ROOTS, CHAIN] {
        let bytes = data.get(key).map(|bytes| bytes.0.as_slice());
        let bytes = bytes.unwrap_or_default();
        hash.update(bytes.len().to_be_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}

/// Says when the authority is no longer what was read at the start, for ever. It is not taken over
/// while the controller runs: agents have to trust the new roots before anything is signed with
/// them, and only the operator knows when that is.
pub async fn watch(cluster: Cluster, origin: Origin) {
    let follow = |name: &'static str| {
        let api: Api<Secret> = Api::namespaced(cluster.client(), &cluster.system_namespace);
        let selector = format!("metadata.name={name}");
        let follower = Follower::new(&cluster, api, "authority").fields(&selector);
        follower.spawn()
    };
    let mut plugged_in = follow(PLUGGED_IN);
    let mut self_made = follow(SELF_MADE);
    let mut now = Now::default();
    loop {
        let (name, event) = tokio::select! {
            event = plugged_in.next() => (PLUGGED_IN, event),
            event = self_made.next() => (SELF_MADE, event),
        };
        let was = now.differs(origin);
        now.take(name, event);
        let differs = now.differs(origin);
        cluster
            .metrics()
            .ca_restart_needed
            .set(i64::from(differs == Some(true)));
        if differs == was {
            continue;
        }
        match differs {
            Some(true) => warn!(
                reason = "ca_restart_needed",
                secret = origin.name,
                "the authority's Secret has changed or is gone, or another takes its place; what \
                 was read at the start is used until the controller is restarted"
            ),
            Some(false) if was.is_some() => {
                info!(
                    secret = origin.name,
                    "the authority's Secret is again what is used"
                );
            }
            _ => {}
        }
    }
}

/// Both Secrets as they are now; `None` as long as that is not known.
#[derive(Default)]
struct Now {
    known: BTreeMap<&'static str, Option<[u8; 32]>>,
    listed: BTreeMap<&'static str, [u8; 32]>,
}

impl Now {
    fn take(&mut self, name: &'static str, event: Event<Secret>) {
        let stands_for = |secret: Secret| digest(&secret.data.unwrap_or_default());
        match event {
            Event::Started => {
                self.listed.remove(name);
            }
            Event::Listed(secret) => {
                self.listed.insert(name, stands_for(secret));
            }
            Event::Synced => {
                self.known.insert(name, self.listed.remove(name));
            }
            Event::Applied(secret) => {
                self.known.insert(name, Some(stands_for(secret)));
            }
            Event::Deleted(_) => {
                self.known.insert(name, None);
            }
            Event::Unreadable(_) => {}
        }
    }

    /// Whether a controller that starts now would use another authority.
    fn differs(&self, origin: Origin) -> Option<bool> {
        let plugged_in = *self.known.get(PLUGGED_IN)?;
        let self_made = *self.known.get(SELF_MADE)?;
        let used = match plugged_in {
            Some(digest) => Some((PLUGGED_IN, digest)),
            None => self_made.map(|digest| (SELF_MADE, digest)),
        };
        Some(used != Some((origin.name, origin.digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::{Answer, Asked, Fake};
    use serde_json::json;

    /// A server with these Secrets, which has published this root.
    async fn server(secrets: &[(&'static str, &str)], published: Option<&str>) -> Fake {
        let secrets = secrets
            .iter()
            .map(|(name, material)| (*name, (*material).to_owned()));
        let secrets: BTreeMap<&str, String> = secrets.collect();
        let published = published.map(str::to_owned);
        Fake::start(move |asked| {
            if asked.path.ends_with("/configmaps") {
                assert!(asked.query.contains("karst-ca-root-cert"), "{asked:?}");
                let map = |roots: &String| {
                    json!({
                        "metadata": {"name": "karst-ca-root-cert", "namespace": "karst-system"},
                        "data": {"root-cert.pem": roots},
                    })
                };
                let items: Vec<_> = published.iter().map(map).collect();
                return Answer::json(&json!({
                    "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {}, "items": items,
                }));
            }
            if asked.method == "POST" {
                return Answer::text(201, &asked.body);
            }
            let name = asked.path.rsplit('/').next().unwrap();
            match secrets.get(name) {
                Some(secret) => Answer::text(200, secret),
                None => Answer::refusal(404, "not found"),
            }
        })
        .await
    }

    /// A Secret and its root.
    fn made() -> (String, String) {
        let root = make_root("t").unwrap();
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let secret = Secret {
            data: Some(Data::from([
                (CERTIFICATE.to_owned(), bytes(&root.certificate)),
                (KEY.to_owned(), bytes(&root.key)),
                (ROOTS.to_owned(), bytes(&root.certificate)),
            ])),
            ..Secret::default()
        };
        (serde_json::to_string(&secret).unwrap(), root.certificate)
    }

    fn creations(fake: &Fake) -> usize {
        fake.count(|asked: &Asked| asked.method == "POST")
    }

    #[tokio::test]
    async fn the_first_controller_makes_a_root() {
        let fake = server(&[], None).await;
        let (_, origin) = load(&fake.cluster, "t").await.unwrap();
        assert_eq!((origin.name, creations(&fake)), (SELF_MADE, 1));
    }

    #[tokio::test]
    async fn what_is_published_is_used_on() {
        let (secret, root) = made();
        let fake = server(&[(SELF_MADE, &secret)], Some(&root)).await;
        let (material, _) = load(&fake.cluster, "t").await.unwrap();
        assert_eq!((material.roots, creations(&fake)), (root, 0));
    }

    #[tokio::test]
    async fn a_secret_with_another_root_is_refused_while_one_is_published() {
        let ((own, root), (other, _)) = (made(), made());
        let secrets = [(SELF_MADE, own.as_str()), (PLUGGED_IN, other.as_str())];
        let fake = server(&secrets, Some(&root)).await;
        let error = load(&fake.cluster, "t").await.err().unwrap();
        let text = format!("{error:#}");
        assert!(
            text.contains("karst-system/cacerts") && text.contains("README"),
            "{text}"
        );
        // Without anything published it is what the operator brought before the first start.
        let fake = server(&secrets, None).await;
        let (_, origin) = load(&fake.cluster, "t").await.unwrap();
        assert_eq!(origin.name, PLUGGED_IN);
    }

    #[tokio::test]
    async fn a_lost_secret_is_not_made_anew() {
        let (_, root) = made();
        let fake = server(&[], Some(&root)).await;
        let error = load(&fake.cluster, "t").await.err().unwrap();
        assert!(error.to_string().contains("put the Secret back"), "{error}");
        assert_eq!(creations(&fake), 0);
    }

    fn secret(key: &str) -> Secret {
        let text = |text: &str| ByteString(text.as_bytes().to_vec());
        Secret {
            data: Some(Data::from([
                (CERTIFICATE.to_owned(), text("C")),
                (KEY.to_owned(), text(key)),
                (ROOTS.to_owned(), text("R")),
            ])),
            ..Secret::default()
        }
    }

    fn synced() -> Now {
        let mut now = Now::default();
        for name in [PLUGGED_IN, SELF_MADE] {
            now.take(name, Event::Started);
            if name == SELF_MADE {
                now.take(name, Event::Listed(secret("K")));
            }
            now.take(name, Event::Synced);
        }
        now
    }

    fn origin() -> Origin {
        Origin {
            name: SELF_MADE,
            digest: digest(&secret("K").data.unwrap()),
        }
    }

    #[test]
    fn every_part_is_needed_but_the_chain() {
        let whole = secret("K").data.unwrap();
        let found = material(&whole).unwrap();
        assert_eq!((found.key.as_str(), found.roots.as_str()), ("K", "R"));
        for key in [CERTIFICATE, KEY, ROOTS] {
            let mut part = whole.clone();
            part.remove(key);
            let text = material(&part).err().unwrap().to_string();
            assert_eq!(text, format!("{key} is missing or empty"));
            part.insert(key.to_owned(), ByteString(vec![0xff]));
            let text = material(&part).err().unwrap().to_string();
            assert_eq!(text, format!("{key} is not text"));
        }
        let mut chained = whole;
        chained.insert(CHAIN.to_owned(), ByteString(b"I".to_vec()));
        assert_eq!(material(&chained).unwrap().certificates, "C\nI");
    }

    #[test]
    fn a_change_of_the_used_secret_is_seen() {
        let mut now = Now::default();
        assert_eq!(now.differs(origin()), None, "nothing is known");
        now = synced();
        assert_eq!(now.differs(origin()), Some(false));
        now.take(SELF_MADE, Event::Applied(secret("other")));
        assert_eq!(now.differs(origin()), Some(true));
        now.take(SELF_MADE, Event::Applied(secret("K")));
        assert_eq!(now.differs(origin()), Some(false));
        now.take(SELF_MADE, Event::Deleted(secret("K")));
        assert_eq!(now.differs(origin()), Some(true));
    }

    #[test]
    fn a_plugged_in_secret_that_comes_later_is_seen() {
        let mut now = synced();
        now.take(PLUGGED_IN, Event::Applied(secret("K")));
        assert_eq!(now.differs(origin()), Some(true));
        now.take(PLUGGED_IN, Event::Started);
        now.take(PLUGGED_IN, Event::Synced);
        assert_eq!(now.differs(origin()), Some(false), "gone in a later list");
    }
}
