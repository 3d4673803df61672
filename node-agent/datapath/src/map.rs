//! Pinned maps by name: shapes, and typed access through `&self`.

use std::collections::HashSet;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Pod as Bytes;
use karst_bpf_common::layout::{
    Authorisation, Config, EndpointKey, Flow, NetnsCookie, Pod, PublishedKey, ServiceEndpoints,
    SocketState, Tuple, VerdictKey,
};
use karst_bpf_common::{
    AUTHORISED_ENTRIES, ENDPOINT_ENTRIES, Endpoint, FLOW_ENTRIES, Ip, PUBLISHED_ENTRIES,
    SERVICE_ENTRIES, VERDICT_ENTRIES, counter::COUNTER_ENTRIES,
};

use crate::{DatapathError, sys};

/// `BPF_MAP_TYPE_*`, as far as we use them.
const HASH: u32 = 1;
pub(crate) const ARRAY: u32 = 2;
pub(crate) const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const SOCKHASH: u32 = 18;
pub(crate) const SK_STORAGE: u32 = 24;
pub(crate) const RINGBUF: u32 = 27;

/// The kernel's name of a map type, in lower case.
pub(crate) fn kind_name(kind: u32) -> String {
    match kind {
        HASH => "hash".into(),
        ARRAY => "array".into(),
        PERCPU_ARRAY => "percpu_array".into(),
        LRU_HASH => "lru_hash".into(),
        SOCKHASH => "sockhash".into(),
        SK_STORAGE => "sk_storage".into(),
        RINGBUF => "ringbuf".into(),
        other => other.to_string(),
    }
}

/// How many entries a map gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Room {
    Fixed(u32),
    /// So many for each pod.
    PerPod(u32),
}

/// What a map must look like to be used by this version's programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapSpec {
    pub(crate) name: &'static str,
    kind: u32,
    key: usize,
    value: usize,
    pub(crate) room: Room,
}

const fn spec<K, V>(name: &'static str, kind: u32, room: Room) -> MapSpec {
    MapSpec {
        name,
        kind,
        key: size_of::<K>(),
        value: size_of::<V>(),
        room,
    }
}

pub(crate) const PODS: MapSpec = spec::<NetnsCookie, Pod>("PODS", HASH, Room::PerPod(1));
pub(crate) const POD_ADDRESSES: MapSpec =
    spec::<Ip, NetnsCookie>("POD_ADDRESSES", HASH, Room::PerPod(2));
pub(crate) const LISTENERS: MapSpec = spec::<Ip, u32>("LISTENERS", SOCKHASH, Room::PerPod(2));
pub(crate) const PUBLISHED: MapSpec =
    spec::<PublishedKey, SocketState>("PUBLISHED", LRU_HASH, Room::Fixed(PUBLISHED_ENTRIES));
pub(crate) const AUTH: MapSpec =
    spec::<Tuple, Authorisation>("AUTH", LRU_HASH, Room::Fixed(AUTHORISED_ENTRIES));
pub(crate) const COUNTERS: MapSpec =
    spec::<u32, u64>("COUNTERS", PERCPU_ARRAY, Room::Fixed(COUNTER_ENTRIES));
pub(crate) const CONFIG: MapSpec = spec::<u32, Config>("CONFIG", ARRAY, Room::Fixed(1));
pub(crate) const SKST: MapSpec = spec::<u32, SocketState>("SKST", SK_STORAGE, Room::Fixed(0));

pub(crate) const VERDICTS: MapSpec =
    spec::<VerdictKey, u32>("VERDICTS", HASH, Room::Fixed(VERDICT_ENTRIES));
pub(crate) const SERVICES: MapSpec =
    spec::<Endpoint, ServiceEndpoints>("SERVICES", HASH, Room::Fixed(SERVICE_ENTRIES));
pub(crate) const ENDPOINTS: MapSpec =
    spec::<EndpointKey, Endpoint>("ENDPOINTS", HASH, Room::Fixed(ENDPOINT_ENTRIES));
pub(crate) const FLOWS: MapSpec = spec::<u64, Flow>("FLOWS", HASH, Room::Fixed(FLOW_ENTRIES));
/// How many entries `FLOWS` has, as the programs count them.
pub(crate) const FLOW_COUNT: MapSpec = spec::<u32, u64>("FLOW_COUNT", ARRAY, Room::Fixed(1));
/// Until when verdicts hold, on the monotonic clock, nanoseconds.
pub(crate) const VERDICTS_UNTIL: MapSpec =
    spec::<u32, u64>("VERDICTS_UNTIL", ARRAY, Room::Fixed(1));

/// Every pinned map.
pub(crate) const ALL: [MapSpec; 14] = [
    VERDICTS,
    SERVICES,
    ENDPOINTS,
    FLOWS,
    FLOW_COUNT,
    VERDICTS_UNTIL,
    PODS,
    POD_ADDRESSES,
    LISTENERS,
    PUBLISHED,
    AUTH,
    COUNTERS,
    CONFIG,
    SKST,
];

impl MapSpec {
    pub(crate) fn max_entries(&self, max_pods: u32) -> u32 {
        match self.room {
            Room::Fixed(entries) => entries,
            Room::PerPod(each) => max_pods.saturating_mul(each),
        }
    }

    /// Refuses a map other than the programs expect. The number of entries may differ: it is
    /// fixed when the map is made, and a map in use is not made again.
    pub(crate) fn check(&self, info: &sys::MapInfo) -> Result<(), DatapathError> {
        let found = (info.kind, info.key_size as usize, info.value_size as usize);
        if found == (self.kind, self.key, self.value) {
            return Ok(());
        }
        let describe = |(kind, key, value): (u32, usize, usize)| {
            format!(
                "{} with {key}-byte keys and {value}-byte values",
                kind_name(kind)
            )
        };
        Err(DatapathError::MapShape {
            map: self.name.to_owned(),
            found: describe(found),
            expected: describe((self.kind, self.key, self.value)),
        })
    }

    pub(crate) fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
        let map = self.name;
        move |source| DatapathError::Map {
            action,
            map,
            source,
        }
    }
}

/// A map of a known shape, accessed by bytes of exactly its sizes.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    pub(crate) spec: MapSpec,
    pub(crate) info: sys::MapInfo,
    /// Bytes a lookup writes: more than the value's size for per-CPU maps.
    lookup_bytes: usize,
}

impl RawMap {
    /// Opens the map `spec` pinned in `folder`; `None` when it is not there.
    pub(crate) fn open(folder: &Path, spec: MapSpec) -> Result<Option<Self>, DatapathError> {
        let path = folder.join(spec.name);
        let Some(fd) = sys::open_pin(&path).map_err(spec.failed("open"))? else {
            return Ok(None);
        };
        let info = sys::map_info(fd.as_fd()).map_err(spec.failed("describe"))?;
        spec.check(&info)?;
        let lookup_bytes = if spec.kind == PERCPU_ARRAY {
            let cpus = aya::util::nr_cpus()
                .map_err(|(_, error)| error)
                .map_err(spec.failed("count CPUs for"))?;
            spec.value.next_multiple_of(8) * cpus
        } else {
            spec.value
        };
        Ok(Some(Self {
            fd,
            spec,
            info,
            lookup_bytes,
        }))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn check_size(&self, given: usize, expected: usize) -> Result<(), DatapathError> {
        if given == expected {
            return Ok(());
        }
        let wrong = io::Error::from(io::ErrorKind::InvalidInput);
        Err(self.spec.failed("access with wrong size")(wrong))
    }

    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DatapathError> {
        self.check_size(key.len(), self.spec.key)?;
        let mut value = vec![0; self.lookup_bytes];
        let found = sys::map_lookup(self.fd.as_fd(), key, &mut value);
        let found = found.map_err(self.spec.failed("read"))?;
        Ok(found.then_some(value))
    }

    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.len() != self.spec.key || value.len() != self.lookup_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sys::map_update(self.fd.as_fd(), key, value)
    }

    /// The keys now in the map. Under concurrent change some may be missed, none twice.
    pub(crate) fn keys(&self) -> Result<HashSet<Vec<u8>>, DatapathError> {
        let mut keys = HashSet::new();
        let mut last: Option<Vec<u8>> = None;
        // A key deleted under the walk sends the kernel back to the first one: bounded.
        let steps = u64::from(self.info.max_entries).saturating_mul(2);
        for _ in 0..=steps {
            let mut next = vec![0; self.spec.key];
            let more = sys::map_next_key(self.fd.as_fd(), last.as_deref(), &mut next);
            if !more.map_err(self.spec.failed("walk"))? {
                break;
            }
            keys.insert(next.clone());
            last = Some(next);
        }
        Ok(keys)
    }

    /// Entries now; `None` where the kernel cannot enumerate them.
    pub(crate) fn count(&self) -> Result<Option<u32>, DatapathError> {
        match self.spec.kind {
            SK_STORAGE => Ok(None),
            ARRAY | PERCPU_ARRAY => Ok(Some(self.info.max_entries)),
            _ => Ok(Some(self.keys()?.len() as u32)),
        }
    }

    /// Writes a value of another layout, to which fields were added at the end since: they are zero.
    pub(crate) fn set_grown(&self, key: &[u8], value: &[u8]) -> Result<(), DatapathError> {
        let mut grown = value.to_vec();
        if grown.len() < self.spec.value {
            grown.resize(self.spec.value, 0);
        }
        self.update(key, &grown)
            .map_err(self.spec.failed("copy into"))
    }
}

/// The bytes of a key and of its value.
type RawEntry = (Vec<u8>, Vec<u8>);

/// Key and value of every entry of the hash `spec` names that is pinned in `folder`, whatever the size of its
/// values: of another layout.
pub(crate) fn all_entries(folder: &Path, spec: &MapSpec) -> Result<Vec<RawEntry>, DatapathError> {
    let Some(fd) = sys::open_pin(&folder.join(spec.name)).map_err(spec.failed("open"))? else {
        return Ok(Vec::new());
    };
    let info = sys::map_info(fd.as_fd()).map_err(spec.failed("describe"))?;
    let own = MapSpec {
        value: info.value_size as usize,
        ..*spec
    };
    let Some(map) = RawMap::open(folder, own)? else {
        return Ok(Vec::new());
    };
    let mut entries = Vec::new();
    for key in map.keys()? {
        if let Some(value) = map.lookup(&key)? {
            entries.push((key, value));
        }
    }
    Ok(entries)
}

/// The value of an array with one entry that is pinned in `folder`, whatever its size; `None` when
/// there is no such map.
pub(crate) fn only_value(
    folder: &Path,
    name: &'static str,
) -> Result<Option<Vec<u8>>, DatapathError> {
    let failed = |action| {
        move |source| DatapathError::Map {
            action,
            map: name,
            source,
        }
    };
    let Some(fd) = sys::open_pin(&folder.join(name)).map_err(failed("open"))? else {
        return Ok(None);
    };
    let info = sys::map_info(fd.as_fd()).map_err(failed("describe"))?;
    if (info.kind, info.key_size as usize) != (ARRAY, size_of::<u32>()) {
        return Ok(None);
    }
    let mut value = vec![0; info.value_size as usize];
    let found = sys::map_lookup(fd.as_fd(), &0u32.to_ne_bytes(), &mut value);
    Ok(found.map_err(failed("read"))?.then_some(value))
}

/// A map with its key and value types.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    raw: RawMap,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Bytes, V: Bytes> Map<K, V> {
    pub(crate) fn open(folder: &Path, spec: MapSpec) -> Result<Self, DatapathError> {
        let missing = || spec.failed("open")(io::ErrorKind::NotFound.into());
        Self::typed(RawMap::open(folder, spec)?.ok_or_else(missing)?)
    }

    pub(crate) fn typed(raw: RawMap) -> Result<Self, DatapathError> {
        raw.check_size(size_of::<K>(), raw.spec.key)?;
        raw.check_size(size_of::<V>(), raw.spec.value)?;
        Ok(Self {
            raw,
            types: PhantomData,
        })
    }

    pub(crate) fn raw(&self) -> &RawMap {
        &self.raw
    }

    /// Once or twice a connection, so it allocates nothing.
    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let raw = &self.raw;
        // A per-CPU map writes more than one value.
        raw.check_size(size_of::<V>(), raw.lookup_bytes)?;
        let mut value = sys::zeroed::<V>();
        let bytes = sys::bytes_of_mut(&mut value);
        let found = sys::map_lookup(raw.fd.as_fd(), sys::bytes_of(key), bytes);
        let found = found.map_err(raw.spec.failed("read"))?;
        Ok(found.then_some(value))
    }

    /// One value for each CPU.
    pub(crate) fn get_per_cpu(&self, key: &K) -> Result<Vec<V>, DatapathError> {
        let bytes = self.raw.lookup(sys::bytes_of(key))?.unwrap_or_default();
        let each = self.raw.spec.value.next_multiple_of(8);
        let values = bytes.chunks_exact(each);
        Ok(values
            .filter_map(|chunk| sys::from_bytes(chunk.get(..self.raw.spec.value)?))
            .collect())
    }

    /// Creates or replaces; the kernel's own error, for the caller to tell a full map apart.
    pub(crate) fn try_set(&self, key: &K, value: &V) -> io::Result<()> {
        self.raw.update(sys::bytes_of(key), sys::bytes_of(value))
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        self.try_set(key, value)
            .map_err(self.raw.spec.failed("write"))
    }

    /// Whether there was such an entry.
    pub(crate) fn remove(&self, key: &K) -> Result<bool, DatapathError> {
        sys::map_delete(self.raw.fd.as_fd(), sys::bytes_of(key))
            .map_err(self.raw.spec.failed("delete"))
    }

    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        for key in self.raw.keys()? {
            let value = self.raw.lookup(&key)?;
            let value = value.and_then(|bytes| sys::from_bytes(&bytes));
            // An entry may have gone since its key was read.
            if let (Some(key), Some(value)) = (sys::from_bytes(&key), value) {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }
}
