//! Entries of the maps, decoded into named components.

use std::io;
use std::os::fd::BorrowedFd;

use aya::Pod as Bytes;
use karst_bpf_common::layout::{
    ANY_PORT, AUTHORISED_DIRECT, Authorisation, Config, EndpointKey, FLOW_CLOSED, FLOW_OPENED,
    Flow, FlowEvent, Pod, PublishedKey, SOCKET_CAPTURED, SOCKET_DIRECT, SOCKET_ELSEWHERE,
    SOCKET_ORIGINAL, SOCKET_PEER, SOCKET_PROBE, SOCKET_SOURCE, ServiceEndpoints, SocketState,
    Tuple, VERDICT_ALLOW, VERDICT_ASK, VerdictKey,
};
use karst_bpf_common::{CounterId, Endpoint, Ip};

use super::describe::{Fields, MapEntry};
use super::records;
use crate::flow_events::FLOW_EVENTS;
use crate::map::{self, RawMap};
use crate::pods::uid_of;
use crate::sys::ring::Record;
use crate::sys::{self, iterate};
use crate::{DatapathError, btf};

/// Every entry of `map`, in the order of its keys' text.
pub(super) fn entries(map: &RawMap) -> Result<Vec<MapEntry>, DatapathError> {
    let mut entries = match map.spec.name {
        name if name == map::PODS.name => typed(map, cookie, pod),
        name if name == map::POD_ADDRESSES.name => typed(map, address, cookie),
        name if name == map::PUBLISHED.name => typed(map, published_key, socket_state),
        name if name == map::AUTH.name => typed(map, tuple, authorisation),
        name if name == map::CONFIG.name => typed(map, index, config),
        name if name == map::COUNTERS.name => counters(map),
        name if name == map::LISTENERS.name => listeners(map),
        name if name == map::SKST.name => storage(map),
        name if name == map::VERDICTS.name => typed(map, verdict_key, verdict),
        name if name == map::SERVICES.name => typed(map, endpoint, service),
        name if name == map::ENDPOINTS.name => typed(map, endpoint_key, endpoint),
        name if name == map::FLOWS.name => typed(map, socket_cookie, flow),
        name if name == map::FLOW_COUNT.name => typed(map, index, number),
        name if name == map::VERDICTS_UNTIL.name => typed(map, index, moment),
        _ => Ok(Vec::new()),
    }?;
    entries.sort_by(|a, b| a.key.0.cmp(&b.key.0));
    Ok(entries)
}

/// The keys of `map`.
pub(super) fn keys<K: Bytes>(map: &RawMap) -> Result<Vec<K>, DatapathError> {
    let keys = map.keys()?;
    Ok(keys.iter().filter_map(|key| sys::from_bytes(key)).collect())
}

fn typed<K: Bytes, V: Bytes>(
    map: &RawMap,
    key_fields: fn(&K) -> Fields,
    value_fields: fn(&V) -> Fields,
) -> Result<Vec<MapEntry>, DatapathError> {
    let mut entries = Vec::new();
    for key in map.keys()? {
        let value = map.lookup(&key)?.and_then(|value| sys::from_bytes(&value));
        // An entry may have gone since its key was read.
        if let (Some(key), Some(value)) = (sys::from_bytes(&key), value) {
            entries.push(MapEntry {
                key: key_fields(&key),
                value: value_fields(&value),
            });
        }
    }
    Ok(entries)
}

/// Storage of every socket there is, by the sockets' cookies, which `ss -e` shows as `sk:`.
fn storage(map: &RawMap) -> Result<Vec<MapEntry>, DatapathError> {
    let iterator = btf::function_id("bpf_iter_bpf_sk_storage_map")?;
    let value = map.info.value_size;
    let bytes = iterate::socket_storage(map.as_fd(), value, iterator);
    let bytes = bytes.map_err(map.spec.failed("walk the sockets"))?;
    let each = bytes.chunks_exact(iterate::COOKIE + value as usize);
    let entry = |bytes: &[u8]| {
        let (cookie, state) = bytes.split_at_checked(iterate::COOKIE)?;
        let cookie: u64 = sys::from_bytes(cookie)?;
        Some(MapEntry {
            key: fields([("socket_cookie", cookie.to_string())]),
            value: socket_state(&sys::from_bytes(state)?),
        })
    };
    Ok(each.filter_map(entry).collect())
}

/// A map that a program brings for itself: its log records, or plain memory.
pub(super) fn unpinned(map: BorrowedFd<'_>, info: &sys::MapInfo) -> io::Result<Vec<MapEntry>> {
    match info.kind {
        map::RINGBUF => {
            let pending = sys::ring::pending(map, info.max_entries)?;
            let decode = match info.name.starts_with(FLOW_EVENTS.as_bytes()) {
                true => flow_record,
                false => records::entry,
            };
            Ok(pending.records.iter().map(decode).collect())
        }
        map::ARRAY if info.key_size == 4 => (0..info.max_entries)
            .map(|place| {
                let mut value = vec![0; info.value_size as usize];
                sys::map_lookup(map, sys::bytes_of(&place), &mut value)?;
                let hex: Vec<_> = value.iter().map(|byte| format!("{byte:02x}")).collect();
                Ok(MapEntry {
                    key: index(&place),
                    value: fields([("bytes", hex.join(" "))]),
                })
            })
            .collect(),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a kind of map that is not known here",
        )),
    }
}

fn counters(map: &RawMap) -> Result<Vec<MapEntry>, DatapathError> {
    let mut entries = Vec::new();
    for id in CounterId::ALL {
        let bytes = map
            .lookup(sys::bytes_of(&(*id as u32)))?
            .unwrap_or_default();
        let values = bytes.chunks_exact(8).filter_map(sys::from_bytes::<u64>);
        let total = values.fold(0, u64::wrapping_add);
        entries.push(MapEntry {
            key: fields([("reason", id.label().to_owned())]),
            value: fields([("value", total.to_string())]),
        });
    }
    Ok(entries)
}

/// The kernel gives no view of the socket itself.
fn listeners(map: &RawMap) -> Result<Vec<MapEntry>, DatapathError> {
    let keys = keys::<Ip>(map)?;
    Ok(keys
        .iter()
        .map(|key| MapEntry {
            key: address(key),
            value: Fields::default(),
        })
        .collect())
}

pub(super) fn fields<const N: usize>(pairs: [(&'static str, String); N]) -> Fields {
    Fields(pairs.into())
}

fn cookie(cookie: &u64) -> Fields {
    fields([("netns_cookie", cookie.to_string())])
}

fn index(index: &u32) -> Fields {
    fields([("index", index.to_string())])
}

fn address(ip: &Ip) -> Fields {
    fields([("address", ip.to_ip_addr().to_string())])
}

fn pod(pod: &Pod) -> Fields {
    let shown = |ip: Ip| match ip.is_unspecified() {
        true => String::new(),
        false => ip.to_ip_addr().to_string(),
    };
    fields([
        ("uid", uid_of(pod)),
        ("v4", shown(pod.v4)),
        ("v6", shown(pod.v6)),
        ("guard", pod.guard.to_string()),
    ])
}

fn published_key(key: &PublishedKey) -> Fields {
    fields([
        ("netns_cookie", key.netns.to_string()),
        ("client_sequence", key.client.to_string()),
        ("server_sequence", key.server.to_string()),
    ])
}

fn socket_state(state: &SocketState) -> Fields {
    let names = [
        (SOCKET_PEER, "peer"),
        (SOCKET_CAPTURED, "captured"),
        (SOCKET_ORIGINAL, "original"),
        (SOCKET_SOURCE, "source"),
        (SOCKET_PROBE, "probe"),
        (SOCKET_DIRECT, "direct"),
        (SOCKET_ELSEWHERE, "elsewhere"),
    ];
    let set = names.iter().filter(|(bit, _)| state.flags & bit != 0);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    fields([
        ("endpoint", state.endpoint.to_socket_addr().to_string()),
        ("flags", set.join("|")),
    ])
}

fn tuple(tuple: &Tuple) -> Fields {
    fields([
        ("source", tuple.source.to_socket_addr().to_string()),
        (
            "destination",
            tuple.destination.to_socket_addr().to_string(),
        ),
    ])
}

fn authorisation(authorisation: &Authorisation) -> Fields {
    fields([
        ("socket_cookie", authorisation.socket.to_string()),
        ("at_ns", authorisation.at_ns.to_string()),
        (
            "kind",
            match authorisation.kind {
                AUTHORISED_DIRECT => "direct".to_owned(),
                _ => "probe".to_owned(),
            },
        ),
        // The sequence number is what a forger would need, so it is not shown.
    ])
}

fn config(config: &Config) -> Fields {
    fields([
        ("host_netns_cookie", config.host_netns.to_string()),
        ("agent_cgroup", config.agent_cgroup.to_string()),
        (
            "former_agent_cgroup",
            config.former_agent_cgroup.to_string(),
        ),
        ("kubepods_cgroup", config.kubepods_cgroup.to_string()),
    ])
}

fn verdict_key(key: &VerdictKey) -> Fields {
    fields([
        ("source_netns_cookie", key.source.to_string()),
        ("destination_netns_cookie", key.destination.to_string()),
        (
            "port",
            match key.port {
                ANY_PORT => "any".to_owned(),
                port => port.to_string(),
            },
        ),
    ])
}

fn verdict(verdict: &u32) -> Fields {
    let name = match *verdict {
        VERDICT_ASK => "ask".to_owned(),
        VERDICT_ALLOW => "allow".to_owned(),
        other => other.to_string(),
    };
    fields([("verdict", name)])
}

fn endpoint(endpoint: &Endpoint) -> Fields {
    fields([("endpoint", endpoint.to_socket_addr().to_string())])
}

fn service(service: &ServiceEndpoints) -> Fields {
    fields([
        ("set", service.set.to_string()),
        ("local", service.local.to_string()),
        ("total", service.total.to_string()),
    ])
}

fn endpoint_key(key: &EndpointKey) -> Fields {
    fields([("set", key.set.to_string()), ("slot", key.slot.to_string())])
}

fn socket_cookie(cookie: &u64) -> Fields {
    fields([("socket_cookie", cookie.to_string())])
}

fn flow(flow: &Flow) -> Fields {
    let ends = &flow.tuple;
    fields([
        ("source", ends.source.to_socket_addr().to_string()),
        ("destination", ends.destination.to_socket_addr().to_string()),
        ("original", flow.original.to_socket_addr().to_string()),
        ("source_netns_cookie", flow.source.to_string()),
        ("destination_netns_cookie", flow.destination.to_string()),
        ("started_ns", flow.started_ns.to_string()),
    ])
}

fn number(number: &u64) -> Fields {
    fields([("value", number.to_string())])
}

fn moment(moment: &u64) -> Fields {
    fields([("until_ns", moment.to_string())])
}

/// A record of `FLOW_EVENTS` that the agent has not taken yet.
fn flow_record(record: &Record) -> MapEntry {
    let event: Option<FlowEvent> = record.bytes.as_deref().and_then(sys::from_bytes);
    let value = match event {
        None => fields([("state", "not finished, or given up".to_owned())]),
        Some(event) => {
            let kind = match event.kind {
                FLOW_OPENED => "opened".to_owned(),
                FLOW_CLOSED => "closed".to_owned(),
                other => other.to_string(),
            };
            let mut shown = vec![
                ("kind", kind),
                ("old_state", event.old_state.to_string()),
                ("socket_cookie", event.socket.to_string()),
                ("at_ns", event.at_ns.to_string()),
                ("sent", event.sent.to_string()),
                ("received", event.received.to_string()),
                ("rtt_us", event.rtt_us.to_string()),
                ("retransmits", event.retransmits.to_string()),
            ];
            shown.extend(flow(&event.flow).0);
            Fields(shown)
        }
    };
    MapEntry {
        key: fields([("position", record.position.to_string())]),
        value,
    }
}
