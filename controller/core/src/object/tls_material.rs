//! Certificates, keys and authorities in Secrets and ConfigMaps.

use std::fmt;

use k8s_openapi::api::core::v1;

use crate::error::{Faults, ObjectError};

/// PEM texts.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsMaterial {
    /// `tls.crt`.
    pub(crate) certificate: String,
    /// `tls.key`. Never logged.
    pub(crate) key: Vec<u8>,
    /// `ca.crt`.
    pub(crate) authorities: String,
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial").finish_non_exhaustive()
    }
}

/// `None` when there is nothing in it that concerns the mesh; the rest is not kept in memory.
pub(crate) fn of_secret(
    _object: &v1::Secret,
    _faults: &Faults,
    _findings: &mut Vec<ObjectError>,
) -> Option<Box<TlsMaterial>> {
    None
}

/// `None` when there is nothing in it that concerns the mesh; the rest is not kept in memory.
pub(crate) fn of_config_map(
    _object: &v1::ConfigMap,
    _faults: &Faults,
    _findings: &mut Vec<ObjectError>,
) -> Option<Box<TlsMaterial>> {
    None
}
