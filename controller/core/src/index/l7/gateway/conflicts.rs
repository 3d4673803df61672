//! Listeners that cannot be told apart, and those whose names overlap.

use super::{
    super::GatewayName,
    view::{Entry, Fault},
};
use crate::object::listener::ListenerProtocol;

/// Listeners of a Gateway with all its ListenerSets. A Service, which has a port for each at most, would
/// not fit into the API server with many more.
const MAX_LISTENERS: usize = 1024;

/// Names that a message lists; more are only counted. A message has 32 KiB at most.
const MAX_LISTED: usize = 5;

/// Adds the listeners of one object to those of the objects before it, which come first where two cannot
/// be told apart. Of listeners of one object that cannot, none is served (Gateway API, "Handling indistinct
/// Listeners").
pub(super) fn admit(before: &mut Vec<Entry>, mut new: Vec<Entry>, gateway: &GatewayName) {
    for entry in &mut new {
        let holders = before.iter().filter(|other| other.conflict.is_none());
        entry.conflict = holders
            .filter_map(|other| conflict(entry, other).map(|fault| (other, fault)))
            .map(|(other, reason)| conflict_with(reason, &[other.name(gateway)]))
            .next();
    }
    let among: Vec<Option<Fault>> = new
        .iter()
        .enumerate()
        .map(|(at, entry)| {
            let others = new.iter().enumerate();
            let others = others.filter(|(index, other)| *index != at && other.conflict.is_none());
            let clashes: Vec<(&'static str, String)> = others
                .filter_map(|(_, other)| Some((conflict(entry, other)?, other.name(gateway))))
                .collect();
            let (reason, _) = clashes.first()?;
            let names: Vec<String> = clashes.iter().map(|(_, name)| name.clone()).collect();
            Some(conflict_with(reason, &names))
        })
        .collect();
    for (entry, fault) in new.iter_mut().zip(among) {
        if entry.conflict.is_none() {
            entry.conflict = fault;
        }
    }
    for mut entry in new {
        if before.len() >= MAX_LISTENERS {
            entry.fault = Some(Fault::new(
                "TooManyListeners",
                format!("A Gateway has at most {MAX_LISTENERS} listeners, ListenerSets included"),
            ));
        }
        before.push(entry);
    }
}

fn conflict_with(reason: &'static str, names: &[String]) -> Fault {
    let what = match reason {
        "ProtocolConflict" => "A protocol that cannot share the port is that of",
        _ => "The same port and host name are those of",
    };
    Fault::new(reason, format!("{what} the listener {}", listed(names)))
}

/// Why two listeners cannot be told apart. Those that are not supported are in nobody's way.
fn conflict(one: &Entry, other: &Entry) -> Option<&'static str> {
    let unsupported = |entry: &Entry| {
        entry.fault.as_ref().map(|fault| fault.reason) == Some("UnsupportedProtocol")
    };
    let (one_listener, other_listener) = (&one.listener, &other.listener);
    if one_listener.port != other_listener.port || unsupported(one) || unsupported(other) {
        return None;
    }
    let told_by = |protocol: &ListenerProtocol| match protocol {
        ListenerProtocol::Http => "Host",
        ListenerProtocol::Https
        | ListenerProtocol::TlsPassthrough
        | ListenerProtocol::TlsTerminate => "SNI",
        _ => "nothing",
    };
    let (one_told, other_told) = (
        told_by(&one_listener.protocol),
        told_by(&other_listener.protocol),
    );
    if one_told != other_told || one_told == "nothing" {
        return Some("ProtocolConflict");
    }
    (one_listener.hostname == other_listener.hostname).then_some("HostnameConflict")
}

/// Clients may use one TLS connection for several names of a certificate, so the author is told where that
/// can reach another listener than meant.
pub(super) fn find_overlaps(entries: &mut [Entry], gateway: &GatewayName) {
    let covers =
        |one: &Entry, other: &Entry| match (&one.listener.hostname, &other.listener.hostname) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(one), Some(other)) => one.covers(other),
        };
    let found: Vec<Vec<String>> = entries
        .iter()
        .enumerate()
        .map(|(at, entry)| {
            let others = entries.iter().enumerate().filter(|(index, _)| *index != at);
            let others = others.filter(|(_, other)| {
                shares_tls_port(entry, other) && (covers(entry, other) || covers(other, entry))
            });
            others.map(|(_, other)| other.name(gateway)).collect()
        })
        .collect();
    for (entry, overlaps) in entries.iter_mut().zip(found) {
        entry.overlaps = overlaps;
    }
}

fn shares_tls_port(one: &Entry, other: &Entry) -> bool {
    let tls = |entry: &Entry| {
        matches!(
            entry.listener.protocol,
            ListenerProtocol::Https
                | ListenerProtocol::TlsTerminate
                | ListenerProtocol::TlsPassthrough
        )
    };
    one.listener.port == other.listener.port && tls(one) && tls(other)
}

/// Names for a message.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MAX_LISTED).cloned();
    let shown: Vec<String> = shown.collect();
    let shown = shown.join(", ");
    match names.len().checked_sub(MAX_LISTED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
