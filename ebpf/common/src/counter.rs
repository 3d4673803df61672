// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What the programs count, and the labels people see.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $index:literal => $label:literal,)*) => {
        /// Index into the `COUNTERS` map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CounterId {
            $($(#[$doc])* $variant = $index,)*
        }

        impl CounterId {
            /// Every counter, in the order of the map.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable label, the same in metrics, logs and the CLI.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }
    };
}

counters! {
    /// A connection of an enrolled pod sent to the agent.
    OutboundCaptured = 0 => "outbound_captured",
    /// Refused: the socket is bound to a device, where loopback cannot be reached.
    OutboundRefusedBoundDevice = 1 => "outbound_refused_bound_device",
    /// Refused: the original destination could not be stored.
    OutboundRefusedNoState = 2 => "outbound_refused_no_state",
    /// An original address could not be published to the accepting end.
    PublishFailed = 3 => "publish_failed",
    /// The agent's end got its original destination.
    OriginalClaimed = 4 => "original_claimed",
    /// An application's end got its real client's address.
    SourceClaimed = 5 => "source_claimed",
    /// A published address could not be stored at the accepting end.
    ClaimFailed = 6 => "claim_failed",
    /// Socket lookups steered to the agent: more than one a connection may happen.
    InboundSteered = 7 => "inbound_steered",
    /// Socket lookups refused because the agent has no listener for that address.
    InboundDroppedNoListener = 8 => "inbound_dropped_no_listener",
    /// A probe of the node authorised at its own connect.
    ProbeAuthorised = 9 => "probe_authorised",
    /// Not authorised: dialled another address than allowed, or the pod was let go meanwhile.
    ProbeNotAuthorised = 10 => "probe_not_authorised",
    /// Not authorised: the map refused the entry.
    ProbeAuthoriseFailed = 11 => "probe_authorise_failed",
    /// Socket lookups let through for an authorised probe.
    ProbePassed = 12 => "probe_passed",
    /// An authorisation was found too old, and ignored.
    ProbeExpired = 13 => "probe_expired",
    /// Accepted on an authorised tuple with the sequence number authorised.
    ProbeVerified = 14 => "probe_verified",
    /// Accepted on an authorised tuple with another sequence number: somebody forged it.
    ProbeForged = 15 => "probe_forged",
    /// A connection to another pod of the node let past the agent at its connect.
    BypassChosen = 16 => "bypass_chosen",
    /// Its handshake authorised.
    BypassAuthorised = 17 => "bypass_authorised",
    /// Not authorised: what is dialled is not, or no longer, allowed. The other pod's agent decides.
    BypassRevoked = 18 => "bypass_revoked",
    /// Not authorised: a map refused an entry. The other pod's agent decides.
    BypassAuthoriseFailed = 19 => "bypass_authorise_failed",
    /// Allowed, but sent to the agent because `FLOWS` is all but full.
    BypassFlowsFull = 20 => "bypass_flows_full",
    /// Allowed, but sent to the agent because no agent has confirmed the verdicts of late.
    BypassExpired = 21 => "bypass_expired",
    /// Socket lookups let through for such a connection.
    BypassPassed = 22 => "bypass_passed",
    /// Accepted on an authorised tuple with the sequence number authorised.
    BypassVerified = 23 => "bypass_verified",
    /// Accepted on such a tuple with another sequence number: somebody forged it.
    BypassForged = 24 => "bypass_forged",
    /// SYNs dropped at the host's end of a pod's interface: on an authorised tuple, with another sequence number.
    BypassSynDropped = 25 => "bypass_syn_dropped",
    /// Records of opened or closed connections that found no room in `FLOW_EVENTS`.
    BypassEventLost = 26 => "bypass_event_lost",
}

/// Entries of the `COUNTERS` map; room for more without a new layout.
pub const COUNTER_ENTRIES: u32 = 64;

const _: () = assert!(CounterId::ALL.len() <= COUNTER_ENTRIES as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn labels_are_distinct_and_indices_dense() {
        let labels: BTreeSet<_> = CounterId::ALL.iter().map(|id| id.label()).collect();
        assert_eq!(labels.len(), CounterId::ALL.len());
        for (index, id) in CounterId::ALL.iter().enumerate() {
            assert_eq!(*id as usize, index);
            assert!(
                id.label()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            );
        }
    }
}
