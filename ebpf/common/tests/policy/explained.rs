// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What is said of each rule comes to what the matcher decides, and what is said to be unmet is.

use karst_bpf_common::policy::explain::explain;
use karst_bpf_common::policy::model::{Action, Policy};
use karst_bpf_common::policy::{Attributes, Hit, Verdict};

/// The verdict that follows from the explanations of each policy alone.
pub fn verdict(policies: &[Policy], a: &Attributes<'_>) -> Verdict {
    let first = |action: Action| {
        let policies = policies.iter().enumerate();
        let mut policies = policies.filter(|(_, policy)| policy.action == action);
        policies.find_map(|(number, policy)| {
            let rules = explain(policy, a).unwrap();
            assert_eq!(rules.len(), policy.rules.len());
            for (rule, unmet) in policy.rules.iter().zip(&rules) {
                let Some(unmet) = unmet else { continue };
                let clause = &rule.clauses[unmet.clause];
                assert_eq!(unmet.alternatives.len(), clause.matches.len(), "{rule:?}");
            }
            Some(Hit {
                policy: number as u32,
                rule: rules.iter().position(Option::is_none)? as u32,
            })
        })
    };
    if let Some(hit) = first(Action::Deny) {
        return Verdict::Deny { by: Some(hit) };
    }
    if !policies.iter().any(|policy| policy.action == Action::Allow) {
        return Verdict::Allow { by: None };
    }
    match first(Action::Allow) {
        Some(hit) => Verdict::Allow { by: Some(hit) },
        None => Verdict::Deny { by: None },
    }
}
