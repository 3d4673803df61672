//! What is reported of one connection besides metrics: whether it is logged, and its span.
//!
//! An agent sees bytes, and so no trace of the application's. A trace begins with the connection, at the client's agent;
//! the CONNECT carries it, and whoever takes the tunnel joins: a waypoint, or the agent of the destination. There it may
//! be the trace of a request instead, when a waypoint opened the tunnel for one.

mod spans;
mod transport;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use karst_api::telemetry::Telemetry;
use karst_identity::SpiffeId;
use karst_telemetry::filter::{Attribute, Fact, Facts};
use karst_telemetry::settings::{Reporting, Verdict};
use karst_telemetry::span::new_span_id;
use karst_tunnel::headers::TraceParent;

pub use transport::NodeTransport;

use crate::access_log::Record;
use crate::proxy::Direction;
use crate::reason::Reason;

/// What is reported of the pods of this node.
#[derive(Debug, Default)]
pub struct PodReporting {
    /// Whether there is anything but the default.
    any: AtomicBool,
    pods: ArcSwap<HashMap<Arc<str>, Sides>>,
}

/// By who connects.
#[derive(Clone, Debug, Default)]
struct Sides {
    client: Option<Arc<Reporting>>,
    server: Option<Arc<Reporting>>,
}

impl PodReporting {
    /// Takes what the controller says of pods, by their uids; `None` for those that are gone.
    pub fn update<'a>(&self, changes: impl IntoIterator<Item = (Arc<str>, Option<&'a Telemetry>)>) {
        let mut pods = HashMap::clone(&self.pods.load());
        for (uid, telemetry) in changes {
            let sides = telemetry.map(|telemetry| Sides {
                client: read(&uid, telemetry.client.as_ref()),
                server: read(&uid, telemetry.server.as_ref()),
            });
            match sides {
                Some(sides) if sides.client.is_some() || sides.server.is_some() => {
                    pods.insert(uid, sides);
                }
                _ => {
                    pods.remove(&uid);
                }
            }
        }
        let any = !pods.is_empty();
        self.pods.store(Arc::new(pods));
        self.any.store(any, Ordering::Relaxed);
    }

    /// What is reported of a connection of a pod; `None` for the default.
    pub fn get(&self, uid: &str, direction: Direction) -> Option<Arc<Reporting>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let pods = self.pods.load();
        let sides = pods.get(uid)?;
        match direction {
            Direction::Outbound => sides.client.clone(),
            Direction::Inbound => sides.server.clone(),
        }
    }
}

fn read(uid: &str, wire: Option<&karst_api::telemetry::Reporting>) -> Option<Arc<Reporting>> {
    let (reporting, problem) = Reporting::read(wire?);
    if let Some(problem) = problem {
        tracing::warn!(
            pod.uid = uid,
            problem,
            "what is to be reported is not understood, and left out"
        );
    }
    (!reporting.is_default()).then(|| Arc::new(reporting))
}

/// What is known at the beginning of a connection.
#[derive(Clone, Debug)]
pub struct Observed {
    reporting: Arc<Reporting>,
    trace: Option<Trace>,
}

#[derive(Clone, Copy, Debug)]
struct Trace {
    own: TraceParent,
    parent: Option<u64>,
    started: SystemTime,
}

impl Observed {
    /// `parent` is what came with the connection.
    pub fn new(reporting: Arc<Reporting>, parent: Option<TraceParent>) -> Box<Self> {
        let trace = reporting.tracing().map(|tracing| {
            let own = match parent {
                Some(parent) => {
                    TraceParent::of(parent.trace_id(), new_span_id(), parent.is_sampled())
                }
                None => TraceParent::sampled_by(|id| tracing.samples(id)),
            };
            Trace {
                own,
                parent: parent.map(TraceParent::span_id),
                started: SystemTime::now(),
            }
        });
        Box::new(Self { reporting, trace })
    }

    /// Its own place in a trace.
    pub fn context(&self) -> Option<TraceParent> {
        self.trace.map(|trace| trace.own)
    }

    /// Whether it is logged.
    pub fn verdict(&self, record: &Record) -> Verdict {
        let facts = ConnectionFacts(record);
        self.reporting.verdict(&facts, record.reason.is_some())
    }
}

/// What filters of the access log can ask for.
struct ConnectionFacts<'a>(&'a Record);

impl Facts for ConnectionFacts<'_> {
    fn fact(&self, attribute: Attribute) -> Option<Fact<'_>> {
        fn text<'a>(text: impl Into<Cow<'a, str>>) -> Option<Fact<'a>> {
            Some(Fact::Text(text.into()))
        }
        let number = |number: u64| Some(Fact::Number(i64::try_from(number).unwrap_or(i64::MAX)));
        let address = |address: Option<SocketAddr>| text(address?.to_string());
        let port = |address: Option<SocketAddr>| Some(Fact::Number(address?.port().into()));
        let record = self.0;
        let peer = record.source.identity.as_ref();
        match attribute {
            Attribute::ConnectionMtls => Some(Fact::Bool(peer.is_some())),
            Attribute::ConnectionPeer => text(peer.map_or("", SpiffeId::as_str)),
            Attribute::ConnectionServerName => text(""),
            Attribute::ConnectionTermination => text(record.reason.map_or("", Reason::as_str)),
            Attribute::ConnectionTlsVersion => text(record.tls.as_ref()?.version.to_string()),
            Attribute::DestinationAddress | Attribute::UpstreamAddress => {
                address(record.destination.addr)
            }
            Attribute::DestinationPort | Attribute::UpstreamPort => port(record.destination.addr),
            Attribute::SourceAddress => address(record.source.addr),
            Attribute::SourcePort => port(record.source.addr),
            // As Envoy has it where there is no response.
            Attribute::ResponseCode => number(0),
            Attribute::RequestSize => number(record.bytes_recv),
            Attribute::ResponseSize => number(record.bytes_sent),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
