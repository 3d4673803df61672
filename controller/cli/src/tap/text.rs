//! Events as lines for people.

use std::fmt::Write as _;

use anstyle::Style;

use super::event::{Event, printable};
use crate::style::{BAD, DIM, GOOD, WARN, paint};

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// What fits most screens.
    Normal,
    /// Addresses, identities and what was negotiated too.
    Wide,
}

/// The line of an event, with its end.
pub fn line(event: &Event, width: Width) -> String {
    let clock = event.time.get(11..23).unwrap_or(&event.time);
    let (style, verdict) = verdict(&event.verdict);
    let mut line = format!(
        "{} {} {:<3} {:<6} {} -> {}",
        paint(DIM, &printable(clock)),
        paint(style, &format!("{verdict:<7}")),
        event.side(),
        kind(event),
        event.source(),
        event.destination(),
    );
    if event.service().is_some() && !event.dst_workload.is_empty() {
        let _ = write!(line, " ({})", event.endpoint());
    }
    if event.event == "request" {
        request(&mut line, event);
    }
    if event.event != "connection_opened" && event.event != "connection_refused" {
        let [took, sent, received] = [
            millis(event.duration_ms),
            bytes(event.bytes_sent),
            bytes(event.bytes_recv),
        ];
        let _ = write!(line, " {took} sent={sent} recv={received}");
    }
    match &*event.connection_security_policy {
        "" => {}
        "mutual_tls" => line += " mtls",
        "same_node" => line += " same-node",
        _ => line += " plain",
    }
    let named = [
        ("route", event.route.clone()),
        ("reason", event.reason.clone()),
        ("policy", event.policy().unwrap_or_default()),
        ("dry_run", event.dry_run().unwrap_or_default()),
    ];
    add(&mut line, &named, style);
    if width == Width::Wide {
        let number = |number: Option<u32>| number.map(|n| n.to_string()).unwrap_or_default();
        let cipher = if event.cipher.is_empty() {
            &event.tls_cipher
        } else {
            &event.cipher
        };
        let more = [
            ("src", event.src_addr.clone()),
            ("src.identity", event.src_identity.clone()),
            ("dst", event.dst_addr.clone()),
            ("inside", event.dst_hbone_addr.clone()),
            ("dst.identity", event.dst_identity.clone()),
            ("tls", event.tls_version.clone()),
            ("cipher", cipher.clone()),
            ("key_exchange", event.key_exchange.clone()),
            ("attempts", number(event.attempts)),
            ("request_id", event.request_id.clone()),
            ("trace_id", event.trace_id.clone()),
            ("node", event.node.clone()),
            ("proxy", event.proxy.clone()),
        ];
        add(&mut line, &more, DIM);
    }
    if !event.error.is_empty() {
        let _ = write!(line, " {:?}", printable(&event.error));
    }
    line.push('\n');
    line
}

fn request(line: &mut String, event: &Event) {
    let place = format!("{}{}", event.authority, event.path);
    let status = event.status.unwrap_or_default();
    let style = match status {
        200..=399 => GOOD,
        400..=499 => WARN,
        _ => BAD,
    };
    let status = match status {
        0 => "-".to_owned(),
        status => status.to_string(),
    };
    let _ = write!(line, " {} {}", printable(&place), paint(style, &status));
    if let Some(status) = event.grpc_status {
        let style = if status == 0 { GOOD } else { BAD };
        let _ = write!(line, " {}", paint(style, &format!("grpc={status}")));
    }
}

fn add(line: &mut String, named: &[(&str, String)], style: Style) {
    for (name, value) in named.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(
            line,
            " {}",
            paint(style, &format!("{name}={}", printable(value)))
        );
    }
}

fn verdict(verdict: &str) -> (Style, String) {
    let style = match verdict {
        "allowed" => GOOD,
        "denied" => BAD,
        _ => WARN,
    };
    (style, printable(verdict).to_uppercase())
}

fn kind(event: &Event) -> String {
    match &*event.event {
        "connection_opened" => "open".to_owned(),
        "connection_live" => "live".to_owned(),
        "connection_closed" => "close".to_owned(),
        "connection_refused" => "refuse".to_owned(),
        _ => printable(&event.method),
    }
}

/// Milliseconds in the largest unit that loses nothing of note.
pub fn millis(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{millis}ms"),
        10_000..600_000 => format!("{}s", millis / 1000),
        600_000..36_000_000 => format!("{}m", millis / 60_000),
        _ => format!("{}h", millis / 3_600_000),
    }
}

/// A number of bytes in at most five columns: 1023B, 9.9K, 120M.
pub fn bytes(bytes: u64) -> String {
    let mut scaled = bytes;
    let mut tenths = 0;
    let mut units = ["B", "K", "M", "G", "T", "P"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while scaled >= 1024 {
        let Some(next) = units.next() else { break };
        tenths = scaled % 1024 * 10 / 1024;
        scaled /= 1024;
        unit = next;
    }
    match scaled {
        0..10 if unit != "B" => format!("{scaled}.{tenths}{unit}"),
        _ => format!("{scaled}{unit}"),
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
