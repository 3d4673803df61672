// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! From the model to rows, and for each rule the keys that it could be looked up by.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::model::{Action, Clause, IpBlock, Match, Policy, ServiceAccount, StringMatch};
use super::rows::{
    Attribute, Bits, ExactRow, Form, PatternRow, Probe, RangeRow, RuleRow, Span, TestRow,
};
use super::set::{MAX_SET_TEXT_BYTES, PolicySet, Problem};
use super::view::of_bits;
use super::{Hit, hash};

/// First and last of the IPv4 addresses among those of IPv6: `::ffff:0:0/96`.
const MAPPED: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

/// A key, and the probe that it is found by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub probe: Probe,
    pub key: u64,
}

/// One attribute of a match: a connection that matches has one of these keys.
pub(super) type AttributeKeys = Vec<Key>;

/// Attributes of a match, any of which will do to look it up.
pub(super) type MatchKeys = Vec<AttributeKeys>;

/// Matches of a clause, all of which must be looked up.
pub(super) type ClauseKeys = Vec<MatchKeys>;

/// Clauses of a rule, any of which will do to look it up.
pub(super) type RuleKeys = Vec<ClauseKeys>;

/// A set in the making.
#[derive(Default)]
pub(super) struct Lowering<'p> {
    set: PolicySet,
    /// Where a text is, so that equal ones are kept once.
    texts: BTreeMap<&'p str, Span>,
    keys: Vec<RuleKeys>,
}

/// A length as an index. The limits of a set keep all of them far below four billion.
pub(super) const fn index(length: usize) -> u32 {
    length as u32
}

/// Adds rows to a table and says where they are.
fn append<T>(table: &mut Vec<T>, rows: impl IntoIterator<Item = T>) -> Span {
    let start = index(table.len());
    table.extend(rows);
    Span {
        start,
        end: index(table.len()),
    }
}

impl<'p> Lowering<'p> {
    /// The rows, and the keys of each rule.
    pub(super) fn done(self) -> (PolicySet, Vec<RuleKeys>) {
        (self.set, self.keys)
    }

    /// Adds a policy, all DENY policies first.
    pub(super) fn policy(&mut self, number: usize, policy: &'p Policy) -> Result<(), Problem> {
        for (rule_number, rule) in policy.rules.iter().enumerate() {
            let hit = Hit {
                policy: index(number),
                rule: index(rule_number),
            };
            self.rule(hit, &rule.clauses)?;
        }
        match policy.action {
            Action::Deny => self.set.deny_rules = index(self.set.rules.len()),
            Action::Allow => self.set.has_allow = true,
        }
        Ok(())
    }

    /// Adds a rule, unless it can never match: one that has a clause whose matches are all empty.
    fn rule(&mut self, hit: Hit, clauses: &'p [Clause]) -> Result<(), Problem> {
        let (mut rows, mut keys) = (Vec::new(), RuleKeys::new());
        // A clause without matches always matches.
        for clause in clauses.iter().filter(|clause| !clause.matches.is_empty()) {
            let (mut matches, mut clause_keys) = (Vec::new(), ClauseKeys::new());
            for condition in &clause.matches {
                // One without any condition never matches.
                let (tests, match_keys) = self.tests(condition)?;
                if !tests.is_empty() {
                    matches.push(append(&mut self.set.tests, tests));
                    clause_keys.push(match_keys);
                }
            }
            if matches.is_empty() {
                return Ok(());
            }
            rows.push(append(&mut self.set.matches, matches));
            keys.push(clause_keys);
        }
        let clauses = append(&mut self.set.clauses, rows);
        self.set.rules.push(RuleRow { clauses, hit });
        self.keys.push(keys);
        Ok(())
    }

    /// The tests of a match, cheap ones first, with the keys of those that are not negated.
    fn tests(&mut self, m: &'p Match) -> Result<(Vec<TestRow>, MatchKeys), Problem> {
        let (mut tests, mut keys) = (Vec::new(), MatchKeys::new());
        let ports = [&m.destination_ports, &m.not_destination_ports];
        self.ports(ports, &mut tests, &mut keys);
        let sources = [&m.source_ips, &m.not_source_ips];
        self.blocks(Attribute::SOURCE_IP, sources, &mut tests, &mut keys);
        let destinations = [&m.destination_ips, &m.not_destination_ips];
        let attribute = Attribute::DESTINATION_IP;
        self.blocks(attribute, destinations, &mut tests, &mut keys);
        let accounts = [&m.service_accounts, &m.not_service_accounts];
        self.accounts(accounts, &mut tests, &mut keys)?;
        let namespaces = [&m.namespaces, &m.not_namespaces];
        self.texts(Attribute::NAMESPACE, namespaces, &mut tests, &mut keys)?;
        let principals = [&m.principals, &m.not_principals];
        self.texts(Attribute::PRINCIPAL, principals, &mut tests, &mut keys)?;
        Ok((tests, keys))
    }

    fn ports(&mut self, lists: [&Vec<u16>; 2], tests: &mut Vec<TestRow>, keys: &mut MatchKeys) {
        let attribute = Attribute::DESTINATION_PORT;
        for (negated, list) in present(lists) {
            let mut ports = list.clone();
            ports.sort_unstable();
            ports.dedup();
            if negated == 0 {
                let probe = Probe::new(attribute, Form::EXACT, 0);
                let key = |port: &u16| found(probe, u64::from(*port));
                keys.push(ports.iter().map(key).collect());
            }
            let values = append(&mut self.set.ports, ports);
            tests.push(test(attribute, negated, values, Span::default()));
        }
    }

    fn blocks(
        &mut self,
        attribute: Attribute,
        lists: [&Vec<IpBlock>; 2],
        tests: &mut Vec<TestRow>,
        keys: &mut MatchKeys,
    ) {
        for (negated, list) in present(lists) {
            if negated == 0 {
                let key = |block: &IpBlock| {
                    let network = Bits::new(&block.ip).masked(Bits::mask(block.length));
                    let length = u16::from(block.length);
                    found(
                        Probe::new(attribute, Form::PREFIX, length),
                        of_bits(network),
                    )
                };
                keys.push(list.iter().map(key).collect());
            }
            let values = append(&mut self.set.ranges, ranges(list));
            tests.push(test(attribute, negated, values, Span::default()));
        }
    }

    fn accounts(
        &mut self,
        lists: [&'p Vec<ServiceAccount>; 2],
        tests: &mut Vec<TestRow>,
        keys: &mut MatchKeys,
    ) -> Result<(), Problem> {
        let attribute = Attribute::ACCOUNT;
        for (negated, list) in present(lists) {
            let mut rows = Vec::with_capacity(list.len());
            for value in list {
                let namespace = hash::of(value.namespace.as_bytes());
                rows.push(ExactRow {
                    hash: hash::add(namespace, hash::of(value.account.as_bytes())),
                    first: self.intern(&value.namespace)?,
                    second: self.intern(&value.account)?,
                });
            }
            if negated == 0 {
                let probe = Probe::new(attribute, Form::EXACT, 0);
                keys.push(rows.iter().map(|row| found(probe, row.hash)).collect());
            }
            let values = self.exact(rows);
            tests.push(test(attribute, negated, values, Span::default()));
        }
        Ok(())
    }

    fn texts(
        &mut self,
        attribute: Attribute,
        lists: [&'p Vec<StringMatch>; 2],
        tests: &mut Vec<TestRow>,
        keys: &mut MatchKeys,
    ) -> Result<(), Problem> {
        for (negated, list) in present(lists) {
            let (mut exact, mut patterns) = (Vec::new(), Vec::new());
            for value in list {
                let (form, text) = match value {
                    StringMatch::Exact(text) => {
                        exact.push(ExactRow {
                            hash: hash::of(text.as_bytes()),
                            first: self.intern(text)?,
                            second: Span::default(),
                        });
                        continue;
                    }
                    StringMatch::Prefix(text) => (Form::PREFIX, text.as_str()),
                    StringMatch::Suffix(text) => (Form::SUFFIX, text.as_str()),
                    StringMatch::Presence => (Form::PRESENCE, ""),
                };
                patterns.push(PatternRow {
                    form,
                    padding: [0; 3],
                    text: self.intern(text)?,
                });
            }
            if negated == 0
                && let Some(text_keys) = list.iter().map(|v| text_key(attribute, v)).collect()
            {
                keys.push(text_keys);
            }
            let values = self.exact(exact);
            let patterns = append(&mut self.set.patterns, patterns);
            tests.push(test(attribute, negated, values, patterns));
        }
        Ok(())
    }

    /// Adds exact values in the order in which they are searched.
    fn exact(&mut self, mut rows: Vec<ExactRow>) -> Span {
        rows.sort_unstable_by_key(|row| (row.hash, row.first.start, row.second.start));
        rows.dedup();
        append(&mut self.set.exact, rows)
    }

    fn intern(&mut self, text: &'p str) -> Result<Span, Problem> {
        if let Some(span) = self.texts.get(text) {
            return Ok(*span);
        }
        if self.set.text.len() + text.len() > MAX_SET_TEXT_BYTES {
            return Err(Problem::SetText);
        }
        let span = append(&mut self.set.text, text.bytes());
        self.texts.insert(text, span);
        Ok(span)
    }
}

/// Of a plain list and its negation those that are conditions at all.
fn present<T>(lists: [&Vec<T>; 2]) -> impl Iterator<Item = (u8, &Vec<T>)> {
    [0, 1]
        .into_iter()
        .zip(lists)
        .filter(|(_, list)| !list.is_empty())
}

fn test(attribute: Attribute, negated: u8, values: Span, patterns: Span) -> TestRow {
    TestRow {
        attribute,
        negated,
        padding: [0; 2],
        values,
        patterns,
    }
}

fn found(probe: Probe, hash: u64) -> Key {
    Key {
        probe,
        key: probe.key(hash),
    }
}

/// What a text is looked up by; `None` for a condition that nearly all texts meet.
fn text_key(attribute: Attribute, value: &StringMatch) -> Option<Key> {
    let (form, text) = match value {
        StringMatch::Exact(text) => {
            let probe = Probe::new(attribute, Form::EXACT, 0);
            return Some(found(probe, hash::of(text.as_bytes())));
        }
        StringMatch::Prefix(text) if !text.is_empty() => (Form::PREFIX, text),
        StringMatch::Suffix(text) if !text.is_empty() => (Form::SUFFIX, text),
        _ => return None,
    };
    let probe = Probe::new(attribute, form, u16::try_from(text.len()).ok()?);
    Some(found(probe, hash::of(text.as_bytes())))
}

/// Blocks as ranges that are sorted and apart, each of addresses of one family.
fn ranges(blocks: &[IpBlock]) -> Vec<RangeRow> {
    let mut ranges: Vec<(u128, u128)> = Vec::with_capacity(blocks.len());
    for block in blocks {
        let address = u128::from_be_bytes(block.ip.octets());
        let beyond = u128::MAX.checked_shr(block.length.into()).unwrap_or(0);
        let (first, last) = (address & !beyond, address | beyond);
        if block.ip.is_v4() || last < MAPPED.0 || first > MAPPED.1 {
            ranges.push((first, last));
        } else {
            // Around the IPv4 addresses, of which an IPv6 block has none: one that reaches them
            // is shorter than 96 bits, so that it has all of them and begins before them.
            ranges.push((first, MAPPED.0 - 1));
            if last > MAPPED.1 {
                ranges.push((MAPPED.1 + 1, last));
            }
        }
    }
    ranges.sort_unstable();
    let mut apart: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match apart.last_mut() {
            // Touching ones may become one: a range does not say what it came from.
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    let row = |(first, last)| RangeRow {
        first: Bits::from_u128(first),
        last: Bits::from_u128(last),
    };
    apart.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn block(ip: &str, length: u8) -> IpBlock {
        let ip = ip.parse::<IpAddr>().unwrap().into();
        IpBlock { ip, length }
    }

    #[test]
    fn ranges_are_merged_and_apart() {
        let all = ranges(&[
            block("10.1.0.0", 112),
            block("10.0.0.0", 104),
            block("11.0.0.0", 104),
            block("13.0.0.1", 128),
        ]);
        let words: Vec<_> = all.iter().map(|r| (r.first.0[1], r.last.0[1])).collect();
        assert_eq!(
            words,
            [
                (0xffff_0a00_0000, 0xffff_0bff_ffff),
                (0xffff_0d00_0001, 0xffff_0d00_0001)
            ]
        );
    }

    #[test]
    fn an_ipv6_block_leaves_ipv4_out() {
        let all = ranges(&[block("::", 0)]);
        let bits = |high, low| Bits([high, low]);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].first, bits(0, 0));
        assert_eq!(all[0].last, bits(0, 0xfffe_ffff_ffff));
        assert_eq!(all[1].first, bits(0, 0x1_0000_0000_0000));
        assert_eq!(all[1].last, bits(u64::MAX, u64::MAX));
        assert_eq!(ranges(&[block("::", 95)]).len(), 1, "before them");
        assert_eq!(ranges(&[block("::fffe:0:0", 95)]).len(), 1, "up to them");
        assert_eq!(ranges(&[block("::", 79)]).len(), 2, "around them");
        // Both families together are everything.
        let both = ranges(&[block("::", 0), block("0.0.0.0", 96)]);
        assert_eq!(both.len(), 1);
    }

    #[test]
    fn masks_have_their_bits_in_front() {
        assert_eq!(Bits::mask(0), Bits([0, 0]));
        assert_eq!(Bits::mask(1), Bits([1 << 63, 0]));
        assert_eq!(Bits::mask(65), Bits([u64::MAX, 1 << 63]));
        assert_eq!(Bits::mask(128), Bits([u64::MAX, u64::MAX]));
    }
}
