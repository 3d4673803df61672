// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The one matcher of layer-4 authorization: connections in, verdicts out.
//!
//! What policies mean is Istio's, as its node proxy (ztunnel, `src/rbac.rs`) has it.

#[cfg(feature = "alloc")]
pub mod model;
#[cfg(feature = "alloc")]
mod set;

#[cfg(feature = "alloc")]
pub use set::{CompileError, PolicySet, PolicyView};

use crate::Ip;

/// A connection as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// The client's identity, proved by mTLS. `None` for plaintext, which has no identity and
    /// matches no principal, namespace or service account.
    pub source: Option<Identity<'a>>,
    /// The client's address.
    pub source_ip: Ip,
    /// The address that the client connected to.
    pub destination_ip: Ip,
    /// The port that the client connected to.
    pub destination_port: u16,
}

/// An identity that was proved.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// `td/ns/NAMESPACE/sa/ACCOUNT`, without scheme.
    pub principal: &'a str,
    /// The namespace in it.
    pub namespace: &'a str,
    /// The service account in it.
    pub service_account: &'a str,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Allow {
        /// What allowed it; `None` when there is no ALLOW policy at all.
        by: Option<Hit>,
    },
    /// It is refused.
    Deny {
        /// What refused it; `None` when ALLOW policies exist and none matched.
        by: Option<Hit>,
    },
}

/// What decided: the first policy of the list that matched, and the first rule in it that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Index of the policy in the list that was compiled.
    pub policy: u32,
    /// Index of the rule in the policy.
    pub rule: u32,
}
