//! When a storm of connections is over, and what is done then.

use std::cell::Cell;
use std::thread;

/// Live connections of one worker from which on it is a storm: some 4 MB of memory.
const STORM: usize = 1024;
/// A storm is over when fewer than one of so many connections are left.
const SHARE: usize = 4;

/// Watches how many connections a worker has.
#[derive(Debug, Default)]
pub(super) struct Storm {
    /// Most connections since the last storm.
    most: Cell<usize>,
}

impl Storm {
    /// One more.
    pub(super) fn rose(&self, live: usize) {
        self.most.set(self.most.get().max(live));
    }

    /// One less; whether a storm has just ended.
    pub(super) fn fell(&self, live: usize) -> bool {
        let most = self.most.get();
        let is_over = most >= STORM && live < most / SHARE;
        if is_over {
            self.most.set(live);
        }
        is_over
    }
}

/// Gives the memory of a storm back to the kernel, beside the worker's thread.
pub(super) fn give_back() {
    let given = thread::Builder::new()
        .name("karst-memory".to_owned())
        .spawn(karst_datapath::memory::give_back);
    if let Err(error) = given {
        // It is given back after the next storm, or when the allocator does by itself.
        tracing::debug!(%error, "no thread to give memory back");
    }
}

#[cfg(test)]
mod tests {
    use super::{SHARE, STORM, Storm};

    /// Lets so many connections come and all but `left` of them go; how often a storm has ended.
    fn ends(storm: &Storm, come: usize, left: usize) -> usize {
        (1..=come).for_each(|live| storm.rose(live));
        (left..come).rev().filter(|live| storm.fell(*live)).count()
    }

    #[test]
    fn a_storm_ends_once() {
        let storm = Storm::default();
        assert_eq!(ends(&storm, STORM, 0), 1);
        assert_eq!(ends(&storm, STORM * 3, 0), 1, "the next one too");
        let few = Storm::default();
        assert_eq!(ends(&few, STORM - 1, 0), 0, "not that many");
        let lasting = Storm::default();
        assert_eq!(
            ends(&lasting, STORM, STORM / SHARE),
            0,
            "they are still there"
        );
    }
}
