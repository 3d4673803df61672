//! Refused connections by reason and direction.

use std::fmt;

use karst_process::counts::Counts;
use karst_process::metrics::Out;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::proxy::Direction;
use crate::reason::Reason;

/// Counts refusals.
#[derive(Debug, Default)]
pub struct Refusals(Counts<(&'static str, Direction)>);

impl Refusals {
    /// Counts one refusal.
    pub fn count(&self, reason: Reason, direction: Direction) {
        self.0.count((reason.as_str(), direction));
    }
}

impl Collector for Refusals {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = self.0.read();
        let counts = counts.iter().map(|((reason, direction), count)| {
            let labels = vec![("reason", *reason), ("direction", direction.as_str())];
            (labels, *count)
        });
        let help = "Connections refused, by reason";
        Out::new(encoder).counters("karst_refusals", help, counts)
    }
}

#[cfg(test)]
mod tests {
    use karst_process::metrics::text;
    use prometheus_client::registry::Registry;

    use super::Refusals;
    use crate::proxy::Direction;
    use crate::reason::Reason;

    #[test]
    fn each_reason_and_direction_has_its_count() {
        let refusals = Refusals::default();
        for _ in 0..3 {
            refusals.count(Reason::SelfCall, Direction::Outbound);
        }
        refusals.count(Reason::NotCaptured, Direction::Inbound);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(refusals));
        let text = text(&registry).expect("encodes");
        for line in [
            "karst_refusals_total{reason=\"self_call\",direction=\"outbound\"} 3",
            "karst_refusals_total{reason=\"not_captured\",direction=\"inbound\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
