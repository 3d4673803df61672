//! When other nodes are told to use the tunnel for a pod.

use karst_api::workload::TunnelProtocol;

use crate::labels::DataplaneMode;

/// How a pod stands with the tunnel.
///
/// A pod that is seen to be put into the mesh is reached in plain text until its node's agent
/// reports that it takes tunnels, because until then nobody would answer. A pod that was in the
/// mesh when first seen (it is new, or the controller has restarted) is reached by tunnel from the
/// start: its node does not let it run unenrolled, and the restart of a controller must not open a
/// window of plain text. Once reached by tunnel, a pod stays so until the operator changes the
/// intent or the pod ends; what an agent says or fails to say cannot take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// Not in the mesh.
    Out,
    /// Put into the mesh while it ran; not reported enrolled so far.
    Awaited,
    /// In the mesh.
    In,
}

impl Tunnel {
    pub(crate) fn first_seen(mode: DataplaneMode) -> Self {
        match mode {
            DataplaneMode::Ambient => Self::In,
            DataplaneMode::None => Self::Out,
        }
    }

    /// The state after the intent was (re)stated.
    pub(crate) fn after(self, mode: DataplaneMode) -> Self {
        match (self, mode) {
            (_, DataplaneMode::None) => Self::Out,
            (Self::Out, DataplaneMode::Ambient) => Self::Awaited,
            (state, DataplaneMode::Ambient) => state,
        }
    }

    /// Takes a report. Returns whether it changed anything.
    pub(crate) fn reported_enrolled(&mut self) -> bool {
        if *self == Self::Awaited {
            *self = Self::In;
            return true;
        }
        false
    }

    pub(crate) fn protocol(self) -> TunnelProtocol {
        match self {
            Self::Out | Self::Awaited => TunnelProtocol::None,
            Self::In => TunnelProtocol::Hbone,
        }
    }
}
