//! Statuses of GatewayClasses, Gateways and ListenerSets.

use std::{collections::BTreeSet, ops::RangeInclusive};

use karst_api::features::{FEATURES, Support};
use serde_json::{Value, json};

use super::{
    super::{GatewayName, Index, NsName, Stored},
    addresses::address,
    conflicts::listed,
    view::{Entry, Fault, Owner, SetState, View},
};
use crate::{
    object::{
        Kind, ObjectKey,
        gateway::{Gateway, RequestedAddress, ValidationMode},
        pod::PodPhase,
    },
    proxy::ProxyClass,
    status::{Condition, ConditionStatus, ObjectStatus, StatusContent},
};

/// Versions 1.x of the Gateway API whose objects are read as they are meant.
const API_MINORS: RangeInclusive<u32> = 2..=6;

impl Index {
    /// Status of a GatewayClass, Gateway or ListenerSet.
    pub(in crate::index::l7) fn gateway_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        match key.kind {
            Kind::GatewayClass => self.class_status(&key.name),
            Kind::Gateway => {
                let name = GatewayName::new(key.namespace.as_str(), key.name.as_str());
                let view = self.l7.views.get(&name)?;
                let stored = self.l7.gateways.get(&name)?;
                Some(self.own_status(&name, stored, view))
            }
            Kind::ListenerSet => {
                self.set_status(&NsName::new(key.namespace.as_str(), key.name.as_str()))
            }
            _ => None,
        }
    }

    fn class_status(&self, name: &str) -> Option<ObjectStatus> {
        let stored = self.l7.classes.get(name)?;
        let class = self.class_of(name)?;
        let accepted = match &stored.body.parameters {
            None => {
                let what = match class {
                    ProxyClass::Gateway => "gateways",
                    ProxyClass::Waypoint => "waypoints",
                };
                Condition::yes(
                    "Accepted",
                    "Accepted",
                    format!("Gateways of this class are {what}"),
                )
            }
            Some(parameters) => Condition::no(
                "Accepted",
                "InvalidParameters",
                format!("parametersRef names {parameters}, but this class takes no parameters"),
            ),
        };
        let mut conditions = vec![accepted];
        conditions.extend(self.l7.supported_version.clone());
        let supported = FEATURES
            .iter()
            .filter(|feature| feature.support == Support::Yes);
        let features: Vec<Value> = supported
            .map(|feature| json!({"name": feature.name}))
            .collect();
        Some(ObjectStatus {
            generation: stored.meta.generation,
            content: StatusContent::Object {
                conditions,
                fields: json!({"supportedFeatures": features}),
            },
        })
    }

    fn own_status(
        &self,
        name: &GatewayName,
        stored: &Stored<Gateway>,
        view: &View,
    ) -> ObjectStatus {
        let generation = stored.meta.generation;
        let accepted = accepted(name, stored, view);
        let (addresses, programmed) = self.programmed(name, stored, view, &accepted);
        let mut conditions = vec![accepted, programmed, resolved(name, view)];
        let mut validations = stored.body.validation.all();
        if validations.any(|one| one.mode == ValidationMode::AllowInsecureFallback) {
            conditions.push(Condition::yes(
                "InsecureFrontendValidationMode",
                "ConfigurationChanged",
                "AllowInsecureFallback lets clients in that have no valid certificate",
            ));
        }
        let addresses: Vec<Value> = addresses.iter().map(|text| address(text)).collect();
        let sets = view.sets.iter();
        let attached = sets.filter(|(set, state)| set_accepted(view, set, **state).is_ok());
        let mut fields = json!({
            "addresses": addresses,
            "listeners": self.listeners(view, &Owner::Gateway, generation),
        });
        if view.class == ProxyClass::Gateway {
            fields["attachedListenerSets"] = json!(attached.count());
        }
        ObjectStatus {
            generation,
            content: StatusContent::Object { conditions, fields },
        }
    }

    /// The addresses of a Gateway, and the condition `Programmed`.
    fn programmed(
        &self,
        name: &GatewayName,
        stored: &Stored<Gateway>,
        view: &View,
        accepted: &Condition,
    ) -> (Vec<String>, Condition) {
        let no = |reason, message: String| Condition::no("Programmed", reason, message);
        let key = NsName::new(name.namespace.as_str(), name.name.as_str());
        let service = self.services.get(&key);
        let (addresses, unusable) = self.addresses_of(name, &stored.body);
        let condition = if accepted.status != ConditionStatus::True {
            no(
                "Invalid",
                format!("The Gateway is not accepted: {}", accepted.message),
            )
        } else if let Some(fault) = unusable {
            no(fault.reason, fault.message)
        } else if !view.entries.iter().any(Entry::is_served) {
            no(
                "Invalid",
                "No listener can be served; see their conditions".to_owned(),
            )
        } else if service.is_none() {
            no("Pending", format!("There is no Service {name} so far"))
        } else if addresses.is_empty() {
            no(
                "AddressNotAssigned",
                format!("The Service {name} has no address so far"),
            )
        } else if !self.has_ready_proxy(name) {
            no("Pending", "No pod of its proxy is ready".to_owned())
        } else {
            Condition::yes("Programmed", "Programmed", "Its listeners are served")
        };
        (addresses, condition)
    }

    fn has_ready_proxy(&self, gateway: &GatewayName) -> bool {
        let namespace = gateway.namespace.as_str();
        let mut pods = self
            .pods
            .range(NsName::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace);
        pods.any(|(key, entry)| {
            entry.pod.phase == PodPhase::Ready
                && self
                    .proxy_of_pod(key, &entry.pod)
                    .is_some_and(|(of, _)| of == *gateway)
        })
    }

    fn set_status(&self, name: &NsName) -> Option<ObjectStatus> {
        let stored = self.l7.listener_sets.get(name)?;
        let gateway = self.gateway_of_set(name, &stored.body.parent)?;
        let view = self.l7.views.get(&gateway)?;
        let parent = self.l7.gateways.get(&gateway)?;
        let generation = stored.meta.generation;
        let owner = Owner::Set(name.clone());
        let state = view.sets.get(name).copied().unwrap_or(SetState::NotAllowed);
        let of_parent = accepted(&gateway, parent, view);
        let parent_accepted = of_parent.status == ConditionStatus::True;
        let outcome = match set_accepted(view, name, state) {
            Ok(()) if !parent_accepted => Err(Fault::new(
                "ParentNotAccepted",
                format!("The Gateway {gateway} is not accepted"),
            )),
            outcome => outcome,
        };
        let conditions = match outcome {
            Err(fault) => vec![
                Condition::no("Accepted", fault.reason, fault.message.clone()),
                Condition::no("Programmed", fault.reason, fault.message),
            ],
            Ok(()) => {
                let all = view.of(&owner).all(Entry::is_served);
                let reason = if all { "Accepted" } else { "ListenersNotValid" };
                let message = if all {
                    "Its listeners are added"
                } else {
                    "Some of its listeners are added"
                };
                let (_, parent) = self.programmed(&gateway, parent, view, &of_parent);
                let programmed = if parent.status == ConditionStatus::True {
                    Condition::yes("Programmed", "Programmed", "Its listeners are served")
                } else {
                    let message = format!(
                        "The Gateway {gateway} is not programmed: {}",
                        parent.message
                    );
                    Condition::no("Programmed", "ParentNotProgrammed", message)
                };
                vec![Condition::yes("Accepted", reason, message), programmed]
            }
        };
        let listeners = match state {
            SetState::Allowed => self.listeners(view, &owner, generation),
            SetState::NotAllowed => Vec::new(),
        };
        Some(ObjectStatus {
            generation,
            content: StatusContent::Object {
                conditions,
                fields: json!({"listeners": listeners}),
            },
        })
    }

    /// `status.listeners` of one owner.
    fn listeners(&self, view: &View, owner: &Owner, generation: i64) -> Vec<Value> {
        let entries = view.of(owner);
        entries
            .map(|entry| self.listener_status(entry, generation))
            .collect()
    }

    fn listener_status(&self, entry: &Entry, generation: i64) -> Value {
        let kinds: Vec<Value> = entry
            .kinds
            .iter()
            .map(|kind| json!({"group": kind.kind().group(), "kind": kind.kind().name()}))
            .collect();
        let attached = entry.attached.iter();
        let attached = attached.filter(|attached| self.is_route_sound(&attached.route));
        let conditions: Vec<Value> = listener_conditions(entry)
            .iter()
            .map(|condition| nested(condition, generation))
            .collect();
        json!({
            "name": entry.listener.name,
            "supportedKinds": kinds,
            "attachedRoutes": attached.count(),
            "conditions": conditions,
        })
    }
}

/// The condition `SupportedVersion` of GatewayClasses.
pub(super) fn supported_version(versions: &BTreeSet<String>) -> Condition {
    let minor = |version: &str| {
        let mut parts = version.strip_prefix("v1.")?.split('.');
        parts.next()?.parse::<u32>().ok()
    };
    let supported =
        |version: &String| minor(version).is_some_and(|minor| API_MINORS.contains(&minor));
    let found: Vec<&str> = versions
        .iter()
        .map(|version| {
            if version.is_empty() {
                "unknown"
            } else {
                version
            }
        })
        .collect();
    let found = found.join(", ");
    let known = format!("v1.{} to v1.{}", API_MINORS.start(), API_MINORS.end());
    if !versions.is_empty() && versions.iter().all(supported) {
        let message = format!("The Gateway API of the cluster is {found}");
        Condition::yes("SupportedVersion", "SupportedVersion", message)
    } else {
        Condition::no(
            "SupportedVersion",
            "UnsupportedVersion",
            format!("The Gateway API of the cluster is {found}; supported is {known}"),
        )
    }
}

/// A condition inside another field of a status.
fn nested(condition: &Condition, generation: i64) -> Value {
    json!({
        "type": condition.kind,
        "status": condition.status.as_str(),
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": generation,
    })
}

/// The condition `Accepted` of a Gateway.
fn accepted(name: &GatewayName, stored: &Stored<Gateway>, view: &View) -> Condition {
    let gateway = &stored.body;
    let no = |reason, message: String| Condition::no("Accepted", reason, message);
    if name.shares_its_account() {
        let message = format!(
            "Nothing runs for {name}: its proxies would have the ServiceAccount {:?}, which is that of all pods \
             that name none; give the Gateway another name",
            name.name
        );
        return no("Invalid", message);
    }
    if let Some(parameters) = &gateway.parameters {
        return no(
            "InvalidParameters",
            format!(
                "infrastructure.parametersRef names {parameters}, but Gateways take no parameters"
            ),
        );
    }
    let mut addresses = gateway.addresses.iter();
    let unsupported = addresses.find_map(|address| match address {
        RequestedAddress::Unsupported(kind, value) => Some((kind, value)),
        _ => None,
    });
    if let Some((kind, value)) = unsupported {
        return no(
            "UnsupportedAddress",
            format!("The address {value:?} is of type {kind:?}; only \"IPAddress\" is supported"),
        );
    }
    let own: Vec<&Entry> = view.of(&Owner::Gateway).collect();
    let invalid = own.iter().filter(|entry| !entry.is_served());
    let invalid: Vec<String> = invalid.map(|entry| entry.listener.name.clone()).collect();
    let names = listed(&invalid);
    if !own.iter().any(|entry| entry.is_accepted()) {
        return no(
            "ListenersNotValid",
            format!("No listener of {name} is valid: {names}"),
        );
    }
    if invalid.is_empty() {
        Condition::yes("Accepted", "Accepted", "All listeners are valid")
    } else {
        Condition::yes(
            "Accepted",
            "ListenersNotValid",
            format!("Not served, see their conditions: {names}"),
        )
    }
}

/// The condition `ResolvedRefs` of a Gateway.
fn resolved(name: &GatewayName, view: &View) -> Condition {
    let no = |reason, message: String| Condition::no("ResolvedRefs", reason, message);
    if let Err(fault) = &view.client_certificate {
        return no(
            fault.reason,
            format!("tls.backend.clientCertificateRef: {}", fault.message),
        );
    }
    let unresolved = view
        .of(&Owner::Gateway)
        .filter(|entry| entry.unresolved.is_some());
    let unresolved: Vec<String> = unresolved
        .map(|entry| entry.listener.name.clone())
        .collect();
    if unresolved.is_empty() {
        Condition::yes(
            "ResolvedRefs",
            "ResolvedRefs",
            "All references can be followed",
        )
    } else {
        let names = listed(&unresolved);
        no(
            "ListenersNotResolved",
            format!("Listeners of {name} with bad references: {names}"),
        )
    }
}

/// Whether a ListenerSet adds anything, or why not.
fn set_accepted(view: &View, set: &NsName, state: SetState) -> Result<(), Fault> {
    if state == SetState::NotAllowed {
        return Err(Fault::new(
            "NotAllowed",
            "The Gateway does not allow ListenerSets of this namespace; see its allowedListeners",
        ));
    }
    if view.of(&Owner::Set(set.clone())).any(Entry::is_served) {
        Ok(())
    } else {
        Err(Fault::new(
            "ListenersNotValid",
            "No listener is valid; see their conditions",
        ))
    }
}

fn listener_conditions(entry: &Entry) -> Vec<Condition> {
    let accepted = match entry.conflict.as_ref().or(entry.fault.as_ref()) {
        Some(fault) => Condition::no("Accepted", fault.reason, fault.message.clone()),
        None => Condition::yes("Accepted", "Accepted", "The listener is valid"),
    };
    let conflicted = match &entry.conflict {
        Some(fault) => Condition::yes("Conflicted", fault.reason, fault.message.clone()),
        None => Condition::no(
            "Conflicted",
            "NoConflicts",
            "It can be told from all others",
        ),
    };
    let resolved = match &entry.unresolved {
        Some(fault) => Condition::no("ResolvedRefs", fault.reason, fault.message.clone()),
        None => Condition::yes(
            "ResolvedRefs",
            "ResolvedRefs",
            "All references can be followed",
        ),
    };
    let programmed = if entry.is_served() {
        Condition::yes("Programmed", "Programmed", "The listener is served")
    } else {
        match (&entry.conflict, &entry.fault, &entry.unresolved) {
            (Some(fault), ..) => Condition::no("Programmed", fault.reason, fault.message.clone()),
            (None, Some(fault), _) | (None, None, Some(fault)) => {
                Condition::no("Programmed", "Invalid", fault.message.clone())
            }
            (None, None, None) => Condition::no("Programmed", "Invalid", "It takes no routes"),
        }
    };
    let mut conditions = vec![accepted, programmed, resolved, conflicted];
    if !entry.overlaps.is_empty() {
        conditions.push(Condition::yes(
            "OverlappingTLSConfig",
            "OverlappingHostnames",
            format!(
                "Clients that use a connection for several names get 421 where their request is for \
                 another one of {}",
                listed(&entry.overlaps)
            ),
        ));
    }
    conditions
}
