//! TLS: Secrets and ConfigMaps with certificates, and who may use them.

use karst_api::waypoint as wire;

pub(super) use super::backend_tls::BackendTls;
use super::{
    Index, NsName,
    gateway::Fault,
    grants::{From, To},
    put,
};
use crate::object::{Kind, listener::ObjectRef, tls_material::TlsMaterial};

/// Before namespace and name of a TlsSecret with certificate and key.
const CERTIFICATE_PREFIX: &str = "Secret";

/// Before namespace and name of a TlsSecret with the authorities of a ConfigMap.
const CONFIG_MAP_PREFIX: &str = "ConfigMap";

/// Before namespace and name of a TlsSecret with the authorities of a Secret. Its key is not in there:
/// who is to trust what an authority signs must not get to sign.
const AUTHORITIES_PREFIX: &str = "SecretAuthorities";

impl Index {
    pub(super) fn set_secret(&mut self, name: NsName, secret: Option<TlsMaterial>) {
        if put(&mut self.l7.secrets, name.clone(), secret) {
            self.material_changed(|kind, of| kind == Kind::Secret && *of == name);
        }
    }

    pub(super) fn set_config_map(&mut self, name: NsName, map: Option<TlsMaterial>) {
        if put(&mut self.l7.config_maps, name.clone(), map) {
            self.material_changed(|kind, of| kind == Kind::ConfigMap && *of == name);
        }
    }

    /// What `is` says so of has changed, or who may refer to it.
    pub(super) fn material_changed(&mut self, is: impl Fn(Kind, &NsName) -> bool) {
        let views = self.l7.views.iter();
        let users =
            views.filter(|(_, view)| view.materials.iter().any(|(kind, name)| is(*kind, name)));
        let users: Vec<_> = users.map(|(gateway, _)| gateway.clone()).collect();
        for gateway in users {
            self.l7.dirty.gateways.insert(gateway.clone());
            self.l7.dirty.proxies.insert(gateway);
        }
        self.policy_material_changed(is);
    }

    /// Name of the TlsSecret with a certificate that an object of `kind` in the namespace `own` refers to.
    /// `reason` is given for what cannot be used.
    pub(super) fn certificate(
        &self,
        kind: Kind,
        own: &str,
        reference: &ObjectRef,
        reason: &'static str,
    ) -> Result<String, Fault> {
        let text = reference.text(own);
        if !reference.is("Secret") {
            return Err(Fault::new(reason, format!("{text} is no Secret")));
        }
        self.check_grant(kind, own, reference)?;
        let name = NsName::new(reference.namespace(own), reference.name.as_str());
        match self
            .l7
            .secrets
            .get(&name)
            .and_then(|material| material.pair.as_ref())
        {
            Some(Ok(_)) => Ok(format!(
                "{CERTIFICATE_PREFIX}/{}/{}",
                name.namespace, name.name
            )),
            Some(Err(problem)) => Err(Fault::new(reason, format!("{text} {problem}"))),
            None => Err(Fault::new(
                reason,
                format!("{text} is not there, or has neither tls.crt nor tls.key"),
            )),
        }
    }

    /// Name of the TlsSecret with authorities that a Gateway in the namespace `own` refers to. `bad_kind` is
    /// the reason for references to other things than ConfigMaps and Secrets.
    pub(super) fn authorities(
        &self,
        own: &str,
        reference: &ObjectRef,
        bad_kind: &'static str,
    ) -> Result<String, Fault> {
        let text = reference.text(own);
        let name = NsName::new(reference.namespace(own), reference.name.as_str());
        let (material, prefix) = if reference.is("ConfigMap") {
            (self.l7.config_maps.get(&name), CONFIG_MAP_PREFIX)
        } else if reference.is("Secret") {
            (self.l7.secrets.get(&name), AUTHORITIES_PREFIX)
        } else {
            let message = format!("{text} is neither a ConfigMap nor a Secret");
            return Err(Fault::new(bad_kind, message));
        };
        self.check_grant(Kind::Gateway, own, reference)?;
        let reason = "InvalidCACertificateRef";
        match material.and_then(|material| material.authorities.as_ref()) {
            Some(Ok(_)) => Ok(format!("{prefix}/{}/{}", name.namespace, name.name)),
            Some(Err(problem)) => Err(Fault::new(reason, format!("{text} {problem}"))),
            None => Err(Fault::new(
                reason,
                format!("{text} is not there, or has no ca.crt"),
            )),
        }
    }

    fn check_grant(&self, kind: Kind, own: &str, reference: &ObjectRef) -> Result<(), Fault> {
        let from = From {
            group: kind.group(),
            kind: kind.name(),
            namespace: own,
        };
        let to = To {
            group: &reference.group,
            kind: &reference.kind,
            namespace: reference.namespace(own),
            name: &reference.name,
        };
        if self.is_granted(from, to) {
            return Ok(());
        }
        Err(Fault::new(
            "RefNotPermitted",
            format!(
                "{} is in another namespace, and no ReferenceGrant there permits a {} of {own} to refer to it",
                reference.text(own),
                kind.name()
            ),
        ))
    }

    /// The TlsSecret of that name, `KIND/NAMESPACE/NAME`; `None` while there is nothing usable in it.
    pub(super) fn tls_secret(&self, name: &str) -> Option<wire::TlsSecret> {
        let mut parts = name.splitn(3, '/');
        let (prefix, namespace, object) = (parts.next()?, parts.next()?, parts.next()?);
        let key = NsName::new(namespace, object);
        let mut secret = wire::TlsSecret {
            name: name.to_owned(),
            ..Default::default()
        };
        match prefix {
            CERTIFICATE_PREFIX => {
                let pair = self.l7.secrets.get(&key)?.pair.as_ref()?.as_ref().ok()?;
                secret.certificate_chain.clone_from(&pair.chain);
                secret.private_key.clone_from(&pair.key);
            }
            CONFIG_MAP_PREFIX | AUTHORITIES_PREFIX => {
                let materials = match prefix {
                    CONFIG_MAP_PREFIX => &self.l7.config_maps,
                    _ => &self.l7.secrets,
                };
                let found = materials.get(&key)?.authorities.as_ref()?;
                secret.authorities.clone_from(found.as_ref().ok()?);
            }
            _ => return None,
        }
        Some(secret)
    }
}
