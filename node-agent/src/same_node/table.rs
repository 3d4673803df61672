//! Brings the kernel's tables to what they should be, in an order in which no step allows what neither the former nor
//! the new table does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use karst_bpf_common::layout::{ANY_PORT, NetnsCookie, VERDICT_ALLOW, VERDICT_ASK, VerdictKey};
use karst_datapath::{Datapath, DatapathError, LocalEndpoints};

/// The kernel's verdicts and services.
pub trait Tables {
    /// See [`Datapath::set_verdict`].
    fn set_verdict(&self, key: &VerdictKey, verdict: u32) -> Result<bool, DatapathError>;
    /// See [`Datapath::remove_verdict`].
    fn remove_verdict(&self, key: &VerdictKey) -> Result<(), DatapathError>;
    /// See [`Datapath::set_service`].
    fn set_service(
        &self,
        address: SocketAddr,
        set: u64,
        endpoints: &LocalEndpoints,
    ) -> Result<bool, DatapathError>;
    /// See [`Datapath::remove_service`].
    fn remove_service(&self, address: SocketAddr) -> Result<(), DatapathError>;
}

impl Tables for Datapath {
    fn set_verdict(&self, key: &VerdictKey, verdict: u32) -> Result<bool, DatapathError> {
        Self::set_verdict(self, key, verdict)
    }

    fn remove_verdict(&self, key: &VerdictKey) -> Result<(), DatapathError> {
        Self::remove_verdict(self, key)
    }

    fn set_service(
        &self,
        address: SocketAddr,
        set: u64,
        endpoints: &LocalEndpoints,
    ) -> Result<bool, DatapathError> {
        Self::set_service(self, address, set, endpoints)
    }

    fn remove_service(&self, address: SocketAddr) -> Result<(), DatapathError> {
        Self::remove_service(self, address)
    }
}

/// Two pods: who connects, and who is connected to.
pub type Pair = (NetnsCookie, NetnsCookie);

fn pair(key: &VerdictKey) -> Pair {
    (key.source, key.destination)
}

/// What the kernel's verdicts are, as far as we know.
#[derive(Debug, Default)]
pub struct Verdicts(BTreeMap<VerdictKey, u32>);

/// What a change of verdicts came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Pairs that something was taken from.
    pub tightened: BTreeSet<Pair>,
    /// Pairs for which there was no room: the agent decides about them.
    pub left_out: BTreeSet<Pair>,
}

impl Verdicts {
    /// What a former agent has left.
    pub fn left(entries: Vec<(VerdictKey, u32)>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Makes the kernel's verdicts `wanted`.
    ///
    /// # Errors
    /// The kernel refuses a step. What was done is remembered, and what was to be taken back comes first, so that
    /// the next call does the rest.
    pub fn become_(
        &mut self,
        wanted: &BTreeMap<VerdictKey, u32>,
        kernel: &impl Tables,
    ) -> Result<Changed, DatapathError> {
        let mut changed = Changed::default();
        let (now, all) = (self.0.clone(), wanted);
        let is = |table: &BTreeMap<VerdictKey, u32>, key: &VerdictKey, verdict| {
            table.get(key) == Some(&verdict)
        };
        // Exceptions first: what holds for all other ports may be new.
        for (key, _) in all.iter().filter(|(_, verdict)| **verdict == VERDICT_ASK) {
            if is(&now, key, VERDICT_ASK) {
                continue;
            }
            changed.tightened.insert(pair(key));
            if !self.set(key, VERDICT_ASK, kernel)? {
                changed.left_out.insert(pair(key));
            }
        }
        for (key, _) in now.iter().filter(|(_, verdict)| **verdict == VERDICT_ALLOW) {
            let left_out = changed.left_out.contains(&pair(key));
            // An exception that was just made has taken its place.
            let excepted = is(all, key, VERDICT_ASK) && !left_out;
            if excepted || (is(all, key, VERDICT_ALLOW) && !left_out) {
                continue;
            }
            self.remove(key, kernel)?;
            changed.tightened.insert(pair(key));
        }
        for (key, _) in all.iter().filter(|(_, verdict)| **verdict == VERDICT_ALLOW) {
            if is(&now, key, VERDICT_ALLOW) || changed.left_out.contains(&pair(key)) {
                continue;
            }
            if !self.set(key, VERDICT_ALLOW, kernel)? {
                changed.left_out.insert(pair(key));
            }
        }
        // Exceptions of what is not there any more.
        let stale: Vec<VerdictKey> = self
            .0
            .iter()
            .filter(|(key, verdict)| **verdict == VERDICT_ASK && !all.contains_key(*key))
            .map(|(key, _)| *key)
            .collect();
        for key in stale {
            self.remove(&key, kernel)?;
        }
        Ok(changed)
    }

    fn set(
        &mut self,
        key: &VerdictKey,
        verdict: u32,
        kernel: &impl Tables,
    ) -> Result<bool, DatapathError> {
        let fits = kernel.set_verdict(key, verdict)?;
        if fits {
            self.0.insert(*key, verdict);
        }
        Ok(fits)
    }

    fn remove(&mut self, key: &VerdictKey, kernel: &impl Tables) -> Result<(), DatapathError> {
        kernel.remove_verdict(key)?;
        self.0.remove(key);
        Ok(())
    }

    /// What the programs find for a connection: the same as they do.
    pub fn find(&self, source: NetnsCookie, destination: NetnsCookie, port: u16) -> u32 {
        let key = |port| VerdictKey {
            source,
            destination,
            port,
            padding: 0,
        };
        let found = self
            .0
            .get(&key(port.into()))
            .or_else(|| self.0.get(&key(ANY_PORT)));
        found.copied().unwrap_or(VERDICT_ASK)
    }
}

/// What the kernel's services are, as far as we know. What a former agent has left must be gone before.
#[derive(Debug)]
pub struct Services {
    held: BTreeMap<SocketAddr, LocalEndpoints>,
    next_set: u64,
}

impl Services {
    /// None yet. `first_set` is larger than any that was used before on this machine since it started.
    pub fn none(first_set: u64) -> Self {
        Self {
            held: BTreeMap::new(),
            next_set: first_set,
        }
    }

    /// How many addresses and ports there are.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Makes the kernel's services `wanted`; gives how many found no room.
    ///
    /// # Errors
    /// The kernel refuses a step; the next call does the rest.
    pub fn become_(
        &mut self,
        wanted: &BTreeMap<SocketAddr, LocalEndpoints>,
        kernel: &impl Tables,
    ) -> Result<usize, DatapathError> {
        let gone: Vec<SocketAddr> = self
            .held
            .keys()
            .filter(|address| !wanted.contains_key(address))
            .copied()
            .collect();
        for address in gone {
            kernel.remove_service(address)?;
            self.held.remove(&address);
        }
        let mut left_out = 0;
        for (address, endpoints) in wanted {
            if self.held.get(address) == Some(endpoints) {
                continue;
            }
            let set = self.next_set;
            self.next_set += 1;
            if kernel.set_service(*address, set, endpoints)? {
                self.held.insert(*address, endpoints.clone());
            } else {
                self.held.remove(address);
                left_out += 1;
            }
        }
        Ok(left_out)
    }
}
