// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Chooses by what each rule is looked up, and builds the table for it.
//!
//! A rule can be looked up by any of its clauses, because all must match; a clause by the keys of
//! all its matches together, because any may match; a match by any attribute that is not negated.
//! The choice is what the fewest rules share: rules for one namespace that differ in their ports
//! are looked up by port, rules for one port that differ in their principals by principal.

use alloc::vec::Vec;

use super::lower::{ClauseKeys, Key, RuleKeys, index};
use super::rows::{Attribute, Bits, KeyRow, Probe, ProbeRow, Span};
use super::set::PolicySet;

/// Most probes of a set. Each costs every decision about as much as one or two rules do that are
/// always tried; prefixes of this many different lengths can be looked up.
const MAX_PROBES: usize = 32;

/// Fewest values that a probe must be able to tell apart to be worth it.
const LEAST_VALUES: usize = 3;

/// What choices are made by.
struct Frequencies {
    /// All keys of all rules, sorted.
    keys: Vec<u64>,
    /// The probes that may be used, sorted.
    probes: Vec<Probe>,
}

/// Fills in the tables by which rules are looked up.
pub(super) fn build(set: &mut PolicySet, rules: &[RuleKeys]) {
    let frequencies = Frequencies::new(rules);
    let mut probes: Vec<Probe> = Vec::new();
    let mut postings: Vec<(u64, u32)> = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        let cheapest = rule
            .iter()
            .filter_map(|clause| frequencies.choose(clause))
            .min_by_key(|(cost, _)| *cost);
        match cheapest {
            Some((_, keys)) => {
                for key in keys {
                    probes.push(key.probe);
                    postings.push((key.key, index(number)));
                }
            }
            None => set.residual.push(index(number)),
        }
    }
    probes.sort_unstable();
    probes.dedup();
    set.probes = probes.into_iter().map(probe_row).collect();
    postings.sort_unstable();
    postings.dedup();
    table(set, &postings);
}

impl Frequencies {
    fn new(rules: &[RuleKeys]) -> Self {
        let all = || rules.iter().flatten().flatten().flatten().flatten();
        let mut keys: Vec<u64> = all().map(|key| key.key).collect();
        keys.sort_unstable();
        let mut probes: Vec<Probe> = all().map(|key| key.probe).collect();
        probes.sort_unstable();
        let mut counted: Vec<(usize, Probe)> = probes
            .chunk_by(Probe::eq)
            .filter_map(|equal| Some((equal.len(), *equal.first()?)))
            .filter(|(count, _)| *count >= LEAST_VALUES)
            .collect();
        // The most useful ones; among equals always the same.
        counted.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        counted.truncate(MAX_PROBES);
        let mut probes: Vec<Probe> = counted.into_iter().map(|(_, probe)| probe).collect();
        probes.sort_unstable();
        Self { keys, probes }
    }

    /// The keys to find a clause by, with how many values of all rules share them; `None` when a
    /// match of it cannot be looked up.
    fn choose<'k>(&self, clause: &'k ClauseKeys) -> Option<(usize, Vec<&'k Key>)> {
        let (mut cost, mut keys) = (0, Vec::new());
        for attributes in clause {
            let usable = attributes.iter().filter(|keys| {
                let probe = |key: &Key| self.probes.binary_search(&key.probe).is_ok();
                keys.iter().all(probe)
            });
            let (least, chosen) = usable
                .map(|keys| {
                    (
                        keys.iter().map(|key| self.count(key.key)).sum::<usize>(),
                        keys,
                    )
                })
                .min_by_key(|(cost, _)| *cost)?;
            cost += least;
            keys.extend(chosen);
        }
        Some((cost, keys))
    }

    fn count(&self, key: u64) -> usize {
        let start = self.keys.partition_point(|other| *other < key);
        let end = self.keys.partition_point(|other| *other <= key);
        end.saturating_sub(start)
    }
}

fn probe_row(probe: Probe) -> ProbeRow {
    let is_address =
        probe.attribute == Attribute::SOURCE_IP || probe.attribute == Attribute::DESTINATION_IP;
    let mask = match u8::try_from(probe.length) {
        Ok(length) if is_address => Bits::mask(length),
        _ => Bits::default(),
    };
    ProbeRow {
        probe,
        padding: [0; 4],
        mask,
    }
}

/// The keys with their rules, in buckets that are half full.
fn table(set: &mut PolicySet, postings: &[(u64, u32)]) {
    for equal in postings.chunk_by(|a, b| a.0 == b.0) {
        let start = index(set.postings.len());
        set.postings.extend(equal.iter().map(|(_, rule)| *rule));
        let end = index(set.postings.len());
        if let Some((key, _)) = equal.first() {
            let postings = Span { start, end };
            set.keys.push(KeyRow {
                key: *key,
                postings,
            });
        }
    }
    if set.keys.is_empty() {
        return;
    }
    set.bucket_bits = (set.keys.len() * 2).next_power_of_two().ilog2();
    let shift = u64::BITS - set.bucket_bits;
    let first_of = |bucket: u64| set.keys.partition_point(|row| row.key >> shift < bucket);
    let buckets = 0..=1_u64 << set.bucket_bits;
    set.buckets = buckets.map(|bucket| index(first_of(bucket))).collect();
}
