//! TLS: Secrets and ConfigMaps with certificates, and BackendTLSPolicies.

use std::collections::BTreeSet;

use karst_api::waypoint as wire;

use super::{Index, NsName, Stored, put};
use crate::{
    object::{
        ObjectKey, backend_tls_policy::BackendTlsPolicy, service::ServicePort,
        tls_material::TlsMaterial,
    },
    proxy::GatewayName,
    status::ObjectStatus,
};

/// What a BackendTLSPolicy makes of a port of a Service.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum BackendTls {
    /// No policy.
    None,
    /// TLS, with the names of the TlsSecrets that it refers to.
    Tls(wire::BackendTls, BTreeSet<String>),
    /// A policy that cannot be followed: requests must not be sent, for this stable reason.
    Invalid(&'static str),
}

impl Index {
    pub(super) fn set_secret(&mut self, name: NsName, secret: Option<TlsMaterial>) {
        put(&mut self.l7.secrets, name, secret);
    }

    pub(super) fn set_config_map(&mut self, name: NsName, map: Option<TlsMaterial>) {
        put(&mut self.l7.config_maps, name, map);
    }

    pub(super) fn set_backend_tls(
        &mut self,
        name: NsName,
        policy: Option<Stored<BackendTlsPolicy>>,
    ) {
        put(&mut self.l7.backend_tls, name, policy);
    }

    /// TLS from the proxy of a Gateway towards the application behind a port of a Service.
    pub(super) fn backend_tls(
        &self,
        _gateway: &GatewayName,
        _service: &NsName,
        _port: &ServicePort,
    ) -> BackendTls {
        BackendTls::None
    }

    /// The TlsSecret of that name, `KIND/NAMESPACE/NAME`.
    pub(super) fn tls_secret(&self, _name: &str) -> Option<wire::TlsSecret> {
        None
    }

    /// Status of a BackendTLSPolicy.
    pub(super) fn backend_tls_status(&self, _key: &ObjectKey) -> Option<ObjectStatus> {
        None
    }
}
