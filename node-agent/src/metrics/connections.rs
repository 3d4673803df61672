//! How long connections take to be established and how long they last, and how full the pools of tunnels are.
//!
//! Each worker counts for itself, so that no two of them write to the same memory; a scrape adds up. Only how long
//! connections lasted is counted in one place, with the traces of some of them as exemplars; what is not sampled takes
//! no lock there.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use karst_process::metrics::Out;
use karst_process::metrics::exemplar::{TraceSpan, TracedHistogram};
use karst_process::metrics::histogram::{Histogram, LIFETIME_SECONDS, Reading, SETUP_SECONDS};
use karst_tunnel::headers::TraceParent;
use karst_tunnel::pool::PoolLevels;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::proxy::Direction;

const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

/// How long connections lasted. Each bucket has the last one of a sampled trace as its exemplar.
type Lifetimes = [TracedHistogram; DIRECTIONS.len()];

/// What one worker counts.
#[derive(Debug)]
pub struct WorkerMetrics {
    setup: [Histogram; DIRECTIONS.len()],
    lifetimes: Arc<Lifetimes>,
    pools: Mutex<PoolLevels>,
}

impl WorkerMetrics {
    fn new(lifetimes: Arc<Lifetimes>) -> Self {
        Self {
            setup: DIRECTIONS.map(|_| Histogram::new(&SETUP_SECONDS)),
            lifetimes,
            pools: Mutex::default(),
        }
    }

    /// A connection was established `after` it was accepted.
    pub fn established(&self, direction: Direction, after: Duration) {
        self.setup[direction as usize].observe_time(after);
    }

    /// An established connection has ended, `after` it was accepted; in `trace`, if it is part of one.
    pub fn ended(&self, direction: Direction, after: Duration, trace: Option<TraceParent>) {
        let sampled = trace.filter(|trace| trace.is_sampled());
        let exemplar = sampled.map(|own| TraceSpan {
            trace: own.trace_id(),
            span: own.span_id(),
        });
        self.lifetimes[direction as usize].observe_time(after, exemplar);
    }

    /// Notes how full the worker's pools are; for a scrape.
    pub fn pools(&self, levels: PoolLevels) {
        *self.pools.lock().unwrap_or_else(PoisonError::into_inner) = levels;
    }
}

/// What all workers count.
#[derive(Debug)]
pub struct Connections {
    workers: Mutex<Vec<Arc<WorkerMetrics>>>,
    lifetimes: Arc<Lifetimes>,
}

impl Default for Connections {
    fn default() -> Self {
        let lifetime = |_| TracedHistogram::new(&LIFETIME_SECONDS);
        Self {
            workers: Mutex::default(),
            lifetimes: Arc::new(DIRECTIONS.map(lifetime)),
        }
    }
}

impl Connections {
    /// The counts of a new worker.
    pub fn worker(&self) -> Arc<WorkerMetrics> {
        let worker = Arc::new(WorkerMetrics::new(Arc::clone(&self.lifetimes)));
        self.all().push(Arc::clone(&worker));
        worker
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<WorkerMetrics>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn setup(&self) -> Vec<(Direction, Reading)> {
        let all = self.all();
        let sum = |direction: Direction| {
            let readings = all
                .iter()
                .map(|worker| worker.setup[direction as usize].read());
            let sum = readings.reduce(|sum, one| sum.and(&one))?;
            Some((direction, sum))
        };
        DIRECTIONS.into_iter().filter_map(sum).collect()
    }
}

fn by_direction(
    readings: &[(Direction, Reading)],
) -> impl Iterator<Item = (Vec<(&'static str, &'static str)>, Reading)> + '_ {
    let labels = |direction: Direction| vec![("direction", direction.as_str())];
    readings
        .iter()
        .map(move |(direction, reading)| (labels(*direction), reading.clone()))
}

impl Collector for Connections {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out::new(encoder);
        // Read first: whatever has ended by then has begun by the time the others are read.
        let lifetimes = self.lifetimes.each_ref().map(TracedHistogram::read);
        let ended = lifetimes.each_ref().map(|one| one.reading.count);
        let setup = self.setup();
        let open = setup.iter().map(|(direction, begun)| {
            let open = begun.count.saturating_sub(ended[*direction as usize]);
            let labels = vec![("direction", direction.as_str())];
            (labels, i64::try_from(open).unwrap_or(i64::MAX))
        });
        let help = "Connections that are established now";
        out.gauges("karst_connections", help, open)?;
        let help = "Time from a connection's accept until it is established to its destination";
        let setup = by_direction(&setup);
        out.histograms("karst_connection_setup_seconds", help, setup)?;
        let lifetimes = DIRECTIONS.iter().zip(lifetimes);
        let lifetimes = lifetimes
            .map(|(direction, lifetime)| (vec![("direction", direction.as_str())], lifetime));
        let help = "Time from the accept of connections that were established until their end";
        out.traced_histograms("karst_connection_duration_seconds", help, lifetimes)?;
        let pools = self
            .all()
            .iter()
            .map(|worker| *worker.pools.lock().unwrap_or_else(PoisonError::into_inner))
            .fold(PoolLevels::default(), PoolLevels::and);
        let level = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let states = [
            ("active", pools.active),
            ("idle", pools.idle),
            ("draining", pools.draining),
            ("dialing", pools.dialing),
        ];
        let states = states.map(|(state, value)| (vec![("state", state)], level(value)));
        let help = "Tunnel connections to peers, by state";
        out.gauges("karst_tunnel_pool_connections", help, states)?;
        let states = [("open", pools.streams), ("waiting", pools.waiting)];
        let states = states.map(|(state, value)| (vec![("state", state)], level(value)));
        let help = "Streams on tunnel connections to peers, and those that wait for a place";
        out.gauges("karst_tunnel_pool_streams", help, states)?;
        let help = "Streams that the tunnel connections to peers may carry at once";
        out.gauge("karst_tunnel_pool_capacity", help, level(pools.capacity))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use karst_process::metrics::{Format, text};
    use karst_tunnel::headers::TraceParent;
    use karst_tunnel::pool::PoolLevels;
    use prometheus_client::registry::Registry;

    use super::Connections;
    use crate::proxy::Direction;

    #[test]
    fn workers_add_up() {
        let connections = Arc::new(Connections::default());
        let (one, two) = (connections.worker(), connections.worker());
        one.established(Direction::Outbound, Duration::from_micros(300));
        two.established(Direction::Outbound, Duration::from_millis(40));
        two.established(Direction::Inbound, Duration::from_millis(1));
        two.ended(Direction::Outbound, Duration::from_secs(7), None);
        let levels = PoolLevels {
            active: 2,
            streams: 5,
            capacity: 200,
            ..PoolLevels::default()
        };
        one.pools(levels);
        two.pools(levels);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(connections));
        let text = text(&registry).expect("encodes");
        for line in [
            "karst_connections{direction=\"outbound\"} 1",
            "karst_connections{direction=\"inbound\"} 1",
            "karst_connection_setup_seconds_count{direction=\"outbound\"} 2",
            "karst_connection_setup_seconds_bucket{le=\"0.0005\",direction=\"outbound\"} 1",
            "karst_connection_setup_seconds_bucket{le=\"0.05\",direction=\"outbound\"} 2",
            "karst_connection_duration_seconds_sum{direction=\"outbound\"} 7.0",
            "karst_connection_duration_seconds_bucket{le=\"5.0\",direction=\"outbound\"} 0",
            "karst_connection_duration_seconds_bucket{le=\"30.0\",direction=\"outbound\"} 1",
            "karst_connection_setup_seconds_bucket{le=\"+Inf\",direction=\"outbound\"} 2",
            "karst_tunnel_pool_connections{state=\"active\"} 4",
            "karst_tunnel_pool_streams{state=\"open\"} 10",
            "karst_tunnel_pool_capacity 400",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn sampled_traces_are_exemplars_of_how_long_connections_last() {
        let connections = Arc::new(Connections::default());
        let (one, two) = (connections.worker(), connections.worker());
        let ended = |worker: &super::WorkerMetrics, millis, trace| {
            let after = Duration::from_millis(millis);
            worker.ended(Direction::Inbound, after, trace);
        };
        ended(&one, 3, Some(TraceParent::of(0xa, 1, true)));
        ended(&two, 4, Some(TraceParent::of(0xb, 2, true)));
        ended(&two, 5, None);
        ended(&one, 20, Some(TraceParent::of(0xc, 3, false)));
        ended(&two, 7 * 86_400_000, Some(TraceParent::of(0xd, 4, true)));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(connections));
        let text = text(&registry).expect("encodes");
        let of = |le: &str| {
            let start = format!(
                "karst_connection_duration_seconds_bucket{{le=\"{le}\",direction=\"inbound\"}} "
            );
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            let line = line.unwrap_or_else(|| panic!("{start}: {text}"));
            let (count, exemplar) = line.split_once(" # ").unwrap_or((line, ""));
            (count.to_owned(), exemplar.to_owned())
        };
        let (count, exemplar) = of("0.005");
        assert_eq!(count, "3");
        let trace =
            "{trace_id=\"0000000000000000000000000000000b\",span_id=\"0000000000000002\"} 0.004 ";
        assert!(exemplar.starts_with(trace), "{exemplar}");
        assert_eq!(of("0.025"), ("4".to_owned(), String::new()));
        let (count, exemplar) = of("+Inf");
        assert_eq!(count, "5");
        assert!(exemplar.contains("000d\",span_id"), "{exemplar}");
        // Who does not ask for OpenMetrics gets none.
        assert!(!Format::Text.of(text.clone()).contains("trace_id"));
    }
}
