//! GatewayClasses.

use serde_json::{Value, json};

use super::support::{Edge, GENERATION, gateway, http};
use crate::{Kind, StatusContent, index::tests::support::error};
use karst_api::features::{FEATURES, Support};

fn class(name: &str, controller: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": name, "generation": GENERATION},
        "spec": {"controllerName": controller}})
}

fn condition(edge: &Edge, name: &str, condition: &str) -> Option<String> {
    let key = crate::ObjectKey {
        kind: Kind::GatewayClass,
        namespace: String::new(),
        name: name.to_owned(),
    };
    let StatusContent::Object { conditions, .. } = edge.0.status(&key)?.content else {
        panic!("a class has conditions")
    };
    let found = conditions.into_iter().find(|each| each.kind == condition)?;
    Some(format!("{} {}", found.status.as_str(), found.reason))
}

#[test]
fn classes_of_our_controllers_are_accepted_with_their_features() {
    let edge = Edge::new([
        class("karst", "karst.dev/gateway-controller"),
        class("karst-waypoint", "karst.dev/waypoint-controller"),
        class("own", "karst.dev/gateway-controller"),
        class("theirs", "example.com/controller"),
    ]);
    for name in ["karst", "karst-waypoint", "own"] {
        assert_eq!(condition(&edge, name, "Accepted").unwrap(), "True Accepted");
    }
    assert_eq!(condition(&edge, "theirs", "Accepted"), None);
    let key = crate::ObjectKey {
        kind: Kind::GatewayClass,
        namespace: String::new(),
        name: "own".to_owned(),
    };
    let status = edge.0.status(&key).unwrap();
    assert_eq!(status.generation, GENERATION);
    let StatusContent::Object { fields, .. } = status.content else {
        panic!("a class has fields")
    };
    let supported = FEATURES
        .iter()
        .filter(|feature| feature.support == Support::Yes);
    let supported: Vec<Value> = supported
        .map(|feature| json!({"name": feature.name}))
        .collect();
    assert_eq!(fields["supportedFeatures"], json!(supported));
}

#[test]
fn a_class_takes_no_parameters() {
    let mut value = class("karst", "karst.dev/gateway-controller");
    value["spec"]["parametersRef"] = json!({"group": "", "kind": "ConfigMap", "name": "x"});
    let edge = Edge::new([value]);
    assert_eq!(
        condition(&edge, "karst", "Accepted").unwrap(),
        "False InvalidParameters"
    );
}

#[test]
fn a_class_without_a_controller_is_refused() {
    assert_eq!(error(class("karst", "")).field, "spec.controllerName");
}

#[test]
fn the_version_of_the_api_is_said_once_it_is_known() {
    let mut edge = Edge::new([class("karst", "karst.dev/gateway-controller")]);
    assert_eq!(condition(&edge, "karst", "SupportedVersion"), None);
    for (versions, expected) in [
        (vec!["v1.6.1"], "True SupportedVersion"),
        (vec!["v1.2.0", "v1.6.1"], "True SupportedVersion"),
        (vec!["v1.6.1", ""], "False UnsupportedVersion"),
        (vec!["v1.99.0"], "False UnsupportedVersion"),
        (vec!["v0.8.0"], "False UnsupportedVersion"),
        (vec!["main"], "False UnsupportedVersion"),
    ] {
        let versions = versions
            .iter()
            .map(|version| (*version).to_owned())
            .collect();
        let changes = edge.0.set_api_versions(&versions);
        let found = condition(&edge, "karst", "SupportedVersion").unwrap();
        assert_eq!(found, expected, "{versions:?}");
        assert!(
            changes
                .statuses
                .iter()
                .all(|key| key.kind == Kind::GatewayClass)
        );
    }
    assert!(
        edge.0
            .set_api_versions(&["main".to_owned()].into())
            .is_empty()
    );
}

#[test]
fn gateways_of_other_classes_are_left_alone() {
    let mut value = gateway("web", json!([http(json!({}))]));
    value["spec"]["gatewayClassName"] = json!("theirs");
    let mut edge = Edge::new([class("theirs", "example.com/controller"), value.clone()]);
    assert_eq!(edge.condition(Kind::Gateway, "web", "Accepted"), "-");
    // It becomes ours with its class.
    let changes = edge.apply(class("theirs", "karst.dev/gateway-controller"));
    assert_eq!(
        edge.condition(Kind::Gateway, "web", "Accepted"),
        "True Accepted"
    );
    assert!(changes.statuses.iter().any(|key| key.kind == Kind::Gateway));
    edge.apply(class("theirs", "example.com/controller"));
    assert_eq!(edge.condition(Kind::Gateway, "web", "Accepted"), "-");
}
