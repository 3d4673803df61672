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
