//! From wire messages to the types connections read. Every error names the
//! field, because it is what the controller reports to the operator.

use std::net::IpAddr;
use std::sync::Arc;

use karst_api::convert::{FieldError, port};
use karst_api::node::{MAX_ADDRESSES_OF_SERVICE, OutsideService, WaypointRequirement};
use karst_api::security::{Authorization, Scope as PolicyScopeProto};
use karst_api::workload::service::Visibility;
use karst_api::workload::{self as proto, gateway_address};
use karst_identity::SpiffeId;

use super::authorization::to_policy;
use super::endpoint::EndpointStats;
use super::outside::{Audience, Block, Outside};
use super::policy::{Policy, PolicyScope};
use super::service::{HealthPolicy, LoadBalancingMode, Scope, ServiceSpec};
use super::waypoint::{Place, Waypoint};
use super::workload::{
    Health, Locality, Protocol, ServiceMembership, Via, Workload, next_revision,
};
use crate::waypoints::{Others, Requirement, Waypoints};

/// Converts a workload. `network` is this agent's own.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn workload(p: &proto::Workload, network: &str) -> Result<Workload, FieldError> {
    if p.uid.is_empty() {
        return Err(FieldError::new("uid", "is empty"));
    }
    let protocol = match p.tunnel_protocol() {
        proto::TunnelProtocol::None => Protocol::Tcp,
        proto::TunnelProtocol::Hbone => Protocol::Hbone,
        proto::TunnelProtocol::LegacyIstioMtls => {
            return Err(FieldError::new(
                "tunnel_protocol",
                "is the sidecar's, which is not served",
            ));
        }
    };
    let identity = identity(p)?;
    if protocol == Protocol::Hbone && identity.is_none() {
        return Err(FieldError::new(
            "service_account",
            "is empty, but HBONE needs an identity",
        ));
    }
    let via = if p.network_gateway.is_some() {
        Via::NetworkGateway
    } else {
        p.waypoint
            .as_ref()
            .map_or(Via::Direct, |at| through(at, network))
    };
    let workload_type = match p.workload_type() {
        proto::WorkloadType::Deployment => "deployment",
        proto::WorkloadType::Cronjob => "cronjob",
        proto::WorkloadType::Pod => "pod",
        proto::WorkloadType::Job => "job",
    };
    let health = match p.status() {
        proto::WorkloadStatus::Healthy => Health::Healthy,
        proto::WorkloadStatus::Unhealthy => Health::Unhealthy,
    };
    Ok(Workload {
        revision: next_revision(),
        uid: Arc::from(p.uid.as_str()),
        name: Arc::from(p.name.as_str()),
        namespace: Arc::from(p.namespace.as_str()),
        service_account: Arc::from(p.service_account.as_str()),
        identity,
        addresses: p.ip_addresses()?,
        protocol,
        via,
        health,
        locality: Arc::new(locality(p)),
        host_network: p.network_mode() == proto::NetworkMode::HostNetwork,
        canonical_name: Arc::from(p.canonical_name.as_str()),
        canonical_revision: Arc::from(p.canonical_revision.as_str()),
        workload_type,
        workload_name: Arc::from(p.workload_name.as_str()),
        services: memberships(p)?,
        authorization_policies: p
            .authorization_policies
            .iter()
            .map(|n| Arc::from(n.as_str()))
            .collect(),
        stats: Arc::<EndpointStats>::default(),
    })
}

fn identity(p: &proto::Workload) -> Result<Option<SpiffeId>, FieldError> {
    if p.service_account.is_empty() {
        return Ok(None);
    }
    SpiffeId::new(p.identity_trust_domain(), &p.namespace, &p.service_account)
        .map(Some)
        .map_err(|error| FieldError::new("service_account", error.to_string()))
}

fn locality(p: &proto::Workload) -> Locality {
    let part = |get: fn(&proto::Locality) -> &String| {
        Arc::from(p.locality.as_ref().map_or("", |l| get(l).as_str()))
    };
    Locality {
        network: Arc::from(p.network.as_str()),
        region: part(|l| &l.region),
        zone: part(|l| &l.zone),
        subzone: part(|l| &l.subzone),
        node: Arc::from(p.node.as_str()),
        cluster: Arc::from(p.cluster_id.as_str()),
    }
}

fn memberships(p: &proto::Workload) -> Result<Arc<[ServiceMembership]>, FieldError> {
    let one = |(service, list): (&String, &proto::PortList)| {
        let pair = |entry: &proto::Port| {
            let service_port = port("services.ports.service_port", entry.service_port)?;
            Ok((
                service_port,
                port("services.ports.target_port", entry.target_port)?,
            ))
        };
        let ports = list
            .ports
            .iter()
            .map(pair)
            .collect::<Result<Vec<_>, FieldError>>()?;
        Ok(ServiceMembership {
            service: Arc::from(service.as_str()),
            ports,
        })
    };
    p.services.iter().map(one).collect()
}

/// Converts a service. `network` is this agent's own: virtual addresses of
/// other networks cannot be dialled from here and are left out.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn service(p: &proto::Service, network: &str) -> Result<ServiceSpec, FieldError> {
    if p.hostname.is_empty() {
        return Err(FieldError::new("hostname", "is empty"));
    }
    let lb = p.load_balancing.clone().unwrap_or_default();
    let mode = match lb.mode() {
        proto::load_balancing::Mode::UnspecifiedMode => LoadBalancingMode::Any,
        proto::load_balancing::Mode::Strict => LoadBalancingMode::Strict,
        proto::load_balancing::Mode::Failover => LoadBalancingMode::Failover,
        proto::load_balancing::Mode::Passthrough => LoadBalancingMode::Passthrough,
    };
    let health_policy = match lb.health_policy() {
        proto::load_balancing::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        proto::load_balancing::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    let via = match &p.waypoint {
        _ if !p.weighted_waypoints.is_empty() => Via::UnusableWaypoint,
        Some(at) => through(at, network),
        None => Via::Direct,
    };
    let ports = p.ports.iter().map(proto::Port::ports);
    Ok(ServiceSpec {
        key: Arc::from(p.resource_name()),
        name: Arc::from(p.name.as_str()),
        namespace: Arc::from(p.namespace.as_str()),
        hostname: Arc::from(p.hostname.as_str()),
        vips: vips(p, network)?,
        ports: ports
            .map(|pair| pair.map(|(service, target)| (service, target.unwrap_or(0))))
            .collect::<Result<_, _>>()?,
        via,
        routing_preference: lb.routing_preference().filter_map(scope).collect(),
        outside: outside(p, network, mode)?,
        mode,
        health_policy,
    })
}

/// What a service for hosts outside has besides; `None` for one of the cluster. What passes
/// connections on as they are, or has whole ranges, is such a service too, whoever sends it.
fn outside(
    p: &proto::Service,
    network: &str,
    mode: LoadBalancingMode,
) -> Result<Option<Outside>, FieldError> {
    let more = OutsideService::of(p)?;
    let mut blocks = Vec::new();
    let mut has_range = false;
    for address in &p.addresses {
        let ip = address.ip()?;
        has_range |= is_range(address, ip);
        if address.network != network {
            continue;
        }
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        let block = u8::try_from(address.length.unwrap_or(whole)).ok();
        let block = block.and_then(|length| Block::around(ip, length));
        let problem = || FieldError::new("addresses.length", "is longer than an address");
        blocks.push(block.ok_or_else(problem)?);
    }
    if more.is_none() && !has_range && mode != LoadBalancingMode::Passthrough {
        return Ok(None);
    }
    // An entry names all its namespaces; what another control plane sends has its own one only.
    let own = more.is_none().then_some(&p.namespace);
    let more = more.unwrap_or_default();
    if blocks.len() > MAX_ADDRESSES_OF_SERVICE {
        let problem = format!("has more than {MAX_ADDRESSES_OF_SERVICE}");
        return Err(FieldError::new("addresses", problem));
    }
    let audience = match Visibility::try_from(p.visibility) {
        Ok(Visibility::Public) => Audience::All,
        // What is not known is meant to limit something.
        Ok(Visibility::Namespace) | Err(_) => {
            let all = own.into_iter().chain(&more.namespaces);
            Audience::Namespaces(all.map(|name| Arc::from(name.as_str())).collect())
        }
    };
    Ok(Some(Outside {
        audience,
        blocks,
        created: more.created,
        entry: Arc::from(more.entry),
    }))
}

/// The way through a waypoint. What cannot be followed is no error: the resource would be left as
/// it was before, perhaps with a way past the waypoint.
fn through(at: &proto::GatewayAddress, network: &str) -> Via {
    let place = match &at.destination {
        Some(gateway_address::Destination::Hostname(name)) if !name.hostname.is_empty() => {
            let key = format!("{}/{}", name.namespace, name.hostname);
            Some(Place::Service(Arc::from(key)))
        }
        Some(gateway_address::Destination::Address(address)) if address.network == network => {
            let ip = address.ip().ok();
            ip.filter(|ip| !is_range(address, *ip)).map(Place::Address)
        }
        _ => None,
    };
    match (place, port("waypoint.hbone_mtls_port", at.hbone_mtls_port)) {
        (Some(place), Ok(port)) => Via::Waypoint(Waypoint { place, port }),
        _ => Via::UnusableWaypoint,
    }
}

/// Converts what is said of the waypoints in front of a pod.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn waypoints(list: &[WaypointRequirement]) -> Result<Waypoints, FieldError> {
    let one = |p: &WaypointRequirement| {
        let ports = p.ports.iter();
        let identities = p.identities.iter().map(|id| {
            SpiffeId::parse(id)
                .map_err(|error| FieldError::new("waypoints.identities", error.to_string()))
        });
        Ok(Requirement {
            ports: ports
                .map(|number| port("waypoints.ports", *number))
                .collect::<Result<_, FieldError>>()?,
            identities: identities.collect::<Result<_, FieldError>>()?,
            others: if p.required {
                Others::Refused
            } else {
                Others::Pass
            },
        })
    };
    Ok(Waypoints(list.iter().map(one).collect::<Result<_, _>>()?))
}

fn scope(scope: proto::load_balancing::Scope) -> Option<Scope> {
    match scope {
        proto::load_balancing::Scope::UnspecifiedScope => None,
        proto::load_balancing::Scope::Region => Some(Scope::Region),
        proto::load_balancing::Scope::Zone => Some(Scope::Zone),
        proto::load_balancing::Scope::Subzone => Some(Scope::Subzone),
        proto::load_balancing::Scope::Node => Some(Scope::Node),
        proto::load_balancing::Scope::Cluster => Some(Scope::Cluster),
        proto::load_balancing::Scope::Network => Some(Scope::Network),
    }
}

fn is_range(address: &proto::NetworkAddress, ip: IpAddr) -> bool {
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    address.length.is_some_and(|length| length != whole)
}

fn vips(p: &proto::Service, network: &str) -> Result<Vec<IpAddr>, FieldError> {
    let mut vips = Vec::with_capacity(p.addresses.len());
    for address in &p.addresses {
        let ip = address.ip()?;
        if address.network == network && !is_range(address, ip) {
            vips.push(ip);
        }
    }
    Ok(vips)
}

/// Converts a policy that comes as the resource `name`. What is wrong with its rules comes beside
/// it: what it applies to is known all the same, and is refused. `root` is the namespace whose
/// policies are for the whole mesh.
pub fn policy(name: &Arc<str>, p: &Authorization, root: &str) -> (Policy, Option<FieldError>) {
    let scope = match PolicyScopeProto::try_from(p.scope) {
        Ok(PolicyScopeProto::Global) => Ok(PolicyScope::Global),
        Ok(PolicyScopeProto::Namespace) => {
            Ok(PolicyScope::Namespace(Arc::from(p.namespace.as_str())))
        }
        Ok(PolicyScopeProto::WorkloadSelector) => Ok(PolicyScope::Selector),
        Err(error) => Err(FieldError::new("scope", error.to_string())),
    };
    let rules = to_policy(p);
    let (scope, rules, error) = match (scope, rules) {
        (Ok(scope), Ok(rules)) => (scope, Some(rules), None),
        (Ok(scope), Err(error)) => (scope, None, Some(error)),
        (Err(error), _) => return (Policy::unreadable(name, root), Some(error)),
    };
    let policy = Policy {
        name: Arc::clone(name),
        scope,
        dry_run: p.dry_run,
        rules,
    };
    (policy, error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_api::node::WaypointRequirement;
    use karst_api::workload::{self as proto, gateway_address};

    use super::{
        Audience, Others, OutsideService, Place, Protocol, Via, Waypoint, service, waypoints,
        workload,
    };

    fn pod() -> proto::Workload {
        proto::Workload {
            uid: "Kubernetes//Pod/ns/pod".to_owned(),
            name: "pod".to_owned(),
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
            addresses: vec![vec![10, 0, 0, 1]],
            tunnel_protocol: proto::TunnelProtocol::Hbone.into(),
            ..proto::Workload::default()
        }
    }

    #[test]
    fn workload_gets_the_default_trust_domain() {
        let w = workload(&pod(), "").expect("valid");
        let identity = w.identity.expect("identity").to_string();
        assert_eq!(identity, "spiffe://cluster.local/ns/ns/sa/sa");
        assert_eq!((w.protocol, w.via), (Protocol::Hbone, Via::Direct));
    }

    #[test]
    fn hbone_without_identity_is_refused() {
        let p = proto::Workload {
            service_account: String::new(),
            ..pod()
        };
        assert_eq!(
            workload(&p, "").expect_err("refused").field,
            "service_account"
        );
    }

    #[test]
    fn bad_fields_are_named() {
        let p = proto::Workload {
            addresses: vec![vec![1, 2, 3]],
            ..pod()
        };
        assert_eq!(workload(&p, "").expect_err("refused").field, "addresses");
        let p = proto::Workload {
            tunnel_protocol: 2,
            ..pod()
        };
        assert_eq!(
            workload(&p, "").expect_err("refused").field,
            "tunnel_protocol"
        );
        let list = proto::PortList {
            ports: vec![proto::Port {
                service_port: 80,
                target_port: 70_000,
                app_protocol: 0,
            }],
        };
        let p = proto::Workload {
            services: [("ns/h".to_owned(), list)].into(),
            ..pod()
        };
        assert_eq!(
            workload(&p, "").expect_err("refused").field,
            "services.ports.target_port"
        );
    }

    #[test]
    fn a_gateway_comes_before_a_waypoint() {
        let gateway = Some(proto::GatewayAddress::default());
        let p = proto::Workload {
            network_gateway: gateway.clone(),
            waypoint: gateway,
            ..pod()
        };
        assert_eq!(workload(&p, "").expect("valid").via, Via::NetworkGateway);
    }

    fn by_name(namespace: &str, hostname: &str, port: u32) -> proto::GatewayAddress {
        let name = proto::NamespacedHostname {
            namespace: namespace.to_owned(),
            hostname: hostname.to_owned(),
        };
        proto::GatewayAddress {
            destination: Some(gateway_address::Destination::Hostname(name)),
            hbone_mtls_port: port,
        }
    }

    fn by_address(network: &str, address: &[u8], length: Option<u32>) -> proto::GatewayAddress {
        let address = proto::NetworkAddress {
            network: network.to_owned(),
            address: address.to_vec(),
            length,
        };
        proto::GatewayAddress {
            destination: Some(gateway_address::Destination::Address(address)),
            hbone_mtls_port: 15008,
        }
    }

    /// The same for workloads and services.
    fn via(waypoint: proto::GatewayAddress) -> Via {
        let p = proto::Workload {
            waypoint: Some(waypoint.clone()),
            ..pod()
        };
        let of_workload = workload(&p, "net").expect("valid").via;
        let p = proto::Service {
            hostname: "svc".to_owned(),
            waypoint: Some(waypoint),
            ..proto::Service::default()
        };
        let of_service = service(&p, "net").expect("valid").via;
        assert_eq!(of_workload, of_service);
        of_service
    }

    #[test]
    fn waypoints_are_named_by_service_or_address() {
        let place = Place::Service("infra/wp.infra.svc.cluster.local".into());
        let expected = Waypoint { place, port: 15008 };
        let named = by_name("infra", "wp.infra.svc.cluster.local", 15008);
        assert_eq!(via(named), Via::Waypoint(expected));
        let place = Place::Address("10.96.0.9".parse().expect("ip"));
        let expected = Waypoint { place, port: 15008 };
        let addressed = by_address("net", &[10, 96, 0, 9], Some(32));
        assert_eq!(via(addressed), Via::Waypoint(expected));
    }

    #[test]
    fn a_waypoint_that_cannot_be_followed_is_not_left_out() {
        for odd in [
            proto::GatewayAddress::default(),
            by_name("infra", "", 15008),
            by_name("infra", "wp", 0),
            by_name("infra", "wp", 70_000),
            by_address("elsewhere", &[10, 96, 0, 9], None),
            by_address("net", &[10, 96, 0, 0], Some(24)),
            by_address("net", &[10, 96], None),
        ] {
            assert_eq!(via(odd.clone()), Via::UnusableWaypoint, "{odd:?}");
        }
        let p = proto::Service {
            hostname: "svc".to_owned(),
            waypoint: Some(by_name("infra", "wp", 15008)),
            weighted_waypoints: vec![proto::WeightedWaypoint::default()],
            ..proto::Service::default()
        };
        assert_eq!(service(&p, "").expect("valid").via, Via::UnusableWaypoint);
    }

    #[test]
    fn requirements_name_what_is_wrong_in_them() {
        let good = WaypointRequirement {
            ports: vec![80],
            identities: vec!["spiffe://cluster.local/ns/infra/sa/wp".to_owned()],
            required: true,
        };
        let read = waypoints(std::slice::from_ref(&good)).expect("valid");
        let [requirement] = read.0.as_slice() else {
            panic!("{read:?}")
        };
        assert_eq!(
            (&*requirement.ports, requirement.others),
            (&[80][..], Others::Refused)
        );
        assert_eq!(requirement.identities[0].service_account(), "wp");
        let field = |p: WaypointRequirement| waypoints(&[good.clone(), p]).expect_err("bad").field;
        let port = WaypointRequirement {
            ports: vec![70_000],
            ..good.clone()
        };
        assert_eq!(field(port), "waypoints.ports");
        let identity = WaypointRequirement {
            identities: vec!["wp".to_owned()],
            ..good.clone()
        };
        assert_eq!(field(identity), "waypoints.identities");
    }

    #[test]
    fn service_keeps_own_network_and_knows_ranges() {
        let address = |network: &str, length| proto::NetworkAddress {
            network: network.to_owned(),
            address: vec![10, 96, 0, 1],
            length,
        };
        let mut p = proto::Service {
            namespace: "ns".to_owned(),
            hostname: "svc.ns.svc.cluster.local".to_owned(),
            addresses: vec![address("", Some(32)), address("other", None)],
            ..proto::Service::default()
        };
        let spec = service(&p, "").expect("valid");
        assert_eq!(spec.vips.len(), 1);
        assert_eq!(&*spec.key, "ns/svc.ns.svc.cluster.local");
        p.addresses = vec![address("", Some(24))];
        let spec = service(&p, "").expect("valid");
        assert!(spec.vips.is_empty());
        let outside = spec.outside.expect("a range is outside");
        assert_eq!(outside.blocks.len(), 1);
        assert_eq!(outside.audience, Audience::All);
        p.addresses = vec![address("", Some(33))];
        assert_eq!(
            service(&p, "").expect_err("refused").field,
            "addresses.length"
        );
    }

    #[test]
    fn whose_a_service_for_hosts_outside_is() {
        let more = OutsideService {
            namespaces: vec!["client".to_owned()],
            created: 7,
            entry: "api".to_owned(),
        };
        let mut p = proto::Service {
            namespace: "ns".to_owned(),
            hostname: "api.example.com".to_owned(),
            extensions: vec![more.to_extension()],
            ..proto::Service::default()
        };
        let outside = |p: &proto::Service| service(p, "").expect("valid").outside;
        let all = outside(&p).expect("outside");
        assert_eq!((all.audience, all.created), (Audience::All, 7));
        let only = |names: &[&str]| {
            Audience::Namespaces(names.iter().map(|name| Arc::from(*name)).collect())
        };
        // A visibility that is not known is the narrow one. The service's own namespace is none of
        // them unless it is named.
        for narrow in [1, 9] {
            p.visibility = narrow;
            for named in [&["client"][..], &["client", "ns"], &[]] {
                let more = OutsideService {
                    namespaces: named.iter().map(|name| (*name).to_owned()).collect(),
                    ..more.clone()
                };
                p.extensions = vec![more.to_extension()];
                assert_eq!(outside(&p).expect("outside").audience, only(named));
            }
        }
        // Without the extension nobody else can be named.
        p.extensions.clear();
        p.load_balancing = Some(proto::LoadBalancing {
            mode: proto::load_balancing::Mode::Passthrough.into(),
            ..proto::LoadBalancing::default()
        });
        assert_eq!(outside(&p).expect("outside").audience, only(&["ns"]));
        p.load_balancing = None;
        let mut extension = more.to_extension();
        if let Some(config) = &mut extension.config {
            config.value = vec![0xff];
        }
        p.extensions = vec![extension];
        let error = service(&p, "").expect_err("refused");
        assert_eq!(error.field, "extensions.config");
        p.extensions.clear();
        assert_eq!(outside(&p), None);
    }
}
