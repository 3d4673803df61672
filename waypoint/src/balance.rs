//! Which endpoint of a backend a request goes to.

/// A backend with the state of its endpoints.
pub struct Cluster {}
