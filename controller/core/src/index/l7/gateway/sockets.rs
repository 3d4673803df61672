//! What the proxy of a Gateway serves on ports of its own, and what shall run for it.

use std::collections::{BTreeMap, BTreeSet};

use karst_api::waypoint as wire;

use super::{
    super::{GatewayName, Index},
    Sockets,
    addresses::static_addresses,
    view::{Attached, Entry, View},
};
use crate::{
    object::listener::{ListenerProtocol, TlsVersion},
    proxy::{ProxyClass, ProxyPort, ProxyWanted},
};

impl Index {
    /// What the proxy of a Gateway of class `karst` serves.
    pub(in crate::index::l7) fn gateway_sockets(&self, gateway: &GatewayName) -> Sockets {
        let mut sockets = Sockets::default();
        let Some(view) = self.l7.views.get(gateway) else {
            return sockets;
        };
        if view.class != ProxyClass::Gateway {
            return sockets;
        }
        for (port, entries) in by_port(view) {
            let mut listeners = Vec::with_capacity(entries.len());
            for entry in entries {
                if entry.is_served() {
                    listeners.push(self.served(entry, gateway, &mut sockets));
                } else {
                    listeners.push(withheld(entry, gateway));
                }
            }
            sockets.listeners.push(wire::Listener {
                name: format!("socket/{port}"),
                frontend: Some(wire::listener::Frontend::Socket(wire::SocketFrontend {
                    port: port.into(),
                    listeners,
                })),
            });
        }
        sockets
    }

    /// A listener with all that is needed to serve it, which is noted in `sockets`.
    fn served(
        &self,
        entry: &Entry,
        gateway: &GatewayName,
        sockets: &mut Sockets,
    ) -> wire::GatewayListener {
        // Nothing tells connections apart on a port of bytes, so that the oldest route has them all.
        let most = match entry.listener.protocol {
            ListenerProtocol::Tcp => 1,
            _ => usize::MAX,
        };
        let usable = entry.attached.iter();
        let usable = usable.filter(|attached| self.is_route_usable(&attached.route));
        let attached: Vec<&Attached> = usable.take(most).collect();
        sockets
            .routes
            .extend(attached.iter().map(|one| one.route.clone()));
        sockets.secrets.extend(entry.certificates.iter().cloned());
        let authorities = entry.validation.iter();
        let authorities = authorities.flat_map(|validation| &validation.authorities);
        sockets.secrets.extend(authorities.cloned());
        wire::GatewayListener {
            certificates: entry.certificates.clone(),
            client_validation: entry.validation.clone(),
            tls_min: tls_version(entry.listener.tls_min).into(),
            tls_max: tls_version(entry.listener.tls_max).into(),
            routes: attached.into_iter().map(attached_route).collect(),
            policies: self.policies_at(gateway, ProxyClass::Gateway, None),
            authentications: self.authentications_at(gateway, ProxyClass::Gateway, None),
            telemetry: self.telemetry_at(gateway, ProxyClass::Gateway, &gateway.namespace, None),
            ..withheld(entry, gateway)
        }
    }

    /// What shall run for a Gateway.
    pub(in crate::index::l7) fn wanted_for(&self, gateway: &GatewayName) -> Option<ProxyWanted> {
        let view = self.l7.views.get(gateway)?;
        let stored = self.l7.gateways.get(gateway)?;
        let ports = ports(view);
        if ports.is_empty() || gateway.shares_its_account() {
            return None;
        }
        Some(ProxyWanted {
            gateway: gateway.clone(),
            uid: stored.meta.uid.clone(),
            generation: stored.meta.generation,
            class: view.class,
            service_account: gateway.name.clone(),
            ports,
            labels: stored.body.infrastructure_labels.clone(),
            annotations: stored.body.infrastructure_annotations.clone(),
            addresses: static_addresses(&stored.body)
                .map(|ip| ip.to_string())
                .collect(),
        })
    }
}

/// Listeners of each port on which any is served. One that is not served stays there if it has a host name
/// of its own: what is meant for it must not end up at another one whose name covers it.
fn by_port(view: &View) -> BTreeMap<u16, Vec<&Entry>> {
    let served = view.entries.iter().filter(|entry| entry.is_served());
    let ports: BTreeSet<u16> = served.map(|entry| entry.listener.port).collect();
    let mut found: BTreeMap<u16, Vec<&Entry>> = BTreeMap::new();
    for entry in &view.entries {
        let is_one_too_many =
            entry.fault.as_ref().map(|fault| fault.reason) == Some("TooManyListeners");
        let is_told = entry.conflict.is_none()
            && !is_one_too_many
            && protocol(&entry.listener.protocol).is_some();
        if is_told && ports.contains(&entry.listener.port) {
            found.entry(entry.listener.port).or_default().push(entry);
        }
    }
    found
}

/// A listener without routes or certificates: HTTP requests find no route, and TLS handshakes fail.
fn withheld(entry: &Entry, gateway: &GatewayName) -> wire::GatewayListener {
    let hostname = entry.listener.hostname.as_ref();
    let protocol = protocol(&entry.listener.protocol);
    wire::GatewayListener {
        name: entry.name(gateway),
        hostname: hostname.map(ToString::to_string).unwrap_or_default(),
        protocol: protocol
            .unwrap_or(wire::ListenerProtocol::ListenerUnspecified)
            .into(),
        ..Default::default()
    }
}

fn protocol(protocol: &ListenerProtocol) -> Option<wire::ListenerProtocol> {
    Some(match protocol {
        ListenerProtocol::Http => wire::ListenerProtocol::ListenerHttp,
        ListenerProtocol::Https => wire::ListenerProtocol::ListenerHttps,
        ListenerProtocol::TlsPassthrough => wire::ListenerProtocol::ListenerTlsPassthrough,
        ListenerProtocol::TlsTerminate => wire::ListenerProtocol::ListenerTlsTerminate,
        ListenerProtocol::Tcp => wire::ListenerProtocol::ListenerTcp,
        ListenerProtocol::Hbone | ListenerProtocol::Unsupported(_) => return None,
    })
}

fn attached_route(attached: &Attached) -> wire::AttachedRoute {
    wire::AttachedRoute {
        route: attached.route.resource_name(),
        hostnames: attached.hostnames.iter().map(ToString::to_string).collect(),
    }
}

fn tls_version(version: Option<TlsVersion>) -> wire::TlsVersion {
    match version {
        None => wire::TlsVersion::TlsAuto,
        Some(TlsVersion::V1_2) => wire::TlsVersion::Tls12,
        Some(TlsVersion::V1_3) => wire::TlsVersion::Tls13,
    }
}

/// Ports of the Service. They follow from what is accepted, not from what is served: a Secret that is gone
/// for a moment must not take addresses away.
fn ports(view: &View) -> Vec<ProxyPort> {
    let mut ports: BTreeMap<u16, String> = BTreeMap::new();
    for entry in view.entries.iter().filter(|entry| entry.conflict.is_none()) {
        let refused = entry.fault.as_ref().map(|fault| fault.reason);
        if matches!(refused, None | Some("NoValidCACertificate")) {
            let port = entry.listener.port;
            let protocol = entry.listener.protocol.name().to_ascii_lowercase();
            ports
                .entry(port)
                .or_insert_with(|| format!("{protocol}-{port}"));
        }
    }
    let ports = ports.into_iter();
    ports.map(|(port, name)| ProxyPort { name, port }).collect()
}
