//! Denials by policy: those that are enforced, and those of dry runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use karst_process::metrics::Out;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::state::policy::Denial;

/// Combinations of policy, rule and mode that are counted apart. What users write is not bounded, what a
/// scrape returns is.
const MAX_SERIES: usize = 1024;
/// Stands for the policies beyond [`MAX_SERIES`]. No policy is called so: a name has a slash.
const OTHER: &str = "other";

/// Whether a denial was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The connection was refused or cut.
    Enforced,
    /// The connection went on.
    DryRun,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::DryRun => "dry_run",
        }
    }
}

type Key = (String, Option<u32>, Mode);

/// Counts denials. They take a lock: what is allowed does not come here.
#[derive(Debug, Default)]
pub struct PolicyMetrics(Mutex<BTreeMap<Key, u64>>);

impl PolicyMetrics {
    /// Counts one denial.
    pub fn denied(&self, denial: &Denial, mode: Mode) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (denial.policy_name().to_owned(), denial.rule, mode);
        if counts.len() >= MAX_SERIES && !counts.contains_key(&key) {
            key = (OTHER.to_owned(), None, mode);
        }
        *counts.entry(key).or_default() += 1;
    }
}

impl Collector for PolicyMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let rules: Vec<String> = counts
            .keys()
            .map(|(_, rule, _)| rule.map_or_else(String::new, |rule| rule.to_string()))
            .collect();
        let counts = counts.iter().zip(&rules);
        let counts = counts.map(|(((policy, _, mode), count), rule)| {
            let labels = vec![
                ("policy", policy.as_str()),
                ("rule", rule.as_str()),
                ("mode", mode.as_str()),
            ];
            (labels, *count)
        });
        let help = "Connections that policies refused or cut, or would have";
        Out::new(encoder).counters("karst_policy_denials", help, counts)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_process::metrics::text;
    use prometheus_client::registry::Registry;

    use super::{MAX_SERIES, Mode, PolicyMetrics};
    use crate::reason::Reason;
    use crate::state::policy::Denial;

    fn denial(policy: Option<&str>, rule: Option<u32>) -> Denial {
        Denial {
            reason: Reason::PolicyDenied,
            policy: policy.map(Arc::from),
            rule,
            detail: None,
        }
    }

    fn scrape(metrics: PolicyMetrics) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics));
        text(&registry).expect("encodes")
    }

    #[test]
    fn policies_rules_and_modes_are_counted_apart() {
        let metrics = PolicyMetrics::default();
        metrics.denied(&denial(Some("ns/p"), Some(1)), Mode::Enforced);
        metrics.denied(&denial(Some("ns/p"), Some(1)), Mode::Enforced);
        metrics.denied(&denial(Some("ns/p"), Some(1)), Mode::DryRun);
        metrics.denied(&denial(None, None), Mode::Enforced);
        let text = scrape(metrics);
        for line in [
            "karst_policy_denials_total{policy=\"ns/p\",rule=\"1\",mode=\"enforced\"} 2",
            "karst_policy_denials_total{policy=\"ns/p\",rule=\"1\",mode=\"dry_run\"} 1",
            "karst_policy_denials_total{policy=\"implicit_deny\",rule=\"\",mode=\"enforced\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn many_policies_share_a_series() {
        let metrics = PolicyMetrics::default();
        for index in 0..MAX_SERIES + 7 {
            metrics.denied(
                &denial(Some(&format!("ns/{index}")), Some(0)),
                Mode::Enforced,
            );
        }
        let text = scrape(metrics);
        let other = "karst_policy_denials_total{policy=\"other\",rule=\"\",mode=\"enforced\"} 7";
        assert!(text.contains(other), "{text}");
    }
}
