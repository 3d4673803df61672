// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The decisions of the programs that need nothing from the kernel.

use crate::address::{Endpoint, Ip};
use crate::layout::{
    Config, Pod, SOCKET_CAPTURED, SOCKET_ELSEWHERE, SOCKET_ORIGINAL, SOCKET_PEER, SOCKET_SOURCE,
    ServiceEndpoints, SocketState,
};
use crate::{AUTHORISED_NS, HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// Whether a socket is of the kind this mesh carries. UDP, SCTP and raw sockets are not.
#[inline(always)]
pub const fn is_tcp(kind: u32, protocol: u32) -> bool {
    kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
}

/// Whether connecting there can leave the namespace at all. Decided before any map is read.
#[inline(always)]
pub const fn may_leave(destination: &Ip) -> bool {
    !destination.is_loopback() && !destination.is_unspecified()
}

/// Whether an enrolled pod's connection goes to the agent: everything that may leave, except to
/// the pod itself.
#[inline(always)]
pub const fn should_capture(pod: &Pod, destination: &Ip) -> bool {
    may_leave(destination) && !is_own(pod, destination)
}

/// Whether an address is one of the pod's own.
#[inline(always)]
pub const fn is_own(pod: &Pod, ip: &Ip) -> bool {
    ip.same(&pod.v4) || ip.same(&pod.v6)
}

/// Where a captured connection is sent instead.
#[inline(always)]
pub const fn capture_target(destination: &Ip) -> Endpoint {
    Endpoint::new(destination.loopback_of_same_family(), OUTBOUND_PORT)
}

/// How deep below the root of the hierarchy the cgroup above all pods is looked for. On a node
/// it is at depth 1; a node that is itself a container nests it a few deeper.
pub const KUBEPODS_DEPTH: i32 = 16;

/// Whether a task is the agent, or the agent before it, by its cgroup: such a task's connections
/// are never captured. During an upgrade the old agent still dials for connections it accepted.
#[inline(always)]
pub const fn is_agent(config: &Config, cgroup: u64) -> bool {
    cgroup != 0 && (cgroup == config.agent_cgroup || cgroup == config.former_agent_cgroup)
}

/// Whether a task of the node's own namespace may be authorised to reach a pod past the agent,
/// as far as its own cgroup tells: not the agent, and nobody as long as the cgroup of the pods
/// is unknown.
#[inline(always)]
pub const fn may_probe(config: &Config, cgroup: u64) -> bool {
    config.kubepods_cgroup != 0 && cgroup != 0 && !is_agent(config, cgroup)
}

/// Whether an ancestor of a task's cgroup makes it a pod's: a pod on the host's network is in
/// the node's namespace but is not the node.
#[inline(always)]
pub const fn is_pods_ancestor(config: &Config, ancestor: u64) -> bool {
    ancestor == config.kubepods_cgroup
}

/// What an accepted socket becomes when the connecting end published `state`: `None` when the
/// entry is not meant for a socket on this port.
#[inline(always)]
pub const fn claimed(state: &SocketState, local_port: u16) -> Option<SocketState> {
    let flags = if state.flags & SOCKET_CAPTURED != 0 && local_port == OUTBOUND_PORT {
        SOCKET_ORIGINAL | state.flags & SOCKET_ELSEWHERE
    } else if state.flags & SOCKET_SOURCE != 0 && local_port != OUTBOUND_PORT {
        SOCKET_PEER
    } else {
        return None;
    };
    Some(SocketState {
        endpoint: state.endpoint,
        flags,
    })
}

/// Whether an inbound TCP lookup in an enrolled pod's namespace concerns the agent: not the
/// HBONE port, which is the agent's own listener anyway, and nothing that comes from the pod
/// itself, over loopback or to its own address. A remote host can use none of these: the kernel
/// drops such packets as martians (unless the pod itself sets `route_localnet`).
#[inline(always)]
pub const fn should_steer(local: &Endpoint, remote: &Ip) -> bool {
    local.port != HBONE_PORT
        && !remote.same(&local.ip)
        && !remote.is_loopback()
        && !local.ip.is_loopback()
}

/// What a service's address stands for, for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The endpoint in this slot of `ENDPOINTS`.
    Here(u32),
    /// One that is not on this node.
    Elsewhere,
    /// It has none.
    Nothing,
}

/// Chooses among all endpoints alike, by a random number.
#[inline(always)]
pub const fn pick(service: &ServiceEndpoints, random: u32) -> Pick {
    if service.total == 0 {
        return Pick::Nothing;
    }
    let chosen = random % service.total;
    if chosen < service.local {
        Pick::Here(chosen)
    } else {
        Pick::Elsewhere
    }
}

/// Whether a port of a pod may be reached past the agent at all: not the agent's own ones, and not 0,
/// which nobody listens on and which means another thing in a verdict's key.
#[inline(always)]
pub const fn may_bypass(port: u16) -> bool {
    port != 0 && port != OUTBOUND_PORT && port != PLAINTEXT_PORT && port != HBONE_PORT
}

/// Payload out of the kernel's count of received bytes, in which the other end's FIN is one.
#[inline(always)]
pub const fn payload_received(counted: u64, fin_seen: bool) -> u64 {
    counted.saturating_sub(fin_seen as u64)
}

/// Whether an authorisation given at `at_ns` still holds at `now_ns`.
#[inline(always)]
pub const fn is_fresh(at_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(at_ns) <= AUTHORISED_NS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UID_BYTES;
    use crate::layout::{SOCKET_DIRECT, SOCKET_PROBE};
    use core::net::IpAddr;
    use proptest::prelude::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn pod() -> Pod {
        Pod {
            v4: ip("10.0.0.5"),
            v6: ip("fd00::5"),
            uid_length: 0,
            uid: [0; UID_BYTES],
            guard: 0,
        }
    }

    #[test]
    fn only_stream_tcp_is_ours() {
        assert!(is_tcp(1, 6));
        assert!(is_tcp(1, 262), "MPTCP");
        assert!(!is_tcp(2, 17), "UDP");
        assert!(!is_tcp(1, 132), "SCTP");
        assert!(!is_tcp(2, 6));
        assert!(!is_tcp(1, 0), "Unix");
    }

    #[test]
    fn captured_is_what_leaves_the_pod() {
        for away in [
            "203.0.113.9",
            "10.0.0.6",
            "fd00::6",
            "2001:db8::1",
            "::ffff:10.0.0.6",
        ] {
            assert!(should_capture(&pod(), &ip(away)), "{away}");
        }
        let home = [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "10.0.0.5",
            "fd00::5",
            "::ffff:10.0.0.5",
            "::ffff:127.1.2.3",
        ];
        for here in home {
            assert!(!should_capture(&pod(), &ip(here)), "{here}");
        }
    }

    #[test]
    fn a_pod_without_v6_captures_all_v6() {
        let pod = Pod {
            v6: Ip::UNSPECIFIED,
            ..pod()
        };
        assert!(should_capture(&pod, &ip("fd00::5")));
        assert!(!should_capture(&pod, &ip("::")));
    }

    #[test]
    fn the_target_keeps_the_family() {
        assert_eq!(
            capture_target(&ip("203.0.113.9")).to_socket_addr(),
            "127.0.0.1:15001".parse().unwrap()
        );
        assert_eq!(
            capture_target(&ip("2001:db8::1")).to_socket_addr(),
            "[::1]:15001".parse().unwrap()
        );
        assert!(capture_target(&ip("::ffff:203.0.113.9")).ip.is_v4());
    }

    #[test]
    fn steering_leaves_hbone_and_the_pod_itself_alone() {
        let local = |port| Endpoint::new(ip("10.0.0.5"), port);
        assert!(should_steer(&local(80), &ip("10.0.0.6")));
        assert!(should_steer(&local(15001), &ip("10.0.0.6")));
        assert!(!should_steer(&local(15008), &ip("10.0.0.6")));
        assert!(!should_steer(&local(80), &ip("10.0.0.5")));
        assert!(!should_steer(&local(80), &ip("127.0.0.1")));
        assert!(!should_steer(&Endpoint::new(ip("fd00::5"), 80), &ip("::1")));
        // A socket bound to the pod's address that was captured, or dials a neighbour container.
        let loopback = Endpoint::new(ip("127.0.0.1"), OUTBOUND_PORT);
        assert!(!should_steer(&loopback, &ip("10.0.0.5")));
    }

    #[test]
    fn a_claim_needs_the_matching_port() {
        let state = |flags| SocketState {
            endpoint: Endpoint::new(ip("203.0.113.9"), 80),
            flags,
        };
        let flags = |state: &SocketState, port| claimed(state, port).map(|state| state.flags);
        let captured = state(SOCKET_CAPTURED | SOCKET_PEER);
        assert_eq!(flags(&captured, 15001), Some(SOCKET_ORIGINAL));
        assert_eq!(flags(&captured, 80), None);
        let elsewhere = state(SOCKET_CAPTURED | SOCKET_PEER | SOCKET_ELSEWHERE);
        let original = Some(SOCKET_ORIGINAL | SOCKET_ELSEWHERE);
        assert_eq!(flags(&elsewhere, 15001), original);
        assert_eq!(flags(&state(SOCKET_DIRECT | SOCKET_PEER), 15001), None);
        assert_eq!(flags(&state(SOCKET_SOURCE), 8080), Some(SOCKET_PEER));
        assert_eq!(flags(&state(SOCKET_SOURCE), 15001), None);
        assert_eq!(flags(&state(SOCKET_PROBE), 8080), None);
        assert_eq!(flags(&state(0), 15001), None);
    }

    #[test]
    fn probes_come_from_the_node_and_from_nobody_else() {
        let config = Config {
            host_netns: 1,
            agent_cgroup: 7,
            former_agent_cgroup: 6,
            kubepods_cgroup: 9,
        };
        assert!(may_probe(&config, 5));
        assert!(!may_probe(&config, 7), "the agent");
        assert!(!may_probe(&config, 6), "the agent before it");
        assert!(!may_probe(&config, 0), "no cgroup2");
        assert!(is_pods_ancestor(&config, 9), "a host-network pod");
        assert!(!is_pods_ancestor(&config, 1));
        let unknown = Config {
            kubepods_cgroup: 0,
            ..config
        };
        assert!(!may_probe(&unknown, 5), "kubepods unknown");
    }

    #[test]
    fn the_agent_and_its_predecessor_are_told_by_their_cgroups() {
        let config = Config {
            agent_cgroup: 7,
            former_agent_cgroup: 0,
            ..Config::default()
        };
        assert!(is_agent(&config, 7));
        assert!(!is_agent(&config, 6));
        assert!(!is_agent(&config, 0), "no predecessor is not everybody");
        let config = Config {
            former_agent_cgroup: 6,
            ..config
        };
        assert!(is_agent(&config, 7) && is_agent(&config, 6));
    }

    #[test]
    fn the_agents_ports_are_never_reached_past_it() {
        for port in [0, 15001, 15006, 15008] {
            assert!(!may_bypass(port), "{port}");
        }
        for port in [1, 80, 15000, 15007, 15009, 65535] {
            assert!(may_bypass(port), "{port}");
        }
    }

    #[test]
    fn a_fin_is_no_payload() {
        assert_eq!(payload_received(1001, true), 1000);
        assert_eq!(payload_received(1000, false), 1000);
        assert_eq!(payload_received(0, true), 0);
    }

    #[test]
    fn a_service_without_endpoints_picks_none() {
        let none = ServiceEndpoints {
            set: 1,
            local: 0,
            total: 0,
        };
        assert_eq!(pick(&none, 7), Pick::Nothing);
    }

    proptest! {
        #[test]
        fn each_endpoint_has_its_share(local in 0u32..50, elsewhere in 0u32..50) {
            let service = ServiceEndpoints { set: 1, local, total: local + elsewhere };
            let picks: std::vec::Vec<_> = (0..service.total).map(|random| pick(&service, random)).collect();
            for slot in 0..local {
                prop_assert_eq!(picks.iter().filter(|pick| **pick == Pick::Here(slot)).count(), 1);
            }
            let others = picks.iter().filter(|pick| **pick == Pick::Elsewhere).count();
            prop_assert_eq!(others, elsewhere as usize);
        }

        #[test]
        fn a_pod_never_captures_itself_or_loopback(bits: u128, low: u32) {
            let mine = Pod { v4: Ip::from_v4_word(low), v6: Ip::from(core::net::Ipv6Addr::from(bits)), ..pod() };
            prop_assert!(!should_capture(&mine, &mine.v4));
            prop_assert!(!should_capture(&mine, &mine.v6));
            prop_assert!(!should_capture(&mine, &Ip::from_v4_word((low & 0x00ff_ffff_u32.to_be()) | 0x7f00_0000_u32.to_be())));
        }

        #[test]
        fn captured_connections_always_go_to_loopback(bits: u128) {
            let destination = Ip::from(core::net::Ipv6Addr::from(bits));
            let target = capture_target(&destination);
            prop_assert!(target.ip.is_loopback());
            prop_assert_eq!(target.ip.is_v4(), destination.is_v4());
        }

        #[test]
        fn freshness_ends(at: u64, after in 0u64..AUTHORISED_NS * 2) {
            prop_assert_eq!(is_fresh(at, at.wrapping_add(after)), after <= AUTHORISED_NS);
        }
    }
}
