//! Rows of who talks to whom, made from events and lists of live connections.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use serde::Deserialize;
use serde_json::Value;

use super::quantile::Histogram;
use crate::tap::event::{Dropped, Event, printable};

/// Seconds that rates and latencies are of.
pub const WINDOW: u64 = 10;

/// Seconds after which a row without events and live connections goes.
const SILENT: u64 = 60;

/// Most rows. Clients choose methods, so that there is no other end to them; what is beyond shares one row.
const MAX_ROWS: usize = 2000;

/// Most connections whose bytes are followed one by one.
const MAX_CONNECTIONS: usize = 200_000;

/// The row of what found no room.
const OTHERS: &str = "(others)";

/// What makes a row of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `out`, `in`, `wp` or `gw`.
    pub side: &'static str,
    pub source: String,
    pub destination: String,
    pub method: String,
    pub route: String,
}

/// A connection: source among several, direction, client, application.
type Connection = (usize, bool, String, String);

#[derive(Debug, Default)]
struct Slot {
    second: u64,
    started: u64,
    ended: u64,
    bad: u64,
    denied: u64,
    bytes: u64,
    times: Histogram,
}

#[derive(Debug, Default)]
struct Row {
    slots: Vec<Slot>,
    live: u64,
    touched: u64,
}

impl Row {
    /// What is counted in this second.
    fn slot(&mut self, second: u64) -> &mut Slot {
        self.touched = second;
        self.slots.retain(|slot| slot.second + WINDOW > second);
        let found = self.slots.iter().position(|slot| slot.second == second);
        let at = found.unwrap_or_else(|| {
            self.slots.push(Slot {
                second,
                ..Slot::default()
            });
            self.slots.len() - 1
        });
        &mut self.slots[at]
    }
}

#[derive(Debug)]
struct Known {
    bytes: u64,
    key: Key,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Model {
    rows: HashMap<Key, Row>,
    connections: HashMap<Connection, Known>,
    dropped: BTreeMap<usize, Dropped>,
    /// Connections that found no room among those that are followed.
    unfollowed: u64,
}

/// A row as it is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    pub key: Key,
    /// Begun per second: connections, or requests.
    pub rate: f64,
    /// Of what has ended, in percent.
    pub success: Option<f64>,
    /// Refused by policy, per second.
    pub denied: f64,
    /// Milliseconds: of requests, or of connections that have ended.
    pub p50: Option<u64>,
    pub p95: Option<u64>,
    pub p99: Option<u64>,
    /// Per second, both ways.
    pub bytes: f64,
    /// Connections open now.
    pub live: u64,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    pub rows: Vec<Shown>,
    /// Events that did not come: rates are of the others then.
    pub dropped: u64,
}

impl Picture {
    /// What begins per second, of rows that are of one of `sides`.
    pub fn rate(&self, sides: &[&str]) -> f64 {
        let rows = self.rows.iter();
        rows.filter(|row| sides.contains(&row.key.side))
            .map(|row| row.rate)
            .sum()
    }
}

/// A live connection, as far as it is used here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct View {
    direction: String,
    src: Party,
    dst: Party,
    service: Option<String>,
    service_port: Option<u16>,
    bytes_sent: u64,
    bytes_recv: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Party {
    addr: Option<String>,
    workload: Option<String>,
    namespace: Option<String>,
    identity: Option<String>,
}

impl View {
    /// As an event, so that its row is found in the same way.
    fn into_event(self) -> Event {
        Event {
            direction: self.direction,
            src_addr: self.src.addr.unwrap_or_default(),
            src_workload: self.src.workload.unwrap_or_default(),
            src_namespace: self.src.namespace.unwrap_or_default(),
            src_identity: self.src.identity.unwrap_or_default(),
            dst_addr: self.dst.addr.unwrap_or_default(),
            dst_workload: self.dst.workload.unwrap_or_default(),
            dst_namespace: self.dst.namespace.unwrap_or_default(),
            dst_identity: self.dst.identity.unwrap_or_default(),
            dst_service: self.service.unwrap_or_default(),
            dst_service_port: self.service_port,
            bytes_sent: self.bytes_sent,
            bytes_recv: self.bytes_recv,
            ..Event::default()
        }
    }
}

impl Model {
    /// An event of the source with this number; `now` is in seconds since the beginning, as everywhere here.
    pub fn event(&mut self, source: usize, event: &Event, now: u64) {
        let key = key(event);
        let connection = connection(source, event);
        let bytes = event.bytes_sent.saturating_add(event.bytes_recv);
        let moved = match &*event.event {
            "connection_opened" | "connection_live" => {
                self.know(connection, &key, bytes);
                0
            }
            "connection_closed" => match self.connections.remove(&connection) {
                Some(known) => bytes.saturating_sub(known.bytes),
                // One that was there before us is not of the last seconds.
                None if event.duration_ms / 1000 > now => 0,
                None => bytes,
            },
            _ => bytes,
        };
        let is_request = event.event == "request";
        let opened = event.event == "connection_opened";
        let refused = event.event == "connection_refused";
        let ended = !opened && event.event != "connection_live";
        let failed = event.verdict != "allowed"
            || event.status.is_some_and(|status| status >= 500)
            || event.grpc_status.is_some_and(|status| status != 0);
        let closed = event.event == "connection_closed";
        let row = self.row(key, now);
        if closed {
            row.live = row.live.saturating_sub(1);
        }
        if opened {
            row.live += 1;
        }
        let slot = row.slot(now);
        slot.started += u64::from(opened || refused || is_request);
        slot.ended += u64::from(ended);
        slot.bad += u64::from(ended && failed);
        slot.denied += u64::from(ended && event.verdict == "denied");
        slot.bytes = slot.bytes.saturating_add(moved);
        if ended && !refused {
            slot.times.add(event.duration_ms);
        }
    }

    /// The live connections of a source: `GET /v1/connections` of an agent.
    pub fn connections(&mut self, source: usize, list: &Value, now: u64) {
        let views = list.as_array().into_iter().flatten();
        let views = views.filter_map(|view| View::deserialize(view).ok());
        let mut live: HashMap<Key, u64> = HashMap::new();
        let mut before = mem::take(&mut self.connections);
        // Those of other sources stay.
        let (ours, others): (Vec<_>, Vec<_>) =
            before.drain().partition(|((of, ..), _)| *of == source);
        self.connections.extend(others);
        let mut ours: HashMap<_, _> = ours.into_iter().collect();
        for view in views {
            let event = view.into_event();
            let (connection, key) = (connection(source, &event), key(&event));
            let bytes = event.bytes_sent.saturating_add(event.bytes_recv);
            // Where it comes from does not change, but a name may become known.
            let (moved, key) = match ours.remove(&connection) {
                Some(known) => (bytes.saturating_sub(known.bytes), known.key),
                None => (0, key),
            };
            *live.entry(key.clone()).or_default() += 1;
            self.know(connection, &key, bytes);
            let slot = self.row(key, now).slot(now);
            slot.bytes = slot.bytes.saturating_add(moved);
        }
        for (key, row) in &mut self.rows {
            if matches!(key.side, "out" | "in") {
                row.live = live.remove(key).unwrap_or(0);
            }
        }
    }

    /// What a source says of events that it has left out.
    pub fn dropped(&mut self, source: usize, dropped: Dropped) {
        self.dropped.insert(source, dropped);
    }

    fn know(&mut self, connection: Connection, key: &Key, bytes: u64) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.unfollowed += 1;
            return;
        }
        let key = key.clone();
        self.connections.insert(connection, Known { bytes, key });
    }

    fn row(&mut self, key: Key, now: u64) -> &mut Row {
        let key = if self.rows.len() < MAX_ROWS || self.rows.contains_key(&key) {
            key
        } else {
            Key {
                side: key.side,
                source: OTHERS.to_owned(),
                destination: OTHERS.to_owned(),
                ..Key::default()
            }
        };
        let row = self.rows.entry(key).or_default();
        row.touched = now;
        row
    }

    /// Everything as it is now.
    pub fn picture(&mut self, now: u64) -> Picture {
        self.rows
            .retain(|_, row| row.live > 0 || row.touched + SILENT > now);
        // Before that many seconds have passed, rates are of those that have.
        let seconds = (now + 1).clamp(1, WINDOW) as f64;
        let rows = self
            .rows
            .iter()
            .map(|(key, row)| shown(key, row, now, seconds));
        let dropped = self.dropped.values().map(|dropped| dropped.total());
        Picture {
            rows: rows.collect(),
            dropped: dropped.sum::<u64>() + self.unfollowed,
        }
    }
}

fn shown(key: &Key, row: &Row, now: u64, seconds: f64) -> Shown {
    let mut sum = Slot::default();
    for slot in row.slots.iter().filter(|slot| slot.second + WINDOW > now) {
        sum.started += slot.started;
        sum.ended += slot.ended;
        sum.bad += slot.bad;
        sum.denied += slot.denied;
        sum.bytes = sum.bytes.saturating_add(slot.bytes);
        sum.times.merge(&slot.times);
    }
    let good = sum.ended.saturating_sub(sum.bad) as f64;
    Shown {
        key: key.clone(),
        rate: sum.started as f64 / seconds,
        success: (sum.ended > 0).then(|| good * 100.0 / sum.ended as f64),
        denied: sum.denied as f64 / seconds,
        p50: sum.times.quantile(50),
        p95: sum.times.quantile(95),
        p99: sum.times.quantile(99),
        bytes: sum.bytes as f64 / seconds,
        live: row.live,
    }
}

fn key(event: &Event) -> Key {
    Key {
        side: event.side(),
        source: event.source(),
        destination: event.destination(),
        method: printable(&event.method),
        route: printable(&event.route),
    }
}

fn connection(source: usize, event: &Event) -> Connection {
    let inside = if event.dst_hbone_addr.is_empty() {
        &event.dst_addr
    } else {
        &event.dst_hbone_addr
    };
    let outbound = event.direction == "outbound";
    (source, outbound, event.src_addr.clone(), inside.clone())
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
