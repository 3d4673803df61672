//! Where handshakes that go to a pod past the agent are checked: at the host's end of the pod's interface, the only
//! place that all of a neighbour's packets to it come through.
//!
//! A pod whose interface is no veth of this node, or of whose interface the kernel does not let it be done, is enrolled
//! without: then nothing reaches it past the agent.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use crate::api::PodAttachment;
use crate::error::DatapathError;
use crate::links::{self, Hook, Place};
use crate::netns::Netns;
use crate::node::Datapath;
use crate::sys::route::Route;
use crate::sys::{AttachType, LinkTarget};

impl Datapath {
    /// Attaches the check for a pod; the index of the interface where it is, 0 for nowhere.
    pub(crate) fn guard(&self, pod: &PodAttachment<'_>, link: &str) -> Result<u32, DatapathError> {
        let reason = match host_end(pod.netns, pod.addresses, &self.node) {
            Ok(index) => match self.attach_guard(index, link) {
                Ok(()) => return Ok(index),
                Err(error) => error.to_string(),
            },
            Err(Missing::Asking(error)) => format!("the kernel cannot be asked: {error}"),
            Err(Missing::Because(reason)) => reason,
        };
        tracing::info!(
            pod.uid,
            reason,
            "handshakes to the pod cannot be checked at its interface, so connections from pods of this node go through the agent"
        );
        // One that is left from before would keep no promise.
        self.pins.unpin(link)?;
        Ok(0)
    }

    fn attach_guard(&self, index: u32, link: &str) -> Result<(), DatapathError> {
        let hook = Hook {
            place: Place::Interface(index),
            target: LinkTarget::Interface(index),
            attach_type: AttachType::TcxEgress,
        };
        // An index is one of the namespace that the calling thread is in.
        let attached = self
            .node
            .run_apart(|| links::attach(&self.pins, link, &hook, self.syn_check.as_fd()));
        attached.map_err(|source| DatapathError::Netns {
            uid: "of the node".to_owned(),
            source,
        })?
    }
}

/// Why a pod has no host's end.
enum Missing {
    Asking(io::Error),
    Because(String),
}

impl From<io::Error> for Missing {
    fn from(error: io::Error) -> Self {
        Self::Asking(error)
    }
}

/// Index in `node` of the other end of the veth that has all of the pod's addresses.
fn host_end(pod: &Netns, addresses: &[IpAddr], node: &Netns) -> Result<u32, Missing> {
    let because = |reason: String| Err(Missing::Because(reason));
    let mut inside = Route::open(pod)?;
    let mut index = None;
    for address in addresses {
        let Some(its) = inside.with_address(*address)? else {
            return because(format!("no interface of the pod has {address}"));
        };
        if *index.get_or_insert(its) != its {
            return because("its addresses are on different interfaces".to_owned());
        }
    }
    let Some(index) = index else {
        return because("it has no address".to_owned());
    };
    let Some(interface) = inside.interface(index)? else {
        return because("its interface is gone".to_owned());
    };
    let (true, Some(peer)) = (interface.kind == "veth", interface.peer) else {
        return because(format!("its interface is no veth but {:?}", interface.kind));
    };
    let mut outside = Route::open(node)?;
    let other = outside.interface(peer)?;
    // Indices repeat between namespaces: only both ends together, and the number of the pod's
    // namespace as the node counts them, tell that it is the very one.
    let is_it = match other {
        Some(other) => {
            other.kind == "veth"
                && other.peer == Some(index)
                && other.peer_netns.is_some()
                && other.peer_netns == outside.number_of(pod.as_fd())?
        }
        None => false,
    };
    match is_it {
        true => Ok(peer),
        false => {
            because("the other end of its interface is not in the node's namespace".to_owned())
        }
    }
}
