//! How long connections take to be established and how long they last, and how full the pools of tunnels are.
//!
//! Each worker counts for itself, so that no two of them write to the same memory; a scrape adds up.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karst_process::metrics::Out;
use karst_process::metrics::histogram::{Histogram, LIFETIME_SECONDS, Reading, SETUP_SECONDS};
use karst_tunnel::pool::PoolLevels;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::proxy::Direction;

const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

/// What one worker counts.
#[derive(Debug)]
pub struct WorkerMetrics {
    setup: [Histogram; DIRECTIONS.len()],
    lifetime: [Histogram; DIRECTIONS.len()],
    pools: Mutex<PoolLevels>,
}

impl WorkerMetrics {
    fn new() -> Self {
        Self {
            setup: DIRECTIONS.map(|_| Histogram::new(&SETUP_SECONDS)),
            lifetime: DIRECTIONS.map(|_| Histogram::new(&LIFETIME_SECONDS)),
            pools: Mutex::default(),
        }
    }

    /// A connection was established `after` it was accepted.
    pub fn established(&self, direction: Direction, after: Duration) {
        self.setup[direction as usize].observe_time(after);
    }

    /// An established connection has ended, `after` it was accepted.
    pub fn ended(&self, direction: Direction, after: Duration) {
        self.lifetime[direction as usize].observe_time(after);
    }

    /// Notes how full the worker's pools are; for a scrape.
    pub fn pools(&self, levels: PoolLevels) {
        *self.pools.lock().unwrap_or_else(PoisonError::into_inner) = levels;
    }
}

/// What all workers count.
#[derive(Debug, Default)]
pub struct Connections(Mutex<Vec<Arc<WorkerMetrics>>>);

impl Connections {
    /// The counts of a new worker.
    pub fn worker(&self) -> Arc<WorkerMetrics> {
        let worker = Arc::new(WorkerMetrics::new());
        self.all().push(Arc::clone(&worker));
        worker
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Arc<WorkerMetrics>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sum(
        &self,
        of: fn(&WorkerMetrics) -> &[Histogram; DIRECTIONS.len()],
    ) -> Vec<(Direction, Reading)> {
        let all = self.all();
        let sum = |direction: Direction| {
            let readings = all
                .iter()
                .filter_map(|worker| of(worker).get(direction as usize))
                .map(Histogram::read);
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
        let lifetime = self.sum(|worker| &worker.lifetime);
        let setup = self.sum(|worker| &worker.setup);
        let open = setup.iter().zip(&lifetime).map(|(begun, ended)| {
            let open = begun.1.count.saturating_sub(ended.1.count);
            let labels = vec![("direction", begun.0.as_str())];
            (labels, i64::try_from(open).unwrap_or(i64::MAX))
        });
        let help = "Connections that are established now";
        out.gauges("karst_connections", help, open)?;
        let help = "Time from a connection's accept until it is established to its destination";
        let setup = by_direction(&setup);
        out.histograms("karst_connection_setup_seconds", help, setup)?;
        let help = "Time from the accept of connections that were established until their end";
        let lifetime = by_direction(&lifetime);
        out.histograms("karst_connection_duration_seconds", help, lifetime)?;
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

    use karst_process::metrics::text;
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
        two.ended(Direction::Outbound, Duration::from_secs(7));
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
}
