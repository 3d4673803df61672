//! From wire messages to the types connections read. Every error names the
//! field, because it is what the controller reports to the operator.

use std::net::IpAddr;
use std::sync::Arc;

use karst_api::convert::{FieldError, port};
use karst_api::security::{Authorization, Scope as PolicyScopeProto};
use karst_api::workload as proto;
use karst_identity::SpiffeId;

use super::endpoint::EndpointStats;
use super::policy::PolicyScope;
use super::service::{HealthPolicy, LoadBalancingMode, Scope, ServiceSpec};
use super::workload::{
    Health, Locality, Protocol, ServiceMembership, Via, Workload, next_revision,
};

/// Converts a workload.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn workload(p: &proto::Workload) -> Result<Workload, FieldError> {
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
    } else if p.waypoint.is_some() {
        Via::Waypoint
    } else {
        Via::Direct
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
        locality: locality(p),
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

fn memberships(p: &proto::Workload) -> Result<Vec<ServiceMembership>, FieldError> {
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
    let has_waypoint = p.waypoint.is_some() || !p.weighted_waypoints.is_empty();
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
        via: if has_waypoint {
            Via::Waypoint
        } else {
            Via::Direct
        },
        routing_preference: lb.routing_preference().filter_map(scope).collect(),
        mode,
        health_policy,
    })
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

fn vips(p: &proto::Service, network: &str) -> Result<Vec<IpAddr>, FieldError> {
    let mut vips = Vec::with_capacity(p.addresses.len());
    for address in &p.addresses {
        let ip = address.ip()?;
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        if address.length.is_some_and(|length| length != whole) {
            return Err(FieldError::new(
                "addresses.length",
                "is a range, which is not supported",
            ));
        }
        if address.network == network {
            vips.push(ip);
        }
    }
    Ok(vips)
}

/// Converts a policy to what is known about it: its name (`namespace/name`) and
/// scope. `None` for a policy that is never enforced.
pub fn policy(p: &Authorization) -> Option<(Arc<str>, PolicyScope)> {
    if p.dry_run {
        return None;
    }
    let scope = match p.scope() {
        PolicyScopeProto::Global => PolicyScope::Global,
        PolicyScopeProto::Namespace => PolicyScope::Namespace(Arc::from(p.namespace.as_str())),
        PolicyScopeProto::WorkloadSelector => PolicyScope::Selector,
    };
    Some((Arc::from(format!("{}/{}", p.namespace, p.name)), scope))
}

#[cfg(test)]
mod tests {
    use karst_api::workload as proto;

    use super::{Protocol, Via, service, workload};

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
        let w = workload(&pod()).expect("valid");
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
        assert_eq!(workload(&p).expect_err("refused").field, "service_account");
    }

    #[test]
    fn bad_fields_are_named() {
        let p = proto::Workload {
            addresses: vec![vec![1, 2, 3]],
            ..pod()
        };
        assert_eq!(workload(&p).expect_err("refused").field, "addresses");
        let p = proto::Workload {
            tunnel_protocol: 2,
            ..pod()
        };
        assert_eq!(workload(&p).expect_err("refused").field, "tunnel_protocol");
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
            workload(&p).expect_err("refused").field,
            "services.ports.target_port"
        );
    }

    #[test]
    fn gateway_and_waypoint_are_seen() {
        let gateway = Some(proto::GatewayAddress::default());
        let p = proto::Workload {
            waypoint: gateway.clone(),
            ..pod()
        };
        assert_eq!(workload(&p).expect("valid").via, Via::Waypoint);
        let p = proto::Workload {
            network_gateway: gateway,
            ..pod()
        };
        assert_eq!(workload(&p).expect("valid").via, Via::NetworkGateway);
    }

    #[test]
    fn service_keeps_own_network_and_refuses_ranges() {
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
        assert_eq!(
            service(&p, "").expect_err("refused").field,
            "addresses.length"
        );
    }
}
