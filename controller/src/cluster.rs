//! The Kubernetes API server as the controller uses it.
//!
//! [`Cluster`] makes calls, each with a time limit and counted when it fails; `follow` keeps up
//! with a kind of object; `lease` and `leader` decide which replica writes; `reports`, `roots`,
//! `annotations`, `status` and `proxies` are what is written, the last two by `work`; `facts` is what
//! writing needs to know besides the mesh.

pub mod annotations;
pub mod facts;
pub mod follow;
pub mod leader;
mod lease;
pub mod proxies;
pub mod reports;
pub mod retry;
pub mod roots;
pub mod status;
mod work;

use std::{collections::BTreeMap, future::Future, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::Semaphore;

use crate::metrics::{Metrics, Verb};

/// Who the API server says has written a field.
pub const FIELD_MANAGER: &str = "karst-controller";

/// A call must be answered within this time. Calls are small; a server that takes longer is as
/// good as gone, and a leader must know so well before its lease ends.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Calls that may be open at a time, watches aside.
const MAX_CALLS: usize = 32;

/// Longest error text of the API server that is passed on, in characters.
const MAX_PROBLEM_CHARS: usize = 300;

/// Access to the API server; cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    metrics: Metrics,
    places: Arc<Semaphore>,
    /// The namespace that the controller and its objects are in.
    pub system_namespace: Arc<str>,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No answer in time. A retry may help.
    #[error("no answer within {CALL_LIMIT:?}")]
    Timeout,
    /// No connection. A retry may help.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// There is no such object.
    #[error("not found: {0}")]
    NotFound(String),
    /// Somebody else was faster: the object exists already, or is not what it was.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Not allowed. Ours to fix: the controller's role lacks something, or the namespace is ending.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The object is not acceptable; a retry of the same does not help.
    #[error("not acceptable: {0}")]
    Invalid(String),
    /// Anything else that the server says. A retry may help.
    #[error("the API server says: {0}")]
    Server(String),
}

impl CallError {
    /// Stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "api_timeout",
            Self::Unreachable(_) => "api_unreachable",
            Self::NotFound(_) => "api_not_found",
            Self::Conflict(_) => "api_conflict",
            Self::Forbidden(_) => "api_forbidden",
            Self::Invalid(_) => "api_invalid",
            Self::Server(_) => "api_server_error",
        }
    }

    fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let text = short(&status.message);
                match status.code {
                    404 => Self::NotFound(text),
                    409 => Self::Conflict(text),
                    401 | 403 => Self::Forbidden(text),
                    400 | 422 => Self::Invalid(text),
                    _ => Self::Server(text),
                }
            }
            other => Self::Unreachable(short(&describe(other))),
        }
    }
}

/// The labels of every object that the controller makes.
pub fn labels() -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/part-of", "karst"),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
        ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// An error with its causes, each once.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

fn short(text: &str) -> String {
    text.chars().take(MAX_PROBLEM_CHARS).collect()
}

impl Cluster {
    /// Reads how to reach the API server; it need not be there yet.
    ///
    /// # Errors
    /// When there is neither a usable kubeconfig nor a service account of a pod.
    pub async fn connect(
        kubeconfig: Option<&Path>,
        system_namespace: &str,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let mut config = match kubeconfig {
            Some(path) => {
                let context = || format!("reading the kubeconfig {}", path.display());
                let file = Kubeconfig::read_from(path).with_context(context)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .with_context(context)?
            }
            None => Config::incluster().context(
                "reading the pod's service account (outside of a pod, give --kubeconfig)",
            )?,
        };
        config.connect_timeout = Some(CALL_LIMIT);
        // Who needs a retry does it with a limit of its own.
        config.default_retry = false;
        let client = Client::try_from(config).context("making the client of the API server")?;
        Ok(Self::new(client, system_namespace, metrics))
    }

    fn new(client: Client, system_namespace: &str, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            places: Arc::new(Semaphore::new(MAX_CALLS)),
            system_namespace: system_namespace.into(),
        }
    }

    /// The client, to make an `Api` of.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The metrics that calls and watches are counted in.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Makes a call: waits for a place, then for the answer, not longer than the limit.
    pub async fn call<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        let limited = async {
            // The semaphore is never closed.
            let _place = self.places.acquire().await;
            call.await
        };
        let result = match tokio::time::timeout(CALL_LIMIT, limited).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallError::of(&error)),
            Err(_) => Err(CallError::Timeout),
        };
        // Not being there, or somebody being faster, is an answer like any other.
        if let Err(error) = &result
            && !matches!(error, CallError::NotFound(_) | CallError::Conflict(_))
        {
            self.metrics.api_errors.get_or_create(&Verb { verb }).inc();
        }
        result
    }
}

#[cfg(test)]
pub mod fake;
