// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Policies as they are written down: what [`PolicySet::compile`](super::PolicySet::compile) takes.
//!
//! The shape is that of Istio's `istio.security.Authorization`, the wire type, with values that
//! cannot be malformed. A policy matches when any of its rules does, a rule when all of its
//! clauses do, a clause when any of its matches does, a match when all of its attributes do.

use alloc::string::String;
use alloc::vec::Vec;

use crate::Ip;

/// One policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// `namespace/name`; only for messages.
    pub name: String,
    /// What a match means.
    pub action: Action,
    /// Alternatives. Without any the policy never matches; an ALLOW policy without rules thereby
    /// allows nothing.
    pub rules: Vec<Rule>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection is allowed, unless a DENY policy matches too.
    #[default]
    Allow,
    /// The connection is refused.
    Deny,
}

/// Matches when all of its clauses do. Without any it always matches: Istio's `rules: [{}]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// All must match.
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does. Without any it always matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Clause {
    /// Any must match.
    pub matches: Vec<Match>,
}

/// Conditions on one connection. Lists that are not empty must all hold: a plain list when any of
/// its values does, a `not_` list when none of its values does. A match that is empty altogether
/// never matches, in which it is unlike everything around it; that is how ztunnel has it, so that
/// a match whose conditions were all lost does not become one that matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// Namespace of the client's identity.
    pub namespaces: Vec<StringMatch>,
    /// Namespace of the client's identity, negated; holds for a client without identity.
    pub not_namespaces: Vec<StringMatch>,
    /// The client's identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// The client's identity without `spiffe://`, negated; holds for a client without identity.
    pub not_principals: Vec<StringMatch>,
    /// The client's address.
    pub source_ips: Vec<IpBlock>,
    /// The client's address, negated.
    pub not_source_ips: Vec<IpBlock>,
    /// The address that the client connected to.
    pub destination_ips: Vec<IpBlock>,
    /// The address that the client connected to, negated.
    pub not_destination_ips: Vec<IpBlock>,
    /// The port that the client connected to.
    pub destination_ports: Vec<u16>,
    /// The port that the client connected to, negated.
    pub not_destination_ports: Vec<u16>,
    /// Service account of the client's identity.
    pub service_accounts: Vec<ServiceAccount>,
    /// Service account of the client's identity, negated; holds for a client without identity.
    pub not_service_accounts: Vec<ServiceAccount>,
}

/// A condition on a string. A string that is absent meets none, not even an empty prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal to, byte by byte.
    Exact(String),
    /// Starts with; Istio's `abc*`.
    Prefix(String),
    /// Ends with; Istio's `*abc`.
    Suffix(String),
    /// Is there and not empty; Istio's `*`.
    Presence,
}

/// A range of addresses of one family: an IPv4 block matches no IPv6 address and `::/0` no IPv4
/// address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpBlock {
    /// Any address of the block; bits after `length` do not matter.
    pub ip: Ip,
    /// How many leading bits of the 128-bit form count, 0 to 128. IPv4 is mapped into IPv6, so
    /// its `/n` is `96 + n`.
    pub length: u8,
}

/// A service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub account: String,
}
