//! The certificate authority of the mesh.
//!
//! `authority` holds the signing key and signs; `state` keeps the key on disk, `secret` in the
//! cluster; `rotation` says whether it may follow the one that the mesh trusts; `service` decides
//! who gets what, over gRPC; `identity` is the strict reading of SPIFFE IDs.

pub mod authority;
mod identity;
pub mod rotation;
pub mod secret;
pub mod service;
mod state;

/// Writes the trusted roots for agents and people to read.
///
/// # Errors
/// When the file cannot be written.
pub fn publish_roots(
    path: &std::path::Path,
    authority: &authority::Authority,
) -> anyhow::Result<()> {
    state::publish(path, &authority.roots_pem())
}
