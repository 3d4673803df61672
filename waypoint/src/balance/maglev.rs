//! Google's Maglev hashing (Eisenbud et al., NSDI 2016): a table that each endpoint fills in an order of its
//! own, taking turns. Shares are almost equal, a lookup is one access, and an endpoint that comes or goes
//! moves few keys besides its own.

use super::hash;

/// Size of the table: prime, so that every step visits every place. The same for any number of endpoints,
/// because another size would move every key. Shares differ by at most about 1 % up to 650 endpoints.
const SIZE: u64 = 65_537;
/// Places that are looked at for a key whose endpoint is not usable, before all are.
const PROBES: u64 = 64;

/// Places of the endpoints in their list.
#[derive(Debug)]
pub(super) struct Maglev {
    table: Vec<u32>,
}

/// How one endpoint goes through the table.
struct Walk {
    place: u32,
    next: u64,
    step: u64,
}

impl Maglev {
    /// A table of endpoints, given by place and key.
    pub(super) fn new<'a>(members: impl Iterator<Item = (u32, &'a str)>) -> Self {
        let mut walks: Vec<(u64, Walk)> = members
            .map(|(place, key)| {
                let seed = hash::bytes(key.as_bytes());
                let next = hash::mix(seed, 1) % SIZE;
                let step = hash::mix(seed, 2) % (SIZE - 1) + 1;
                (seed, Walk { place, next, step })
            })
            .collect();
        // The order of turns must not depend on the order of the list.
        walks.sort_unstable_by_key(|(seed, _)| *seed);
        if walks.is_empty() {
            return Self { table: Vec::new() };
        }
        let mut table: Vec<Option<u32>> = vec![None; usize::try_from(SIZE).unwrap_or(0)];
        let mut filled = 0;
        'turns: loop {
            for (_, walk) in &mut walks {
                if filled == table.len() {
                    break 'turns;
                }
                // As long as a place is free, a walk comes to it: the size is prime.
                loop {
                    let at = usize::try_from(walk.next).unwrap_or(0);
                    walk.next = (walk.next + walk.step) % SIZE;
                    match table.get_mut(at) {
                        Some(free @ None) => {
                            *free = Some(walk.place);
                            break;
                        }
                        Some(Some(_)) => {}
                        None => break,
                    }
                }
                filled += 1;
            }
        }
        Self {
            table: table.into_iter().flatten().collect(),
        }
    }

    /// The endpoint of `key`, or another one that is `usable`, the same for the same key.
    pub(super) fn find(&self, key: u64, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let probe = |n: u64| {
            let at = usize::try_from(hash::mix(key, n) % SIZE).ok()?;
            self.table.get(at).copied()
        };
        let mut probes = (0..PROBES).filter_map(probe);
        probes
            .find(|place| usable(*place))
            .or_else(|| self.table.iter().copied().find(|place| usable(*place)))
    }
}
