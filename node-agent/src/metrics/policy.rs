//! Denials by policy: those that are enforced, and those of dry runs. A series ends with its policy or rule.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use karst_process::metrics::Out;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::traffic::is_silent;
use crate::state::endpoint::now_ms;
use crate::state::policy::{Denial, IMPLICIT_DENY};

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

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    denials: u64,
    touched_ms: u64,
}

/// Counts denials. They take a lock: what is allowed does not come here.
#[derive(Debug, Default)]
pub struct PolicyMetrics(Mutex<BTreeMap<Key, Count>>);

impl PolicyMetrics {
    /// Counts one denial.
    pub fn denied(&self, denial: &Denial, mode: Mode) {
        let mut key = (denial.policy_name().to_owned(), denial.rule, mode);
        let mut counts = self.counts();
        if counts.len() >= MAX_SERIES && !counts.contains_key(&key) {
            key = (OTHER.to_owned(), None, mode);
        }
        let count = counts.entry(key).or_default();
        count.denials += 1;
        count.touched_ms = now_ms();
    }

    /// Drops the series of policies and rules that `exists` no longer knows once nothing was denied by them for a
    /// while. Those that stand for no policy stay: there are few.
    pub(super) fn expire_at(&self, now: u64, exists: impl Fn(&str, Option<u32>) -> bool) {
        let stands_for_none = |name: &str| [IMPLICIT_DENY, OTHER].contains(&name);
        self.counts().retain(|(policy, rule, _), count| {
            !is_silent(count.touched_ms, now) || stands_for_none(policy) || exists(policy, *rule)
        });
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<Key, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for PolicyMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = self.counts().clone();
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
            (labels, count.denials)
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
    use crate::metrics::Metrics;
    use crate::reason::Reason;
    use crate::state::MeshState;
    use crate::state::endpoint::now_ms;
    use crate::state::policy::{Denial, Policy, PolicyScope};

    fn denial(policy: Option<&str>, rule: Option<u32>) -> Denial {
        Denial {
            reason: Reason::PolicyDenied,
            policy: policy.map(Arc::from),
            rule,
            detail: None,
        }
    }

    fn scrape(metrics: impl Into<Arc<PolicyMetrics>>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics.into()));
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

    /// More than the time that a series outlives its last event, milliseconds.
    const LATER_MS: u64 = 121_000;

    #[test]
    fn a_series_ends_with_its_policy_or_rule() {
        let metrics = Arc::new(PolicyMetrics::default());
        for (policy, rule) in [
            (Some("ns/stays"), Some(0)),
            (Some("ns/stays"), Some(1)),
            (Some("ns/goes"), Some(0)),
            (None, None),
        ] {
            metrics.denied(&denial(policy, rule), Mode::Enforced);
        }
        let exists = |policy: &str, rule: Option<u32>| policy == "ns/stays" && rule == Some(0);
        metrics.expire_at(now_ms(), exists);
        let text = scrape(Arc::clone(&metrics));
        assert!(text.contains("ns/goes"), "not scraped yet: {text}");
        metrics.expire_at(now_ms() + LATER_MS, exists);
        let text = scrape(metrics);
        let left: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            left,
            [
                "karst_policy_denials_total{policy=\"implicit_deny\",rule=\"\",mode=\"enforced\"} 1",
                "karst_policy_denials_total{policy=\"ns/stays\",rule=\"0\",mode=\"enforced\"} 1",
            ]
        );
    }

    #[test]
    fn what_has_ended_makes_room_for_others() {
        let metrics = PolicyMetrics::default();
        let count = |name: &str| metrics.denied(&denial(Some(name), Some(0)), Mode::Enforced);
        (0..MAX_SERIES).for_each(|index| count(&format!("ns/{index}")));
        count("ns/new");
        metrics.expire_at(now_ms() + LATER_MS, |_, _| false);
        count("ns/new");
        let text = scrape(metrics);
        for line in [
            "karst_policy_denials_total{policy=\"ns/new\",rule=\"0\",mode=\"enforced\"} 1",
            "karst_policy_denials_total{policy=\"other\",rule=\"\",mode=\"enforced\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("ns/0"), "{text}");
    }

    #[test]
    fn the_agent_ends_series_by_the_policies_in_force() {
        let policy = Policy {
            name: Arc::from("ns/stays"),
            scope: PolicyScope::Global,
            dry_run: false,
            rules: None,
        };
        let state = MeshState::default();
        state.publish_policies(&[(Arc::clone(&policy.name), Arc::new(policy))].into());
        let metrics = Metrics::default();
        for name in ["ns/stays", "ns/gone"] {
            let denial = denial(Some(name), None);
            metrics.policies.denied(&denial, Mode::Enforced);
        }
        metrics.expire_at(now_ms() + LATER_MS, &state);
        let text = scrape(Arc::clone(&metrics.policies));
        assert!(text.contains("ns/stays"), "{text}");
        assert!(!text.contains("ns/gone"), "{text}");
    }
}
