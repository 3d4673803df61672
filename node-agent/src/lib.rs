//! The node agent: captures the connections of the enrolled pods of one node
//! and carries them to other pods through mutually authenticated tunnels.
//!
//! It wires together what other crates do (`karst-datapath` the kernel,
//! `karst-identity` certificates, `karst-tunnel` HBONE, `karst-client` the
//! controller, `karst-process` logs and the servers of metrics) and holds what
//! is its own: which pods are enrolled ([`enrol`]), what the mesh looks like
//! ([`state`]), where a connection goes ([`proxy`]).
//! It parses no application protocol.
//!
//! Two kinds of threads: one control thread (controller, certificates,
//! enrolment, admin, metrics) and the data-plane [`worker`]s. A connection never
//! waits for the control thread, and the workers go on when the controller is
//! gone. Start with [`app::run`], then [`proxy::outbound`].

pub mod access_log;
pub mod admin;
pub mod app;
pub mod cgroup;
pub mod cleanup;
pub mod cni;
pub mod config;
pub mod context;
pub mod discover;
pub mod egress;
pub mod enrol;
pub mod metrics;
pub mod node;
pub mod observe;
pub mod pod;
pub mod preflight;
pub mod presence;
pub mod process;
pub mod proxy;
pub mod reason;
pub mod same_node;
pub mod seniority;
pub mod sockets;
pub mod standby;
pub mod state;
pub mod takeover;
mod tap;
#[cfg(test)]
mod testing;
pub mod waypoints;
pub mod worker;
pub mod xds;
