use std::sync::Arc;
use std::time::UNIX_EPOCH;

use http::HeaderValue;
use karst_identity::SpiffeId;
use karst_process::access_log::{Record, append};

use super::{ConnectionRecord, EndpointRecord, Reporter, RequestRecord};
use crate::args::AccessLogFormat;
use crate::client::Client;
use crate::reason::Reason;
use crate::workload::WorkloadLabels;

fn client() -> Client {
    let identity = SpiffeId::parse("spiffe://t/ns/a/sa/b").expect("valid");
    Client::new("10.0.0.1:4000".parse().expect("address"), Some(identity))
}

fn written(format: AccessLogFormat, record: &impl Record) -> String {
    let mut text = Vec::new();
    append(&mut text, UNIX_EPOCH, record, format);
    String::from_utf8(text).expect("text")
}

#[test]
fn a_request_is_one_line_of_json() {
    let mut record = RequestRecord::new(Reporter::Waypoint, client());
    record.uri = "/a?secret=1".parse().expect("uri");
    record.authority = HeaderValue::from_bytes(b"a b\xff").expect("value");
    record.status = 200;
    let text = written(AccessLogFormat::Json, &record);
    let value: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(value["message"], "request complete");
    assert_eq!(value["path"], "/a");
    assert_eq!(value["authority"], "a b\u{fffd}");
    assert_eq!(value["status"], 200);
    assert_eq!(value["src.identity"], "spiffe://t/ns/a/sa/b");
    assert_eq!(text.matches('\n').count(), 1);
}

#[test]
fn the_endpoint_is_named_as_agents_name_it() {
    let mut record = RequestRecord::new(Reporter::Waypoint, client());
    let mut endpoint = EndpointRecord {
        uid: "Kubernetes//Pod/shop/web-0".into(),
        address: "10.0.0.2:8080".parse().expect("address"),
        identity: None,
        workload: Some(Arc::new(WorkloadLabels {
            service: "web".to_owned(),
            version: "v1".to_owned(),
            ..WorkloadLabels::default()
        })),
    };
    record.endpoint = Some(endpoint.clone());
    let read = |record: &RequestRecord| -> serde_json::Value {
        serde_json::from_str(&written(AccessLogFormat::Json, record)).expect("json")
    };
    let value = read(&record);
    for (field, expected) in [
        ("dst.workload", "web-0"),
        ("dst.namespace", "shop"),
        ("dst.app", "web"),
        ("dst.version", "v1"),
    ] {
        assert_eq!(value[field], expected, "{field}");
    }
    endpoint.uid = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/fd00::1".into();
    record.endpoint = Some(endpoint);
    let value = read(&record);
    assert_eq!(
        (&value["dst.workload"], &value["dst.namespace"]),
        (&"s".into(), &"shop".into())
    );
}

#[test]
fn a_refused_connection_says_why() {
    let mut record = ConnectionRecord::new(Reporter::Gateway, client(), "0.0.0.0:443".to_owned());
    record.reason = Some(Reason::NoListener);
    record.sni = Some("x\"y".to_owned());
    let text = written(AccessLogFormat::Text, &record);
    assert_eq!(
        text,
        "1970-01-01T00:00:00.000Z error access connection complete src.addr=10.0.0.1:4000 \
         src.identity=spiffe://t/ns/a/sa/b reporter=gateway protocol=tcp target=0.0.0.0:443 \
         sni=\"x\\\"y\" bytes_sent=0 bytes_recv=0 duration_ms=0 reason=gateway_no_listener\n"
    );
}
