//! Which mTLS mode holds for a port of a pod, and why, for people.

use super::{
    Index, NsName, in_namespace,
    peer::{self},
};
use crate::object::{Kind, ObjectKey, peer_authentication::Mode};

/// Which connections a port of a pod takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMode {
    /// Those with an identity only; otherwise those in plain text too.
    pub strict: bool,
    /// The PeerAuthentication that says so; `None` where none says anything.
    pub by: Option<ObjectKey>,
    /// It says so for this port alone.
    pub by_port: bool,
}

impl Index {
    /// Which connections a port of a pod takes; `None` if there is no such pod.
    #[must_use]
    pub fn peer_mode(&self, namespace: &str, pod: &str, port: u16) -> Option<PeerMode> {
        let entry = self.pods.get(&NsName::new(namespace, pod))?;
        let all = in_namespace(&self.policies.peer, namespace);
        let own = all.filter(|(_, held)| held.selects(&entry.pod.labels));
        let own = own.min_by_key(peer::age);
        if let Some((key, held)) = own {
            if let Some(mode) = held.in_force.ports.get(&port) {
                return Some(said(*mode, key, true));
            }
            if let Some(mode) = held.in_force.mode {
                return Some(said(mode, key, false));
            }
        }
        for level in [namespace, self.config().root_namespace.as_str()] {
            if let Some((key, held)) = self.oldest(level)
                && let Some(mode) = held.in_force.mode
            {
                return Some(said(mode, key, false));
            }
        }
        Some(PeerMode {
            strict: self.mode_of_namespace(namespace) == Mode::Strict,
            by: None,
            by_port: false,
        })
    }
}

fn said(mode: Mode, key: &NsName, by_port: bool) -> PeerMode {
    PeerMode {
        strict: mode == Mode::Strict,
        by: Some(ObjectKey {
            kind: Kind::PeerAuthentication,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }),
        by_port,
    }
}
