//! What happens to a connection: outbound from a pod, inbound through a tunnel,
//! inbound in plaintext. Each runs as one task of a worker.
//!
//! Start with [`outbound`]; `connection.rs` holds what all three have in common.

pub mod accept;
pub mod connection;
pub mod inbound;
pub mod outbound;
pub mod plaintext;
#[cfg(test)]
mod size_tests;
pub mod target;

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod's application connects.
    Outbound,
    /// The pod's application is connected to.
    Inbound,
}

impl Direction {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}
