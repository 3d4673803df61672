//! Ejection of endpoints that fail.
//!
//! An endpoint is ejected after failures in a row, or when its success rate is far below that of the
//! others. An ejection lasts the base time, longer with each one that follows soon. Two things keep
//! ejections from doing more harm than failures: no more than a share of the endpoints is ejected, and
//! when too few are left, ejections are ignored (see [`super::view`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::endpoint::Endpoint;
use super::picked::Outcome;
use super::settings::{OutlierSettings, SuccessRate};

/// Longest ejection, milliseconds, unless the base time is longer.
const MAX_EJECTION_MILLIS: u64 = 300_000;
/// Requests that an endpoint must have had in an interval for its success rate to mean something.
const MIN_REQUESTS: u32 = 100;
/// Endpoints with so many requests that are needed for a comparison. With fewer, none can be as far from the
/// mean as the default asks: the farthest of `n` is `sqrt(n - 1)` standard deviations away.
const MIN_ENDPOINTS: usize = 5;

/// What is known of an endpoint's failures.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Failures in a row.
    errors: AtomicU32,
    /// Failures in a row that are no answer of the application.
    gateway_errors: AtomicU32,
    /// Requests of the interval.
    total: AtomicU32,
    /// Failed ones of them.
    failed: AtomicU32,
    /// End of the last ejection, milliseconds of the cluster's clock.
    ejected_until: AtomicU64,
    /// Ejections that count for the length of the next.
    ejections: AtomicU32,
}

/// Kinds of outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Good,
    /// The application failed.
    Error,
    /// The application gave no answer, or a gateway before it said so.
    GatewayError,
    /// It says nothing about the endpoint.
    Neutral,
}

fn class(outcome: Outcome) -> Class {
    match outcome {
        Outcome::Response(status) => match status.as_u16() {
            502..=504 => Class::GatewayError,
            500..=599 => Class::Error,
            _ => Class::Good,
        },
        Outcome::ConnectFailed | Outcome::Reset | Outcome::TimedOut => Class::GatewayError,
        Outcome::Cancelled => Class::Neutral,
    }
}

impl Health {
    pub(super) fn is_ejected(&self, now_millis: u64) -> bool {
        now_millis < self.ejected_until()
    }

    /// Failures in a row, as far as they are counted.
    pub(super) fn failures(&self) -> u32 {
        let errors = self.errors.load(Ordering::Relaxed);
        errors.max(self.gateway_errors.load(Ordering::Relaxed))
    }

    pub(super) fn ejected_until(&self) -> u64 {
        self.ejected_until.load(Ordering::Relaxed)
    }

    /// Counts an outcome; says whether there have been too many failures in a row.
    pub(super) fn record(&self, outcome: Outcome, settings: &OutlierSettings) -> bool {
        let class = class(outcome);
        if class == Class::Neutral {
            return false;
        }
        if settings.success_rate.is_some() {
            self.total.fetch_add(1, Ordering::Relaxed);
            if class != Class::Good {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        match class {
            Class::Good | Class::Neutral => {
                reset(&self.errors);
                reset(&self.gateway_errors);
                false
            }
            Class::Error => {
                reset(&self.gateway_errors);
                reached(&self.errors, settings.consecutive_errors)
            }
            Class::GatewayError => {
                let errors = reached(&self.errors, settings.consecutive_errors);
                let gateway = reached(&self.gateway_errors, settings.consecutive_gateway_errors);
                errors || gateway
            }
        }
    }

    /// Ejects it. One thread at a time.
    fn eject(&self, settings: &OutlierSettings, now_millis: u64) {
        let base = u64::try_from(settings.base_ejection.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let quiet = now_millis.saturating_sub(self.ejected_until()) / base;
        let quiet = u32::try_from(quiet).unwrap_or(u32::MAX);
        // Each base time that passed in peace takes one ejection off.
        let times = self.ejections.load(Ordering::Relaxed).saturating_sub(quiet) + 1;
        let length = base
            .saturating_mul(u64::from(times))
            .min(MAX_EJECTION_MILLIS.max(base));
        self.ejections.store(times, Ordering::Relaxed);
        self.ejected_until
            .store(now_millis + length, Ordering::Relaxed);
        reset(&self.errors);
        reset(&self.gateway_errors);
    }
}

/// One writer more or less between load and store does not matter: the answer is a number a little lower.
fn reset(counter: &AtomicU32) {
    // Most are zero already, and a store would take the cache line from other workers.
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Counts a failure. The count starts anew when the limit is reached, so that an endpoint which may not be
/// ejected now is asked about again only after as many failures.
fn reached(counter: &AtomicU32, limit: Option<u32>) -> bool {
    let Some(limit) = limit else {
        return false;
    };
    if counter.fetch_add(1, Ordering::Relaxed) + 1 < limit {
        return false;
    }
    counter.store(0, Ordering::Relaxed);
    true
}

/// Ejects `endpoint` unless it is already, or too many others are. One thread at a time.
pub(super) fn eject(
    endpoint: &Endpoint,
    all: &[Arc<Endpoint>],
    settings: &OutlierSettings,
    now_millis: u64,
) -> bool {
    let health = &endpoint.state().health;
    if health.is_ejected(now_millis) {
        return false;
    }
    let others = all.iter().filter(|other| !other.is_draining());
    let (mut count, mut ejected) = (0_usize, 0_usize);
    for other in others {
        count += 1;
        ejected += usize::from(other.state().health.is_ejected(now_millis));
    }
    let max = usize::try_from(settings.max_ejection_percent).unwrap_or(100);
    let first = ejected == 0 && count > 1;
    if !first && (ejected + 1) * 100 > count * max {
        return false;
    }
    health.eject(settings, now_millis);
    true
}

/// The endpoints whose success rate is too far below the others'. Starts the next interval.
pub(super) fn compare(all: &[Arc<Endpoint>], settings: SuccessRate) -> Vec<Arc<Endpoint>> {
    let mut rates = Vec::new();
    for endpoint in all {
        let health = &endpoint.state().health;
        let total = health.total.swap(0, Ordering::Relaxed);
        let failed = health.failed.swap(0, Ordering::Relaxed).min(total);
        if total >= MIN_REQUESTS {
            rates.push((f64::from(total - failed) / f64::from(total), endpoint));
        }
    }
    if rates.len() < MIN_ENDPOINTS {
        return Vec::new();
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of endpoints is small")]
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(rate, _)| rate).sum::<f64>() / count;
    let squares = rates.iter().map(|(rate, _)| (rate - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt();
    let lowest = mean - deviation * f64::from(settings.stdev_milli) / 1_000.0;
    let low = rates.into_iter().filter(|(rate, _)| *rate < lowest);
    low.map(|(_, endpoint)| Arc::clone(endpoint)).collect()
}
