use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use super::delete;
use crate::cluster::kinds::{self, Kind};
use crate::testing::ApiServer;

const LIMIT: Duration = Duration::from_secs(10);
const OWN: &str = "/api/v1/namespaces/karst-system";

fn namespace_kind() -> Kind {
    let mut kinds = kinds::all().into_iter();
    let kind = kinds.find(|kind| kind.resource.kind == "Namespace");
    kind.expect("kind")
}

fn part_of_karst() -> Value {
    json!({"metadata": {"labels": {"app.kubernetes.io/part-of": "karst", "app.kubernetes.io/managed-by": "karst"}}})
}

/// Somebody says of an object of theirs that it goes with Karst.
fn beside_karst() -> Value {
    json!({"metadata": {"labels": {"app.kubernetes.io/part-of": "karst", "app.kubernetes.io/managed-by": "argocd"}}})
}

fn resources(list: &[(&str, &str, &[&str])]) -> Value {
    let resources: Vec<Value> = list
        .iter()
        .map(|(plural, kind, verbs)| {
            json!({"name": plural, "singularName": "", "namespaced": *kind != "Namespace", "kind": kind, "verbs": verbs})
        })
        .collect();
    json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": resources})
}

/// A cluster with Karst's namespace, what is in every namespace, and one kind of somebody's own in a
/// version that is not preferred.
async fn cluster() -> (ApiServer, Client) {
    const ALL: &[&str] = &["delete", "get", "list"];
    let (server, client) = ApiServer::start().await;
    let version =
        |name: &str| json!({"groupVersion": format!("example.dev/{name}"), "version": name});
    server.document(
        "/apis",
        json!({"kind": "APIGroupList", "groups": [
            {"name": "example.dev", "versions": [version("v1"), version("v1beta1")], "preferredVersion": version("v1")},
        ]}),
    );
    server.document(
        "/api/v1",
        resources(&[
            ("namespaces", "Namespace", ALL),
            ("configmaps", "ConfigMap", ALL),
            ("events", "Event", ALL),
            ("pods", "Pod", ALL),
            ("pods/status", "Pod", &["get"]),
            ("serviceaccounts", "ServiceAccount", ALL),
        ]),
    );
    // A view, as of metrics, and a kind that only the older version has.
    server.document(
        "/apis/example.dev/v1",
        resources(&[("looks", "Look", &["get", "list"])]),
    );
    server.document(
        "/apis/example.dev/v1beta1",
        resources(&[("widgets", "Widget", ALL)]),
    );
    server.put(OWN, part_of_karst());
    server.put(&format!("{OWN}/serviceaccounts/default"), json!({}));
    server.put(&format!("{OWN}/configmaps/kube-root-ca.crt"), json!({}));
    server.put(&format!("{OWN}/configmaps/late"), part_of_karst());
    server.put(&format!("{OWN}/events/e"), json!({}));
    let looks = "/apis/example.dev/v1/namespaces/karst-system/looks/l";
    server.put(looks, json!({}));
    (server, client)
}

#[tokio::test]
async fn only_karsts_own_namespace_is_deleted_and_its_end_waited_for() {
    let (server, client) = cluster().await;
    let other = "/api/v1/namespaces/tenant";
    server.put(other, part_of_karst());
    let removed = delete(&client, &namespace_kind(), LIMIT).await;
    assert_eq!(removed.expect("removed"), 1);
    assert_eq!(server.writes(), [format!("DELETE {OWN}")]);
    assert!(server.object(OWN).is_none(), "not waited for");
    assert!(server.object(other).is_some());
}

#[tokio::test]
async fn a_namespace_of_somebody_elses_making_stays() {
    let (server, client) = ApiServer::start().await;
    let kind = namespace_kind();
    assert_eq!(delete(&client, &kind, LIMIT).await.expect("nothing"), 0);
    for theirs in [json!({}), beside_karst()] {
        server.put(OWN, theirs);
        assert_eq!(delete(&client, &kind, LIMIT).await.expect("nothing"), 0);
    }
    assert!(server.writes().is_empty());
}

#[tokio::test]
async fn a_namespace_with_anything_of_others_stays() {
    let (server, client) = cluster().await;
    let widget = "/apis/example.dev/v1beta1/namespaces/karst-system/widgets/w";
    server.put(widget, json!({}));
    server.put(&format!("{OWN}/pods/p"), beside_karst());
    let left = super::left(&client).await.expect("looks");
    assert_eq!(left, ["Pod p", "Widget w"]);
    let removed = delete(&client, &namespace_kind(), LIMIT).await;
    assert_eq!(removed.expect("kept"), 0);
    assert!(server.writes().is_empty());
}

#[tokio::test]
async fn kinds_that_nobody_can_see_count_as_something_left() {
    let (server, client) = cluster().await;
    server.document(
        "/apis/example.dev/v1",
        json!({"kind": "Status", "status": "Failure", "reason": "ServiceUnavailable",
               "message": "no endpoints", "code": 503}),
    );
    let left = super::left(&client).await.expect("looks");
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        left[0].contains("listing the kinds of example.dev/v1: "),
        "{left:?}"
    );
}
