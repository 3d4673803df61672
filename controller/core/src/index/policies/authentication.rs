//! RequestAuthentications: which waypoints and gateways check tokens by them, and what is said of them.

use karst_api::waypoint as wire;

use super::{
    Changes, Held, Index, Kind, Metadata, NsName, ObjectKey, ObjectStatus, resource_name, status,
    targets::HasTargets,
};
use crate::{
    object::{authorization::Target, request_authentication::RequestAuthentication},
    proxy::{GatewayName, ProxyClass},
};

impl HasTargets for RequestAuthentication {
    const KIND: Kind = Kind::RequestAuthentication;

    fn targets(&self) -> &[Target] {
        &self.targets
    }
}

const WITHOUT_FORMER: &str = "Rules with mistakes take no token: requests with one of their issuer are refused, or, where \
                              it is not known which rules there are, with any token";

impl Index {
    /// Stores a RequestAuthentication or forgets it.
    pub(in crate::index) fn set_request_authentication(
        &mut self,
        key: NsName,
        policy: Option<(Metadata, RequestAuthentication)>,
        changes: &mut Changes,
    ) {
        let policies = &mut self.policies.authentication;
        let former = policies.remove(&key);
        let now = policy.map(|(meta, policy)| Held::after(former.clone(), meta, policy));
        if let Some(now) = &now {
            policies.insert(key.clone(), now.clone());
        }
        if former == now {
            return;
        }
        self.targets_changed(&key, former.as_ref());
        self.targets_changed(&key, now.as_ref());
        // That of one with targets follows from these, and is worked out with them.
        let status = now
            .as_ref()
            .filter(|held| held.in_force.unsupported.is_some())
            .map(|held| {
                let unsupported = held.in_force.unsupported;
                let conditions =
                    self.target_conditions(&key, held, unsupported, "It is not enforced");
                status::status(held, conditions)
            });
        self.put_policy_status(Kind::RequestAuthentication, &key, status, changes);
    }

    /// Names of those for what comes through a proxy, and for one of its Services.
    pub(in crate::index) fn authentications_at(
        &self,
        gateway: &GatewayName,
        class: ProxyClass,
        service: Option<&NsName>,
    ) -> Vec<String> {
        self.attached_at(&self.policies.authentication, gateway, class, service)
    }

    /// One as proxies get it.
    pub(in crate::index) fn request_authentication(
        &self,
        name: &str,
    ) -> Option<wire::RequestAuthentication> {
        let (namespace, own) = name.split_once('/')?;
        let key = NsName::new(namespace, own);
        let held = self.policies.authentication.get(&key)?;
        debug_assert_eq!(resource_name(&key), name);
        Some(wire::RequestAuthentication {
            name: name.to_owned(),
            rules: held.in_force.rules.clone(),
            unusable: held.in_force.unusable,
        })
    }

    /// Status of one with targets; `None` if it has none.
    pub(in crate::index) fn authentication_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        let held = self.policies.authentication.get(&name)?;
        if held.in_force.unsupported.is_some() {
            return None;
        }
        let conditions = self.target_conditions(&name, held, None, WITHOUT_FORMER);
        Some(status::status(held, conditions))
    }
}
