//! Where a worker says what has become of requests and connections: one call counts and logs.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::access_log::{AccessLog, ConnectionRecord, RequestRecord};
use crate::metrics::Metrics;
use crate::metrics::traffic::{OpenConnection, TrafficCache};

/// A worker's metrics and access log.
#[derive(Debug)]
pub struct Recorder {
    metrics: Arc<Metrics>,
    log: AccessLog,
    cache: RefCell<TrafficCache>,
}

impl Recorder {
    /// A recorder for one worker.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, log: AccessLog) -> Rc<Self> {
        let cache = TrafficCache::new(Arc::clone(&metrics.traffic));
        Rc::new(Self {
            metrics,
            log,
            cache: RefCell::new(cache),
        })
    }

    /// The shared counters.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A request has ended: counted, its reason too, and logged.
    pub fn request_finished(&self, record: RequestRecord) {
        if let Some(reason) = record.reason {
            self.metrics.refusals.count(reason);
        }
        self.cache.borrow_mut().request(&record);
        self.log.record(&record);
    }

    /// A connection below HTTP is established.
    #[must_use]
    pub fn connection_opened(&self, record: &ConnectionRecord) -> OpenConnection {
        self.cache.borrow_mut().opened(record)
    }

    /// An established connection has ended; `open` counts it as closed.
    pub fn connection_finished(&self, record: ConnectionRecord, mut open: OpenConnection) {
        open.total(record.bytes_received, record.bytes_sent);
        if let Some(reason) = record.reason {
            self.metrics.refusals.count(reason);
        }
        self.log.record(&record);
    }

    /// A connection was refused, or failed before it was established.
    pub fn connection_refused(&self, record: ConnectionRecord) {
        if let Some(reason) = record.reason {
            self.metrics.refusals.count(reason);
        }
        self.cache.borrow_mut().failed(&record);
        self.log.record(&record);
    }
}
