// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The one matcher of layer-4 authorization: a connection in, a verdict out.
//!
//! Policies are compiled in user space ([`PolicySet::compile`], feature `alloc`) into flat tables of
//! plain data, and [`PolicyView::decide`] reads those and nothing else, so that the kernel can hold
//! them one day. It knows neither which policies apply to a workload nor where identities come from:
//! whoever calls it gives it the policies that apply, and only identities that mTLS has proved.
//!
//! What policies mean is Istio's, as its node proxy has it (ztunnel 1.31, `src/rbac.rs` and
//! `assert_rbac` in `src/state.rs`):
//!
//! - A DENY policy that matches refuses. Else, without any ALLOW policy, the connection is allowed;
//!   else it is allowed when one of them matches.
//! - A policy matches when any rule does, a rule when all clauses do, a clause when any match does, a
//!   match when all attributes do, an attribute when any of its values does and none of its `not_`
//!   values. Empty: a policy without rules never matches, a rule without clauses and a clause without
//!   matches always do, and a match without conditions never does.
//! - A client without identity (plaintext) meets no condition on one, and therefore every negated one:
//!   DENY with `not_principals: presence` refuses plaintext, which is how STRICT is expressed.
//! - A block of addresses matches addresses of its own family only.
//!
//! In one thing it is stricter to the letter than ztunnel, which takes a plaintext client's namespace
//! for an empty one, so that an exact, prefix or suffix match with an empty text finds it. Here it has
//! none. No control plane makes such a match of what a user can write.
//!
//! # How
//!
//! Rules are numbered, those of DENY policies first, and the lowest number that matches decides. Each
//! rule is found by the clause that the fewest others share a value with: a hash of the principal, of
//! its first or last so many bytes, of a namespace, a service account, a port, an address or network.
//! One look-up for each kind that is in use gives ascending lists of candidates, which are tried until
//! one matches or comes after the best one so far. Rules that nothing can be looked up by (negations
//! alone, presence) are candidates always. The hash narrows down, the comparison decides.
//!
//! Start with `view.rs`; `rows.rs` has the tables, `lower.rs` and `index.rs` make them.

#[cfg(feature = "alloc")]
pub mod explain;
mod hash;
#[cfg(feature = "alloc")]
mod index;
#[cfg(feature = "alloc")]
mod lower;
#[cfg(feature = "alloc")]
pub mod model;
mod rows;
#[cfg(feature = "alloc")]
mod set;
#[cfg(test)]
mod tests;
mod view;

#[cfg(feature = "alloc")]
pub use set::{
    CompileError, MAX_POLICIES, MAX_POLICY_ELEMENTS, MAX_SET_ELEMENTS, MAX_SET_TEXT_BYTES,
    MAX_TEXT_BYTES, PolicySet, Problem,
};
pub use view::PolicyView;

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
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Index of the policy in the list that was compiled.
    pub policy: u32,
    /// Index of the rule in the policy.
    pub rule: u32,
}
