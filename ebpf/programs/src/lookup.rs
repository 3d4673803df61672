// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Which socket takes an inbound TCP connection of an enrolled pod.

use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;
use karst_bpf_common::decide::{is_fresh, should_steer};
use karst_bpf_common::layout::{AUTHORISED_DIRECT, Tuple};
use karst_bpf_common::{CounterId, Endpoint};

use crate::context::{field, lookup_ends};
use crate::maps::{AUTH, LISTENERS, count};

/// `SK_DROP` of linux/bpf.h: as if nobody listened, so the client is refused at once.
const DROP: u32 = 0;
/// `SK_PASS`: the selected socket, or the ordinary lookup if none was selected.
const PASS: u32 = 1;
const IPPROTO_TCP: u32 = 6;

#[inline(always)]
pub fn verdict(ctx: &SkLookupContext) -> u32 {
    if field::<{ offset_of!(bpf_sk_lookup, protocol) }>(ctx.as_ptr()) != IPPROTO_TCP {
        return PASS;
    }
    let (local, remote) = lookup_ends(ctx);
    if !should_steer(&local, &remote.ip) || is_authorised(&local, &remote) {
        return PASS;
    }
    // Replacing makes our choice stand whatever other programs in this namespace chose before.
    let steered = LISTENERS.redirect_sk_lookup(ctx, local.ip, u64::from(BPF_SK_LOOKUP_F_REPLACE));
    if steered.is_ok() {
        count(CounterId::InboundSteered);
        return PASS;
    }
    // The agent is gone or has not listened yet. Going on would hand plaintext from anybody to
    // the application.
    count(CounterId::InboundDroppedNoListener);
    debug!(
        ctx,
        "inbound_dropped_no_listener: {:i} port {} to {:i} port {}",
        remote.ip.octets(),
        remote.port,
        local.ip.octets(),
        local.port
    );
    DROP
}

/// Whether this handshake was authorised at its own connect.
#[inline(always)]
fn is_authorised(local: &Endpoint, remote: &Endpoint) -> bool {
    let tuple = Tuple {
        source: *remote,
        destination: *local,
    };
    // SAFETY: one word is read at once.
    let Some(authorisation) = (unsafe { AUTH.get(&tuple) }) else {
        return false;
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    if is_fresh(authorisation.at_ns, now) {
        count(match authorisation.kind {
            AUTHORISED_DIRECT => CounterId::BypassPassed,
            _ => CounterId::ProbePassed,
        });
        return true;
    }
    count(CounterId::ProbeExpired);
    false
}
