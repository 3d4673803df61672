//! Waits until a Deployment or DaemonSet runs what it says, and tells why it does not.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use crate::cluster::{SYSTEM_NAMESPACE, failure, nodes};
use crate::failure::Failure;
use crate::style::progress;

/// Between two looks.
const POLL: Duration = Duration::from_secs(1);

/// Label of a DaemonSet's pods and revisions that says which go together.
const REVISION: &str = "controller-revision-hash";

/// Most pods named in a message.
const MAX_NAMED: usize = 5;

/// Most characters of a container's last words in a message.
const MAX_LAST_WORDS: usize = 400;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// A Deployment.
    Deployment(&'static str),
    /// A DaemonSet.
    DaemonSet(&'static str),
}

/// The controller.
pub const CONTROLLER: Workload = Workload::Deployment("karst-controller");

/// The node agents.
pub const AGENT: Workload = Workload::DaemonSet("karst-node-agent");

impl Workload {
    /// The one of that kind and name, if it is one of Karst's.
    pub fn of(kind: &str, name: &str) -> Option<Self> {
        let mut ours = [CONTROLLER, AGENT].into_iter();
        ours.find(|workload| (workload.kind(), workload.name()) == (kind, name))
    }

    /// Its name, which is also the label of its pods.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment(name) | Self::DaemonSet(name) => name,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Deployment(_) => "Deployment",
            Self::DaemonSet(_) => "DaemonSet",
        }
    }

    fn shown(self) -> String {
        format!("{} {SYSTEM_NAMESPACE}/{}", self.kind(), self.name())
    }
}

/// Which nodes must have their pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// Each.
    All,
    /// Of a DaemonSet, those that are ready: the others get theirs when they are.
    Ready,
}

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether every pod is new and ready.
    pub done: bool,
    /// In words.
    pub text: String,
}

/// How far `workload` is.
///
/// # Errors
/// The server does not answer, or it is not there.
pub async fn state(client: &Client, workload: Workload) -> Result<State, Failure> {
    let doing = format!("reading {}", workload.shown());
    match workload {
        Workload::Deployment(name) => {
            let api: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
            let object = api.get(name).await.map_err(|e| failure(&doing, &e))?;
            Ok(deployment_state(&object))
        }
        Workload::DaemonSet(name) => {
            let api: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
            let object = api.get(name).await.map_err(|e| failure(&doing, &e))?;
            Ok(daemon_set_state(&object))
        }
    }
}

fn deployment_state(object: &Deployment) -> State {
    let wanted = object
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let status = object.status.clone().unwrap_or_default();
    let (all, updated) = (
        status.replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
    );
    let available = status.available_replicas.unwrap_or(0);
    let seen = status.observed_generation >= object.metadata.generation;
    State {
        done: seen && updated == wanted && all == wanted && available == wanted,
        text: format!("{available} of {wanted} ready, {updated} of this version"),
    }
}

fn daemon_set_state(object: &DaemonSet) -> State {
    let status = object.status.clone().unwrap_or_default();
    let wanted = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let available = status.number_available.unwrap_or(0);
    let seen = status.observed_generation >= object.metadata.generation;
    State {
        done: seen && updated == wanted && available == wanted && status.number_ready == wanted,
        text: format!("{available} of {wanted} nodes ready, {updated} of this version"),
    }
}

/// The nodes that are not ready, if there are any and every other node has its new pod, ready.
///
/// The counts of the DaemonSet's own status do not tell the two apart.
async fn done_but_for(client: &Client, workload: Workload) -> Result<Option<Vec<String>>, Failure> {
    let all = nodes::list(client).await?;
    if all.iter().all(nodes::is_ready) {
        return Ok(None);
    }
    let failed = |what: &str, error: &kube::Error| failure(&format!("reading {what}"), error);
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let object = api.get(workload.name()).await;
    let object = object.map_err(|e| failed(&workload.shown(), &e))?;
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let revisions = api.list(&ListParams::default()).await;
    let revisions = revisions.map_err(|e| failed("controllerrevisions", &e))?;
    let pods = pods(client, workload).await?;
    Ok(nodes_without(&object, &revisions.items, &all, &pods))
}

fn nodes_without(
    object: &DaemonSet,
    revisions: &[ControllerRevision],
    all: &[Node],
    pods: &[Pod],
) -> Option<Vec<String>> {
    let observed = object.status.as_ref()?.observed_generation;
    if observed < object.metadata.generation {
        return None;
    }
    let spec = object.spec.as_ref()?.template.spec.as_ref()?;
    let selector = spec.node_selector.clone().unwrap_or_default();
    let selected = all
        .iter()
        .filter(|node| nodes::is_selected(node, &selector));
    let (ready, away): (Vec<&Node>, Vec<&Node>) = selected.partition(|node| nodes::is_ready(node));
    let own = revisions.iter().filter(|revision| {
        let owners = revision.metadata.owner_references.iter().flatten();
        owners
            .into_iter()
            .any(|it| Some(&it.uid) == object.metadata.uid.as_ref())
    });
    let newest = own.max_by_key(|revision| revision.revision)?;
    let newest = newest.metadata.labels.as_ref()?.get(REVISION)?;
    let served = |node: &&Node| {
        pods.iter().any(|pod| {
            let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let labels = pod.metadata.labels.as_ref();
            on == Some(nodes::name(node))
                && labels.and_then(|labels| labels.get(REVISION)) == Some(newest)
                && pod.metadata.deletion_timestamp.is_none()
                && is_ready(pod)
        })
    };
    // Where no node at all is ready, nothing has been rolled out.
    let done = !ready.is_empty() && !away.is_empty() && ready.iter().all(served);
    done.then(|| {
        away.into_iter()
            .map(|node| nodes::name(node).to_owned())
            .collect()
    })
}

/// Waits until every pod of `workload` is new and ready; gives the nodes that are passed over.
///
/// # Errors
/// It takes longer than `limit`; the message says what its pods wait for.
pub async fn wait(
    client: &Client,
    workload: Workload,
    nodes: Nodes,
    limit: Duration,
) -> Result<Vec<String>, Failure> {
    let deadline = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let state = state(client, workload).await?;
        if state.done {
            return Ok(Vec::new());
        }
        if nodes == Nodes::Ready
            && let Some(away) = done_but_for(client, workload).await?
        {
            return Ok(away);
        }
        let troubles = troubles(client, workload).await?;
        let mut text = format!("waiting for {}: {}", workload.shown(), state.text);
        for trouble in troubles.iter().take(MAX_NAMED) {
            text.push_str(&format!("\n  {trouble}"));
        }
        if Instant::now() >= deadline {
            let seconds = limit.as_secs();
            return Err(Failure::failed(
                "rollout_timeout",
                format!("{text}\nnot there after {seconds} s; run the command again to go on"),
            ));
        }
        if text != said {
            progress(&text);
            said = text;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the pods of `workload` that are not ready wait for, or died of.
///
/// # Errors
/// The server does not answer.
pub async fn troubles(client: &Client, workload: Workload) -> Result<Vec<String>, Failure> {
    Ok(pods(client, workload)
        .await?
        .iter()
        .filter_map(trouble)
        .collect())
}

/// The pods of `workload`.
///
/// # Errors
/// The server does not answer.
pub async fn pods(client: &Client, workload: Workload) -> Result<Vec<Pod>, Failure> {
    let api: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let selector = format!("app.kubernetes.io/name={}", workload.name());
    let list = api.list(&ListParams::default().labels(&selector)).await;
    let list =
        list.map_err(|e| failure(&format!("listing the pods of {}", workload.shown()), &e))?;
    Ok(list.items)
}

/// Whether a pod's containers all say that they are ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref());
    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why a pod is not ready; nothing for one that is, or that is on its way without a hitch.
pub fn trouble(pod: &Pod) -> Option<String> {
    if is_ready(pod) {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let place = node.map_or_else(String::new, |node| format!(" on {node}"));
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions
        .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .find_map(|condition| condition.message.clone());
    let statuses = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let why = unscheduled.or_else(|| statuses.clone().find_map(container_trouble))?;
    Some(format!("pod {name}{place}: {why}"))
}

fn container_trouble(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let ended = state.terminated.as_ref().or(last);
    if let Some(ended) = ended {
        let words = ended.message.as_deref().unwrap_or_default().trim();
        let skip = words.chars().count().saturating_sub(MAX_LAST_WORDS);
        let words: String = words.chars().skip(skip).collect();
        let reason = ended.reason.as_deref().unwrap_or("ended");
        return Some(format!(
            "{reason} with exit code {}: {words}",
            ended.exit_code
        ));
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
        return None;
    }
    let message = waiting.message.as_deref().unwrap_or_default();
    Some(format!("{reason}: {message}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment};
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::{daemon_set_state, deployment_state, nodes_without, trouble};

    fn pod(status: Value) -> Pod {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "nodeName": "n1"}, "status": status});
        serde_json::from_value(pod).expect("pod")
    }

    #[test]
    fn a_rollout_is_done_when_every_pod_is_new_and_ready() {
        let check = |generation: i64, updated: i32, available: i32, replicas: i32, done: bool| {
            let object: Deployment = serde_json::from_value(json!({
                "metadata": {"generation": 2},
                "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"observedGeneration": generation, "replicas": replicas,
                           "updatedReplicas": updated, "availableReplicas": available},
            }))
            .expect("deployment");
            assert_eq!(deployment_state(&object).done, done);
        };
        check(2, 2, 2, 2, true);
        check(1, 2, 2, 2, false);
        check(2, 1, 2, 2, false);
        check(2, 2, 1, 2, false);
        check(2, 2, 2, 3, false);
    }

    #[test]
    fn agents_are_ready_on_every_node() {
        let state = |updated: i32, ready: i32| {
            let object: DaemonSet = serde_json::from_value(json!({
                "metadata": {"generation": 1},
                "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
                           "numberMisscheduled": 0, "numberReady": ready, "numberAvailable": ready,
                           "updatedNumberScheduled": updated},
            }))
            .expect("daemon set");
            daemon_set_state(&object)
        };
        assert!(state(2, 2).done);
        assert!(!state(1, 2).done);
        assert_eq!(state(2, 1).text, "1 of 2 nodes ready, 2 of this version");
        // Before the controller manager has seen it at all.
        let unseen: DaemonSet =
            serde_json::from_value(json!({"metadata": {"generation": 1}})).expect("daemon set");
        assert!(!daemon_set_state(&unseen).done);
    }

    #[test]
    fn only_nodes_that_are_ready_must_have_their_agent() {
        let set = |observed: i64| -> DaemonSet {
            serde_json::from_value(json!({
                "metadata": {"generation": 2, "uid": "d"},
                "spec": {"selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"os": "linux"}}}},
                "status": {"observedGeneration": observed, "desiredNumberScheduled": 2,
                           "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 1},
            }))
            .expect("daemon set")
        };
        let revision = |owner: &str, number: i64, hash: &str| -> ControllerRevision {
            let owner =
                json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "a", "uid": owner});
            serde_json::from_value(json!({"revision": number, "metadata": {
                "ownerReferences": [owner], "labels": {"controller-revision-hash": hash}}}))
            .expect("revision")
        };
        let revisions = [
            revision("d", 3, "new"),
            revision("d", 1, "old"),
            revision("other", 9, "x"),
        ];
        let node = |name: &str, os: &str, ready: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"os": os}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("node")
        };
        let agent = |node: &str, hash: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "labels": {"controller-revision-hash": hash}},
                "spec": {"containers": [], "nodeName": node},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("pod")
        };
        let one_away = [
            node("n1", "linux", "True"),
            node("n2", "linux", "Unknown"),
            node("n3", "other", "False"),
        ];
        let check = |observed: i64, nodes: &[Node], pods: &[Pod]| {
            nodes_without(&set(observed), &revisions, nodes, pods)
        };
        let good = [agent("n1", "new", "True"), agent("n2", "old", "False")];
        assert_eq!(check(2, &one_away, &good), Some(vec!["n2".to_owned()]));
        // What is not seen, not new, not ready or not there is waited for.
        assert_eq!(check(1, &one_away, &good), None);
        assert_eq!(check(2, &one_away, &[agent("n1", "old", "True")]), None);
        assert_eq!(check(2, &one_away, &[agent("n1", "new", "False")]), None);
        assert_eq!(check(2, &one_away, &[]), None);
        let ending = {
            let mut pod = agent("n1", "new", "True");
            pod.metadata.deletion_timestamp =
                serde_json::from_value(json!("2026-11-22T01:00:00Z")).ok();
            pod
        };
        assert_eq!(check(2, &one_away, &[ending]), None);
        // Nothing runs where no node is ready, and where all are, the counts say it.
        assert_eq!(check(2, &[node("n2", "linux", "False")], &good), None);
        assert_eq!(check(2, &[node("n1", "linux", "True")], &good), None);
    }

    #[test]
    fn pods_say_what_they_wait_for() {
        let check = |status: Value, expected: Option<&str>| {
            assert_eq!(trouble(&pod(status)).as_deref(), expected);
        };
        check(
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            None,
        );
        check(
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]}),
            Some("pod p on n1: no room"),
        );
        let container = |state: Value, last: Value| {
            json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
                    "restartCount": 1, "state": state, "lastState": last}]})
        };
        let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "m"}});
        check(container(waiting("ContainerCreating"), json!({})), None);
        check(
            container(waiting("ErrImagePull"), json!({})),
            Some("pod p on n1: ErrImagePull: m"),
        );
        let ended =
            json!({"terminated": {"reason": "Error", "exitCode": 1, "message": "no bpffs\n"}});
        check(
            container(waiting("CrashLoopBackOff"), ended),
            Some("pod p on n1: Error with exit code 1: no bpffs"),
        );
    }
}
