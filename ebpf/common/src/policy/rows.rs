// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The compiled form: rows of plain numbers that refer to each other by index.
//!
//! ```text
//! rules ─▶ clauses ─▶ matches ─▶ tests ─▶ ports | ranges | exact + patterns ─▶ text
//!   ▲
//!   └── postings ◀── keys ◀── buckets        residual ──▶ rules
//! ```

use crate::Ip;

use super::{Hit, hash};

/// Part of a table: from `start` to before `end`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// The rows that are meant; `None` when the table is shorter.
    #[inline(always)]
    pub(super) fn of<T>(self, table: &[T]) -> Option<&[T]> {
        table.get(self.start as usize..self.end as usize)
    }
}

/// What of a connection is looked at.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attribute(u8);

impl Attribute {
    pub(super) const NAMESPACE: Self = Self(1);
    pub(super) const PRINCIPAL: Self = Self(2);
    pub(super) const ACCOUNT: Self = Self(3);
    pub(super) const SOURCE_IP: Self = Self(4);
    pub(super) const DESTINATION_IP: Self = Self(5);
    pub(super) const DESTINATION_PORT: Self = Self(6);
}

/// How much of it is looked at.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form(u8);

impl Form {
    /// All of it.
    pub(super) const EXACT: Self = Self(1);
    /// Its first bytes, or an address's first bits.
    pub(super) const PREFIX: Self = Self(2);
    /// Its last bytes.
    pub(super) const SUFFIX: Self = Self(3);
    /// Whether it is not empty.
    pub(super) const PRESENCE: Self = Self(4);
}

/// A rule: all clauses must match. Rules of DENY policies come before those of ALLOW policies,
/// otherwise the order is that of the list, so that the lowest number decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleRow {
    /// Each a span of matches, any of which must match.
    pub clauses: Span,
    /// Where it comes from.
    pub hit: Hit,
}

/// A condition of a match, whose tests must all hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TestRow {
    pub attribute: Attribute,
    /// Not 0: none of the values may hold, instead of one having to.
    pub negated: u8,
    pub padding: [u8; 2],
    /// Sorted: ports, ranges of addresses, or exact texts, as the attribute says.
    pub values: Span,
    /// Other texts.
    pub patterns: Span,
}

/// A text, or a service account: a pair of them. Sorted by hash within a test.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExactRow {
    pub hash: u64,
    pub first: Span,
    pub second: Span,
}

/// A prefix, a suffix, or presence.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PatternRow {
    pub form: Form,
    pub padding: [u8; 3],
    pub text: Span,
}

/// The 128 bits of an address, most significant word first.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bits(pub [u64; 2]);

impl Bits {
    #[inline(always)]
    pub(super) const fn new(ip: &Ip) -> Self {
        let [a, b, c, d] = ip.0;
        Self([join(a, b), join(c, d)])
    }

    /// The ones of a prefix, `length` of 128.
    #[cfg(feature = "alloc")]
    pub(super) const fn mask(length: u8) -> Self {
        let ones = match u128::MAX.checked_shl(128_u32.saturating_sub(length as u32)) {
            Some(ones) => ones,
            None => 0,
        };
        Self::from_u128(ones)
    }

    #[cfg(feature = "alloc")]
    pub(super) const fn from_u128(bits: u128) -> Self {
        Self([(bits >> 64) as u64, bits as u64])
    }

    #[inline(always)]
    pub(super) const fn masked(self, mask: Self) -> Self {
        Self([self.0[0] & mask.0[0], self.0[1] & mask.0[1]])
    }

    /// Whether it comes after `other`; by hand, see [`Ip::same`].
    #[inline(always)]
    pub(super) const fn is_after(self, other: Self) -> bool {
        self.0[0] > other.0[0] || (self.0[0] == other.0[0] && self.0[1] > other.0[1])
    }
}

/// Two words in network order as one in the machine's.
#[inline(always)]
const fn join(high: u32, low: u32) -> u64 {
    ((u32::from_be(high) as u64) << 32) | u32::from_be(low) as u64
}

/// Addresses from `first` to `last`. Within a test they are sorted and apart. None spans the
/// border between the families, which is how a block matches only its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RangeRow {
    pub first: Bits,
    pub last: Bits,
}

/// A way to look rules up: by which part of which attribute.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Probe {
    pub attribute: Attribute,
    pub form: Form,
    /// Of a prefix or suffix: bytes, of addresses bits.
    pub length: u16,
}

impl Probe {
    #[cfg(feature = "alloc")]
    pub(super) const fn new(attribute: Attribute, form: Form, length: u16) -> Self {
        Self {
            attribute,
            form,
            length,
        }
    }

    /// The key under which rules are found whose attribute has this hash.
    #[inline(always)]
    pub(super) const fn key(self, hash: u64) -> u64 {
        let salt =
            ((self.attribute.0 as u64) << 24) | ((self.form.0 as u64) << 16) | self.length as u64;
        hash::finish(hash::add(hash, salt))
    }
}

/// A probe that is in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeRow {
    pub probe: Probe,
    pub padding: [u8; 4],
    /// Of a probe of addresses: the bits that count.
    pub mask: Bits,
}

/// The rules with a key. Sorted by key, so that a bucket, chosen by the upper bits, is a span.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyRow {
    pub key: u64,
    /// Numbers of rules, ascending.
    pub postings: Span,
}
