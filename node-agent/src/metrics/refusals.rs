//! Refused connections by reason and direction.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::proxy::Direction;
use crate::reason::Reason;

type Counters = HashMap<(&'static str, Direction), Arc<AtomicU64>>;

/// Counts refusals without a lock: reasons are few and static, so the map is
/// soon complete and only read.
#[derive(Debug, Default)]
pub struct Refusals {
    counters: ArcSwap<Counters>,
}

impl Refusals {
    /// Counts one refusal.
    pub fn count(&self, reason: Reason, direction: Direction) {
        let key = (reason.as_str(), direction);
        if let Some(counter) = self.counters.load().get(&key) {
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counters.rcu(|old| {
            let mut new = Counters::clone(old);
            new.entry(key).or_default();
            new
        });
        if let Some(counter) = self.counters.load().get(&key) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Collector for Refusals {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Connections refused, by reason";
        let mut metric =
            encoder.encode_descriptor("karst_refusals", help, None, MetricType::Counter)?;
        for ((reason, direction), counter) in self.counters.load().iter() {
            let labels = [("reason", *reason), ("direction", direction.as_str())];
            let value = counter.load(Ordering::Relaxed);
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::Refusals;
    use crate::proxy::Direction;
    use crate::reason::Reason;

    #[test]
    fn concurrent_first_counts_are_not_lost() {
        let refusals = Arc::new(Refusals::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        refusals.count(Reason::SelfCall, Direction::Outbound);
                        refusals.count(Reason::NotCaptured, Direction::Inbound);
                    }
                });
            }
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&refusals)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        let line = "karst_refusals_total{reason=\"self_call\",direction=\"outbound\"} 800";
        assert!(text.contains(line), "{text}");
    }
}
