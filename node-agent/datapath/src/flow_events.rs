//! Records of connections that went past the agent, as the programs write them.

use std::fmt;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use karst_bpf_common::FLOW_EVENT_BYTES;
use karst_bpf_common::layout::FlowEvent;

use crate::error::DatapathError;
use crate::node::Datapath;
use crate::sys;

/// The map's name in the object; no pin holds it, and each agent has its own.
pub(crate) const FLOW_EVENTS: &str = "FLOW_EVENTS";

/// Most records of one call: a full ring's.
const LARGEST_DRAIN: usize = FLOW_EVENT_BYTES as usize / size_of::<FlowEvent>();

/// Opened and closed connections that nobody has taken note of yet, of this agent's programs alone.
pub struct FlowEvents(RingBuf<MapData>);

impl fmt::Debug for FlowEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowEvents").finish_non_exhaustive()
    }
}

impl FlowEvents {
    pub(crate) fn take_from(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let failed = |detail: String| DatapathError::Load {
            what: FLOW_EVENTS.to_owned(),
            detail,
        };
        let map = ebpf.take_map(FLOW_EVENTS);
        let map = map.ok_or_else(|| failed("not in the object".to_owned()))?;
        let ring = RingBuf::try_from(map).map_err(|error| failed(error.to_string()))?;
        Ok(Self(ring))
    }

    /// Hands the records that there are to `take`, oldest first, and returns how many they were: at most as many as
    /// the ring holds, though others come meanwhile. Never blocks: the programs wake nobody, so this is to be called at times of the caller's own, often enough that the ring
    /// ([`karst_bpf_common::FLOW_EVENT_BYTES`]) does not fill up; what finds no room is counted as
    /// `bypass_event_lost`.
    pub fn drain(&mut self, mut take: impl FnMut(&FlowEvent)) -> usize {
        let mut taken = 0;
        while taken < LARGEST_DRAIN
            && let Some(record) = self.0.next()
        {
            // The kernel side writes records of this very type alone.
            if let Some(event) = sys::from_bytes::<FlowEvent>(&record) {
                take(&event);
                taken += 1;
            }
        }
        taken
    }
}

impl Datapath {
    /// The records of this agent's programs. There is one reader, so a second call is an error.
    ///
    /// # Errors
    /// They were asked for before.
    pub fn flow_events(&self) -> Result<FlowEvents, DatapathError> {
        let taken = self.flow_events.lock();
        // Nothing is done while it is held that could leave it half done.
        let mut taken = taken.unwrap_or_else(std::sync::PoisonError::into_inner);
        taken.take().ok_or(DatapathError::FlowEventsTaken)
    }
}
