//! Sandboxes as the container runtime and discovery know them: by name, by container, by
//! namespace; and which pods of the node still have none.

use std::net::IpAddr;
use std::sync::Arc;

use karst_datapath::netns::NetnsId;

use super::registry::{Registration, Sandbox};
use super::{Enrolment, Mode, Namespace, Problem, Standing, Workers, open_netns};

/// A sandbox that ends or is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxName {
    /// Kubernetes uid of the pod, if the runtime told.
    pub pod_uid: Option<String>,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// The container runtime's id.
    pub container_id: String,
    /// Its network namespace, if there still is one.
    pub netns_id: Option<NetnsId>,
}

/// A pod of this node without a usable sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Kubernetes uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Its addresses, as the API server has them.
    pub addresses: Vec<IpAddr>,
    /// Whether the operator wants it in the mesh.
    pub mode: Mode,
}

/// What a look at the node's processes found of a missing pod.
#[derive(Clone, Debug)]
pub enum Finding {
    /// It lives here.
    Sandbox(Registration),
    /// No process of it is left.
    Nothing,
}

impl<W: Workers> Enrolment<W> {
    /// The uid of a pod the runtime knows by name only. `None` while it is not sure: right after
    /// a pod was replaced by another of its name, the controller lists both.
    pub fn uid_of(&self, namespace: &str, name: &str) -> Option<Arc<str>> {
        let pods = self.node_pods.as_ref().unwrap_or(&self.early);
        let mut named = pods
            .iter()
            .filter(|(_, pod)| &*pod.namespace == namespace && &*pod.name == name)
            .map(|(uid, _)| uid);
        match (named.next(), named.next()) {
            (Some(uid), None) => Some(Arc::clone(uid)),
            _ => None,
        }
    }

    /// The uid of the pod whose sandbox this is; `None` for a sandbox that is not recorded or was
    /// replaced by another one since.
    pub fn recorded(&self, wanted: &SandboxName) -> Option<Arc<str>> {
        let is_it = |sandbox: &&Sandbox| match &sandbox.container_id {
            Some(id) => **id == *wanted.container_id,
            None => wanted.netns_id == Some(sandbox.netns_id),
        };
        let by_uid = wanted.pod_uid.as_deref().map(|uid| self.registry.get(uid));
        let found = match by_uid {
            Some(sandbox) => sandbox.filter(is_it),
            None => self.registry.iter().find(|sandbox| {
                *sandbox.namespace == *wanted.namespace
                    && *sandbox.name == *wanted.name
                    && is_it(sandbox)
            }),
        };
        found.map(|sandbox| Arc::clone(&sandbox.pod_uid))
    }

    /// Whether a sandbox's pod is as it should be: in the mesh or rightly out of it.
    ///
    /// # Errors
    /// It is not, or the sandbox is not recorded.
    pub fn check(&self, sandbox: &SandboxName) -> Result<bool, Problem> {
        let uid = self.recorded(sandbox).ok_or_else(|| Problem {
            reason: "cni_sandbox_unknown",
            message: "this sandbox is not registered".to_owned(),
        })?;
        match self.standing(&uid) {
            Standing::Settled => Ok(self.is_enrolled(&uid)),
            Standing::Unsettled(problem) => Err(problem),
        }
    }

    /// Whether the pod is captured and served.
    pub fn is_enrolled(&self, uid: &str) -> bool {
        self.running.contains_key(uid) && self.in_kernel.contains(uid)
    }

    /// Pods of this node without a usable sandbox, by uid. One that has no address yet is not
    /// missing: its sandbox is being made, and the runtime will tell.
    pub fn missing(&self) -> Vec<Missing> {
        let pods = self.node_pods.as_ref().unwrap_or(&self.early);
        let mut missing: Vec<Missing> = pods
            .iter()
            .filter(|(uid, pod)| match self.registry.get(uid) {
                Some(_) => self.stale.contains(*uid),
                None => !pod.addresses.is_empty() || self.orphans.contains(*uid),
            })
            .map(|(uid, pod)| Missing {
                uid: Arc::clone(uid),
                namespace: Arc::clone(&pod.namespace),
                name: Arc::clone(&pod.name),
                addresses: pod.addresses.clone(),
                mode: pod.mode,
            })
            .collect();
        missing.sort_by(|a, b| a.uid.cmp(&b.uid));
        missing
    }

    /// Takes over what discovery found; says how many sandboxes are new. What the runtime told
    /// meanwhile is newer and stays.
    pub fn discovered(&mut self, findings: Vec<(Arc<str>, Finding)>) -> usize {
        let mut new = 0;
        for (uid, finding) in findings {
            if self.registry.get(&uid).is_some() && !self.stale.contains(&uid) {
                continue;
            }
            let outcome = match finding {
                Finding::Sandbox(registration) => {
                    let path = registration.netns.clone();
                    let taken =
                        Sandbox::new(&uid, registration).and_then(|sandbox| self.register(sandbox));
                    if taken.is_ok() {
                        new += 1;
                        tracing::info!(pod.uid = &*uid, netns = %path.display(), "running pod found");
                    }
                    taken
                }
                Finding::Nothing if self.stale.remove(&uid) || self.orphans.contains(&uid) => {
                    tracing::info!(pod.uid = &*uid, "sandbox is gone");
                    self.unregister(&uid)
                }
                Finding::Nothing => Ok(()),
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, reason = error.reason(), pod.uid = &*uid, "running pod cannot be registered");
            }
        }
        new
    }

    /// Looks whether recorded namespaces are still those they were. What is not listed any more
    /// goes; of a listed pod, discovery has to say what became of it.
    pub(super) fn look_for_namespaces(&mut self) {
        let mut gone = Vec::new();
        self.stale.clear();
        for sandbox in self.registry.iter() {
            match open_netns(sandbox) {
                Namespace::There(_) => {}
                Namespace::Gone(_) => gone.push(Arc::clone(&sandbox.pod_uid)),
                Namespace::Unseen(problem) => {
                    tracing::warn!(
                        pod.uid = &*sandbox.pod_uid,
                        reason = problem.reason,
                        error = problem.message,
                        "namespace of a pod cannot be looked at"
                    );
                }
            }
        }
        for uid in gone {
            if !matches!(self.wanted(&uid), super::Wanted::Unlisted) {
                self.stale.insert(uid);
                continue;
            }
            if let Err(error) = self.registry.remove(&uid) {
                tracing::warn!(%error, pod.uid = &*uid, "record of a sandbox cannot be deleted");
            }
        }
    }
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
