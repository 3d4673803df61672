// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Hashes and comparisons of bytes, eight at a time and without calling anything: BPF has neither
//! a `memcmp` nor a product of 128 bits.
//!
//! A hash only narrows down what is compared afterwards. Two texts of the same hash cost time and
//! never a wrong verdict, so it need not withstand somebody who looks for such texts.

/// An odd number without pattern: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Takes one more word into a hash.
#[inline(always)]
pub(super) const fn add(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(GOLDEN)
}

/// Spreads what a hash holds over all of its bits; the upper ones choose the bucket.
#[inline(always)]
pub(super) const fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// The hash of some bytes, not finished.
#[inline]
pub(super) fn of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = bytes.len() as u64;
    for word in words {
        hash = add(hash, u64::from_le_bytes(*word));
    }
    let mut last = 0;
    for byte in rest {
        last = (last << 8) | u64::from(*byte);
    }
    add(hash, last)
}

/// Whether two texts are the same.
#[inline]
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    a.iter()
        .zip(b)
        .all(|(a, b)| u64::from_ne_bytes(*a) == u64::from_ne_bytes(*b))
        && a_rest.iter().zip(b_rest).all(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::format;
    use std::vec::Vec;

    #[test]
    fn names_of_a_mesh_have_hashes_of_their_own() {
        let names = (0..100_000).map(|i| format!("cluster.local/ns/team-{}/sa/app-{i}", i % 100));
        let hashes: Vec<u64> = names.map(|name| finish(of(name.as_bytes()))).collect();
        assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), hashes.len());
        // Buckets are chosen by the upper bits: as many as there are names, two thirds in use.
        let buckets: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 47).collect();
        assert!(buckets.len() > 65_000, "{}", buckets.len());
    }

    proptest! {
        #[test]
        fn comparison_is_that_of_slices(a: Vec<u8>, b: Vec<u8>, at: usize, change: u8) {
            prop_assert_eq!(same(&a, &b), a == b);
            prop_assert!(same(&a, &a.clone()));
            let mut changed = a.clone();
            if let Some(length) = core::num::NonZero::new(a.len()) {
                changed[at % length] ^= change;
                prop_assert_eq!(same(&a, &changed), change == 0);
            }
        }

        #[test]
        fn length_counts(bytes: Vec<u8>) {
            let mut longer = bytes.clone();
            longer.push(0);
            prop_assert_ne!(of(&bytes), of(&longer));
        }
    }
}
