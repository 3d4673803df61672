//! Peak EWMA: a moving average of the latency that jumps up at once and forgets with time.
//!
//! A slow answer counts in full, so that an endpoint that stalls loses its traffic with the first request;
//! better ones are averaged in. Between answers the average fades, so that an endpoint nobody asks is
//! tried again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Time after which an answer's weight has fallen to 1/e, milliseconds. Long enough to ride over a garbage
/// collection, short enough to come back to an endpoint within a minute.
const DECAY_MILLIS: f32 = 10_000.0;
/// Requests at once to an endpoint that has not answered yet and is taken for fast meanwhile.
const UNPROVEN_IN_FLIGHT: u32 = 4;
/// What the endpoint is taken for, microseconds.
const UNPROVEN_MICROS: f32 = 1.0;
/// What it is taken for with more requests than that, microseconds: nobody knows whether it answers at all.
const UNPROVEN_BUSY_MICROS: f32 = 1_000_000.0;
/// Shortest latency that is told apart, microseconds: what is below is the noise of two schedulers.
const MIN_MICROS: f32 = 100.0;

/// Latency of one endpoint. Any thread may write; a sample that loses a race against another is put on top.
#[derive(Debug, Default)]
pub(super) struct Latency {
    /// Average in microseconds as `f32` bits in the upper half, time of the last sample in milliseconds in
    /// the lower. 0: there was none yet.
    packed: AtomicU64,
    /// The endpoint has answered once.
    warm: AtomicBool,
}

impl Latency {
    /// Adds an answer that took `micros`, but for an endpoint's first: that pays for caches and connections behind
    /// it that are still cold, and as a peak it would keep all other requests away for seconds.
    pub(super) fn answered(&self, micros: u64, now_millis: u64) {
        if self.warm.swap(true, Ordering::Relaxed) {
            self.observe(micros, now_millis);
        }
    }

    /// Adds what is taken for an answer that took `micros`.
    pub(super) fn observe(&self, micros: u64, now_millis: u64) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "an average needs 24 bits at most"
        )]
        let sample = (micros as f32).max(MIN_MICROS);
        let add = |packed: u64| {
            let (average, at) = unpack(packed);
            let next = if packed == 0 || sample > average {
                sample
            } else {
                let weight = fade(at, now_millis);
                average * weight + sample * (1.0 - weight)
            };
            Some(pack(next, now_millis))
        };
        // Never fails: `add` always has a value.
        let _ = self
            .packed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// What it is taken to be, milliseconds; `None` before an answer that counts.
    pub(super) fn estimate_ms(&self, now_millis: u64) -> Option<f64> {
        let packed = self.packed.load(Ordering::Relaxed);
        let (average, at) = unpack(packed);
        let micros = (average * fade(at, now_millis)).max(MIN_MICROS);
        (packed != 0).then(|| f64::from(micros.round()) / 1_000.0)
    }

    /// What a request more would cost beside those under way; the lower the better.
    pub(super) fn cost(&self, in_flight: u32, now_millis: u64) -> f32 {
        let packed = self.packed.load(Ordering::Relaxed);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a comparison of loads needs 24 bits at most"
        )]
        let load = in_flight as f32 + 1.0;
        if packed == 0 {
            let busy = in_flight >= UNPROVEN_IN_FLIGHT;
            return load
                * if busy {
                    UNPROVEN_BUSY_MICROS
                } else {
                    UNPROVEN_MICROS
                };
        }
        let (average, at) = unpack(packed);
        (average * fade(at, now_millis)).max(MIN_MICROS) * load
    }
}

fn fade(at: u32, now_millis: u64) -> f32 {
    let elapsed = low(now_millis).wrapping_sub(at);
    // Another thread's clock reading may be a little older than the last sample: no time has passed.
    if elapsed > u32::MAX / 2 {
        return 1.0;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "long times fade to nothing anyway"
    )]
    let elapsed = elapsed as f32;
    (-elapsed / DECAY_MILLIS).exp()
}

fn pack(average: f32, now_millis: u64) -> u64 {
    (u64::from(average.to_bits()) << 32) | u64::from(low(now_millis))
}

fn unpack(packed: u64) -> (f32, u32) {
    let average = u32::try_from(packed >> 32).unwrap_or_default();
    (f32::from_bits(average), low(packed))
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let latency = Latency::default();
        latency.observe(1_000, 0);
        latency.observe(50_000, 1);
        assert!(latency.cost(0, 1) > 49_000.0);
        latency.observe(1_000, 10_001);
        let faded = latency.cost(0, 10_001);
        assert!((10_000.0..30_000.0).contains(&faded), "{faded}");
        assert!(latency.cost(0, 60_000) < 1_000.0, "it is tried again");
    }

    #[test]
    fn what_is_shown_is_what_is_chosen_by() {
        let latency = Latency::default();
        assert_eq!(latency.estimate_ms(0), None);
        latency.observe(2_500, 0);
        assert_eq!(latency.estimate_ms(0), Some(2.5));
        assert!(latency.estimate_ms(10_000).is_some_and(|ms| ms < 1.0));
        assert_eq!(latency.estimate_ms(600_000), Some(0.1));
    }

    #[test]
    fn the_first_answer_is_no_peak() {
        let latency = Latency::default();
        latency.answered(900_000, 0);
        assert!(latency.cost(0, 1) < 900.0);
        latency.answered(1_000, 1);
        assert!((900.0..=1_000.0).contains(&latency.cost(0, 1)));
    }

    #[test]
    fn requests_under_way_make_it_dearer() {
        let latency = Latency::default();
        latency.observe(1_000, 0);
        assert!(latency.cost(9, 0) > 9.0 * latency.cost(0, 0));
    }

    #[test]
    fn a_new_endpoint_is_cheap_for_a_few_requests_only() {
        let (new, known) = (Latency::default(), Latency::default());
        known.observe(2_000, 0);
        assert!(new.cost(0, 0) < known.cost(0, 0));
        assert!(new.cost(UNPROVEN_IN_FLIGHT, 0) > known.cost(50, 0));
    }

    #[test]
    fn a_clock_that_went_back_a_little_does_no_harm() {
        let latency = Latency::default();
        latency.observe(1_000, 500);
        latency.observe(900, 499);
        let cost = latency.cost(0, 499);
        assert!((900.0..=1_000.0).contains(&cost), "{cost}");
    }
}
