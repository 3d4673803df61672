// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The decision.
//!
//! It reads slices of plain data, takes no lock, allocates nothing, does not recurse and does not
//! panic. An index that leads nowhere refuses the connection: the compiler makes none, and data
//! that does not fit together must not open anything.

use super::rows::{
    Attribute, Bits, ExactRow, Form, KeyRow, PatternRow, ProbeRow, RangeRow, RuleRow, Span, TestRow,
};
use super::{Attributes, Verdict, hash};

/// Compiled policies that somebody else owns, as borrowed slices of plain data.
#[derive(Clone, Copy, Debug)]
pub struct PolicyView<'a> {
    /// How many rules, the first ones, are of DENY policies.
    pub(super) deny_rules: u32,
    /// Whether there is an ALLOW policy: if so, what none matches is refused.
    pub(super) has_allow: bool,
    /// Two to the power of this are the buckets.
    pub(super) bucket_bits: u32,
    pub(super) rules: &'a [RuleRow],
    pub(super) clauses: &'a [Span],
    pub(super) matches: &'a [Span],
    pub(super) tests: &'a [TestRow],
    pub(super) exact: &'a [ExactRow],
    pub(super) patterns: &'a [PatternRow],
    pub(super) ranges: &'a [RangeRow],
    pub(super) ports: &'a [u16],
    pub(super) text: &'a [u8],
    pub(super) probes: &'a [ProbeRow],
    pub(super) buckets: &'a [u32],
    pub(super) keys: &'a [KeyRow],
    pub(super) postings: &'a [u32],
    /// Rules that no probe finds, ascending.
    pub(super) residual: &'a [u32],
}

/// A text, or a pair of them, with its hash.
#[derive(Clone, Copy)]
struct Subject<'a> {
    hash: u64,
    first: &'a [u8],
    second: &'a [u8],
}

/// A connection, with everything worked out that more than one test may want.
struct Connection<'a> {
    namespace: Option<Subject<'a>>,
    principal: Option<Subject<'a>>,
    account: Option<Subject<'a>>,
    source_ip: Bits,
    destination_ip: Bits,
    destination_port: u16,
}

impl<'a> Connection<'a> {
    #[inline]
    fn new(a: &Attributes<'a>) -> Self {
        let text = |text: &'a str| Subject {
            hash: hash::of(text.as_bytes()),
            first: text.as_bytes(),
            second: &[],
        };
        let namespace = a.source.map(|source| text(source.namespace));
        let account = a.source.zip(namespace).map(|(source, namespace)| Subject {
            hash: hash::add(namespace.hash, hash::of(source.service_account.as_bytes())),
            first: namespace.first,
            second: source.service_account.as_bytes(),
        });
        Self {
            namespace,
            principal: a.source.map(|source| text(source.principal)),
            account,
            source_ip: Bits::new(&a.source_ip),
            destination_ip: Bits::new(&a.destination_ip),
            destination_port: a.destination_port,
        }
    }

    /// The text, or texts, of an attribute; `None` also when it has none of that kind.
    #[inline(always)]
    fn subject(&self, attribute: Attribute) -> Option<Subject<'a>> {
        match attribute {
            Attribute::NAMESPACE => self.namespace,
            Attribute::PRINCIPAL => self.principal,
            Attribute::ACCOUNT => self.account,
            _ => None,
        }
    }

    /// What the part of the attribute that a probe looks at hashes to; `None` when there is none.
    #[inline]
    fn hash(&self, row: &ProbeRow) -> Option<u64> {
        match row.probe.attribute {
            Attribute::DESTINATION_PORT => Some(u64::from(self.destination_port)),
            Attribute::SOURCE_IP => Some(of_bits(self.source_ip.masked(row.mask))),
            Attribute::DESTINATION_IP => Some(of_bits(self.destination_ip.masked(row.mask))),
            attribute => {
                let subject = self.subject(attribute)?;
                let (text, length) = (subject.first, usize::from(row.probe.length));
                match row.probe.form {
                    Form::EXACT => Some(subject.hash),
                    Form::PREFIX => Some(hash::of(text.get(..length)?)),
                    _ => Some(hash::of(text.get(text.len().checked_sub(length)?..)?)),
                }
            }
        }
    }
}

/// The hash of an address or of the first bits of one.
#[inline(always)]
pub(super) const fn of_bits(bits: Bits) -> u64 {
    hash::add(bits.0[0], bits.0[1])
}

/// What is found so far.
struct Search<'v, 'a> {
    view: &'v PolicyView<'v>,
    connection: Connection<'a>,
    /// The lowest number of a rule that matches.
    first: u32,
}

impl Search<'_, '_> {
    /// Tries ascending candidates up to one that matches, or that comes too late.
    #[inline]
    fn go_through(&mut self, candidates: &[u32]) -> Option<()> {
        for &number in candidates {
            if number >= self.first {
                break;
            }
            let rule = self.view.rules.get(number as usize)?;
            if self.view.rule_matches(rule, &self.connection)? {
                self.first = number;
                break;
            }
        }
        Some(())
    }
}

impl PolicyView<'_> {
    /// Decides about a connection: DENY policies first, whatever the order of the list. Time is
    /// spent on the rules that may match by the attribute they are indexed by, and on those that
    /// cannot be indexed.
    #[must_use]
    pub fn decide(&self, a: &Attributes<'_>) -> Verdict {
        self.search(a).unwrap_or(Verdict::Deny { by: None })
    }

    fn search(&self, a: &Attributes<'_>) -> Option<Verdict> {
        let mut search = Search {
            view: self,
            connection: Connection::new(a),
            // One past the last rule stands for none.
            first: u32::try_from(self.rules.len()).ok()?,
        };
        for row in self.probes {
            if let Some(hash) = search.connection.hash(row) {
                search.go_through(self.candidates(row.probe.key(hash))?)?;
            }
        }
        search.go_through(self.residual)?;
        let by = self.rules.get(search.first as usize).map(|rule| rule.hit);
        Some(match by {
            Some(_) if search.first < self.deny_rules => Verdict::Deny { by },
            None if self.has_allow => Verdict::Deny { by },
            _ => Verdict::Allow { by },
        })
    }

    /// The rules under a key, and perhaps others.
    #[inline]
    fn candidates(&self, key: u64) -> Option<&[u32]> {
        let bucket = key
            .checked_shr(u64::BITS.checked_sub(self.bucket_bits)?)
            .unwrap_or(0);
        let bucket = usize::try_from(bucket).ok()?;
        let span = Span {
            start: *self.buckets.get(bucket)?,
            end: *self.buckets.get(bucket.checked_add(1)?)?,
        };
        for row in span.of(self.keys)? {
            if row.key == key {
                return row.postings.of(self.postings);
            }
        }
        Some(&[])
    }

    fn rule_matches(&self, rule: &RuleRow, c: &Connection<'_>) -> Option<bool> {
        for clause in rule.clauses.of(self.clauses)? {
            let mut any = false;
            for tests in clause.of(self.matches)? {
                if self.all_hold(tests.of(self.tests)?, c)? {
                    any = true;
                    break;
                }
            }
            if !any {
                return Some(false);
            }
        }
        Some(true)
    }

    fn all_hold(&self, tests: &[TestRow], c: &Connection<'_>) -> Option<bool> {
        for test in tests {
            let any = match test.attribute {
                Attribute::DESTINATION_PORT => {
                    let ports = test.values.of(self.ports)?;
                    let before = ports.partition_point(|port| *port < c.destination_port);
                    ports.get(before) == Some(&c.destination_port)
                }
                Attribute::SOURCE_IP => self.in_range(test, c.source_ip)?,
                Attribute::DESTINATION_IP => self.in_range(test, c.destination_ip)?,
                attribute => match c.subject(attribute) {
                    Some(subject) => self.is_text(test, &subject)?,
                    // What is absent is nothing, so that it is also not anything.
                    None => false,
                },
            };
            if any == (test.negated != 0) {
                return Some(false);
            }
        }
        Some(true)
    }

    #[inline]
    fn in_range(&self, test: &TestRow, address: Bits) -> Option<bool> {
        let ranges = test.values.of(self.ranges)?;
        let begun = ranges.partition_point(|range| !range.first.is_after(address));
        let last = begun.checked_sub(1).and_then(|last| ranges.get(last));
        Some(last.is_some_and(|range| !address.is_after(range.last)))
    }

    #[inline]
    fn is_text(&self, test: &TestRow, subject: &Subject<'_>) -> Option<bool> {
        let exact = test.values.of(self.exact)?;
        let before = exact.partition_point(|row| row.hash < subject.hash);
        for row in exact.get(before..)? {
            if row.hash != subject.hash {
                break;
            }
            if hash::same(row.first.of(self.text)?, subject.first)
                && hash::same(row.second.of(self.text)?, subject.second)
            {
                return Some(true);
            }
        }
        for pattern in test.patterns.of(self.patterns)? {
            let (wanted, text) = (pattern.text.of(self.text)?, subject.first);
            let part = match pattern.form {
                Form::PREFIX => text.get(..wanted.len()),
                Form::SUFFIX => text
                    .len()
                    .checked_sub(wanted.len())
                    .and_then(|start| text.get(start..)),
                Form::PRESENCE if text.is_empty() => None,
                Form::PRESENCE => Some(wanted),
                _ => return None,
            };
            if part.is_some_and(|part| hash::same(part, wanted)) {
                return Some(true);
            }
        }
        Some(false)
    }
}
