//! Who an authenticated caller is to the mesh: the agent of a node, or the proxy of a Gateway.

use std::sync::Arc;

use super::{Caller, ServiceAccount};
use crate::store::{Scope, Store};

/// Service accounts of node agents.
#[derive(Debug, Clone)]
pub struct NodeAgents(pub Vec<ServiceAccount>);

/// Knows who may ask the controller for anything.
#[derive(Clone)]
pub struct Callers {
    node_agents: NodeAgents,
    store: Arc<Store>,
}

/// A caller that may ask for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The agent of a node.
    Agent(NodeAgent),
    /// A proxy of a Gateway.
    Proxy(Proxy),
}

/// A caller that is the agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAgent {
    /// The node.
    pub node: String,
    /// When its token ends, in seconds since 1970.
    pub expires_at: u64,
}

/// A caller that is a proxy: its account belongs to a Gateway of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What it runs as.
    pub account: ServiceAccount,
    /// The node it runs on.
    pub node: String,
    /// When its token ends, in seconds since 1970.
    pub expires_at: u64,
}

/// Why a caller may ask for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPermitted {
    /// Another service account.
    #[error(
        "the caller's service account is neither that of a node agent nor that of a Gateway's proxy; \
         retry if the Gateway is new"
    )]
    Account,
    /// The token is not bound to a pod on a node.
    #[error("the token does not say on which node the caller runs")]
    NoNode,
}

impl Subject {
    /// When its token ends, in seconds since 1970.
    pub fn expires_at(&self) -> u64 {
        match self {
            Self::Agent(agent) => agent.expires_at,
            Self::Proxy(proxy) => proxy.expires_at,
        }
    }

    /// The node it runs on.
    pub fn node(&self) -> &str {
        match self {
            Self::Agent(agent) => &agent.node,
            Self::Proxy(proxy) => &proxy.node,
        }
    }

    /// For logs: the account of a proxy, which is named like its Gateway; none for an agent.
    pub fn proxy(&self) -> Option<String> {
        match self {
            Self::Agent(_) => None,
            Self::Proxy(proxy) => Some(proxy.account.to_string()),
        }
    }

    /// Whose resources it is served.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Agent(agent) => Scope::Node(agent.node.clone()),
            Self::Proxy(proxy) => Scope::Proxy(proxy.account.clone()),
        }
    }
}

impl Callers {
    /// Node agents by their accounts, proxies by those of the Gateways in the store.
    pub fn new(node_agents: NodeAgents, store: Arc<Store>) -> Self {
        Self { node_agents, store }
    }

    /// Whether anybody with that account may ask for something now.
    pub fn knows(&self, account: &ServiceAccount) -> bool {
        self.is_agent(account) || self.has_gateway(account)
    }

    /// Who the caller is. An account of node agents is never that of a proxy, whatever Gateways there are.
    ///
    /// # Errors
    /// Nobody who may ask for anything.
    pub fn subject(&self, caller: Caller) -> Result<Subject, NotPermitted> {
        let is_agent = self.is_agent(&caller.account);
        if !is_agent && !self.has_gateway(&caller.account) {
            return Err(NotPermitted::Account);
        }
        let node = caller.node.ok_or(NotPermitted::NoNode)?;
        let expires_at = caller.expires_at;
        Ok(match is_agent {
            true => Subject::Agent(NodeAgent { node, expires_at }),
            false => Subject::Proxy(Proxy {
                account: caller.account,
                node,
                expires_at,
            }),
        })
    }

    fn is_agent(&self, account: &ServiceAccount) -> bool {
        self.node_agents.0.contains(account)
    }

    fn has_gateway(&self, account: &ServiceAccount) -> bool {
        let index = self.store.index();
        let gateways = index.gateways_of_account(&account.namespace, &account.name);
        !gateways.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    fn account(namespace: &str, name: &str) -> ServiceAccount {
        ServiceAccount {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn caller(namespace: &str, name: &str, node: Option<&str>) -> Caller {
        Caller {
            account: account(namespace, name),
            node: node.map(str::to_owned),
            expires_at: 7,
        }
    }

    #[test]
    fn accounts_of_gateways_are_proxies_while_the_gateway_is_there() {
        let store = Arc::new(testing::store());
        let agents = NodeAgents(vec![account("karst-system", "karst-node-agent")]);
        let callers = Callers::new(agents, store.clone());
        let web = || caller("shop", "front", Some("n1"));
        assert_eq!(callers.subject(web()), Err(NotPermitted::Account));
        testing::apply_gateway(&store, "shop", "front");
        let Ok(Subject::Proxy(proxy)) = callers.subject(web()) else {
            panic!("it is a proxy");
        };
        assert_eq!((proxy.node.as_str(), proxy.expires_at), ("n1", 7));
        let unbound = callers.subject(caller("shop", "front", None));
        assert_eq!(unbound, Err(NotPermitted::NoNode));
        for other in [account("shop", "web"), account("other", "front")] {
            assert!(!callers.knows(&other), "{other}");
        }
        testing::delete_gateway(&store, "shop", "front");
        assert_eq!(callers.subject(web()), Err(NotPermitted::Account));
    }

    #[test]
    fn a_gateway_named_like_the_agents_account_makes_no_proxy_of_an_agent() {
        let store = Arc::new(testing::store());
        let agents = NodeAgents(vec![account("karst-system", "karst-node-agent")]);
        let callers = Callers::new(agents, store.clone());
        testing::apply_gateway(&store, "karst-system", "karst-node-agent");
        let agent = caller("karst-system", "karst-node-agent", Some("n1"));
        let subject = callers.subject(agent).unwrap();
        assert_eq!(subject.scope(), Scope::Node("n1".to_owned()));
    }
}
