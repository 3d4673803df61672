use serde_json::{Value, json};

use super::{Audience, EntryEndpoint, Resolution, ServiceEntry, parse_block};
use crate::object::{Body, Object};

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap().unwrap()
}

/// An entry for 192.0.2.1:443 with `over` instead of its fields; null removes.
fn manifest(over: &Value) -> Value {
    let mut spec = json!({"hosts": ["api.example.com"], "addresses": ["192.0.2.1"],
        "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "NONE"});
    for (key, value) in over.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "api", "namespace": "shop"}, "spec": spec})
}

fn read(over: Value) -> ServiceEntry {
    match object(manifest(&over)).body {
        Body::ServiceEntry(entry) => *entry,
        other => panic!("{other:?}"),
    }
}

/// One that is taken and done as written.
#[track_caller]
fn whole(over: Value) -> ServiceEntry {
    let entry = read(over.clone());
    assert!(entry.is_usable(), "{over}: {entry:?}");
    assert_eq!(entry.narrowed, Vec::<String>::new(), "{over}");
    entry
}

/// One whose author has made a mistake; the message names the field.
#[track_caller]
fn faulty(over: Value, field: &str) {
    let entry = read(over.clone());
    let names = |fault: &String| fault.starts_with(field);
    assert!(entry.faults.iter().any(names), "{over}: {entry:?}");
    assert!(!entry.is_usable());
    // It is said where the manifests are read, too.
    let findings = object(manifest(&over)).findings;
    assert!(findings.iter().any(|one| one.field.starts_with(field)));
}

#[track_caller]
fn unsupported(over: Value, field: &str) {
    let entry = read(over.clone());
    assert_eq!(entry.unsupported, [field], "{over}: {entry:?}");
    assert!(entry.faults.is_empty(), "{over}: {entry:?}");
    assert!(!entry.is_usable());
}

#[track_caller]
fn narrowed(over: Value, part: &str) {
    let entry = read(over.clone());
    assert!(entry.is_usable(), "{over}: {entry:?}");
    let has = |what: &String| what.contains(part);
    assert!(entry.narrowed.iter().any(has), "{over}: {entry:?}");
}

fn endpoint(ip: &str) -> Value {
    json!({"address": ip})
}

#[test]
fn addresses_and_ports_as_written() {
    let entry = whole(
        json!({"addresses": ["192.0.2.1", "198.51.100.77/24", "2001:db8::7", "2001:db8:1::7/48"],
        "location": "MESH_EXTERNAL"}),
    );
    let blocks: Vec<String> = entry
        .blocks
        .iter()
        .map(|(ip, length)| format!("{ip}/{length}"))
        .collect();
    let expected = [
        "192.0.2.1/32",
        "198.51.100.0/24",
        "2001:db8::7/128",
        "2001:db8:1::/48",
    ];
    assert_eq!(blocks, expected);
    let [port] = entry.ports.as_slice() else {
        panic!("{entry:?}")
    };
    assert_eq!(
        (port.number, port.target, port.name.as_str()),
        (443, 443, "tls")
    );
    assert_eq!(entry.resolution, Resolution::AsAsked);
    assert_eq!(entry.audience, Audience::All);
    for version in ["v1", "v1beta1"] {
        let mut value = manifest(&json!({}));
        value["apiVersion"] = json!(format!("networking.istio.io/{version}"));
        assert!(Object::from_value(value).unwrap().is_some());
    }
    assert!(
        whole(json!({"resolution": null})).is_usable(),
        "NONE is the default"
    );
    whole(json!({"hosts": ["*.example.com"]}));
}

#[test]
fn what_is_no_address_is_none() {
    for good in [
        "192.0.2.1",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "::ffff:192.0.2.1",
        "fe80::1",
    ] {
        assert!(parse_block(good).is_some(), "{good}");
    }
    for bad in [
        "",
        "host",
        "192.0.2.1/33",
        "192.0.2.1/",
        "192.0.2.1/+8",
        "192.0.2.1/-1",
        "::/129",
        "127.0.0.1",
        "127.0.0.0/8",
        "0.0.0.0",
        "::",
        "::1",
        "224.0.0.1",
        "224.0.0.0/4",
        "ff02::1",
        "ff00::/8",
        "::ffff:10.0.0.0/104",
        "unix:///tmp/s",
        "192.0.2.1 ",
        "1.2.3",
        "192.0.2.1/24/8",
    ] {
        assert!(parse_block(bad).is_none(), "{bad}");
    }
    let mapped = parse_block("::ffff:192.0.2.1").unwrap();
    assert_eq!(mapped, ("192.0.2.1".parse().unwrap(), 32));
}

#[test]
fn endpoints_have_ports_of_their_own() {
    let entry = whole(json!({"resolution": "STATIC",
        "ports": [{"number": 443, "name": "tls", "targetPort": 8443}, {"number": 80, "name": "http"}],
        "endpoints": [{"address": "198.51.100.1", "ports": {"http": 8080}, "locality": "r/z"},
            {"address": "2001:db8::9", "labels": {"a": "b"}}]}));
    assert_eq!(entry.ports[0].target, 8443);
    let Resolution::Endpoints(endpoints) = entry.resolution else {
        panic!("{entry:?}")
    };
    let first = EntryEndpoint {
        ip: "198.51.100.1".parse().unwrap(),
        ports: [("http".to_owned(), 8080)].into(),
        locality: "r/z".to_owned(),
    };
    assert_eq!(endpoints[0], first);
    assert_eq!(endpoints[1].ip.to_string(), "2001:db8::9");
}

#[test]
fn nobody_resolves_names() {
    for resolution in ["DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] {
        unsupported(json!({"resolution": resolution}), "spec.resolution");
        let entry = read(json!({"addresses": null, "resolution": resolution}));
        assert_eq!(entry.unsupported, ["spec.resolution"]);
    }
}

#[test]
fn whose_it_is() {
    let some = |names: &[&str]| {
        Audience::Namespaces(names.iter().map(|name| (*name).to_owned()).collect())
    };
    for (export, expected) in [
        (json!(null), Audience::All),
        (json!([]), Audience::All),
        (json!(["*"]), Audience::All),
        (json!([".", "*"]), Audience::All),
        (json!(["."]), some(&["shop"])),
        (json!([".", "other"]), some(&["shop", "other"])),
        (json!(["other"]), some(&["other"])),
        (json!(["~"]), some(&[])),
    ] {
        assert_eq!(
            whole(json!({"exportTo": export})).audience,
            expected,
            "{export}"
        );
    }
    assert!(some(&["a", "b"]).overlaps(&some(&["b"])));
    assert!(!some(&["a"]).overlaps(&some(&["b"])));
    assert!(Audience::All.overlaps(&some(&["b"])) && some(&["b"]).overlaps(&Audience::All));
    assert!(!Audience::All.overlaps(&some(&[])));
}

#[test]
fn what_the_mesh_does_not_do_has_no_effect() {
    unsupported(json!({"location": "MESH_INTERNAL"}), "spec.location");
    unsupported(
        json!({"workloadSelector": {"labels": {"app": "vm"}}}),
        "spec.workloadSelector",
    );
    unsupported(json!({"addresses": null}), "spec.addresses");
    unsupported(
        json!({"addresses": [], "resolution": "STATIC", "endpoints": [endpoint("192.0.2.1")]}),
        "spec.addresses",
    );
    let statically = |endpoint: Value| json!({"resolution": "STATIC", "endpoints": [{"address": "192.0.2.9"}, endpoint]});
    for address in [
        "db.example.com",
        "unix:///run/db",
        "127.0.0.1",
        "192.0.2.0/24",
    ] {
        let over = statically(endpoint(address));
        unsupported(over, "spec.endpoints[1].address");
    }
    let over = statically(json!({"address": "192.0.2.1", "network": "n2"}));
    unsupported(over, "spec.endpoints[1].network");
    let mut labelled = manifest(&json!({}));
    labelled["metadata"]["labels"] = json!({"istio.io/use-waypoint": "wp"});
    let Body::ServiceEntry(entry) = object(labelled.clone()).body else {
        panic!("no entry")
    };
    assert_eq!(entry.unsupported, ["metadata.labels"]);
    labelled["metadata"]["labels"] = json!({"istio.io/use-waypoint": "none"});
    let Body::ServiceEntry(entry) = object(labelled).body else {
        panic!("no entry")
    };
    assert!(entry.is_usable());
}

#[test]
fn mistakes_have_no_effect() {
    faulty(json!({"hosts": []}), "spec.hosts");
    faulty(json!({"hosts": null}), "spec.hosts");
    faulty(json!({"hosts": "api.example.com"}), "spec.hosts");
    faulty(
        json!({"hosts": ["ok.example.com", "not a name"]}),
        "spec.hosts[1]",
    );
    faulty(json!({"hosts": ["*"]}), "spec.hosts[0]");
    faulty(json!({"hosts": ["192.0.2.1"]}), "spec.hosts[0]");
    faulty(
        json!({"addresses": ["192.0.2.1", "192.0.2.1/64"]}),
        "spec.addresses[1]",
    );
    faulty(json!({"addresses": [7]}), "spec.addresses[0]");
    faulty(json!({"ports": []}), "spec.ports");
    faulty(
        json!({"ports": [{"number": 0, "name": "a"}]}),
        "spec.ports[0].number",
    );
    faulty(
        json!({"ports": [{"number": 65_536, "name": "a"}]}),
        "spec.ports[0].number",
    );
    faulty(
        json!({"ports": [{"number": "443", "name": "a"}]}),
        "spec.ports[0].number",
    );
    faulty(json!({"ports": [{"name": "a"}]}), "spec.ports[0]");
    faulty(
        json!({"ports": [{"number": 1, "name": "a"}, {"number": 1, "name": "b"}]}),
        "spec.ports[1]",
    );
    faulty(
        json!({"ports": [{"number": 1, "prot": "TCP"}]}),
        "spec.ports[0].prot",
    );
    faulty(json!({"resolution": "STATIC"}), "spec.endpoints");
    faulty(json!({"resolution": "SOMEHOW"}), "spec.resolution");
    faulty(json!({"resolution": 7}), "spec.resolution");
    faulty(
        json!({"endpoints": [endpoint("192.0.2.1")]}),
        "spec.endpoints",
    );
    let twice = json!([endpoint("192.0.2.1"), endpoint("192.0.2.1")]);
    faulty(
        json!({"resolution": "STATIC", "endpoints": twice}),
        "spec.endpoints[1]",
    );
    let nowhere = json!([{"ports": {}}]);
    faulty(
        json!({"resolution": "STATIC", "endpoints": nowhere}),
        "spec.endpoints[0]",
    );
    faulty(json!({"location": "ELSEWHERE"}), "spec.location");
    faulty(json!({"exportTo": ["Not_a_name"]}), "spec.exportTo[0]");
    faulty(json!({"exportTo": "."}), "spec.exportTo");
    faulty(json!({"hostnames": ["x"]}), "spec.hostnames");
    let many: Vec<String> = (0..257)
        .map(|n| format!("10.0.{}.{}", n / 250, n % 250))
        .collect();
    faulty(json!({"addresses": many}), "spec.addresses");
}

#[test]
fn what_is_not_done_as_written_is_said() {
    narrowed(
        json!({"subjectAltNames": ["api.example.com"]}),
        "spec.subjectAltNames",
    );
    narrowed(
        json!({"ports": [{"number": 443, "name": "a"}, {"number": 53, "name": "dns", "protocol": "udp"}]}),
        "spec.ports[1] is for UDP",
    );
    faulty(
        json!({"ports": [{"number": 53, "name": "dns", "protocol": "UDP"}]}),
        "spec.ports",
    );
    narrowed(
        json!({"ports": [{"number": 443, "name": "a", "targetPort": 8443}]}),
        "targetPort",
    );
    let weighted = json!([{"address": "192.0.2.1", "weight": 3, "serviceAccount": "x"}]);
    narrowed(
        json!({"resolution": "STATIC", "endpoints": weighted}),
        "spec.endpoints[0].weight",
    );
}
