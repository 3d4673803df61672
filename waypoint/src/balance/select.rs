//! One endpoint out of many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karst_api::waypoint::Algorithm;

use super::PickRequest;
use super::endpoint::Endpoint;
use super::view::View;

/// Draws after which an endpoint is taken whatever its share.
const DRAWS: usize = 8;

/// The endpoint for a request; `None` if there is none at all.
pub(super) fn select<'v>(
    view: &'v View,
    request: &PickRequest<'_>,
    turn: &AtomicUsize,
    now: u64,
) -> Option<&'v Arc<Endpoint>> {
    let was_tried = |endpoint: &Endpoint| request.tried.iter().any(|key| key == endpoint.key());
    if let Some(place) = request.sticky.and_then(|key| view.members.place(key))
        && view.is_usable(place)
        && let Some(endpoint) = view.members.at(place)
        && !was_tried(endpoint)
    {
        return Some(endpoint);
    }
    if let (Some(table), Some(hash)) = (&view.table, request.hash) {
        let fresh = |place| {
            let endpoint = view.members.at(place);
            view.is_usable(place) && endpoint.is_some_and(|endpoint| !was_tried(endpoint))
        };
        let place = table.find(hash, fresh);
        let place = place.or_else(|| table.find(hash, |place| view.is_usable(place)));
        if let Some(endpoint) = place.and_then(|place| view.members.at(place)) {
            return Some(endpoint);
        }
    }
    let draw = Draw {
        slow_start: view
            .settings
            .balancing
            .slow_start
            .filter(|_| now < view.warm),
        algorithm: view.settings.balancing.algorithm,
        turn,
        now,
    };
    let all = |place| view.active.get(place);
    if request.tried.is_empty() {
        return draw.from(view.active.len(), all);
    }
    let fresh = view.active.iter().filter(|endpoint| !was_tried(endpoint));
    let fresh: Vec<&Arc<Endpoint>> = fresh.collect();
    draw.from(fresh.len(), |place| fresh.get(place).copied())
        .or_else(|| draw.from(view.active.len(), all))
}

struct Draw<'a> {
    /// Set while some endpoints do not have their full share yet.
    slow_start: Option<Duration>,
    algorithm: Algorithm,
    turn: &'a AtomicUsize,
    now: u64,
}

impl Draw<'_> {
    /// One of `length` endpoints that `at` gives by number.
    fn from<'v>(
        &self,
        length: usize,
        at: impl Fn(usize) -> Option<&'v Arc<Endpoint>>,
    ) -> Option<&'v Arc<Endpoint>> {
        if length < 2 {
            return at(0);
        }
        match self.algorithm {
            Algorithm::RoundRobin => {
                self.accept(&at, || self.turn.fetch_add(1, Ordering::Relaxed) % length)
            }
            Algorithm::Random => self.accept(&at, || any(length)),
            Algorithm::LeastRequest => {
                self.better(length, &at, |one| f64::from(one.state().in_flight.get()))
            }
            // A request without anything to hash is balanced as others are.
            Algorithm::PeakEwma | Algorithm::RingHash | Algorithm::Maglev => {
                self.better(length, &at, |one| {
                    let state = one.state();
                    f64::from(state.latency.cost(state.in_flight.get(), self.now))
                })
            }
        }
    }

    /// Draws until an endpoint is taken: each is with the probability of its share.
    fn accept<'v>(
        &self,
        at: &impl Fn(usize) -> Option<&'v Arc<Endpoint>>,
        draw: impl Fn() -> usize,
    ) -> Option<&'v Arc<Endpoint>> {
        let mut drawn = at(draw())?;
        let Some(slow_start) = self.slow_start else {
            return Some(drawn);
        };
        for _ in 1..DRAWS {
            let share = drawn.state().share(slow_start, self.now);
            if share >= 1.0 || rand::random::<f64>() < share {
                break;
            }
            drawn = at(draw())?;
        }
        Some(drawn)
    }

    /// The cheaper of two.
    fn better<'v>(
        &self,
        length: usize,
        at: &impl Fn(usize) -> Option<&'v Arc<Endpoint>>,
        cost: impl Fn(&Endpoint) -> f64,
    ) -> Option<&'v Arc<Endpoint>> {
        let (first, second) = if self.slow_start.is_none() {
            let first = any(length);
            // Any but the first.
            let second = (first + 1 + any(length - 1)) % length;
            (at(first)?, at(second)?)
        } else {
            (
                self.accept(at, || any(length))?,
                self.accept(at, || any(length))?,
            )
        };
        Some(cheaper(first, second, cost))
    }
}

fn cheaper<'v>(
    first: &'v Arc<Endpoint>,
    second: &'v Arc<Endpoint>,
    cost: impl Fn(&Endpoint) -> f64,
) -> &'v Arc<Endpoint> {
    if cost(second) < cost(first) {
        second
    } else {
        first
    }
}

/// A number below `length`, which is not 0.
fn any(length: usize) -> usize {
    rand::random_range(0..length.max(1))
}
