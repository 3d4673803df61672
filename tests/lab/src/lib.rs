//! What the end-to-end tests share: a small world of pods on two nodes, clients run in them,
//! and eyes for what the agents log, count and hold. It has no tests itself: those are in
//! `tests/`, one file a topic, each test one promise of the mesh.
//!
//! Start with [`World`]; `scenario` has what is tried with and without a mesh alike.

pub mod attacker;
mod chat;
mod evidence;
mod kernel;
pub mod prometheus;
pub mod scenario;
pub mod shop;
pub mod tmux;
mod world;

pub use chat::Chat;
pub use evidence::{Footprint, Refusal, access_records, footprint, refusals, wait_refused};
pub use kernel::{kernel_view, once_attached};
pub use world::{AMBIENT, World, manifest};
