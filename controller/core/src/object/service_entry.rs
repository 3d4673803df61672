//! What the mesh needs of a ServiceEntry (networking.istio.io).
//!
//! An entry opens something, so one that cannot be understood, or that asks for what the mesh does not
//! do, has no effect at all; its status says which field stands in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use karst_api::{
    convert::{self, network, whole},
    node::MAX_ADDRESSES_OF_SERVICE,
    workload::AppProtocol,
};
use serde_json::Value;

use super::{
    Body,
    hostname::Hostname,
    policy::{PolicyDocument, Reader, listed},
};
use crate::{
    error::{Faults, ObjectError},
    labels::{USE_WAYPOINT, first},
};

/// Most hosts, ports and namespaces in `exportTo` of an entry; Istio's own limit.
const MAX_ITEMS: usize = 256;

/// Most endpoints of an entry. Each is a resource of its own, which every node agent gets.
const MAX_ENDPOINTS: usize = 1024;

/// The network's part of an address with its length in bits.
pub(crate) type AddressBlock = (IpAddr, u8);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    /// The first of them names the entry in telemetry.
    pub(crate) hosts: Vec<String>,
    pub(crate) blocks: Vec<AddressBlock>,
    pub(crate) ports: Vec<EntryPort>,
    pub(crate) resolution: Resolution,
    pub(crate) audience: Audience,
    /// What in it cannot be understood; then it has no effect.
    pub(crate) faults: Vec<String>,
    /// What the mesh does not do; likewise.
    pub(crate) unsupported: Vec<String>,
    /// What is not done as written.
    pub(crate) narrowed: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPort {
    pub(crate) number: u16,
    pub(crate) name: String,
    /// Where endpoints take it.
    pub(crate) target: u16,
    pub(crate) app_protocol: AppProtocol,
}

/// Where connections go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// To the address that was asked for.
    #[default]
    AsAsked,
    /// To one of these endpoints.
    Endpoints(Vec<EntryEndpoint>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryEndpoint {
    pub(crate) ip: IpAddr,
    /// Ports that differ from the entry's, by the port's name.
    pub(crate) ports: BTreeMap<String, u16>,
    /// Region, zone and subzone with slashes in between.
    pub(crate) locality: String,
}

/// Whose pods it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Audience {
    #[default]
    All,
    Namespaces(BTreeSet<String>),
}

impl Audience {
    /// Whether there is a pod that both are for.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, Self::All) => true,
            (Self::All, Self::Namespaces(some)) | (Self::Namespaces(some), Self::All) => {
                !some.is_empty()
            }
            (Self::Namespaces(one), Self::Namespaces(other)) => !one.is_disjoint(other),
        }
    }
}

impl ServiceEntry {
    pub(crate) fn body(
        document: &PolicyDocument,
        namespace: &str,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Body {
        let mut reader = Reader::new(faults, findings);
        Body::ServiceEntry(Box::new(Self::read(document, namespace, &mut reader)))
    }

    /// Whether it has any effect by itself.
    pub(crate) fn is_usable(&self) -> bool {
        self.faults.is_empty() && self.unsupported.is_empty()
    }

    fn read(document: &PolicyDocument, namespace: &str, reader: &mut Reader<'_>) -> Self {
        let mut entry = Self::default();
        reader.metadata(document);
        let labels = document.metadata.labels.clone().unwrap_or_default();
        if first(&labels, &USE_WAYPOINT).is_some_and(|name| name != "none") {
            let hint = "remove the label: there are no waypoints for hosts outside yet";
            reader.unsupported("metadata.labels", "name a waypoint", hint);
        }
        let (mut resolution, mut endpoints) = ("NONE".to_owned(), None);
        for (name, value) in reader.fields(&document.spec, "spec").unwrap_or_default() {
            let field = format!("spec.{name}");
            match name {
                "hosts" => entry.hosts = hosts(value, reader),
                "addresses" => entry.blocks = blocks(value, reader),
                "ports" => entry.ports = ports(value, reader, &mut entry.narrowed),
                "exportTo" => entry.audience = audience(value, namespace, reader),
                "location" => location(value, reader),
                "resolution" => match value.as_str() {
                    Some(text) => resolution = text.to_owned(),
                    None => reader.fault(&field, "is no text", "write NONE or STATIC"),
                },
                "endpoints" => endpoints = Some(read_endpoints(value, reader, &mut entry.narrowed)),
                "subjectAltNames" => {
                    let items = reader.items(value, &field).unwrap_or_default();
                    if !items.is_empty() {
                        let what = "spec.subjectAltNames is not checked, as the mesh opens no TLS to hosts outside";
                        entry.narrowed.push(what.to_owned());
                    }
                }
                "workloadSelector" => {
                    let hint = "write the endpoints' addresses, or make a Service for pods";
                    reader.unsupported(&field, "is not supported", hint);
                }
                _ => reader.unknown(&field),
            }
        }
        if entry.hosts.is_empty() {
            let hint = "name at least one host";
            reader.fault("spec.hosts", "has no host that can be used", hint);
        }
        if entry.ports.is_empty() {
            let hint = "connections pass to the ports that are listed only";
            reader.fault("spec.ports", "has no TCP port that can be used", hint);
        }
        entry.resolution = entry.resolve(&resolution, endpoints, reader);
        entry.faults = std::mem::take(&mut reader.problems);
        entry.unsupported = std::mem::take(&mut reader.unsupported);
        entry
    }

    fn resolve(
        &mut self,
        resolution: &str,
        endpoints: Option<Vec<EntryEndpoint>>,
        reader: &mut Reader<'_>,
    ) -> Resolution {
        let has_endpoints = endpoints.as_ref().is_some_and(|all| !all.is_empty());
        let field = "spec.resolution";
        let needs_addresses = |reader: &mut Reader<'_>, blocks: &[AddressBlock]| {
            if blocks.is_empty() {
                let hint = "give addresses: connections are told apart by them";
                reader.unsupported("spec.addresses", "is empty", hint);
            }
        };
        match resolution {
            "NONE" => {
                needs_addresses(reader, &self.blocks);
                if has_endpoints {
                    let hint = "use resolution STATIC for them";
                    reader.fault("spec.endpoints", "is there with resolution NONE", hint);
                }
                let differs = self.ports.iter().any(|port| port.target != port.number);
                if differs {
                    let what = "targetPort has no effect with resolution NONE: connections go to the port they are for";
                    self.narrowed.push(what.to_owned());
                }
                Resolution::AsAsked
            }
            "STATIC" => {
                needs_addresses(reader, &self.blocks);
                if !has_endpoints {
                    let hint = "name at least one endpoint";
                    reader.fault("spec.endpoints", "has none that can be used", hint);
                }
                Resolution::Endpoints(endpoints.unwrap_or_default())
            }
            "DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS" => {
                let problem = format!("is {resolution}, which is not supported");
                let hint = "nobody resolves names for the entry: use NONE or STATIC with addresses";
                reader.unsupported(field, &problem, hint);
                Resolution::AsAsked
            }
            other => {
                let shown: String = other.chars().take(40).collect();
                let hint = "use NONE or STATIC";
                reader.fault(field, format!("is {shown:?}"), hint);
                Resolution::AsAsked
            }
        }
    }
}

/// The elements of a list, at most so many.
fn limited<'v>(
    reader: &mut Reader<'_>,
    value: &'v Value,
    field: &str,
    limit: usize,
) -> &'v [Value] {
    let items = reader.items(value, field).unwrap_or_default();
    if items.len() > limit {
        let hint = format!("make several entries of at most {limit} each");
        reader.fault(field, format!("has {} items", items.len()), &hint);
        return &[];
    }
    items
}

fn hosts(value: &Value, reader: &mut Reader<'_>) -> Vec<String> {
    let mut hosts = Vec::new();
    let items = limited(reader, value, "spec.hosts", MAX_ITEMS);
    for (at, item) in items.iter().enumerate() {
        let parsed = item.as_str().and_then(Hostname::parse);
        match parsed.zip(item.as_str()) {
            Some((_, text)) => hosts.push(text.to_ascii_lowercase()),
            None => {
                let hint = "write a DNS name, as in api.example.com or *.example.com";
                reader.fault(&format!("spec.hosts[{at}]"), "is no host name", hint);
            }
        }
    }
    hosts
}

fn blocks(value: &Value, reader: &mut Reader<'_>) -> Vec<AddressBlock> {
    let mut blocks = Vec::new();
    let limit = MAX_ADDRESSES_OF_SERVICE;
    let items = limited(reader, value, "spec.addresses", limit);
    for (at, item) in items.iter().enumerate() {
        match item.as_str().and_then(parse_block) {
            Some(block) if blocks.contains(&block) => {}
            Some(block) => blocks.push(block),
            None => {
                let hint = "write a unicast address, or a network as in 192.0.2.0/24";
                reader.fault(&format!("spec.addresses[{at}]"), "is no address", hint);
            }
        }
    }
    blocks
}

/// An address or a CIDR block; bits beyond the prefix are cleared. `None` for one that no connection
/// goes to.
fn parse_block(text: &str) -> Option<AddressBlock> {
    let (ip, length) = convert::parse_block(text)?;
    let block = match (ip, length) {
        (ip, None) => {
            let ip = ip.to_canonical();
            (!ip.is_unspecified()).then_some((ip, whole(ip)))
        }
        // An IPv4 block in IPv6's clothes has no length that means the same everywhere.
        (IpAddr::V6(ip), Some(_)) if ip.to_ipv4_mapped().is_some() => None,
        (ip, Some(length)) => Some((network(ip, length)?, length)),
    };
    block.filter(|(ip, _)| !ip.is_loopback() && !ip.is_multicast())
}

fn ports(value: &Value, reader: &mut Reader<'_>, narrowed: &mut Vec<String>) -> Vec<EntryPort> {
    let mut ports: Vec<EntryPort> = Vec::new();
    let items = limited(reader, value, "spec.ports", MAX_ITEMS);
    for (at, item) in items.iter().enumerate() {
        let field = format!("spec.ports[{at}]");
        let (mut number, mut target) = (None, None);
        let (mut name, mut protocol) = (String::new(), String::new());
        for (key, value) in reader.fields(item, &field).unwrap_or_default() {
            let field = format!("{field}.{key}");
            let text = |reader: &mut Reader<'_>| match value.as_str() {
                Some(text) => text.to_owned(),
                None => {
                    reader.fault(&field, "is no text", "quote it");
                    String::new()
                }
            };
            match key {
                "number" => number = port_number(value, &field, reader),
                "targetPort" => target = port_number(value, &field, reader),
                "name" => name = text(reader),
                "protocol" => protocol = text(reader).to_ascii_uppercase(),
                _ => reader.unknown(&field),
            }
        }
        let Some(number) = number else {
            reader.fault(&field, "has no number that can be used", "use 1 to 65535");
            continue;
        };
        if protocol == "UDP" {
            narrowed.push(format!("{field} is for UDP, which the mesh does not carry"));
            continue;
        }
        if ports.iter().any(|other| other.number == number) {
            let hint = "list each port once";
            reader.fault(&field, format!("is {number} once more"), hint);
            continue;
        }
        ports.push(EntryPort {
            number,
            name,
            target: target.unwrap_or(number),
            app_protocol: app_protocol(&protocol),
        });
    }
    ports
}

fn app_protocol(protocol: &str) -> AppProtocol {
    match protocol {
        "HTTP" => AppProtocol::Http11,
        "HTTP2" => AppProtocol::Http2,
        "GRPC" => AppProtocol::Grpc,
        "HTTPS" | "TLS" => AppProtocol::Tls,
        "TCP" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn port_number(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<u16> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    let number = number.filter(|number| *number != 0);
    if number.is_none() {
        reader.fault(
            field,
            format!("is {value}, which is no port"),
            "use 1 to 65535",
        );
    }
    number
}

fn location(value: &Value, reader: &mut Reader<'_>) {
    match value.as_str() {
        Some("MESH_EXTERNAL") => {}
        Some("MESH_INTERNAL") => {
            let hint =
                "use MESH_EXTERNAL: what has no pod has no identity that the mesh could check";
            let problem = "is MESH_INTERNAL, which is not supported";
            reader.unsupported("spec.location", problem, hint);
        }
        _ => {
            let hint = "use MESH_EXTERNAL";
            reader.fault("spec.location", format!("is {value}"), hint);
        }
    }
}

fn audience(value: &Value, namespace: &str, reader: &mut Reader<'_>) -> Audience {
    let items = limited(reader, value, "spec.exportTo", MAX_ITEMS);
    let (mut all, mut some) = (items.is_empty(), BTreeSet::new());
    for (at, item) in items.iter().enumerate() {
        let is_name = |text: &&str| {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !text.is_empty() && text.len() <= 63 && text.bytes().all(plain)
        };
        match item.as_str() {
            Some("*") => all = true,
            Some(".") => {
                some.insert(namespace.to_owned());
            }
            // Nobody.
            Some("~") => {}
            text => match text.filter(is_name) {
                Some(name) => {
                    some.insert(name.to_owned());
                }
                None => {
                    let hint = "write \".\", \"*\" or the name of a namespace";
                    let field = format!("spec.exportTo[{at}]");
                    reader.fault(&field, format!("is {item}"), hint);
                }
            },
        }
    }
    match all {
        true => Audience::All,
        false => Audience::Namespaces(some),
    }
}

fn read_endpoints(
    value: &Value,
    reader: &mut Reader<'_>,
    narrowed: &mut Vec<String>,
) -> Vec<EntryEndpoint> {
    let mut endpoints: Vec<EntryEndpoint> = Vec::new();
    let mut ignored = Vec::new();
    let items = limited(reader, value, "spec.endpoints", MAX_ENDPOINTS);
    for (at, item) in items.iter().enumerate() {
        let field = format!("spec.endpoints[{at}]");
        let mut ip = None;
        let (mut ports, mut locality) = (BTreeMap::new(), String::new());
        for (key, value) in reader.fields(item, &field).unwrap_or_default() {
            let field = format!("{field}.{key}");
            match key {
                "address" => {
                    let block = value.as_str().filter(|text| !text.contains('/'));
                    ip = block.and_then(parse_block).map(|(ip, _)| ip);
                    if ip.is_none() {
                        let hint = "write a unicast IP address";
                        reader.unsupported(&field, "is no IP address", hint);
                    }
                }
                "ports" => {
                    for (name, value) in reader.fields(value, &field).unwrap_or_default() {
                        let field = format!("{field}[{name:?}]");
                        let number = port_number(value, &field, reader);
                        ports.extend(number.map(|number| (name.to_owned(), number)));
                    }
                }
                "locality" => match value.as_str() {
                    Some(text) => text.clone_into(&mut locality),
                    None => reader.fault(&field, "is no text", "write region/zone/subzone"),
                },
                "labels" => {}
                "weight" | "serviceAccount" => ignored.push(field),
                "network" => {
                    let hint = "leave it out: there is one network only";
                    reader.unsupported(&field, "is not supported", hint);
                }
                _ => reader.unknown(&field),
            }
        }
        match ip {
            Some(ip) if endpoints.iter().any(|other| other.ip == ip) => {
                let hint = "list each address once";
                reader.fault(&field, format!("is {ip} once more"), hint);
            }
            Some(ip) => endpoints.push(EntryEndpoint {
                ip,
                ports,
                locality,
            }),
            None if item.get("address").is_none_or(Value::is_null) => {
                reader.fault(&field, "has no address", "write its IP address");
            }
            None => {}
        }
    }
    if !ignored.is_empty() {
        let fields = listed(&ignored, ", ");
        narrowed.push(format!("{fields} have no effect"));
    }
    endpoints
}

#[cfg(test)]
#[path = "service_entry_tests.rs"]
mod tests;
