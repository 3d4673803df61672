use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use http_body_util::BodyExt;
use karst_identity::SpiffeId;
use karst_node_agent::access_log as agent;
use karst_node_agent::metrics::traffic::Security;
use karst_node_agent::proxy::Direction;
use karst_node_agent::reason::Reason;
use karst_node_agent::state::policy::Denial;
use karst_node_agent::state::service::{HealthPolicy, LoadBalancingMode, Service, ServiceSpec};
use karst_node_agent::state::workload::{Locality, Via, Workload};
use karst_process::access_log::{Record, append};
use karst_process::args::AccessLogFormat;
use karst_process::tap::facts::{Event as Kind, Facts, Party, Verdict};
use karst_process::tap::query::{Query, Sees};
use karst_waypoint::access_log as proxy;
use karst_waypoint::client::Client;
use karst_waypoint::workload::WorkloadLabels;
use serde_json::{Map, Value};

use super::event::{Line, Notice};
use super::source::{self, Lines};
use super::{Dropped, query};
use crate::admin::Source;
use crate::args::{Cli, Command, NodeArgs};
use crate::failure::Kind as Failed;

fn schema() -> Value {
    serde_json::from_str(include_str!("../../schemas/tap.json")).expect("JSON")
}

/// Holds an object to the schema: all that its words here say, and every field is described.
fn validate(schema: &Value, object: &Map<String, Value>) {
    for field in schema["required"].as_array().expect("a list") {
        assert!(
            object.contains_key(field.as_str().expect("a name")),
            "{field} is missing: {object:?}"
        );
    }
    for (name, value) in object {
        let told = schema["properties"]
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the schema"));
        for (word, says) in told.as_object().expect("an object") {
            let holds = match word.as_str() {
                "description" => true,
                "enum" => says.as_array().expect("a list").contains(value),
                "type" if says == "string" => value.is_string(),
                "type" if says == "integer" => value.is_u64(),
                "minimum" => says == 0 && value.is_u64(),
                // The two that there are.
                "pattern" if says == "^[^?]*$" => !value.to_string().contains('?'),
                "pattern" => value
                    .as_str()
                    .is_some_and(|time| time.len() == 24 && time.ends_with('Z')),
                other => panic!("{other} of the schema is not looked at here"),
            };
            assert!(holds, "{name}: {value} is not {told}");
        }
    }
}

fn service() -> Arc<Service> {
    let spec = ServiceSpec {
        key: "shop/web.shop.svc.cluster.local".into(),
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        vips: Vec::new(),
        ports: vec![(80, 8080)],
        via: Via::Direct,
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Any,
        health_policy: HealthPolicy::OnlyHealthy,
        outside: None,
    };
    Arc::new(Service::assemble(spec, &[], &Locality::default()))
}

fn denial() -> Option<Box<Denial>> {
    Some(Box::new(Denial {
        reason: Reason::PolicyDenied,
        policy: Some("shop/nobody".into()),
        rule: Some(2),
        detail: None,
    }))
}

/// A connection of which everything is known.
fn connection() -> agent::Record {
    let party = |name: &str, addr: &str| agent::Party {
        addr: addr.parse().ok(),
        workload: Some(Arc::new(Workload {
            name: name.into(),
            namespace: "shop".into(),
            ..Workload::default()
        })),
        identity: SpiffeId::new("cluster.local", "shop", name).ok(),
    };
    agent::Record {
        direction: Direction::Outbound,
        source: party("client-0", "10.0.0.1:4000"),
        destination: party("web-0", "10.0.0.2:8080"),
        hbone_addr: "10.0.0.2:15008".parse().ok(),
        service: Some(service()),
        service_port: Some(80),
        bytes_sent: 20_000,
        bytes_recv: 7,
        duration: Duration::from_millis(12),
        security: Security::MutualTls,
        tls: Some(Arc::new(karst_tunnel::TlsInfo {
            version: "TLSv1_3".into(),
            cipher: "TLS13_AES_128_GCM_SHA256".into(),
            key_exchange: "X25519MLKEM768".into(),
            resumed: false,
            local_addr: None,
        })),
        reason: Some(Reason::PolicyDenied),
        error: Some("shop/nobody, rule 2".to_owned()),
        denial: denial(),
        dry_run: denial(),
        observed: None,
    }
}

/// A request of which nearly everything is known.
fn request() -> proxy::RequestRecord {
    let identity = SpiffeId::new("cluster.local", "shop", "client").ok();
    let mut client = Client::new("10.0.0.1:4000".parse().expect("address"), identity);
    client.workload = Some(Arc::new(WorkloadLabels {
        name: "client".to_owned(),
        namespace: "shop".to_owned(),
        ..WorkloadLabels::default()
    }));
    let mut record = proxy::RequestRecord::new(proxy::Reporter::Waypoint, client);
    record.uri = "/api/cart?token=secret".parse().expect("uri");
    record.authority = http::HeaderValue::from_static("web.shop");
    record.route = Some("HTTPRoute/shop/web".into());
    record.destination = Some(Arc::new(proxy::Destination {
        namespace: "shop".into(),
        name: "web".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        port: 80,
    }));
    record.endpoint = Some(proxy::EndpointRecord {
        uid: "Kubernetes//Pod/shop/web-0".into(),
        address: "10.0.0.2:8080".parse().expect("address"),
        identity: SpiffeId::new("cluster.local", "shop", "web").ok(),
        workload: Some(Arc::new(WorkloadLabels {
            service: "web".to_owned(),
            version: "v1".to_owned(),
            ..WorkloadLabels::default()
        })),
    });
    record.status = 200;
    record.grpc_status = Some(0);
    record.duration = Duration::from_millis(42);
    record.response_head = Some(Duration::from_millis(40));
    record.attempts = 1;
    record.audited = Some("shop/noted".into());
    record.request_id = Some(http::HeaderValue::from_static("abc"));
    record
}

fn bare() -> Facts<'static> {
    Facts {
        event: Kind::Closed,
        verdict: Verdict::Denied,
        source: Party::default(),
        destination: Party::default(),
        service: None,
        direction: None,
        policies: [None; 2],
        http: None,
        duration: Duration::ZERO,
    }
}

/// What a subscriber gets of a record.
fn tapped(record: &impl Record, facts: &Facts<'_>) -> Vec<u8> {
    let runtime = super::runtime().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let tap = karst_process::tap::Tap::new(vec![("node", "n".to_owned())]);
        let query = Query::parse("", Sees::Requests).expect("valid");
        let mut subscription = tap.subscribe(query).expect("room");
        tap.publish(facts, record);
        // The first chunk is not an event.
        subscription.frame().await;
        let frame = subscription
            .frame()
            .await
            .expect("a chunk")
            .expect("no failure");
        frame.into_data().expect("data").to_vec()
    })
}

fn object(line: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(line).expect("one object")
}

/// The fields of an event are those of the access log, with its values, and described in the schema.
#[test]
fn an_event_has_the_fields_of_the_access_log() {
    fn check(record: &impl Record, facts: &Facts<'_>, golden: &[&str]) {
        let event = object(&tapped(record, facts));
        let mut log = Vec::new();
        append(&mut log, SystemTime::now(), record, AccessLogFormat::Json);
        let log = object(&log);
        let of_log: BTreeSet<&str> = log.keys().map(String::as_str).collect();
        let of_log = &of_log - &BTreeSet::from(["level", "target", "message"]);
        let of_event: BTreeSet<&str> = event.keys().map(String::as_str).collect();
        let of_event = &of_event - &BTreeSet::from(["event", "verdict", "node"]);
        assert_eq!(of_event, of_log);
        for name in of_log.iter().filter(|name| **name != "time") {
            assert_eq!(event[*name], log[*name], "{name}");
        }
        assert_eq!(of_log, golden.iter().copied().collect());
        validate(&schema(), &event);
    }
    check(
        &connection(),
        &bare(),
        &[
            "time",
            "src.addr",
            "src.workload",
            "src.namespace",
            "src.identity",
            "dst.addr",
            "dst.hbone_addr",
            "dst.service",
            "dst.service_port",
            "dst.workload",
            "dst.namespace",
            "dst.identity",
            "direction",
            "bytes_sent",
            "bytes_recv",
            "duration_ms",
            "connection_security_policy",
            "policy.name",
            "policy.rule",
            "dry_run.policy.name",
            "dry_run.policy.rule",
            "tls_version",
            "cipher",
            "key_exchange",
            "reason",
            "error",
        ],
    );
    let of_request = Facts {
        event: Kind::Request,
        verdict: Verdict::Allowed,
        ..bare()
    };
    check(
        &request(),
        &of_request,
        &[
            "time",
            "src.addr",
            "src.workload",
            "src.namespace",
            "src.identity",
            "dst.service",
            "dst.service_port",
            "dst.addr",
            "dst.workload",
            "dst.namespace",
            "dst.app",
            "dst.version",
            "dst.identity",
            "reporter",
            "protocol",
            "version",
            "method",
            "authority",
            "path",
            "route",
            "status",
            "grpc_status",
            "bytes_sent",
            "bytes_recv",
            "duration_ms",
            "response_head_ms",
            "audit.policy.name",
            "attempts",
            "request_id",
        ],
    );
    let text = String::from_utf8(tapped(&request(), &of_request)).expect("text");
    assert!(!text.contains("secret"), "{text}");
}

/// What an agent or waypoint says is understood, to the last field that is shown.
#[test]
fn lines_are_understood() {
    let Some(Line::Event(event)) = Line::parse(&tapped(&connection(), &bare())) else {
        panic!("no event");
    };
    assert_eq!(event.source(), "shop/client-0");
    assert_eq!(event.destination(), "web.shop:80");
    assert_eq!(event.endpoint(), "shop/web-0");
    assert_eq!(event.policy().as_deref(), Some("shop/nobody#2"));
    assert_eq!(
        (event.bytes_sent, event.bytes_recv, event.duration_ms),
        (20_000, 7, 12)
    );
    let Some(Line::Event(event)) = Line::parse(&tapped(&request(), &bare())) else {
        panic!("no event");
    };
    assert_eq!(event.endpoint(), "shop/web-0");
    assert_eq!((event.status, event.side()), (Some(200), "wp"));
    let status = br#"{"tap":"status","events":3,"dropped":{"queue_full":1,"rate_limit":2}}"#;
    let dropped = Dropped {
        queue_full: 1,
        rate_limit: 2,
    };
    let expected = Notice {
        tap: "status".to_owned(),
        dropped,
        ..Notice::default()
    };
    assert_eq!(Line::parse(status), Some(Line::Notice(expected)));
    for other in [&b"{}"[..], b"", b"[]", b"{\"event\":5}", b"\xff"] {
        assert_eq!(Line::parse(other), None);
    }
}

#[test]
fn arguments_become_a_query_that_the_source_takes() {
    let asked = |line: &str, source: &Source| {
        let parsed = Cli::try_parse_from(line.split(' '))
            .expect("parses")
            .command;
        let Command::Tap(args) = parsed else {
            panic!("not tap")
        };
        query(&args, source)
    };
    let agent = Source::Agent("/a".into());
    let waypoint = Source::Waypoint("127.0.0.1:1".to_owned());
    let query = asked(
        "karst tap --from shop/a* --to svc/web.shop:80 --verdict denied --live --for 1500ms --event refused",
        &agent,
    );
    assert_eq!(
        query.expect("valid"),
        "from=shop%2Fa*&to=svc%2Fweb.shop%3A80&verdict=denied&event=refused&live=true&limit_s=2&max_rps=100"
    );
    assert!(asked("karst tap --status 5xx --min-duration 2s", &waypoint).is_ok());
    for (line, source) in [
        ("karst tap --status 5xx", &agent),
        ("karst tap --live", &waypoint),
        ("karst tap --from NoSuch!", &agent),
        ("karst tap --verdict maybe", &agent),
    ] {
        let error = asked(line, source).expect_err(line);
        assert_eq!(error.kind, Failed::Usage, "{line}: {}", error.message);
    }
}

#[test]
fn nobody_to_ask_is_said() {
    let runtime = super::runtime().expect("runtime");
    let folder = tempfile::tempdir().expect("folder");
    let nobody = Source::Agent(folder.path().join("agent.sock"));
    let error = runtime
        .block_on(Lines::open(&nobody, "/v1/tap"))
        .expect_err("nobody");
    assert_eq!(
        (error.kind, &*error.reason),
        (Failed::Unreachable, "unreachable")
    );
    let nowhere = |node: Option<&str>| {
        let args = crate::args::Sources {
            place: NodeArgs {
                node: node.map(str::to_owned),
                bpffs_root: folder.path().into(),
                ..NodeArgs::default()
            },
            ..crate::args::Sources::default()
        };
        source::all(&args)
    };
    let error = nowhere(None).expect_err("no node");
    assert_eq!(error.kind, Failed::NotFound);
    for way in ["--node", "--pod", "--waypoint"] {
        assert!(error.message.contains(way), "{}", error.message);
    }
    // One that is not here is reached through the API server.
    let far = nowhere(Some("worker-1")).expect("a way");
    assert!(matches!(&far[..], [Source::Node(node)] if node.name() == "worker-1"));
}
