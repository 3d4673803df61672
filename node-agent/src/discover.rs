//! Finds the sandboxes of pods that run already: started before the agent or its CNI plugin was
//! there, or whose namespace is another one than was recorded.
//!
//! The controller says which pods are on the node ([`Missing`]); [`scan`] finds their processes,
//! by their cgroup's folder or by what `/proc` says of each process ([`names`] knows the
//! spellings), and with them the network namespace. It never looks at pods that nobody named.

pub mod names;
pub mod scan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::enrol::Mode;
use crate::enrol::attach::{Finding, Missing};
use crate::enrol::registry::Registration;
use crate::enrol::task::Event;
use scan::{Found, NodeView};

/// Wait after the list of missing pods changed: it changes in bursts.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Between looks for a pod that is to be in the mesh. It runs unprotected until it is found, and
/// a look costs some ten milliseconds on a full node.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Between looks for pods outside the mesh, whose sandbox is only wanted for later. Finished pods
/// never have one.
const LOOK_AGAIN_OUTSIDE: Duration = Duration::from_secs(60);

/// Looks for missing pods until the enrolment ends.
pub async fn run(
    view: NodeView,
    mut missing: watch::Receiver<Arc<Vec<Missing>>>,
    events: mpsc::UnboundedSender<Event>,
) {
    let view = Arc::new(view);
    loop {
        let wanted = Arc::clone(&missing.borrow_and_update());
        if !wanted.is_empty() {
            let (view, pods) = (Arc::clone(&view), Arc::clone(&wanted));
            // Reads thousands of small files on a full node: not on the control thread.
            let looked = tokio::task::spawn_blocking(move || look(&view, &pods)).await;
            let findings = looked.unwrap_or_default();
            if !findings.is_empty() && events.send(Event::Discovered(findings)).is_err() {
                return;
            }
        }
        let in_mesh = wanted.iter().any(|pod| pod.mode == Mode::Ambient);
        let again = if in_mesh {
            LOOK_AGAIN
        } else {
            LOOK_AGAIN_OUTSIDE
        };
        match tokio::time::timeout(again, missing.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(DEBOUNCE).await,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
    }
}

fn look(view: &NodeView, pods: &[Missing]) -> Vec<(Arc<str>, Finding)> {
    let uids: Vec<&str> = pods.iter().map(|pod| &*pod.uid).collect();
    let found = match scan::scan(view, &uids) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "running pods cannot be looked for");
            return Vec::new();
        }
    };
    findings(pods, found)
}

fn findings(pods: &[Missing], mut found: HashMap<String, Found>) -> Vec<(Arc<str>, Finding)> {
    let mut findings = Vec::new();
    for pod in pods {
        let finding = match found.remove(&*pod.uid) {
            None => Finding::Nothing,
            // Not ours, or not yet to be told: neither here nor gone.
            Some(Found::HostNetwork | Found::Unreadable) => continue,
            Some(Found::Sandbox(..)) if pod.addresses.is_empty() => continue,
            Some(Found::Sandbox(netns, id)) => Finding::Sandbox(Registration {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                netns,
                addresses: pod.addresses.clone(),
                container_id: None,
                expected: Some(id),
            }),
        };
        findings.push((Arc::clone(&pod.uid), finding));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use karst_datapath::netns::NetnsId;

    use super::{Arc, Finding, Found, HashMap, Missing, Mode, findings};

    #[test]
    fn the_namespace_that_was_seen_is_the_one_to_be_registered() {
        let seen = NetnsId { dev: 4, ino: 77 };
        let pod = |uid: &str| Missing {
            uid: Arc::from(uid),
            namespace: Arc::from("ns"),
            name: Arc::from("pod"),
            addresses: vec!["10.0.0.1".parse().expect("address")],
            mode: Mode::Ambient,
        };
        let found = HashMap::from([
            ("here".to_owned(), Found::Sandbox(PathBuf::from("/p"), seen)),
            ("hidden".to_owned(), Found::Unreadable),
        ]);
        let found = findings(&[pod("here"), pod("hidden"), pod("gone")], found);
        let [
            (here, Finding::Sandbox(registration)),
            (gone, Finding::Nothing),
        ] = found.as_slice()
        else {
            panic!("{found:?}")
        };
        assert_eq!((&**here, &**gone), ("here", "gone"));
        assert_eq!(registration.expected, Some(seen));
    }
}
