//! Two programs decide by the same policies: node agents by the matcher in `ebpf/common`, waypoints and gateways by
//! conditions of their own, because they know requests and must tell what cannot be known. Of a connection both know
//! the same, so both must say the same: here for policies and connections at random, each policy read by the
//! controller twice, once for pods and once for a waypoint.

#![expect(clippy::unwrap_used, reason = "it is a test")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use karst_api::security::Authorization as Wire;
use karst_api::waypoint::AuthorizationPolicy;
use karst_bpf_common::policy::{Attributes, Identity, PolicySet, Verdict};
use karst_core::{GatewayName, Index, MeshConfig, Object, ProxyKind};
use karst_fuzz::mutation::Random;
use karst_identity::SpiffeId;
use karst_node_agent::state::authorization::to_policy;
use karst_waypoint::authz::{self, Authorization, Destination, Policy, ServerName};
use karst_waypoint::balance::Clusters;
use karst_waypoint::client::Client;
use prost::Message;
use serde_json::{Value, json};

/// Sets of policies in a run, and connections that each is asked about.
const SETS: usize = 10_000;
const CONNECTIONS: usize = 40;

const NAMESPACES: [&str; 4] = ["shop", "shop-2", "ops", "o"];
const ACCOUNTS: [&str; 3] = ["web", "cart", "w"];
const ADDRESSES: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.1.0.1",
    "fd00::1",
    "fd00::1:0:1",
    "::ffff:10.0.0.1",
];
const BLOCKS: [&str; 7] = [
    "10.0.0.1",
    "10.0.0.0/30",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "fd00::/64",
    "::/0",
    "::ffff:10.0.0.0/112",
];
const PORTS: [&str; 3] = ["80", "81", "65535"];

fn one<'a>(random: &mut Random, list: &[&'a str]) -> &'a str {
    list[random.below(list.len())]
}

/// A name, or a pattern of it.
fn pattern(random: &mut Random, text: &str) -> String {
    let cut = random.below(text.len() + 1);
    match random.below(5) {
        0 => "*".to_owned(),
        1 => format!("{}*", &text[..cut]),
        2 => format!("*{}", &text[cut..]),
        _ => text.to_owned(),
    }
}

fn principal(random: &mut Random) -> String {
    let (namespace, account) = (one(random, &NAMESPACES), one(random, &ACCOUNTS));
    format!("cluster.local/ns/{namespace}/sa/{account}")
}

fn value(random: &mut Random, attribute: &str) -> String {
    match attribute {
        "principal" => {
            let text = principal(random);
            pattern(random, &text)
        }
        "namespace" => {
            let text = one(random, &NAMESPACES);
            pattern(random, text)
        }
        "account" if random.below(2) == 0 => one(random, &ACCOUNTS).to_owned(),
        "account" => format!("{}/{}", one(random, &NAMESPACES), one(random, &ACCOUNTS)),
        "port" => one(random, &PORTS).to_owned(),
        _ => one(random, &BLOCKS).to_owned(),
    }
}

fn values(random: &mut Random, attribute: &str) -> Value {
    let count = 1 + random.below(3);
    (0..count).map(|_| value(random, attribute)).collect()
}

fn source(random: &mut Random) -> Value {
    let mut source = json!({});
    let fields: &[(&str, &str)] = if random.below(3) == 0 {
        &[
            ("serviceAccounts", "account"),
            ("notServiceAccounts", "account"),
            ("ipBlocks", "address"),
        ]
    } else {
        &[
            ("principals", "principal"),
            ("notPrincipals", "principal"),
            ("namespaces", "namespace"),
            ("notNamespaces", "namespace"),
            ("ipBlocks", "address"),
            ("notIpBlocks", "address"),
        ]
    };
    for _ in 0..=random.below(2) {
        let (field, attribute) = fields[random.below(fields.len())];
        source[field] = values(random, attribute);
    }
    json!({"source": source})
}

fn operation(random: &mut Random) -> Value {
    let field = one(random, &["ports", "notPorts"]);
    json!({"operation": {field: values(random, "port")}})
}

fn when(random: &mut Random) -> Value {
    let (key, attribute) = [
        ("source.principal", "principal"),
        ("source.namespace", "namespace"),
        ("source.serviceAccount", "account"),
        ("source.ip", "address"),
        ("destination.ip", "address"),
        ("destination.port", "port"),
    ][random.below(6)];
    let mut condition = json!({"key": key});
    let which = random.below(3);
    if which != 0 {
        condition["values"] = values(random, attribute);
    }
    if which != 1 {
        condition["notValues"] = values(random, attribute);
    }
    condition
}

fn some(random: &mut Random, make: fn(&mut Random) -> Value) -> Value {
    let count = 1 + random.below(2);
    (0..count).map(|_| make(random)).collect()
}

fn rule(random: &mut Random) -> Value {
    let mut rule = json!({});
    if random.below(2) == 0 {
        rule["from"] = some(random, source);
    }
    if random.below(3) == 0 {
        rule["to"] = some(random, operation);
    }
    if random.below(3) == 0 {
        rule["when"] = some(random, when);
    }
    rule
}

fn spec(random: &mut Random) -> Value {
    let rules: Value = (0..random.below(4)).map(|_| rule(random)).collect();
    let action = one(random, &["ALLOW", "DENY"]);
    json!({"action": action, "rules": rules})
}

/// What both programs are told of policies with these specs.
struct Told {
    agent: PolicySet,
    waypoint: Authorization,
    /// The specs, for messages.
    specs: Vec<Value>,
}

fn object(kind: &str, api: &str, name: &str, namespace: Option<&str>, rest: Value) -> Object {
    let mut value = rest;
    value["apiVersion"] = json!(api);
    value["kind"] = json!(kind);
    let labels = value["labels"].take();
    value["metadata"] = json!({"name": name, "namespace": namespace, "labels": labels});
    Object::from_value(value).unwrap().unwrap()
}

/// A mesh with one waypoint, whose policies change.
struct Mesh(Index);

impl Mesh {
    fn new() -> Self {
        let mut index = Index::new(MeshConfig::default());
        let labels = json!({"karst.dev/dataplane-mode": "ambient", "karst.dev/use-waypoint": "wp"});
        let spec = json!({"gatewayClassName": "karst-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]});
        let service = json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "selector": {"app": "web"},
            "ports": [{"name": "db", "port": 80, "appProtocol": "tcp"}]}});
        for object in [
            object("Namespace", "v1", "shop", None, json!({"labels": labels})),
            object(
                "Gateway",
                "gateway.networking.k8s.io/v1",
                "wp",
                Some("shop"),
                json!({"spec": spec}),
            ),
            object("Service", "v1", "web", Some("shop"), service),
        ] {
            index.apply(object).unwrap();
        }
        Self(index)
    }

    fn tell(&mut self, specs: Vec<Value>) -> Told {
        let gateway =
            json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"}]);
        let mut keys = Vec::new();
        for (number, spec) in specs.iter().enumerate() {
            let mut targeted = spec.clone();
            targeted["targetRefs"] = gateway.clone();
            for (name, spec) in [("pods", spec.clone()), ("waypoint", targeted)] {
                let policy = object(
                    "AuthorizationPolicy",
                    "security.istio.io/v1",
                    &format!("{name}-{number}"),
                    Some("shop"),
                    json!({"spec": spec}),
                );
                assert!(policy.findings.is_empty(), "{:?}", policy.findings);
                keys.push(policy.key.clone());
                self.0.stage(policy).unwrap();
            }
        }
        self.0.flush();
        let numbers = 0..specs.len();
        let for_pods = numbers.clone().map(|number| {
            let rendered = self
                .0
                .authorization(&format!("shop/pods-{number}"))
                .unwrap();
            to_policy(&Wire::decode(rendered.bytes.as_slice()).unwrap()).unwrap()
        });
        let agent = PolicySet::compile(&for_pods.collect::<Vec<_>>()).unwrap();
        let waypoint = GatewayName::new("shop", "wp");
        let kind = ProxyKind::AuthorizationPolicy;
        let for_waypoint = numbers.map(|number| {
            let name = format!("shop/waypoint-{number}");
            let rendered = self.0.proxy_resource(&waypoint, kind, &name).unwrap();
            let wire = AuthorizationPolicy::decode(rendered.bytes.as_slice()).unwrap();
            Arc::new(Policy::new(&wire, &Clusters::default()).unwrap())
        });
        let told = Told {
            agent,
            waypoint: Authorization::new(for_waypoint),
            specs,
        };
        for key in keys {
            self.0.stage_delete(&key);
        }
        told
    }
}

/// A connection at random: identity, and the two addresses.
fn connection(random: &mut Random) -> (Option<SpiffeId>, SocketAddr, SocketAddr) {
    let identity = (random.below(4) != 0).then(|| {
        let text = format!("spiffe://{}", principal(random));
        text.parse().unwrap()
    });
    let mut address = || {
        let ip: IpAddr = one(random, &ADDRESSES).parse().unwrap();
        SocketAddr::new(ip, one(random, &PORTS).parse().unwrap())
    };
    (identity, address(), address())
}

/// Who refuses: number of the policy and the rule; `None` for the implicit denial.
type Refused = Option<(u32, u32)>;

fn by_agent(
    told: &Told,
    connection: &(Option<SpiffeId>, SocketAddr, SocketAddr),
) -> Option<Refused> {
    let (identity, from, to) = connection;
    let verdict = told.agent.decide(&Attributes {
        source: identity.as_ref().map(|id| Identity {
            principal: id.as_str().strip_prefix("spiffe://").unwrap(),
            namespace: id.namespace(),
            service_account: id.service_account(),
        }),
        source_ip: from.ip().to_canonical().into(),
        destination_ip: to.ip().to_canonical().into(),
        destination_port: to.port(),
    });
    match verdict {
        Verdict::Allow { .. } => None,
        Verdict::Deny { by } => Some(by.map(|hit| (hit.policy, hit.rule))),
    }
}

fn by_waypoint(
    told: &Told,
    connection: &(Option<SpiffeId>, SocketAddr, SocketAddr),
) -> Option<Refused> {
    let (identity, from, to) = connection;
    let decision = told.waypoint.decide(&authz::Attributes {
        client: &Client::new(*from, identity.clone()),
        destination: Destination::from(*to),
        server_name: ServerName::None,
        request: None,
    });
    let denial = decision.err()?;
    assert!(!denial.unusable);
    Some(denial.rule.map(|rule| {
        let number = denial.policy.strip_prefix("shop/waypoint-").unwrap();
        (number.parse().unwrap(), rule)
    }))
}

#[test]
fn agents_and_waypoints_decide_alike() {
    let mut random = Random::new(1);
    let mut mesh = Mesh::new();
    // How often nobody refuses, no policy allows, a policy refuses.
    let mut seen = [0_usize; 3];
    for _ in 0..SETS {
        let specs = (0..=random.below(3)).map(|_| spec(&mut random)).collect();
        let told = mesh.tell(specs);
        for _ in 0..CONNECTIONS {
            let connection = connection(&mut random);
            let agent = by_agent(&told, &connection);
            let waypoint = by_waypoint(&told, &connection);
            assert_eq!(agent, waypoint, "{connection:?} by {:?}", told.specs);
            seen[match agent {
                None => 0,
                Some(None) => 1,
                Some(Some(_)) => 2,
            }] += 1;
        }
    }
    println!("passed, not allowed, denied: {seen:?}");
    let least = SETS * CONNECTIONS / 10;
    assert!(
        seen.iter().all(|count| *count > least),
        "one-sided: {seen:?}"
    );
}
