//! Layer-4 authorization policies (`istio.security`).

include!("gen/security.rs");
