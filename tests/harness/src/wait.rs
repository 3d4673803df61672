//! Waiting for conditions with a deadline, for callers that must never just sleep.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// How often [`until`] looks.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Polls `check` until it gives `Ok`, and gives its value; after `limit` the last error,
/// with `what` was awaited.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let error = match check() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(error).with_context(|| anyhow!("waited {limit:?} for {what}"));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
