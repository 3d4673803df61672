//! What the controller wants of this node's pods, kept for as long as the process
//! runs: before this agent may serve, while it does, and after it handed over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use karst_identity::SpiffeId;
use tokio::sync::mpsc;

use super::task::{Event, WorkerSet};
use super::{Mode, NodePod, Workers};

/// The controller's list.
pub struct Wishes {
    pods: HashMap<Arc<str>, NodePod>,
    synced: bool,
    follower: Option<mpsc::UnboundedSender<Event>>,
    workers: WorkerSet,
}

impl Wishes {
    /// Nothing is known yet. `workers` end connections of deleted pods, and those that do not
    /// satisfy what is newly required, while there is no enrolment that would have them do so.
    pub fn new(workers: WorkerSet) -> Self {
        Self {
            pods: HashMap::new(),
            synced: false,
            follower: None,
            workers,
        }
    }

    /// Takes over what the controller said, and passes it on to the enrolment if there
    /// is one.
    pub fn note(&mut self, event: Event) {
        match &event {
            Event::NodePods(changes) => {
                for (uid, pod) in changes {
                    match pod {
                        Some(pod) => self.pods.insert(Arc::clone(uid), pod.clone()),
                        None => self.pods.remove(uid),
                    };
                    match pod {
                        _ if self.follower.is_some() => {}
                        Some(pod) => require(&mut self.workers, uid, pod),
                        None => self.workers.kill(uid),
                    }
                }
            }
            Event::Synced => self.synced = true,
            _ => {}
        }
        if let Some(follower) = &self.follower {
            // It ends with its turn, and then this agent only remembers.
            let _ = follower.send(event);
        }
    }

    /// Tells an enrolment everything, and from now on what changes.
    pub fn follow(&mut self, events: mpsc::UnboundedSender<Event>) {
        let all = self.pods.iter();
        let all = all.map(|(uid, pod)| (Arc::clone(uid), Some(pod.clone())));
        // It has just been made and waits for this.
        let _ = events.send(Event::NodePods(all.collect()));
        if self.synced {
            let _ = events.send(Event::Synced);
        }
        self.follower = Some(events);
    }

    /// The enrolment has ended. What it was told last it may not have done any more.
    pub fn leave(&mut self) {
        self.follower = None;
        for (uid, pod) in &self.pods {
            require(&mut self.workers, uid, pod);
        }
    }

    /// Identities of the pods in the mesh; `None` until the list is complete.
    pub fn identities(&self) -> Option<HashSet<SpiffeId>> {
        let pods = self.pods.values();
        let ambient = pods.filter(|pod| pod.mode == Mode::Ambient);
        self.synced
            .then(|| ambient.map(|pod| pod.identity.clone()).collect())
    }
}

fn require(workers: &mut WorkerSet, uid: &Arc<str>, pod: &NodePod) {
    if pod.mode == Mode::Ambient {
        workers.require(uid, &pod.waypoints, pod.egress);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_identity::SpiffeId;
    use tokio::sync::mpsc;

    use super::Wishes;
    use crate::egress::Egress;
    use crate::enrol::task::{Event, WorkerSet};
    use crate::enrol::{Mode, NodePod};
    use crate::worker::Command;

    fn pod(account: &str, mode: Mode) -> Option<NodePod> {
        Some(NodePod {
            namespace: Arc::from("ns"),
            name: Arc::from("pod"),
            workload_uid: Arc::from("w"),
            addresses: Vec::new(),
            identity: SpiffeId::new("cluster.local", "ns", account).expect("id"),
            mode,
            waypoints: Arc::default(),
            egress: Egress::default(),
        })
    }

    #[test]
    fn a_new_enrolment_hears_what_was_said_before_it() {
        let mut wishes = Wishes::new(WorkerSet::default());
        wishes.note(Event::NodePods(vec![
            (Arc::from("a"), pod("sa", Mode::Ambient)),
            (Arc::from("b"), pod("other", Mode::None)),
            (Arc::from("c"), pod("sa", Mode::Ambient)),
        ]));
        assert!(wishes.identities().is_none(), "not complete");
        wishes.note(Event::Synced);
        wishes.note(Event::NodePods(vec![(Arc::from("c"), None)]));
        assert_eq!(wishes.identities().expect("complete").len(), 1);
        let (events, mut heard) = mpsc::unbounded_channel();
        wishes.follow(events);
        let Ok(Event::NodePods(all)) = heard.try_recv() else {
            panic!("no pods")
        };
        let mut uids: Vec<_> = all.iter().map(|(uid, _)| &**uid).collect();
        uids.sort_unstable();
        assert_eq!(uids, ["a", "b"]);
        assert!(matches!(heard.try_recv(), Ok(Event::Synced)));
        wishes.note(Event::NodePods(vec![(Arc::from("a"), None)]));
        assert!(matches!(heard.try_recv(), Ok(Event::NodePods(_))));
    }

    #[test]
    fn a_deleted_pods_connections_end_also_after_the_hand_over() {
        let (commands, mut told) = mpsc::unbounded_channel();
        let mut wishes = Wishes::new(WorkerSet::new(vec![commands]));
        let (events, _heard) = mpsc::unbounded_channel();
        wishes.follow(events);
        wishes.note(Event::NodePods(vec![(Arc::from("a"), None)]));
        assert!(told.try_recv().is_err(), "the enrolment's business");
        wishes.leave();
        wishes.note(Event::NodePods(vec![(Arc::from("b"), None)]));
        assert!(matches!(told.try_recv(), Ok(Command::Kill(uid)) if &*uid == "b"));
    }

    #[test]
    fn what_is_required_reaches_connections_also_after_the_hand_over() {
        let (commands, mut told) = mpsc::unbounded_channel();
        let mut wishes = Wishes::new(WorkerSet::new(vec![commands]));
        let (events, _heard) = mpsc::unbounded_channel();
        wishes.follow(events);
        let change = |uid: &str, mode| (Arc::from(uid), pod("sa", mode));
        wishes.note(Event::NodePods(vec![
            change("a", Mode::Ambient),
            change("b", Mode::None),
        ]));
        assert!(told.try_recv().is_err(), "the enrolment's business");
        wishes.leave();
        assert!(matches!(told.try_recv(), Ok(Command::Require(uid, ..)) if &*uid == "a"));
        assert!(told.try_recv().is_err(), "not for a pod outside the mesh");
        wishes.note(Event::NodePods(vec![change("c", Mode::Ambient)]));
        assert!(matches!(told.try_recv(), Ok(Command::Require(uid, ..)) if &*uid == "c"));
    }
}
