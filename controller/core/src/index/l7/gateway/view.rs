//! What a Gateway listens on: its own listeners and those of its ListenerSets as one list, with what is
//! wrong with each.

use std::collections::{BTreeMap, BTreeSet};

use karst_api::waypoint as wire;

use super::{
    super::{GatewayName, Index, NsName, RouteKey, Stored},
    conflicts::{admit, find_overlaps, listed},
};
use crate::{
    object::{
        Kind,
        gateway::{ClientValidation, Gateway, ValidationMode},
        hostname::Hostname,
        listener::{GroupKind, Listener, ListenerProtocol},
        route::RouteKind,
    },
    proxy::{ProxyClass, WAYPOINT_PORT},
};

/// Ports on which the proxy itself serves its administrator, the mesh, metrics and probes.
const RESERVED_PORTS: [u16; 4] = [15000, WAYPOINT_PORT, 15020, 15021];

/// What a Gateway listens on.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::index::l7) struct View {
    pub(in crate::index::l7) class: ProxyClass,
    /// In the order of precedence.
    pub(in crate::index::l7) entries: Vec<Entry>,
    /// ListenerSets that name the Gateway.
    pub(in crate::index::l7) sets: BTreeMap<NsName, SetState>,
    /// Name of the TlsSecret with the certificate towards backends.
    pub(in crate::index::l7) client_certificate: Result<Option<String>, Fault>,
    /// Secrets and ConfigMaps it refers to, there or not.
    pub(in crate::index::l7) materials: BTreeSet<(Kind, NsName)>,
}

/// Whose a listener is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::index::l7) enum Owner {
    Gateway,
    Set(NsName),
}

/// Whether a ListenerSet may add listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::index::l7) enum SetState {
    Allowed,
    NotAllowed,
}

/// What is wrong: one word, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index::l7) struct Fault {
    pub(in crate::index::l7) reason: &'static str,
    pub(in crate::index::l7) message: String,
}

impl Fault {
    pub(in crate::index::l7) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// A listener.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::index::l7) struct Entry {
    pub(in crate::index::l7) owner: Owner,
    pub(in crate::index::l7) listener: Listener,
    /// Kinds of routes that may attach.
    pub(in crate::index::l7) kinds: Vec<RouteKind>,
    /// It cannot be told from another one.
    pub(in crate::index::l7) conflict: Option<Fault>,
    /// It is not accepted.
    pub(in crate::index::l7) fault: Option<Fault>,
    /// Something it refers to cannot be used.
    pub(in crate::index::l7) unresolved: Option<Fault>,
    /// Names of TlsSecrets.
    pub(in crate::index::l7) certificates: Vec<String>,
    pub(in crate::index::l7) validation: Option<wire::ClientValidation>,
    /// Listeners on the same port with TLS whose host names overlap with its own.
    pub(in crate::index::l7) overlaps: Vec<String>,
    pub(in crate::index::l7) attached: Vec<Attached>,
}

/// A route at a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index::l7) struct Attached {
    pub(in crate::index::l7) route: RouteKey,
    pub(in crate::index::l7) created: i64,
    /// Those that route and listener have in common; empty for all.
    pub(in crate::index::l7) hostnames: Vec<Hostname>,
}

impl Entry {
    /// Whether it is accepted and in conflict with none.
    pub(in crate::index::l7) fn is_accepted(&self) -> bool {
        self.fault.is_none() && self.conflict.is_none()
    }

    /// Whether it is served.
    pub(in crate::index::l7) fn is_served(&self) -> bool {
        let ends_tls = matches!(
            self.listener.protocol,
            ListenerProtocol::Https | ListenerProtocol::TlsTerminate
        );
        let has_kinds = !self.kinds.is_empty() || self.listener.protocol == ListenerProtocol::Hbone;
        self.is_accepted() && has_kinds && !(ends_tls && self.certificates.is_empty())
    }

    /// `NAMESPACE/NAME/SECTION`, for logs and messages.
    pub(in crate::index::l7) fn name(&self, gateway: &GatewayName) -> String {
        let (namespace, name) = match &self.owner {
            Owner::Gateway => (&gateway.namespace, &gateway.name),
            Owner::Set(set) => (&set.namespace, &set.name),
        };
        format!("{namespace}/{name}/{}", self.listener.name)
    }

    /// Namespace of the object that the listener is in.
    pub(in crate::index::l7) fn namespace<'a>(&'a self, gateway: &'a GatewayName) -> &'a str {
        match &self.owner {
            Owner::Gateway => &gateway.namespace,
            Owner::Set(set) => &set.namespace,
        }
    }

    /// Whether all but the routes is the same.
    fn is_same_listener(&self, other: &Self) -> bool {
        let Self {
            owner,
            listener,
            kinds,
            conflict,
            fault,
            unresolved,
            certificates,
            validation,
            overlaps,
            attached: _,
        } = self;
        *owner == other.owner
            && *listener == other.listener
            && *kinds == other.kinds
            && *conflict == other.conflict
            && *fault == other.fault
            && *unresolved == other.unresolved
            && *certificates == other.certificates
            && *validation == other.validation
            && *overlaps == other.overlaps
    }
}

impl View {
    /// Whether routes that are at the same listeners in both stand the same in both.
    pub(in crate::index::l7) fn has_same_listeners(&self, other: &Self) -> bool {
        let mut pairs = self.entries.iter().zip(&other.entries);
        self.class == other.class
            && self.sets == other.sets
            && self.entries.len() == other.entries.len()
            && pairs.all(|(one, other)| one.is_same_listener(other))
    }

    /// Routes that are at one of the listeners in one of them only. Both must have the same listeners.
    pub(in crate::index::l7) fn differing_routes(&self, other: &Self) -> BTreeSet<RouteKey> {
        let mut differing = BTreeSet::new();
        for (one, other) in self.entries.iter().zip(&other.entries) {
            let keys = |entry: &Entry| -> BTreeSet<RouteKey> {
                entry
                    .attached
                    .iter()
                    .map(|attached| attached.route.clone())
                    .collect()
            };
            let (one, other) = (keys(one), keys(other));
            differing.extend(one.symmetric_difference(&other).cloned());
        }
        differing
    }

    /// Entries of one owner.
    pub(in crate::index::l7) fn of<'a>(
        &'a self,
        owner: &'a Owner,
    ) -> impl Iterator<Item = &'a Entry> + use<'a> {
        self.entries
            .iter()
            .filter(move |entry| entry.owner == *owner)
    }
}

impl Index {
    /// Works out what a Gateway listens on; `None` if it is not there or not ours.
    pub(in crate::index::l7) fn gateway_view(&self, name: &GatewayName) -> Option<View> {
        let stored = self.l7.gateways.get(name)?;
        let class = self.gateway_class(name)?;
        let mut view = View {
            class,
            entries: Vec::new(),
            sets: BTreeMap::new(),
            client_certificate: Ok(None),
            materials: BTreeSet::new(),
        };
        let own = stored.body.listeners.iter();
        let own = own
            .map(|listener| entry(class, Owner::Gateway, listener))
            .collect();
        admit(&mut view.entries, own, name);
        for set in self.sets_of_gateway(name) {
            self.add_set(&mut view, name, stored, set);
        }
        for index in 0..view.entries.len() {
            self.resolve_entry(&mut view, index, name, &stored.body);
        }
        find_overlaps(&mut view.entries, name);
        self.resolve_client_certificate(&mut view, name, &stored.body);
        self.attach_routes(&mut view, name);
        Some(view)
    }

    /// ListenerSets that name the Gateway, in their order of precedence.
    pub(in crate::index::l7) fn sets_of_gateway(&self, gateway: &GatewayName) -> Vec<NsName> {
        let sets = self.l7.listener_sets.iter().filter(|(set, stored)| {
            self.gateway_of_set(set, &stored.body.parent).as_ref() == Some(gateway)
        });
        let mut sets: Vec<(i64, &NsName)> = sets
            .map(|(name, stored)| (stored.meta.created, name))
            .collect();
        sets.sort();
        sets.into_iter().map(|(_, name)| name.clone()).collect()
    }

    fn add_set(
        &self,
        view: &mut View,
        gateway: &GatewayName,
        stored: &Stored<Gateway>,
        set: NsName,
    ) {
        let allowed = view.class == ProxyClass::Gateway
            && stored.body.allowed_listeners.allows(
                &gateway.namespace,
                &set.namespace,
                self.namespace_labels(&set.namespace),
            );
        if !allowed {
            view.sets.insert(set, SetState::NotAllowed);
            return;
        }
        if let Some(found) = self.l7.listener_sets.get(&set) {
            let listeners = found.body.listeners.iter();
            let entries = listeners
                .map(|listener| entry(view.class, Owner::Set(set.clone()), listener))
                .collect();
            admit(&mut view.entries, entries, gateway);
        }
        view.sets.insert(set, SetState::Allowed);
    }

    /// Looks up what a listener refers to.
    fn resolve_entry(&self, view: &mut View, index: usize, name: &GatewayName, gateway: &Gateway) {
        let Some(entry) = view.entries.get_mut(index) else {
            return;
        };
        let (own, kind) = match &entry.owner {
            Owner::Gateway => (name.namespace.clone(), Kind::Gateway),
            Owner::Set(set) => (set.namespace.clone(), Kind::ListenerSet),
        };
        let ends_tls = matches!(
            entry.listener.protocol,
            ListenerProtocol::Https | ListenerProtocol::TlsTerminate
        );
        if ends_tls && entry.listener.certificates.is_empty() {
            entry.unresolved = Some(Fault::new(
                "InvalidCertificateRef",
                "tls.certificateRefs is empty; name a Secret with a certificate and its key",
            ));
        }
        for reference in &entry.listener.certificates {
            let target = NsName::new(reference.namespace(&own), reference.name.as_str());
            view.materials.insert((Kind::Secret, target));
            match self.certificate(kind, &own, reference, "InvalidCertificateRef") {
                Ok(certificate) => entry.certificates.push(certificate),
                Err(fault) => entry.unresolved = Some(fault),
            }
        }
        let validation = gateway.validation.of_port(entry.listener.port);
        if let (ListenerProtocol::Https, Some(validation)) = (&entry.listener.protocol, validation)
        {
            for reference in &validation.authorities {
                let target = NsName::new(
                    reference.namespace(&name.namespace),
                    reference.name.as_str(),
                );
                view.materials.insert((Kind::ConfigMap, target.clone()));
                view.materials.insert((Kind::Secret, target));
            }
            self.resolve_validation(entry, name, validation);
        }
    }

    /// Client certificates are validated by those authorities that can be used. Without any, the listener
    /// is not served, as it would take everybody.
    fn resolve_validation(
        &self,
        entry: &mut Entry,
        gateway: &GatewayName,
        validation: &ClientValidation,
    ) {
        let mut authorities = Vec::new();
        let mut fault = validation.authorities.is_empty().then(|| {
            Fault::new(
                "InvalidCACertificateRef",
                "caCertificateRefs of the client validation is empty",
            )
        });
        for reference in &validation.authorities {
            match self.authorities(&gateway.namespace, reference, "InvalidCACertificateKind") {
                Ok(name) => authorities.push(name),
                Err(problem) => fault = Some(problem),
            }
        }
        if authorities.is_empty() {
            let message = match &fault {
                Some(fault) => format!("No authority for client certificates: {}", fault.message),
                None => "No authority for client certificates".to_owned(),
            };
            entry
                .fault
                .get_or_insert(Fault::new("NoValidCACertificate", message));
        }
        if let Some(fault) = fault {
            entry.unresolved.get_or_insert(fault);
        }
        entry.validation = Some(wire::ClientValidation {
            authorities,
            allow_insecure_fallback: validation.mode == ValidationMode::AllowInsecureFallback,
        });
    }

    fn resolve_client_certificate(&self, view: &mut View, name: &GatewayName, gateway: &Gateway) {
        let Some(reference) = &gateway.client_certificate else {
            return;
        };
        let target = NsName::new(
            reference.namespace(&name.namespace),
            reference.name.as_str(),
        );
        view.materials.insert((Kind::Secret, target));
        let reason = "InvalidClientCertificateRef";
        view.client_certificate = self
            .certificate(Kind::Gateway, &name.namespace, reference, reason)
            .map(Some);
    }
}

/// A listener before others are looked at.
fn entry(class: ProxyClass, owner: Owner, listener: &Listener) -> Entry {
    let (kinds, unresolved) = kinds(listener);
    Entry {
        owner,
        kinds,
        conflict: None,
        fault: fault(class, listener),
        unresolved,
        certificates: Vec::new(),
        validation: None,
        overlaps: Vec::new(),
        attached: Vec::new(),
        listener: listener.clone(),
    }
}

fn fault(class: ProxyClass, listener: &Listener) -> Option<Fault> {
    let is_hbone = listener.protocol == ListenerProtocol::Hbone;
    let is_unknown = matches!(listener.protocol, ListenerProtocol::Unsupported(_));
    let protocol = listener.protocol.name();
    match class {
        ProxyClass::Waypoint if !is_hbone => Some(Fault::new(
            "UnsupportedProtocol",
            format!(
                "A waypoint has one listener, of protocol HBONE on port {WAYPOINT_PORT}, and none of \
                 protocol {protocol}"
            ),
        )),
        ProxyClass::Waypoint if listener.port != WAYPOINT_PORT => Some(Fault::new(
            "PortUnavailable",
            format!("A waypoint listens on port {WAYPOINT_PORT} only"),
        )),
        ProxyClass::Gateway if is_hbone || is_unknown => Some(Fault::new(
            "UnsupportedProtocol",
            format!("The protocol {protocol} is not supported; use HTTP, HTTPS, TLS or TCP"),
        )),
        ProxyClass::Gateway if RESERVED_PORTS.contains(&listener.port) => Some(Fault::new(
            "PortUnavailable",
            format!(
                "The port {} is one of those that the proxy uses itself ({RESERVED_PORTS:?})",
                listener.port
            ),
        )),
        _ if !listener.unknown_options.is_empty() => Some(Fault::new(
            "UnsupportedValue",
            format!(
                "tls.options has what is not supported: {}",
                listed(&listener.unknown_options)
            ),
        )),
        _ if listener.tls_min.is_some()
            && listener.tls_min > listener.tls_max.or(listener.tls_min) =>
        {
            Some(Fault::new(
                "UnsupportedValue",
                "tls.options has a lowest TLS version above the highest",
            ))
        }
        _ => None,
    }
}

/// Kinds of routes that a listener takes, and what is wrong with those it asks for.
fn kinds(listener: &Listener) -> (Vec<RouteKind>, Option<Fault>) {
    let able: &[RouteKind] = match &listener.protocol {
        ListenerProtocol::Http | ListenerProtocol::Https => &[RouteKind::Http, RouteKind::Grpc],
        ListenerProtocol::TlsPassthrough | ListenerProtocol::TlsTerminate => &[RouteKind::Tls],
        ListenerProtocol::Tcp => &[RouteKind::Tcp],
        ListenerProtocol::Hbone | ListenerProtocol::Unsupported(_) => &[],
    };
    let Some(asked) = &listener.allowed_kinds else {
        return (able.to_vec(), None);
    };
    let is = |kind: RouteKind, asked: &GroupKind| {
        asked.group == kind.kind().group() && asked.kind == kind.kind().name()
    };
    let kinds = able.iter().copied();
    let kinds = kinds.filter(|kind| asked.iter().any(|asked| is(*kind, asked)));
    let unable = asked
        .iter()
        .filter(|asked| !able.iter().any(|kind| is(*kind, asked)));
    let unable: Vec<&str> = unable.map(|asked| asked.kind.as_str()).collect();
    let fault = (!unable.is_empty()).then(|| {
        let protocol = listener.protocol.name();
        let unable = unable.join(", ");
        Fault::new(
            "InvalidRouteKinds",
            format!("A listener of protocol {protocol} takes no routes of kind {unable}"),
        )
    });
    (kinds.collect(), fault)
}
