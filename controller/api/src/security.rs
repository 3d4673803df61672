//! Layer-4 authorization policies (`istio.security`). Node agents convert them to what they match by.

include!("gen/security.rs");

impl Authorization {
    /// The resource name: `namespace/name`.
    #[must_use]
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
