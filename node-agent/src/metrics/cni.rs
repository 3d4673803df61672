//! Calls of the CNI plugin, by command and outcome.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// A command of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// A sandbox was made.
    Add,
    /// Is it as it should be?
    Check,
    /// It ends.
    Del,
    /// Sandboxes may have ended unheard.
    Gc,
}

impl Command {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
        }
    }
}

/// The counters. Reasons are labels of ours, so there are few.
#[derive(Debug, Default)]
pub struct CniMetrics(Mutex<BTreeMap<(Command, &'static str), u64>>);

impl CniMetrics {
    /// Counts a call that ended with `reason`, which is `ok` for a good end.
    pub fn count(&self, command: Command, reason: &'static str) {
        // A panic elsewhere cannot leave a number half written.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((command, reason)).or_default() += 1;
    }
}

/// The same for a registry that owns what it scrapes.
#[derive(Debug)]
pub struct CniCollector(pub std::sync::Arc<CniMetrics>);

impl Collector for CniCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counts = self
            .0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut metric = encoder.encode_descriptor(
            "karst_cni_requests",
            "Calls of the CNI plugin, by command and outcome",
            None,
            MetricType::Counter,
        )?;
        for ((command, reason), value) in counts {
            metric
                .encode_family(&[("command", command.as_str()), ("reason", reason)])?
                .encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}
