//! A hash ring in the manner of Ketama: each endpoint has many points on a circle, and a key belongs to
//! the next point. An endpoint that comes or goes moves its own keys only.

use super::hash;

/// Points of each endpoint. The shares of 100 endpoints are then within about a fifth of the mean, and the
/// ring of 1,000 has 2 MiB.
const POINTS: u64 = 160;

/// Points in their order, with the place of the endpoint in its list.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// A ring of endpoints, given by place and key.
    pub(super) fn new<'a>(members: impl Iterator<Item = (u32, &'a str)>) -> Self {
        let mut points = Vec::new();
        for (place, key) in members {
            let seed = hash::bytes(key.as_bytes());
            points.extend((0..POINTS).map(|n| (hash::mix(seed, n), place)));
        }
        // By place where two points are equal, so that every proxy has the same ring.
        points.sort_unstable();
        Self { points }
    }

    /// The endpoint of `key`, or the next on the ring that is `usable`.
    pub(super) fn find(&self, key: u64, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let key = hash::mix(key, 0);
        let start = self.points.partition_point(|(point, _)| *point < key);
        let (before, after) = self.points.split_at_checked(start)?;
        let mut around = after.iter().chain(before).map(|(_, place)| *place);
        around.find(|place| usable(*place))
    }
}
