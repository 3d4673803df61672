//! Addresses of Gateways: those that they have, and those that they ask for.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    super::{GatewayName, Index, NsName},
    view::Fault,
};
use crate::object::gateway::{Gateway, RequestedAddress};

impl Index {
    /// The addresses at which a Gateway is reached, and what is wrong with one that it asks for.
    pub(super) fn addresses_of(
        &self,
        name: &GatewayName,
        gateway: &Gateway,
    ) -> (Vec<String>, Option<Fault>) {
        let key = NsName::new(name.namespace.as_str(), name.name.as_str());
        let Some(service) = self.services.get(&key) else {
            return (Vec::new(), unusable(gateway));
        };
        let cluster = || {
            service
                .vips
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        let asked: Vec<String> = static_addresses(gateway).map(|ip| ip.to_string()).collect();
        if asked.is_empty() {
            let fault = unusable(gateway);
            return match service.published.is_empty() {
                true => (cluster(), fault),
                false => (service.published.clone(), fault),
            };
        }
        let has = |ip: &String| service.published.contains(ip) || cluster().contains(ip);
        let missing = asked.iter().find(|ip| !has(ip)).map(|ip| {
            Fault::new(
                "AddressNotUsable",
                format!("The Service {name} does not have the address {ip} (so far)"),
            )
        });
        let found = asked.iter().filter(|ip| has(ip)).cloned().collect();
        (found, unusable(gateway).or(missing))
    }
}

pub(super) fn address(text: &str) -> Value {
    let kind = match text.parse::<IpAddr>() {
        Ok(_) => "IPAddress",
        Err(_) => "Hostname",
    };
    json!({"type": kind, "value": text})
}

/// Addresses that a Gateway asks for and that anybody could have.
pub(super) fn static_addresses(gateway: &Gateway) -> impl Iterator<Item = IpAddr> {
    gateway
        .addresses
        .iter()
        .filter_map(|address| match address {
            RequestedAddress::Ip(ip) if is_usable(*ip) => Some(*ip),
            _ => None,
        })
}

/// What is wrong with an address that a Gateway asks for.
fn unusable(gateway: &Gateway) -> Option<Fault> {
    let mut addresses = gateway.addresses.iter();
    let bad = addresses.find_map(|address| match address {
        RequestedAddress::Ip(ip) if !is_usable(*ip) => Some(ip.to_string()),
        RequestedAddress::NoIp(text) => Some(text.clone()),
        _ => None,
    })?;
    Some(Fault::new(
        "AddressNotUsable",
        format!("{bad:?} is no IP address that clients can connect to; remove it from addresses"),
    ))
}

/// Whether it is an address of one host that others can reach. Those for documentation (RFC 5737, RFC 3849)
/// are nobody's.
fn is_usable(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_link_local()
                || ip.is_documentation()
                || ip.octets()[0] == 0
                || ip.octets()[0] >= 240
        }
        IpAddr::V6(ip) => {
            let segments = ip.segments();
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || (segments[0] & 0xffc0) == 0xfe80
                || (segments[0], segments[1]) == (0x2001, 0x0db8)
        }
    };
    !special
}
