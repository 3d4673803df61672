//! What the node agent of a destination decides, by its own code.

use std::net::SocketAddr;
use std::sync::Arc;

use karst_bpf_common::policy::explain::{Condition, Unmet};
use karst_bpf_common::policy::{Attributes, Identity, explain};
use karst_identity::SpiffeId;
use karst_node_agent::state::policy::{Policy, PolicyScope};
use karst_node_agent::state::workload::Workload;

use super::conditions;
use super::hop::{Hop, Mtls, PolicyView, RuleView, values};
use super::world::World;
use crate::failure::Failure;
use karst_core::{Kind, ObjectKey};

/// Begins the names of policies that are made of PeerAuthentications with exceptions for ports.
const CONVERTED: &str = "converted_peer_authentication_";

/// The policy that STRICT is.
const STRICT: &str = "istio_converted_static_strict";

/// A client as an agent sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The identity that is proven.
    pub identity: Option<SpiffeId>,
    /// The address.
    pub address: SocketAddr,
}

/// Decides about a connection to a pod.
///
/// # Errors
/// The agent could not use what it is told of the pod.
pub fn decide(
    world: &World,
    workload: &Arc<Workload>,
    destination: SocketAddr,
    seen: &Seen,
) -> Result<Hop, Failure> {
    let name = format!("{}/{}", workload.namespace, workload.name);
    let client = seen.address.ip();
    let mut hop = Hop::new("node_agent", name.clone(), seen.identity.clone(), client);
    hop.destination = Some(destination);
    let Some(enrolled) = world.enrolled(workload)? else {
        hop.allowed = true;
        hop.because = "the pod is not in the mesh, so that nothing decides there".to_owned();
        return Ok(hop);
    };
    let mode = world
        .index
        .peer_mode(&workload.namespace, &workload.name, destination.port());
    hop.mtls = mode.map(|mode| Mtls {
        mode: if mode.strict { "STRICT" } else { "PERMISSIVE" },
        by: mode.by.map(|key| format!("{}/{}", key.namespace, key.name)),
        by_port: mode.by_port,
    });
    let connection = Attributes {
        source: seen.identity.as_ref().map(|id| Identity {
            principal: id.principal(),
            namespace: id.namespace(),
            service_account: id.service_account(),
        }),
        source_ip: seen.address.ip().into(),
        destination_ip: destination.ip().into(),
        destination_port: destination.port(),
    };
    for policy in world.state.policies.all() {
        let applies = match &policy.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace(own) => **own == *workload.namespace,
            PolicyScope::Selector => workload.authorization_policies.contains(&policy.name),
        };
        if applies {
            hop.policies.push(view(world, &policy, &connection));
        }
    }
    let effective = world.state.policies.effective(workload);
    if let Some(denial) = effective.would_deny(&connection) {
        let on_trial = format!("{denial} would refuse it, and only watches");
        hop.dry_run.push(on_trial);
    }
    // In the order in which the agent asks.
    if let Err(reason) = enrolled
        .waypoints
        .check(destination.port(), seen.identity.as_ref())
    {
        hop.reason = Some(reason.as_str());
        hop.because = format!("pod {name} takes connections to this port from its waypoint only");
    } else if let Err(denial) = effective.decide(&connection) {
        hop.reason = Some(denial.reason.as_str());
        hop.because = match denial.rule {
            Some(rule) => {
                let refuses = format!("{} rules[{rule}] refuses it", denial.policy_name());
                match (&hop.mtls, is_of_peer(denial.policy_name())) {
                    (Some(mtls), true) => {
                        let by = mtls.by.as_deref().unwrap_or("the mesh's default");
                        format!("mTLS mode {} of {by}: {refuses}", mtls.mode)
                    }
                    _ => refuses,
                }
            }
            None => format!("implicit deny: {denial}"),
        };
        if denial.detail.is_none() && denial.rule.is_none() {
            hop.because = denial.to_string();
        }
        hop.policy = Some(denial.policy_name().to_owned());
        hop.rule = denial.rule;
    } else {
        hop.pass_by_policies();
    }
    Ok(hop)
}

/// Whether the policy of that name, `namespace/name`, is made of PeerAuthentications.
fn is_of_peer(policy: &str) -> bool {
    let name = policy.split_once('/').map_or(policy, |(_, name)| name);
    name == STRICT || name.starts_with(CONVERTED)
}

fn view(world: &World, policy: &Policy, connection: &Attributes<'_>) -> PolicyView {
    let own = policy.view();
    let (namespace, name) = policy.name.split_once('/').unwrap_or(("", &policy.name));
    let of_peer = is_of_peer(&policy.name);
    let kind = if of_peer {
        Kind::PeerAuthentication
    } else {
        Kind::AuthorizationPolicy
    };
    let key = ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.strip_prefix(CONVERTED).unwrap_or(name).to_owned(),
    };
    let mut view = PolicyView {
        name: policy.name.to_string(),
        kind: kind.name(),
        action: own.action.map(str::to_owned),
        scope: own.scope,
        dry_run: own.dry_run,
        matches: false,
        rules: Vec::new(),
        narrowed: conditions::narrowed(world, &key),
    };
    let explained = policy
        .rules
        .as_ref()
        .map(|rules| explain::explain(rules, connection));
    match explained {
        Some(Ok(rules)) => {
            view.rules = (0..)
                .zip(rules)
                .map(|(index, unmet)| RuleView {
                    index,
                    matches: unmet.is_none(),
                    unmet: unmet
                        .map(|unmet| said(&unmet, connection))
                        .unwrap_or_default(),
                })
                .collect();
            view.matches = view.rules.iter().any(|rule| rule.matches);
        }
        Some(Err(error)) => view.narrowed = Some(error.to_string()),
        None => view.narrowed = world.rejected.get(&*policy.name).cloned(),
    }
    view
}

fn said(unmet: &Unmet, connection: &Attributes<'_>) -> Vec<String> {
    let one = |condition: &Option<Condition>| match condition {
        None => {
            "it has a condition that nothing meets: of what an agent cannot know, or of nothing"
                .to_owned()
        }
        Some(condition) => {
            let has = actual(condition.field, connection);
            let listed = values(&condition.values);
            if condition.field.starts_with("not") || condition.field.ends_with("(notValues)") {
                format!("{}: {has} is one of {listed}", condition.field)
            } else {
                format!("{}: {has} is none of {listed}", condition.field)
            }
        }
    };
    unmet.alternatives.iter().map(one).collect()
}

/// What the connection has of a field.
fn actual(field: &str, connection: &Attributes<'_>) -> String {
    let identity = |value: fn(&Identity<'_>) -> String| {
        let source = connection.source.as_ref();
        source.map_or_else(|| "a client without identity".to_owned(), value)
    };
    match field {
        "principals" | "notPrincipals" => identity(|id| id.principal.to_owned()),
        "namespaces" | "notNamespaces" => identity(|id| id.namespace.to_owned()),
        "serviceAccounts" | "notServiceAccounts" => {
            identity(|id| format!("{}/{}", id.namespace, id.service_account))
        }
        "ipBlocks" | "notIpBlocks" => connection.source_ip.to_ip_addr().to_string(),
        "ports" | "notPorts" => connection.destination_port.to_string(),
        _ => connection.destination_ip.to_ip_addr().to_string(),
    }
}
