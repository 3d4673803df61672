//! Refused connections and requests by reason.

use karst_process::counts::Counts;

use crate::reason::Reason;

/// Counts refusals.
#[derive(Debug, Default)]
pub struct Refusals(Counts<&'static str>);

impl Refusals {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        self.0.count(reason.as_str());
    }

    /// All reasons that have come up, with their counts, by name.
    #[must_use]
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let mut counts = self.0.read();
        counts.sort_unstable();
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::Refusals;
    use crate::reason::Reason;

    #[test]
    fn reasons_are_read_by_name() {
        let refusals = Refusals::default();
        for reason in [Reason::NotHttp, Reason::NoListener, Reason::NotHttp] {
            refusals.count(reason);
        }
        let counts = [("gateway_no_listener", 1), ("waypoint_not_http", 2)];
        assert_eq!(refusals.read(), counts);
    }
}
