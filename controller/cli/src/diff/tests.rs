//! Every code from layers that are well but for one thing.

use std::collections::{BTreeMap, BTreeSet};

use karst_core::GatewayName;
use karst_datapath::inspect::{LinkInfo, MapInfo, PodEntry, node_links};
use serde_json::{Value, json};

use super::layers::{
    Agent, Intent, Kernel, Layers, Mesh, PodSockets, Proxy, WantedPod, WantedProxy,
};
use super::report::Report;
use super::{CONFIRMATIONS, Certain, compare};
use crate::args::{Objects, Output};

const UID: &str = "u-1";
const IP: &str = "10.0.0.1";
const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn mesh() -> Mesh {
    let service = json!({
        "key": "shop/cart.shop", "namespace": "shop", "name": "cart",
        "ports": [{"port": 80, "endpoints": [{"workload": "w", "addresses": [IP], "port": 8080}]}],
    });
    let of = |name: &str, value: Value| BTreeMap::from([(name.to_owned(), value)]);
    Mesh {
        workloads: of("w", json!({"uid": "w", "addresses": [IP]})),
        services: of("shop/cart.shop", service),
        policies: of("shop/p", json!({"name": "shop/p", "digest": "1"})),
    }
}

fn link(name: &str, attach_type: &str, program_id: u32) -> LinkInfo {
    let of_pod = name.starts_with("sk_lookup");
    let guard = name.starts_with("syn_check");
    let kind = match (of_pod, guard) {
        (true, _) => "netns",
        (_, true) => "tcx",
        _ => "cgroup",
    };
    LinkInfo {
        name: name.to_owned(),
        id: 5,
        kind: kind.to_owned(),
        attach_type: attach_type.to_owned(),
        program_id,
        cgroup_id: (kind == "cgroup").then_some(70),
        netns_ino: of_pod.then_some(90),
        ifindex: guard.then_some(12),
        pinned: name.into(),
    }
}

fn map(name: &str, kind: &str, entries: u32, max_entries: u32) -> MapInfo {
    MapInfo {
        name: name.to_owned(),
        id: 1,
        kind: kind.to_owned(),
        flags: 0,
        key_size: 8,
        value_size: 8,
        max_entries,
        bytes_memlock: 0,
        entries: Some(entries),
        fill_percent: None,
        pinned: None,
        note: None,
    }
}

fn agent() -> Agent {
    let programs = node_links()
        .iter()
        .map(|(link, _)| json!({"link": link, "id": 40}))
        .chain([
            json!({"link": "sk_lookup", "id": 41}),
            json!({"link": "syn_check", "id": 42}),
        ])
        .collect::<Vec<_>>();
    let pod = json!({
        "uid": UID, "namespace": "shop", "name": "cart", "addresses": [IP], "identity": ID,
        "enrolled": true, "waypoints": [], "egress": "ALLOW_ANY", "problem": null,
    });
    Agent {
        status: json!({
            "version": env!("CARGO_PKG_VERSION"), "not_ready_reason": null,
            "controller": {"address": "c:1", "connected": true, "last_reason": null},
        }),
        pods: BTreeMap::from([(UID.to_owned(), pod)]),
        mesh: mesh(),
        certificates: vec![json!({
            "id": ID, "state": "available", "not_after": "2999-01-01T00:00:00Z", "reason": "", "message": "",
        })],
        rejected: Vec::new(),
        datapath: Some(json!({
            "node_cgroup": 70, "host_netns_cookie": 1, "agent_cgroup": 2, "kubepods_cgroup": 3,
            "programs": programs,
        })),
    }
}

fn kernel() -> Kernel {
    let mut links: Vec<LinkInfo> = node_links()
        .iter()
        .map(|(name, hook)| link(name, hook, 40))
        .collect();
    links.push(link("syn_check-u-1", "tcx_egress", 42));
    links.push(link("sk_lookup-u-1", "sk_lookup", 41));
    let ip = IP.parse().expect("ip");
    Kernel {
        links,
        maps: vec![
            map("PODS", "hash", 1, 10),
            map("PUBLISHED", "lru_hash", 10, 10),
        ],
        pods: vec![PodEntry {
            uid: UID.to_owned(),
            netns_cookie: 7,
            netns_ino: Some(90),
            addresses: vec![ip],
            listening: vec![ip],
            guard: Some(12),
        }],
        addresses: BTreeMap::from([(ip, 7)]),
        config: BTreeMap::from(
            [
                ("host_netns_cookie", "1"),
                ("agent_cgroup", "2"),
                ("kubepods_cgroup", "3"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        ),
    }
}

fn intent() -> Intent {
    let pod = WantedPod {
        name: "shop/cart".to_owned(),
        in_mesh: true,
        identity: ID.to_owned(),
        addresses: vec![IP.parse().expect("ip")],
        waypoints: json!([]),
        egress: json!("ALLOW_ANY"),
    };
    let route = ("route", "HTTPRoute/shop/r".to_owned());
    Intent {
        from: "manifests".to_owned(),
        pods: BTreeMap::from([(UID.to_owned(), pod)]),
        mesh: mesh(),
        waypoints: BTreeMap::new(),
        proxies: vec![WantedProxy {
            pod: "shop/waypoint-0".to_owned(),
            gateway: GatewayName::new("shop", "waypoint"),
            resources: BTreeMap::from([(route, "v2".to_owned())]),
        }],
    }
}

fn healthy() -> Layers {
    let sockets = PodSockets {
        netns: Some((7, 90)),
        listening: Ok([
            "127.0.0.1:15001",
            "127.0.0.1:15006",
            "10.0.0.1:15008",
            "0.0.0.0:8080",
        ]
        .map(|at| at.parse().expect("address"))
        .to_vec()),
    };
    let status = json!({"version": env!("CARGO_PKG_VERSION"), "controller": {"connected": true}});
    let config = json!({"kind": "route", "name": "HTTPRoute/shop/r", "version": "v2", "state": "active", "problems": []});
    Layers {
        node: "n".to_owned(),
        intent: Ok(intent()),
        agent: Ok(agent()),
        kernel: Ok(kernel()),
        sockets: BTreeMap::from([(UID.to_owned(), sockets)]),
        proxies: vec![Proxy {
            pages: Ok((status, vec![config])),
        }],
    }
}

/// What is found, `CODE object`, when `spoil` was done to healthy layers.
fn found(spoil: impl FnOnce(&mut Layers)) -> Vec<String> {
    let mut layers = healthy();
    spoil(&mut layers);
    let list = compare(&layers);
    list.iter()
        .map(|one| format!("{} {}", one.code.id, one.object.text))
        .collect()
}

fn of_agent(spoil: impl FnOnce(&mut Agent)) -> Vec<String> {
    found(|layers| spoil(layers.agent.as_mut().expect("agent")))
}

fn of_kernel(spoil: impl FnOnce(&mut Kernel)) -> Vec<String> {
    found(|layers| spoil(layers.kernel.as_mut().expect("kernel")))
}

fn of_intent(spoil: impl FnOnce(&mut Intent)) -> Vec<String> {
    found(|layers| spoil(layers.intent.as_mut().expect("intent")))
}

fn of_sockets(spoil: impl FnOnce(&mut PodSockets)) -> Vec<String> {
    found(|layers| spoil(layers.sockets.get_mut(UID).expect("pod")))
}

const POD: &str = "pod shop/cart";

#[test]
fn nothing_differs_in_what_is_well() {
    assert_eq!(found(|_| {}), [""; 0]);
    // Nor without what stands above.
    assert_eq!(
        found(|layers| layers.intent = Err("not asked for".to_owned())),
        [""; 0]
    );
}

#[test]
fn the_agent_and_its_controller() {
    assert_eq!(
        found(|layers| {
            layers.agent = Err("no agent".to_owned());
            layers.proxies = vec![];
        }),
        ["KARST1001 agent of n"]
    );
    assert_eq!(
        of_agent(|agent| agent.status["not_ready_reason"] = json!("state_not_ready")),
        ["KARST1002 agent of n"]
    );
    assert_eq!(
        of_agent(|agent| agent.status["controller"]["connected"] = json!(false)),
        ["KARST1003 agent of n"]
    );
    let rejected = json!({"type_url": "type.googleapis.com/istio.workload.Address", "name": "w", "error": "bad"});
    assert_eq!(
        of_agent(|agent| agent.rejected.push(rejected)),
        ["KARST1010 Address w"]
    );
}

#[test]
fn pods_of_the_agent() {
    let pod =
        |change: fn(&mut Value)| of_agent(|agent| change(agent.pods.get_mut(UID).expect("pod")));
    // The kernel still has it, which is another difference.
    assert_eq!(
        pod(|pod| pod["enrolled"] = json!(false)),
        [format!("KARST1004 {POD}"), format!("KARST1103 {POD}")]
    );
    assert_eq!(
        of_intent(|intent| intent.pods.get_mut(UID).expect("pod").in_mesh = false),
        [format!("KARST1005 {POD}")]
    );
    assert_eq!(
        of_intent(|intent| intent.pods.clear()),
        [format!("KARST1005 {POD}")]
    );
    for change in [
        |pod: &mut Value| pod["identity"] = json!("spiffe://cluster.local/ns/shop/sa/other"),
        |pod: &mut Value| pod["egress"] = json!("REGISTRY_ONLY"),
        |pod: &mut Value| pod["waypoints"] = json!([{"ports": [1]}]),
    ] {
        let list = pod(change);
        assert!(list.contains(&format!("KARST1006 {POD}")), "{list:?}");
    }
    // Its addresses also differ from the kernel's then.
    assert_eq!(
        pod(|pod| pod["addresses"] = json!(["10.0.0.9"])),
        [format!("KARST1006 {POD}"), format!("KARST1104 {POD}")]
    );
}

#[test]
fn certificates() {
    let id = format!("certificate {ID}");
    let spoilt = |key: &'static str, value: &'static str| {
        of_agent(|agent| agent.certificates[0][key] = json!(value))
    };
    assert_eq!(
        spoilt("not_after", "2020-01-01T00:00:00Z"),
        [format!("KARST1013 {id}")]
    );
    assert_eq!(spoilt("state", "unavailable"), [format!("KARST1012 {id}")]);
    assert_eq!(
        of_agent(|agent| agent.certificates.clear()),
        [format!("KARST1012 {id}")]
    );
    assert_eq!(
        spoilt("reason", "ca_unreachable"),
        ["KARST1014 certificate authority c:1"]
    );
    // That it is expired is said once.
    assert_eq!(spoilt("reason", "certificate_expired"), [""; 0]);
}

#[test]
fn the_mesh_by_its_content() {
    let agent = |change: fn(&mut Mesh)| of_agent(|agent| change(&mut agent.mesh));
    assert_eq!(
        agent(|mesh| mesh.workloads.get_mut("w").expect("w")["addresses"] = json!([])),
        ["KARST1007 workload w"]
    );
    assert_eq!(
        agent(|mesh| drop(mesh.workloads.remove("w"))),
        ["KARST1007 workload w"]
    );
    assert_eq!(
        agent(|mesh| {
            let service = mesh.services.get_mut("shop/cart.shop").expect("service");
            service["ports"][0]["endpoints"] = json!([]);
        }),
        ["KARST1008 service shop/cart.shop"]
    );
    assert_eq!(
        agent(|mesh| mesh.policies.get_mut("shop/p").expect("p")["digest"] = json!("2")),
        ["KARST1009 policy shop/p"]
    );
    assert_eq!(
        agent(|mesh| drop(mesh.policies.insert("shop/x".to_owned(), json!({})))),
        ["KARST1009 policy shop/x"]
    );
    // What only the agent knows makes no difference; nor the content, where versions differ.
    assert_eq!(
        agent(|mesh| {
            mesh.workloads.get_mut("w").expect("w")["latency_us"] = json!(3);
            let service = mesh.services.get_mut("shop/cart.shop").expect("service");
            service["ports"][0]["endpoints"][0]["weight"] = json!(1);
        }),
        [""; 0]
    );
    assert_eq!(
        of_agent(|agent| {
            agent.status["version"] = json!("0.0.0");
            agent.mesh.policies.get_mut("shop/p").expect("p")["digest"] = json!("2");
        }),
        [""; 0]
    );
}

#[test]
fn waypoints_and_proxies() {
    let absent = ("it is not there".to_owned(), "shop/cart".to_owned());
    assert_eq!(
        of_intent(|intent| drop(intent.waypoints.insert("shop/w".to_owned(), absent))),
        ["KARST1011 waypoint shop/w"]
    );
    let proxy = "proxy shop/waypoint-0 of Gateway shop/waypoint";
    let route = format!("route HTTPRoute/shop/r at {proxy}");
    assert_eq!(
        found(|layers| layers.proxies[0].pages = Err("refused".to_owned())),
        [format!("KARST1015 {proxy}")]
    );
    let pages = |change: fn(&mut (Value, Vec<Value>))| {
        found(|layers| change(layers.proxies[0].pages.as_mut().expect("pages")))
    };
    assert_eq!(
        pages(|(_, config)| config[0]["version"] = json!("v1")),
        [format!("KARST1016 {route}")]
    );
    assert_eq!(
        pages(|(_, config)| config.clear()),
        [format!("KARST1016 {route}")]
    );
    assert_eq!(
        pages(|(_, config)| config[0]["state"] = json!("stale")),
        [format!("KARST1010 {route}")]
    );
    assert_eq!(
        pages(|(status, _)| status["controller"]["connected"] = json!(false)),
        [format!("KARST1003 {proxy}")]
    );
}

#[test]
fn a_missing_waypoint_is_said_of_the_same_service_each_time() {
    let folder = tempfile::tempdir().expect("folder");
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {\
                    karst.dev/dataplane-mode: ambient, karst.dev/use-waypoint: ghost}}\n"
        .to_owned();
    for number in 0..16 {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number:02}, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.0.{}, ports: [{{port: 80}}]}}\n",
            number + 1
        ));
    }
    std::fs::write(folder.path().join("all.yaml"), text).expect("writes");
    let objects = Objects {
        source: Some(folder.path().to_owned()),
        ..Objects::default()
    };
    let input = crate::source::offline(&objects).ok().flatten();
    let input = input.expect("reads");
    // Each index has its services in an order of its own.
    for _ in 0..4 {
        let intent = super::layers::wanted(&input, "n", "manifests").expect("is read");
        let found = intent.waypoints.get("shop/ghost");
        let service = found.map(|(_, service)| service.as_str());
        assert_eq!(service, Some("shop/s00"), "{:?}", intent.waypoints);
    }
}

#[test]
fn entries_of_maps() {
    assert_eq!(
        found(|layers| layers.kernel = Err("nothing".to_owned())),
        ["KARST1101 pins of n"]
    );
    let link = "KARST1113 link sk_lookup-u-1";
    let address = format!("KARST1105 POD_ADDRESSES[{IP}]");
    assert_eq!(
        of_kernel(|kernel| kernel.pods.clear()),
        [
            format!("KARST1102 {POD}"),
            address,
            link.to_owned(),
            "KARST1113 link syn_check-u-1".to_owned()
        ]
    );
    let list = of_kernel(|kernel| {
        let stale = PodEntry {
            uid: "stale".to_owned(),
            netns_cookie: 8,
            netns_ino: None,
            addresses: vec![],
            listening: vec![],
            guard: None,
        };
        kernel.pods.push(stale);
    });
    assert!(
        list.contains(&"KARST1103 pod with uid stale".to_owned()),
        "{list:?}"
    );
    let list = of_kernel(|kernel| {
        kernel.pods[0].netns_cookie = 8;
        kernel.addresses.values_mut().for_each(|cookie| *cookie = 8);
    });
    assert_eq!(list, [format!("KARST1104 {POD}")]);
    assert_eq!(
        of_kernel(|kernel| kernel.addresses.clear()),
        [format!("KARST1105 {POD}")]
    );
    assert_eq!(
        of_kernel(|kernel| kernel
            .addresses
            .extend([("10.9.9.9".parse().expect("ip"), 7)])),
        ["KARST1105 POD_ADDRESSES[10.9.9.9]"]
    );
    assert_eq!(
        of_kernel(|kernel| drop(
            kernel
                .config
                .insert("agent_cgroup".to_owned(), "9".to_owned())
        )),
        ["KARST1112 map CONFIG"]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.maps[0].entries = Some(9)),
        ["KARST1110 map PODS"]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.maps[0].entries = Some(10)),
        ["KARST1111 map PODS"]
    );
}

#[test]
fn links_and_programs() {
    assert_eq!(
        of_kernel(|kernel| kernel.links.retain(|link| link.name != "connect4")),
        ["KARST1106 link connect4"]
    );
    let of_pod = format!("link sk_lookup-u-1 of {POD}");
    assert_eq!(
        of_kernel(|kernel| drop(kernel.links.pop())),
        [format!("KARST1106 {of_pod}")]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.links[0].cgroup_id = Some(0)),
        ["KARST1107 link sock_ops"]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.links[0].cgroup_id = Some(71)),
        ["KARST1108 link sock_ops"]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.links[0].program_id = 39),
        ["KARST1109 link sock_ops"]
    );
    let last = |change: fn(&mut LinkInfo)| {
        of_kernel(|kernel| change(kernel.links.last_mut().expect("link")))
    };
    assert_eq!(
        last(|link| link.netns_ino = Some(0)),
        [format!("KARST1107 {of_pod}")]
    );
    assert_eq!(
        last(|link| link.netns_ino = Some(91)),
        [format!("KARST1108 {of_pod}")]
    );
    assert_eq!(
        last(|link| link.program_id = 39),
        ["KARST1109 link sk_lookup-u-1"]
    );
    let guard = |change: fn(&mut LinkInfo)| {
        of_kernel(|kernel| {
            let place = kernel.links.len() - 2;
            change(&mut kernel.links[place]);
        })
    };
    let of_guard = of_pod.replace("sk_lookup", "syn_check");
    assert_eq!(
        guard(|link| link.ifindex = Some(0)),
        [format!("KARST1107 {of_guard}")]
    );
    assert_eq!(
        guard(|link| link.ifindex = Some(13)),
        [format!("KARST1108 {of_guard}")]
    );
    assert_eq!(
        guard(|link| link.program_id = 39),
        ["KARST1109 link syn_check-u-1"]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.links.retain(|link| link.kind != "tcx")),
        [format!("KARST1106 {of_guard}")]
    );
    // Without it nothing is promised.
    assert_eq!(
        of_kernel(|kernel| {
            kernel.links.retain(|link| link.kind != "tcx");
            kernel.pods[0].guard = None;
        }),
        [""; 0]
    );
    assert_eq!(
        of_kernel(|kernel| kernel.links.push(link("sk_lookup-x", "sk_lookup", 41))),
        ["KARST1113 link sk_lookup-x"]
    );
}

#[test]
fn sockets_of_pods() {
    assert_eq!(
        of_sockets(|pod| pod.netns = None),
        [format!("KARST1201 {POD}")]
    );
    let without = |port: u16| {
        of_sockets(|pod| {
            let listening = pod.listening.as_mut().expect("sockets");
            listening.retain(|socket| socket.port() != port);
        })
    };
    for port in [15001, 15006, 15008] {
        assert_eq!(without(port), [format!("KARST1202 {POD}")], "{port}");
    }
    assert_eq!(without(8080), [format!("KARST1204 {POD}")]);
    assert_eq!(
        of_kernel(|kernel| kernel.pods[0].listening.clear()),
        [format!("KARST1203 {POD}")]
    );
}

#[test]
fn a_difference_is_a_line_that_says_what_to_do() {
    let mut layers = healthy();
    layers.agent = Err("no agent at /x: gone".to_owned());
    layers.proxies.clear();
    let differences = compare(&layers);
    let report = Report::new(&layers, differences, 1);
    let output = |json, pretty| Output { json, pretty };
    let text = report.render(output(false, false));
    let expected = "\
intent   manifests: 1 pods of n in the mesh
agent    NOT READ: no agent at /x: gone
kernel   7 links, 2 maps, 1 pods
sockets  1 network namespaces
not compared: programs with those that the agent loaded, CONFIG, certificates, what agent and proxies hold
KARST1001 AgentUnreachable intent/agent agent of n: expected an answer; found no agent at /x: gone; do: start the \
node's agent; its log says why it ended
1 difference (1 more were not in every reading: changes on their way)
";
    assert_eq!(text, expected);
    let value: Value = serde_json::from_str(&report.render(output(true, false))).expect("JSON");
    assert_eq!(value["differences"][0]["code"], "KARST1001");
    assert_eq!(
        value["differences"][0]["between"],
        json!(["intent", "agent"])
    );
    assert_eq!(value["layers"][1]["read"], false);
}

/// What the report says to programs is the sample that the schema is held to; KARST_BLESS=1 writes it anew.
/// Layers with a workload that is wanted so and is so at the agent.
fn workload(wanted: &str, held: &str) -> Layers {
    let mut layers = healthy();
    let of = |protocol: &str| json!({"uid": "w", "addresses": [IP], "protocol": protocol});
    let intent = layers.intent.as_mut().expect("intent");
    intent.mesh.workloads.insert("w".to_owned(), of(wanted));
    let agent = layers.agent.as_mut().expect("agent");
    agent.mesh.workloads.insert("w".to_owned(), of(held));
    layers
}

/// What is reported, `object: found`, and how many readings it took.
fn readings(layers: impl IntoIterator<Item = Layers>) -> (Vec<String>, u32) {
    let mut certain = Certain::default();
    let mut last = layers.into_iter();
    let report = last.find_map(|layers| certain.add(layers));
    let list = report.expect("a report").differences.into_iter();
    let found = list.map(|one| format!("{}: {}", one.object.text, one.found));
    (found.collect(), certain.readings)
}

#[test]
fn what_is_never_as_it_should_be_is_reported() {
    let all = CONFIRMATIONS + 1;
    assert_eq!(readings([healthy()]), (Vec::new(), 1));
    let lasting = || (0..all).map(|_| workload("hbone", "tcp"));
    let expected = vec!["workload w: \"tcp\"".to_owned()];
    assert_eq!(readings(lasting()), (expected, all));
    // Wrong each time, but not in the same way.
    let changing = (0..all).map(|n| workload("hbone", &format!("tcp{n}")));
    let expected = vec![format!("workload w: \"tcp{}\"", all - 1)];
    assert_eq!(readings(changing), (expected, all));
    // The last reading has nothing.
    let passing = lasting().skip(1).chain([workload("hbone", "hbone")]);
    assert_eq!(readings(passing), (Vec::new(), all));
}

#[test]
fn what_is_asked_for_otherwise_meanwhile_is_a_change_on_its_way() {
    // Every reading finds what is no longer asked for, and by the next it is asked for again.
    let flapping = [workload("hbone", "tcp"), workload("tcp", "hbone")];
    assert_eq!(readings(flapping), (Vec::new(), 2));
    // The agent has what is asked for when the next reading begins.
    let late = [workload("hbone", "tcp"), workload("tcp", "udp")];
    assert_eq!(readings(late), (Vec::new(), 2));
}

#[test]
fn all_readings_are_made_in_the_time_that_is_given() {
    let settle = std::time::Duration::from_secs(6);
    let mut certain = Certain::default();
    let mut pauses = Vec::new();
    while certain.add(workload("hbone", "tcp")).is_none() {
        pauses.push(certain.pause(settle));
    }
    assert_eq!(pauses.iter().sum::<std::time::Duration>(), settle);
    assert!(pauses.is_sorted_by(|a, b| a < b), "{pauses:?}");
}

#[test]
fn a_report_is_as_its_schema_says() {
    let mut layers = healthy();
    layers.agent = Err("no agent at /x: gone".to_owned());
    layers.proxies.clear();
    let stale = PodEntry {
        uid: "u-9".to_owned(),
        netns_cookie: 8,
        netns_ino: None,
        addresses: vec![],
        listening: vec![],
        guard: None,
    };
    let kernel = layers.kernel.as_mut().expect("kernel");
    kernel.pods.push(stale);
    let differences = compare(&layers);
    let report = Report::new(&layers, differences, 1);
    let (json, pretty) = (true, true);
    let text = report.render(Output { json, pretty });
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let sample = folder.join("testdata/inspect/diff.json");
    if std::env::var_os("KARST_BLESS").is_some() {
        std::fs::write(&sample, &text).expect("written");
    }
    assert_eq!(text, std::fs::read_to_string(&sample).expect("a sample"));
    let schema = std::fs::read_to_string(folder.join("schemas/diff.json")).expect("a schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    described(&schema, &value);
    assert!(value["differences"][0]["pod_uid"].is_null());
    let uids = value["differences"].as_array().expect("a list").iter();
    assert!(uids.into_iter().any(|one| one["pod_uid"] == "u-9"));
}

/// Every field is described, and none that must be there is missing. What values may be is left to a validator of
/// schemas, which the tests of the lab run on the sample and on what a node says.
fn described(schema: &Value, value: &Value) {
    match value {
        Value::Object(fields) => {
            let told = schema["properties"].as_object().expect("an object");
            let told: BTreeSet<&String> = told.keys().collect();
            assert_eq!(fields.keys().collect::<BTreeSet<_>>(), told);
            let required = schema["required"].as_array().map_or(0, Vec::len);
            assert_eq!(required, told.len());
            for (name, value) in fields {
                described(&schema["properties"][name], value);
            }
        }
        Value::Array(items) => {
            for item in items {
                described(&schema["items"], item);
            }
        }
        _ => {}
    }
}
