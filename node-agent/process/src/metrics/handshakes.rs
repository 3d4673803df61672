//! TLS handshakes of tunnels: how many, how they ended, how long they took.

use std::fmt;
use std::time::Duration;

use super::Out;
use super::histogram::{Histogram, SETUP_SECONDS};
use crate::counts::Counts;

/// Counts handshakes of all workers. Each is a matter of hundreds of microseconds, so that they share counters.
#[derive(Debug)]
pub struct Handshakes {
    counts: Counts<(&'static str, &'static str, bool)>,
    times: [(&'static str, Histogram); 2],
}

impl Default for Handshakes {
    fn default() -> Self {
        let times = ["client", "server"].map(|side| (side, Histogram::new(&SETUP_SECONDS)));
        Self {
            counts: Counts::default(),
            times,
        }
    }
}

impl Handshakes {
    /// Counts one. `side` is `client` or `server`, `outcome` whether an earlier session was resumed or the reason why
    /// it failed. Only those that succeeded go into the histogram: what fails is as quick or slow as the failure.
    pub fn count(&self, side: &'static str, outcome: Result<bool, &'static str>, took: Duration) {
        let (result, resumed) = match outcome {
            Ok(resumed) => ("ok", resumed),
            Err(reason) => (reason, false),
        };
        self.counts.count((side, result, resumed));
        let mut times = self.times.iter();
        if let (Ok(_), Some((_, time))) = (outcome, times.find(|(of, _)| *of == side)) {
            time.observe_time(took);
        }
    }

    /// Writes them.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn encode(&self, out: &mut Out<'_>) -> fmt::Result {
        let counts = self.counts.read();
        let counts = counts.iter().map(|((side, result, resumed), count)| {
            let resumed = if *resumed { "true" } else { "false" };
            let labels = vec![("side", *side), ("result", *result), ("resumed", resumed)];
            (labels, *count)
        });
        let help = "TLS handshakes of tunnels, by side, result and whether a session was resumed";
        out.counters("karst_tunnel_handshakes", help, counts)?;
        let times = self.times.iter();
        let times = times.map(|(side, time)| (vec![("side", *side)], time.read()));
        let help = "Duration of TLS handshakes of tunnels that succeeded";
        out.histograms("karst_tunnel_handshake_duration_seconds", help, times)
    }
}
