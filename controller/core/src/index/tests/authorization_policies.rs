//! AuthorizationPolicies: which pods list them, what node agents get, and what is said of them.

use karst_api::{
    AUTHORIZATION_TYPE,
    security::{Action, Authorization, Scope},
};
use serde_json::{Value, json};

use super::support::{Mesh, merged, namespace, object, pod, uid};
use crate::{Changes, Kind, MeshConfig, ObjectKey};

pub(super) fn authorization(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace, "generation": 3,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec})
}

pub(super) fn selecting(app: &str) -> Value {
    json!({"selector": {"matchLabels": {"app": app}}, "rules": [{}]})
}

/// Two pods `app: web` and one `app: db` in the mesh, and one outside it.
pub(super) fn shop() -> Mesh {
    let db = json!({"metadata": {"labels": {"app": "db"}}});
    let outside = json!({"metadata": {"labels": {"karst.dev/dataplane-mode": "none"}}});
    Mesh::new([
        namespace(Some("ambient")),
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.2", json!({})),
        pod("db", "10.0.1.3", db),
        pod("out", "10.0.1.4", outside),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other",
            "labels": {"karst.dev/dataplane-mode": "ambient"}}}),
        elsewhere(),
    ])
}

/// A pod `app: web` of another namespace.
pub(super) fn elsewhere() -> Value {
    pod("e", "10.0.1.5", json!({"metadata": {"namespace": "other"}}))
}

impl Mesh {
    /// The policies that a pod lists, in one line.
    pub(super) fn listed(&self, name: &str) -> String {
        let workload = match name {
            "e" => self.workload_of("Kubernetes//Pod/other/e"),
            name => self.workload(name),
        };
        workload.unwrap().authorization_policies.join(" ")
    }

    pub(super) fn policy(&self, name: &str) -> Option<Authorization> {
        let rendered = self.0.authorization(name)?;
        let resource = rendered.to_resource(AUTHORIZATION_TYPE);
        Some(resource.unpack(AUTHORIZATION_TYPE).unwrap())
    }

    /// The conditions of a security policy, as `Type=Status/Reason`, and their messages.
    pub(super) fn policy_said(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> (Vec<String>, String) {
        let key = ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let conditions = self.conditions(&key);
        let short = conditions.iter().map(super::support_l7::short);
        let messages = conditions
            .iter()
            .map(|condition| condition.message.as_str());
        (short.collect(), messages.collect::<Vec<_>>().join(" / "))
    }
}

/// Names of what was announced.
pub(super) fn announced(changes: &Changes) -> Vec<&str> {
    let addresses = changes.addresses.iter();
    addresses
        .chain(&changes.authorizations)
        .map(String::as_str)
        .collect()
}

#[test]
fn scopes_are_the_mesh_the_namespace_and_pods() {
    let mesh = {
        let mut mesh = shop();
        mesh.apply(authorization(
            "karst-system",
            "all",
            json!({"action": "DENY"}),
        ));
        mesh.apply(authorization("karst-system", "web", selecting("web")));
        mesh.apply(authorization("shop", "whole", json!({})));
        mesh.apply(authorization("shop", "db", selecting("db")));
        mesh
    };
    let scope = |name: &str| {
        let policy = mesh.policy(name).unwrap();
        (policy.scope(), policy.action())
    };
    assert_eq!(scope("karst-system/all"), (Scope::Global, Action::Deny));
    assert_eq!(
        scope("karst-system/web"),
        (Scope::WorkloadSelector, Action::Allow)
    );
    assert_eq!(scope("shop/whole"), (Scope::Namespace, Action::Allow));
    assert_eq!(scope("shop/db"), (Scope::WorkloadSelector, Action::Allow));
    assert_eq!(mesh.listed("a"), "karst-system/web");
    assert_eq!(mesh.listed("db"), "shop/db");
    assert_eq!(
        mesh.listed("e"),
        "karst-system/web",
        "the root's are for the whole mesh"
    );
    assert_eq!(mesh.listed("out"), "", "nothing outside the mesh");
    assert_eq!(mesh.policy("shop/whole").unwrap().name, "whole");
    assert_eq!(mesh.policy("shop/whole").unwrap().namespace, "shop");
}

#[test]
fn the_root_namespace_is_the_operators_choice() {
    let config = MeshConfig {
        root_namespace: "shop".to_owned(),
        ..MeshConfig::default()
    };
    let mut mesh = Mesh(crate::Index::new(config));
    mesh.apply(namespace(Some("ambient")));
    mesh.apply(authorization("shop", "p", json!({})));
    mesh.apply(authorization("karst-system", "p", json!({})));
    assert_eq!(mesh.policy("shop/p").unwrap().scope(), Scope::Global);
    assert_eq!(
        mesh.policy("karst-system/p").unwrap().scope(),
        Scope::Namespace
    );
}

#[test]
fn a_change_touches_what_it_changes() {
    let mut mesh = shop();
    let (a, b, db) = (uid("a"), uid("b"), uid("db"));
    let changes = mesh.apply(authorization("shop", "p", selecting("web")));
    assert_eq!(announced(&changes), [a.as_str(), &b, "shop/p"]);
    let same = mesh.apply(authorization("shop", "p", selecting("web")));
    assert_eq!(same, Changes::default());
    let deny = merged(selecting("web"), json!({"action": "DENY"}));
    let changes = mesh.apply(authorization("shop", "p", deny));
    assert_eq!(announced(&changes), ["shop/p"], "pods list it as before");
    let changes = mesh.apply(authorization("shop", "p", selecting("db")));
    assert_eq!(announced(&changes), [a.as_str(), &b, &db, "shop/p"]);
    let changes = mesh.apply(authorization("shop", "p", json!({"rules": [{}]})));
    assert_eq!(announced(&changes), [db.as_str(), "shop/p"]);
    let changes = mesh.apply(authorization("shop", "q", json!({})));
    assert_eq!(
        announced(&changes),
        ["shop/q"],
        "a namespace's policy is in no list"
    );
    let changes = mesh.delete(authorization("shop", "q", json!({})));
    assert_eq!(announced(&changes), ["shop/q"]);
    assert_eq!(changes.statuses.len(), 1);
    assert!(mesh.policy("shop/q").is_none());
}

#[test]
fn a_pods_labels_and_its_mode_decide_anew() {
    let mut mesh = shop();
    mesh.apply(authorization("shop", "p", selecting("web")));
    let db = json!({"metadata": {"labels": {"app": "db"}}});
    let changes = mesh.apply(pod("a", "10.0.1.1", db));
    assert_eq!(announced(&changes), [uid("a")]);
    assert_eq!(
        (mesh.listed("a"), mesh.listed("b")),
        ("".into(), "shop/p".into())
    );
    mesh.apply(namespace(None));
    assert_eq!(mesh.listed("b"), "");
    mesh.apply(namespace(Some("ambient")));
    assert_eq!(mesh.listed("b"), "shop/p");
}

#[test]
fn what_is_not_for_node_agents_is_not_sent() {
    let mut mesh = shop();
    let refs = json!({"targetRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]});
    let changes = mesh.apply(authorization("shop", "p", refs));
    assert_eq!(announced(&changes), Vec::<&str>::new());
    {
        let spec = merged(selecting("web"), json!({"action": "AUDIT"}));
        let changes = mesh.apply(authorization("shop", "p", spec));
        assert_eq!(announced(&changes), Vec::<&str>::new());
        let (conditions, message) = mesh.policy_said(Kind::AuthorizationPolicy, "shop", "p");
        assert_eq!(conditions, ["Accepted=False/UnsupportedValue"]);
        assert!(
            message.starts_with("The policy is not enforced"),
            "{message}"
        );
        assert_eq!(mesh.listed("a"), "");
    }
    // And it takes back what was sent while it said something else.
    mesh.apply(authorization("shop", "p", selecting("web")));
    let changes = mesh.apply(authorization("shop", "p", json!({"action": "AUDIT"})));
    assert_eq!(
        announced(&changes),
        [uid("a").as_str(), &uid("b"), "shop/p"]
    );
    assert!(mesh.policy("shop/p").is_none());
}

#[test]
fn the_status_says_what_is_done() {
    let mut mesh = shop();
    let mut said = |namespace: &str, spec: Value| {
        mesh.apply(authorization(namespace, "s", spec));
        mesh.policy_said(Kind::AuthorizationPolicy, namespace, "s")
    };
    let (conditions, message) = said("shop", json!({}));
    assert_eq!(conditions, ["Accepted=True/Accepted"]);
    assert_eq!(message, "Node agents enforce the policy in namespace shop");
    let (_, message) = said("karst-system", json!({}));
    assert_eq!(message, "Node agents enforce the policy in the whole mesh");
    let http = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    let (conditions, message) = said("shop", json!({"rules": http}));
    assert_eq!(
        conditions,
        [
            "Accepted=True/Accepted",
            "karst.dev/FullyEnforced=False/UnsupportedValue"
        ]
    );
    assert!(
        message.contains("spec.rules[0].to[0].operation.methods"),
        "{message}"
    );
    assert!(message.contains("never matches"), "{message}");
    let (conditions, message) = said(
        "shop",
        json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}),
    );
    assert_eq!(conditions, ["Accepted=False/UnsupportedValue"]);
    assert!(
        message.contains("what its rules match is refused"),
        "{message}"
    );
    let key = object(authorization("shop", "s", json!({}))).key;
    assert_eq!(mesh.0.status(&key).unwrap().generation, 3);
    assert_eq!(mesh.0.object_count(Kind::AuthorizationPolicy), 2);
    let mut dry = authorization("shop", "s", json!({"rules": [{}]}));
    dry["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    mesh.apply(dry);
    let (conditions, _) = mesh.policy_said(Kind::AuthorizationPolicy, "shop", "s");
    assert_eq!(conditions[1], "karst.dev/FullyEnforced=False/DryRun");
    assert!(mesh.policy("shop/s").unwrap().dry_run);
}

#[test]
fn a_mistake_does_not_replace_what_is_right() {
    let mut mesh = shop();
    let good = merged(
        selecting("web"),
        json!({"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}),
    );
    let bad = merged(
        selecting("db"),
        json!({"rules": [{"to": [{"operation": {"ports": ["x"]}}]}]}),
    );
    mesh.apply(authorization("shop", "p", good.clone()));
    let before = mesh.policy("shop/p");
    let changes = mesh.apply(authorization("shop", "p", bad.clone()));
    assert_eq!(announced(&changes), Vec::<&str>::new());
    assert_eq!(
        (mesh.policy("shop/p"), mesh.listed("a")),
        (before, "shop/p".into())
    );
    let (conditions, message) = mesh.policy_said(Kind::AuthorizationPolicy, "shop", "p");
    assert_eq!(conditions, ["Accepted=False/Invalid"]);
    assert!(
        message.contains("spec.rules[0].to[0].operation.ports[0] is \"x\""),
        "{message}"
    );
    assert!(
        message.contains("last version without mistakes stays"),
        "{message}"
    );
    mesh.apply(authorization("shop", "p", good));
    let (conditions, _) = mesh.policy_said(Kind::AuthorizationPolicy, "shop", "p");
    assert_eq!(conditions, ["Accepted=True/Accepted"]);

    // Where nothing was right before, what it selects may be reached by nobody.
    mesh.apply(authorization("shop", "new", bad));
    let policy = mesh.policy("shop/new").unwrap();
    assert_eq!((policy.action(), policy.rules.len()), (Action::Allow, 0));
    assert_eq!(mesh.listed("db"), "shop/new");
    let (_, message) = mesh.policy_said(Kind::AuthorizationPolicy, "shop", "new");
    assert!(message.contains("less is allowed"), "{message}");
}

#[test]
fn both_versions_are_read() {
    let mut value = authorization("shop", "p", json!({}));
    value["apiVersion"] = json!("security.istio.io/v1beta1");
    assert_eq!(object(value.clone()).key.kind, Kind::AuthorizationPolicy);
    value["apiVersion"] = json!("security.istio.io/v2");
    assert_eq!(crate::Object::from_value(value), Ok(None));
}
