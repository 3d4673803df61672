//! Identities, certificates and their renewal, with a certificate authority that lives here.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

mod ca;
mod fake;

mod certificate;
mod grpc;
mod manager;
mod spiffe;
