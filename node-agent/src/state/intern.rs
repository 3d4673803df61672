//! One copy of what many workloads share: names of namespaces and accounts, places, services.
//!
//! Of the pods of a Deployment only name, uid and address differ. A mesh of 100,000 pods takes a fraction of the memory
//! when the rest is kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use karst_identity::SpiffeId;

use super::workload::{Locality, ServiceMembership, Workload};

/// What is not used any more is looked for when there is twice as much as after the last look, and at least this much.
const MIN_SWEEP: usize = 4096;

/// The copies. See the module's description.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    identities: HashSet<SpiffeId>,
    localities: HashSet<Arc<Locality>>,
    memberships: HashSet<Arc<[ServiceMembership]>>,
    sweep_at: usize,
}

impl Interner {
    /// Replaces what the workload shares with others by the copy of all.
    pub fn share(&mut self, workload: &mut Workload) {
        for text in [
            &mut workload.namespace,
            &mut workload.service_account,
            &mut workload.canonical_name,
            &mut workload.canonical_revision,
            &mut workload.workload_name,
        ] {
            one(&mut self.texts, text);
        }
        for policy in &mut workload.authorization_policies {
            one(&mut self.texts, policy);
        }
        if let Some(identity) = &mut workload.identity {
            one(&mut self.identities, identity);
        }
        one(&mut self.localities, &mut workload.locality);
        one(&mut self.memberships, &mut workload.services);
        if self.len() > self.sweep_at.max(MIN_SWEEP) {
            self.sweep();
        }
    }

    /// The copy of all of a text.
    pub fn text(&mut self, mut text: Arc<str>) -> Arc<str> {
        one(&mut self.texts, &mut text);
        text
    }

    fn len(&self) -> usize {
        self.texts.len() + self.identities.len() + self.localities.len() + self.memberships.len()
    }

    fn sweep(&mut self) {
        self.memberships.retain(|one| Arc::strong_count(one) > 1);
        self.localities.retain(|one| Arc::strong_count(one) > 1);
        self.texts.retain(|one| Arc::strong_count(one) > 1);
        // Nobody tells who uses an identity; those to come share a new copy.
        self.identities.clear();
        self.sweep_at = 2 * self.len();
    }
}

fn one<T: Clone + Eq + Hash>(all: &mut HashSet<T>, value: &mut T) {
    match all.get(value) {
        Some(copy) => value.clone_from(copy),
        None => {
            all.insert(value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(number: usize, team: usize) -> Workload {
        let locality = Locality {
            node: Arc::from(format!("node-{team}")),
            ..Locality::default()
        };
        let membership = ServiceMembership {
            service: Arc::from(format!("team-{team}/web")),
            ports: vec![(80, 8080)],
        };
        Workload {
            uid: Arc::from(format!("pod-{number}")),
            namespace: Arc::from(format!("team-{team}")),
            identity: SpiffeId::new("cluster.local", &format!("team-{team}"), "web").ok(),
            locality: Arc::new(locality),
            services: Arc::from([membership]),
            ..Workload::default()
        }
    }

    #[test]
    fn what_is_equal_is_one_copy() {
        let mut interner = Interner::default();
        let (mut a, mut b, mut c) = (workload(1, 1), workload(2, 1), workload(3, 2));
        for workload in [&mut a, &mut b, &mut c] {
            interner.share(workload);
        }
        assert!(Arc::ptr_eq(&a.namespace, &b.namespace));
        assert!(Arc::ptr_eq(&a.locality, &b.locality));
        assert!(Arc::ptr_eq(&a.services, &b.services));
        assert!(!Arc::ptr_eq(&a.services, &c.services));
        let told = |workload: &Workload| format!("{workload:?}").replace("pod-2", "pod-1");
        let plain = |workload: &Workload| {
            let text = told(workload);
            text.split_once(", uid").map(|(_, rest)| rest.to_owned())
        };
        assert_eq!(plain(&a), plain(&b));
        assert_eq!(
            plain(&a),
            plain(&workload(1, 1)),
            "nothing else has changed"
        );
    }

    #[test]
    fn what_nobody_uses_any_more_is_forgotten() {
        let mut interner = Interner::default();
        let mut kept = workload(0, 0);
        interner.share(&mut kept);
        for team in 0..10 * MIN_SWEEP {
            interner.share(&mut workload(team, team));
        }
        assert!(interner.len() <= 2 * MIN_SWEEP, "{}", interner.len());
        let mut again = workload(0, 0);
        interner.share(&mut again);
        assert!(Arc::ptr_eq(&kept.services, &again.services));
    }
}
