//! What the controller is put together of, for each kind of source.

use std::{path::Path, sync::Arc};

use crate::{
    args::{Config, Source},
    auth::{Authenticator, Callers, ReviewedTokens, TokenRules},
    ca::{
        authority::{Authority, AuthoritySource},
        rotation, secret,
    },
    cluster::{
        Cluster, annotations,
        facts::Facts,
        leader::{Candidate, while_leading},
        proxies::{self, Proxies},
        reports::Reports,
        roots::{self, Bundle},
        status,
    },
    metrics::Metrics,
    source,
    store::Store,
};

/// Everything that serving needs.
pub struct Parts {
    pub authority: Arc<Authority>,
    pub authenticator: Arc<Authenticator>,
    /// Shares reports with other replicas, where there are any.
    pub reports: Option<Arc<Reports>>,
    pub background: Background,
}

/// What goes on besides serving.
pub enum Background {
    /// The folder is followed.
    Directory(source::directory::Running),
    /// The API server is followed and, when this replica leads, written to.
    Kube {
        _source: source::kube::Running,
        candidate: Candidate,
    },
}

impl Parts {
    /// Starts everything; what it returns with is complete and may be served.
    ///
    /// # Errors
    /// When something cannot be used and waiting would not mend it.
    pub async fn start(
        config: &Config,
        store: &Arc<Store>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        match &config.source {
            Source::Directory {
                path,
                tokens,
                authority,
            } => Self::directory(config, path, tokens, authority, store, metrics),
            Source::Kube {
                kubeconfig,
                system_namespace,
                pod_name,
                proxies,
            } => {
                let cluster =
                    Cluster::connect(kubeconfig.as_deref(), system_namespace, metrics.clone());
                let proxies = Arc::new(proxies.as_ref().clone());
                Self::kube(config, cluster.await?, pod_name, proxies, store).await
            }
        }
    }

    fn directory(
        config: &Config,
        path: &Path,
        tokens: &TokenRules,
        authority: &AuthoritySource,
        store: &Arc<Store>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let authority = Authority::open(
            authority,
            &config.mesh.trust_domain,
            config.default_lifetime,
            config.max_lifetime,
        )?;
        let authenticator = Authenticator::signed(tokens.clone(), metrics.clone())?;
        let running = source::directory::Directory::start(path, store.clone(), metrics.clone())?;
        Ok(Self {
            authority: Arc::new(authority),
            authenticator: Arc::new(authenticator),
            reports: None,
            background: Background::Directory(running),
        })
    }

    async fn kube(
        config: &Config,
        cluster: Cluster,
        pod_name: &str,
        proxies: Arc<Proxies>,
        store: &Arc<Store>,
    ) -> anyhow::Result<Self> {
        let metrics = cluster.metrics().clone();
        let facts = Arc::new(Facts::default());
        let source = source::kube::start(&cluster, store.clone(), &facts, &metrics);
        let reports = Reports::new(cluster.clone(), store.clone(), facts.clone());
        let (material, origin) = secret::load(&cluster, &config.mesh.trust_domain).await?;
        let authority = Authority::new(&material, config.default_lifetime, config.max_lifetime)?;
        let signed_under = rotation::signing_root(&material).ok();
        drop(material);
        source.synced().await;
        tokio::spawn(reports.clone().run());
        tokio::spawn(secret::watch(cluster.clone(), origin));

        let candidate = Candidate::start(&cluster, pod_name);
        let bundle = Arc::new(Bundle {
            roots: authority.roots_pem(),
            signed_under,
        });
        tokio::spawn({
            let (cluster, store) = (cluster.clone(), store.clone());
            while_leading(candidate.leads(), move || {
                roots::write(cluster.clone(), store.clone(), bundle.clone())
            })
        });
        tokio::spawn({
            let (cluster, store, facts) = (cluster.clone(), store.clone(), facts.clone());
            while_leading(candidate.leads(), move || {
                status::write(cluster.clone(), store.clone(), facts.clone())
            })
        });
        tokio::spawn({
            let (cluster, store, facts) = (cluster.clone(), store.clone(), facts.clone());
            while_leading(candidate.leads(), move || {
                proxies::write(
                    cluster.clone(),
                    store.clone(),
                    facts.clone(),
                    proxies.clone(),
                )
            })
        });
        tokio::spawn({
            let (cluster, store) = (cluster.clone(), store.clone());
            let reports = reports.clone();
            while_leading(candidate.leads(), move || {
                annotations::write(
                    cluster.clone(),
                    store.clone(),
                    reports.clone(),
                    facts.clone(),
                )
            })
        });
        let callers = Callers::new(config.node_agents.clone(), store.clone());
        let audience = config.token_audience.clone();
        let tokens = ReviewedTokens::new(&cluster, audience, callers, store.clone());
        Ok(Self {
            authority: Arc::new(authority),
            authenticator: Arc::new(Authenticator::reviewed(tokens, metrics)),
            reports: Some(reports),
            background: Background::Kube {
                _source: source,
                candidate,
            },
        })
    }
}

impl Background {
    /// Stops the source and gives up the lead.
    pub async fn stop(self) {
        match self {
            Self::Directory(source) => drop(source),
            Self::Kube { candidate, .. } => candidate.stop().await,
        }
    }
}
