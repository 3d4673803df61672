//! The resource types that are served, each as one stream sees it.

use std::sync::Arc;

use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE};
use karst_core::{Index, Rendered};

/// A resource type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceKind {
    /// `istio.workload.Address`.
    Address,
    /// `istio.security.Authorization`.
    Authorization,
    /// `karst.node.v1.NodePod`.
    NodePod,
}

impl ResourceKind {
    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        match type_url {
            ADDRESS_TYPE => Some(Self::Address),
            AUTHORIZATION_TYPE => Some(Self::Authorization),
            NODE_POD_TYPE => Some(Self::NodePod),
            _ => None,
        }
    }

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::NodePod => NODE_POD_TYPE,
        }
    }

    /// Name in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
            Self::NodePod => "node_pod",
        }
    }
}

/// The resources of one type, as one node sees them.
pub struct View<'a> {
    pub index: &'a Index,
    pub node: &'a str,
    pub kind: ResourceKind,
}

impl<'a> View<'a> {
    /// The resource of that primary name.
    pub fn get(&self, name: &str) -> Option<&'a Arc<Rendered>> {
        match self.kind {
            ResourceKind::Address => self.index.address(name),
            ResourceKind::NodePod => self.index.node_pod(self.node, name),
            // There are no policies yet; the answer to a subscription is an empty one.
            ResourceKind::Authorization => None,
        }
    }

    /// All resources that go by a name.
    pub fn resolve(&self, name: &str) -> Vec<&'a Arc<Rendered>> {
        match self.kind {
            ResourceKind::Address => {
                let mut found: Vec<&'a Arc<Rendered>> = self.index.aliased(name).collect();
                found.extend(self.index.address(name));
                found
            }
            _ => self.get(name).into_iter().collect(),
        }
    }

    /// All resources.
    pub fn all(&self) -> Box<dyn Iterator<Item = &'a Arc<Rendered>> + 'a> {
        match self.kind {
            ResourceKind::Address => Box::new(self.index.addresses()),
            ResourceKind::NodePod => Box::new(self.index.node_pods(self.node)),
            ResourceKind::Authorization => Box::new(std::iter::empty()),
        }
    }
}
