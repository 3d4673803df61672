//! The endpoints of a backend as a pick sees them: made anew when endpoints, policy or ejections change.
//!
//! Which endpoints are chosen from:
//! 1. Those that are not draining; draining ones only when there are no others.
//! 2. Of these, the ones that are not ejected, unless that leaves less than the panic share of them: then
//!    ejections are ignored, because whatever fails is not a matter of single endpoints.
//! 3. Of these, with a locality preference, the nearest tier (node, zone, rest) as long as 70 % of its
//!    endpoints are healthy; else the next tier is joined to it, and so on.

use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use karst_api::waypoint::{Algorithm, LocalityPreference};

use super::clusters::OwnPlace;
use super::endpoint::Endpoint;
use super::maglev::Maglev;
use super::ring::Ring;
use super::settings::ClusterSettings;

/// Share of a tier's endpoints that must be healthy for it to be used alone, percent: the rest then takes at
/// most half as much again as before.
const TIER_HEALTHY_PERCENT: usize = 70;
/// Tiers at most: own node, own zone, everywhere.
const TIERS: usize = 3;

/// A table for consistent hashing. Places are those of [`Members::all`].
#[derive(Debug)]
pub(super) enum HashTable {
    Ring(Ring),
    Maglev(Maglev),
}

impl HashTable {
    pub(super) fn find(&self, key: u64, usable: impl Fn(u32) -> bool) -> Option<u32> {
        match self {
            Self::Ring(ring) => ring.find(key, usable),
            Self::Maglev(maglev) => maglev.find(key, usable),
        }
    }
}

/// All endpoints of a backend.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) all: Vec<Arc<Endpoint>>,
    by_key: HashMap<Arc<str>, u32>,
    /// How far each is away.
    tiers: Vec<usize>,
    /// By the number of tiers that are in use: an ejection changes no table.
    tables: [OnceLock<Arc<HashTable>>; TIERS],
}

impl Members {
    pub(super) fn new(
        all: Vec<Arc<Endpoint>>,
        own: &OwnPlace,
        preference: LocalityPreference,
    ) -> Self {
        let by_key = (0_u32..).zip(&all);
        let by_key = by_key.map(|(place, endpoint)| (Arc::clone(endpoint.key()), place));
        let tiers = all.iter().map(|endpoint| tier(endpoint, own, preference));
        Self {
            by_key: by_key.collect(),
            tiers: tiers.collect(),
            all,
            tables: Default::default(),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Endpoint>> {
        self.at(self.place(key)?)
    }

    pub(super) fn place(&self, key: &str) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn at(&self, place: u32) -> Option<&Arc<Endpoint>> {
        self.all.get(usize::try_from(place).ok()?)
    }

    /// The table over the endpoints of the first `depth` + 1 tiers that pass `standing`.
    fn table(
        &self,
        algorithm: Algorithm,
        depth: usize,
        standing: impl Fn(&Endpoint) -> bool,
    ) -> Option<Arc<HashTable>> {
        let make = || {
            let places = (0_u32..).zip(self.all.iter().zip(&self.tiers));
            let places =
                places.filter(|(_, (endpoint, tier))| **tier <= depth && standing(endpoint));
            let keys = places.map(|(place, (endpoint, _))| (place, &**endpoint.key()));
            Arc::new(match algorithm {
                Algorithm::Maglev => HashTable::Maglev(Maglev::new(keys)),
                _ => HashTable::Ring(Ring::new(keys)),
            })
        };
        match algorithm {
            Algorithm::RingHash | Algorithm::Maglev => self
                .tables
                .get(depth)
                .map(|table| Arc::clone(table.get_or_init(make))),
            _ => None,
        }
    }
}

fn tier(endpoint: &Endpoint, own: &OwnPlace, preference: LocalityPreference) -> usize {
    let same = |own: &str, other: &str| !own.is_empty() && own == other;
    let zone = same(&own.zone, endpoint.zone());
    let node = same(&own.node, endpoint.node());
    match preference {
        LocalityPreference::Anywhere => 0,
        LocalityPreference::SameZone => usize::from(!zone),
        LocalityPreference::SameNode if node => 0,
        LocalityPreference::SameNode => 1 + usize::from(!zone),
    }
}

/// What a pick needs, immutable.
#[derive(Debug)]
pub(super) struct View {
    pub(super) settings: Arc<ClusterSettings>,
    pub(super) members: Arc<Members>,
    /// Those to choose from.
    pub(super) active: Vec<Arc<Endpoint>>,
    /// By place: whether the endpoint may be used at all, whatever its tier.
    usable: Vec<bool>,
    pub(super) table: Option<Arc<HashTable>>,
    /// When an ejection ends, milliseconds of the cluster's clock: then the view is out of date.
    pub(super) expires: u64,
    /// When the last new endpoint has its full share, milliseconds of the cluster's clock.
    pub(super) warm: u64,
    pub(super) ejected: usize,
}

impl View {
    pub(super) fn new(settings: Arc<ClusterSettings>, members: Arc<Members>, now: u64) -> Self {
        let draining = members.all.iter().all(|endpoint| endpoint.is_draining());
        let standing = |endpoint: &Endpoint| draining || !endpoint.is_draining();
        let ejection = Ejection::new(&settings, &members, standing, now);
        let usable: Vec<bool> = members
            .all
            .iter()
            .map(|endpoint| standing(endpoint) && !ejection.applies_to(endpoint, now))
            .collect();
        let depth = depth(&members, &usable, standing);
        let places = members.all.iter().zip(members.tiers.iter().zip(&usable));
        let active = places.filter(|(_, (tier, usable))| **tier <= depth && **usable);
        let active = active.map(|(endpoint, _)| Arc::clone(endpoint)).collect();
        let table = members.table(settings.balancing.algorithm, depth, standing);
        Self {
            warm: warm(&settings, &members),
            active,
            usable,
            table,
            expires: ejection.ends,
            ejected: ejection.count,
            settings,
            members,
        }
    }

    /// Whether the endpoint at `place` may be used.
    pub(super) fn is_usable(&self, place: u32) -> bool {
        let place = usize::try_from(place).ok();
        place.and_then(|place| self.usable.get(place)).copied() == Some(true)
    }
}

/// The ejections of the moment.
struct Ejection {
    count: usize,
    /// Too many are ejected for it to count.
    panic: bool,
    /// When the first ends.
    ends: u64,
}

impl Ejection {
    fn new(
        settings: &ClusterSettings,
        members: &Members,
        standing: impl Fn(&Endpoint) -> bool,
        now: u64,
    ) -> Self {
        let mut this = Self {
            count: 0,
            panic: false,
            ends: u64::MAX,
        };
        let Some(outliers) = &settings.outliers else {
            this.panic = true;
            return this;
        };
        let mut total = 0;
        for endpoint in members.all.iter().filter(|endpoint| standing(endpoint)) {
            total += 1;
            let health = &endpoint.state().health;
            if health.is_ejected(now) {
                this.count += 1;
                this.ends = this.ends.min(health.ejected_until());
            }
        }
        let left = total - this.count;
        let least = usize::try_from(outliers.panic_percent).unwrap_or(100);
        this.panic = left == 0 || left * 100 < least * total;
        this
    }

    fn applies_to(&self, endpoint: &Endpoint, now: u64) -> bool {
        !self.panic && endpoint.state().health.is_ejected(now)
    }
}

/// The number of tiers beyond the first that are needed.
fn depth(members: &Members, usable: &[bool], standing: impl Fn(&Endpoint) -> bool) -> usize {
    let last = TIERS - 1;
    let enough = |depth: &usize| {
        let (mut total, mut healthy) = (0_usize, 0_usize);
        let places = members.all.iter().zip(members.tiers.iter().zip(usable));
        for (endpoint, (tier, usable)) in places {
            if tier <= depth && standing(endpoint) {
                total += 1;
                healthy += usize::from(*usable);
            }
        }
        total > 0 && healthy * 100 >= total * TIER_HEALTHY_PERCENT
    };
    (0..last).find(enough).unwrap_or(last)
}

fn warm(settings: &ClusterSettings, members: &Members) -> u64 {
    let Some(slow_start) = settings.balancing.slow_start else {
        return 0;
    };
    let length = u64::try_from(slow_start.as_millis()).unwrap_or(u64::MAX);
    let born = members
        .all
        .iter()
        .filter_map(|endpoint| endpoint.state().born);
    born.max().map_or(0, |born| born.saturating_add(length))
}
