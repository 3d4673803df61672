//! Other software that takes connections where Karst does, or that would undo its CNI entry.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::Value;

use super::Finding;
use crate::cluster::{self, failure};
use crate::failure::Failure;

/// Looks for all of them.
pub async fn all(client: &Client) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |id: &'static str, found: Result<Vec<Finding>, Failure>| match found {
        Ok(found) => findings.extend(found),
        Err(failure) => findings.push(Finding::unknown(id, &failure)),
    };
    add("conflicts.cilium", cilium_config(client).await);
    add("conflicts.calico", calico(client).await);
    add("conflicts.mesh", other_meshes(client).await);
    if findings.is_empty() {
        findings.push(Finding::ok(
            "conflicts",
            "no socket load balancer, exclusive CNI or other mesh is in the way",
        ));
    }
    findings
}

async fn cilium_config(client: &Client) -> Result<Vec<Finding>, Failure> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let config = api.get_opt("cilium-config").await;
    let config = config.map_err(|e| failure("reading ConfigMap kube-system/cilium-config", &e))?;
    Ok(config.map_or_else(Vec::new, |config| cilium(&config.data.unwrap_or_default())))
}

/// Cilium's socket load balancer rewrites a connect before Karst sees it, and so hides the Service
/// that was asked for; and an exclusive Cilium renames other CNI configurations away.
fn cilium(data: &BTreeMap<String, String>) -> Vec<Finding> {
    let is = |key: &str| {
        data.get(key)
            .is_some_and(|value| value == "true" || value == "strict")
    };
    let mut findings = Vec::new();
    let in_pods = !is("bpf-lb-sock-hostns-only");
    if (is("bpf-lb-sock") || is("kube-proxy-replacement")) && in_pods {
        findings.push(Finding::failed(
            "conflicts.socket-lb",
            "Cilium balances Services at the socket, inside pods, before Karst sees the connection",
            "set Cilium's Helm value socketLB.hostNamespaceOnly=true (ConfigMap kube-system/cilium-config, bpf-lb-sock-hostns-only)",
        ));
    }
    if data
        .get("cni-exclusive")
        .is_none_or(|value| value != "false")
    {
        findings.push(Finding::failed(
            "conflicts.cni-exclusive",
            "Cilium removes CNI configuration that is not its own, and so Karst's entry",
            "set Cilium's Helm value cni.exclusive=false (ConfigMap kube-system/cilium-config, cni-exclusive)",
        ));
    }
    if is("enable-bpf-masquerade") {
        findings.push(Finding::warning(
            "conflicts.masquerade",
            "Cilium masquerades in eBPF, which can replace the source of kubelet probes",
            "watch that probes of pods in the mesh pass; otherwise set bpf.masquerade=false",
        ));
    }
    findings
}

async fn calico(client: &Client) -> Result<Vec<Finding>, Failure> {
    let path = "/apis/crd.projectcalico.org/v1/felixconfigurations/default";
    let answer = cluster::get(client, path).await?;
    match answer.status.as_u16() {
        200 => Ok(felix(
            &serde_json::from_str(&answer.text).unwrap_or_default(),
        )),
        404 => Ok(Vec::new()),
        status => Err(Failure::failed(
            "calico",
            format!("FelixConfiguration default: the API server answered {status}"),
        )),
    }
}

fn felix(config: &Value) -> Vec<Finding> {
    let spec = |key: &str| config.pointer(&format!("/spec/{key}"));
    let on = spec("bpfEnabled") == Some(&Value::Bool(true));
    let connect = spec("bpfConnectTimeLoadBalancing").and_then(Value::as_str);
    if on && connect == Some("Enabled") {
        return vec![Finding::failed(
            "conflicts.socket-lb",
            "Calico balances Services at the socket, before Karst sees the connection",
            "set bpfConnectTimeLoadBalancing: Disabled in FelixConfiguration default",
        )];
    }
    Vec::new()
}

async fn other_meshes(client: &Client) -> Result<Vec<Finding>, Failure> {
    let sets: Api<DaemonSet> = Api::all(client.clone());
    let sets = sets.list_metadata(&ListParams::default()).await;
    let sets = sets.map_err(|e| failure("listing DaemonSets", &e))?;
    let ambient: Api<Namespace> = Api::all(client.clone());
    let params = ListParams::default().labels("istio.io/dataplane-mode=ambient");
    let ambient = ambient.list_metadata(&params).await;
    let ambient = ambient.map_err(|e| failure("listing namespaces", &e))?;
    let name = |name: Option<String>| name.unwrap_or_default();
    let sets: Vec<String> = sets
        .items
        .into_iter()
        .map(|set| name(set.metadata.name))
        .collect();
    let ambient: Vec<String> = ambient
        .items
        .into_iter()
        .map(|ns| name(ns.metadata.name))
        .collect();
    Ok(meshes(&sets, &ambient))
}

fn meshes(daemon_sets: &[String], ambient: &[String]) -> Vec<Finding> {
    let has = |name: &str| daemon_sets.iter().any(|set| set == name);
    let mut findings = Vec::new();
    if has("ztunnel") && !ambient.is_empty() {
        findings.push(Finding::failed(
            "conflicts.istio-ambient",
            format!(
                "Istio's ztunnel runs, and namespaces are labelled istio.io/dataplane-mode=ambient, which Karst takes as its own: {}",
                ambient.join(", ")
            ),
            "label those namespaces karst.dev/dataplane-mode=none, or move them: remove Istio's label and restart their pods, then label them karst.dev/dataplane-mode=ambient",
        ));
    } else if has("ztunnel") || has("istio-cni-node") {
        findings.push(Finding::warning(
            "conflicts.istio",
            "Istio's node components run beside Karst",
            "keep each namespace in one of the two meshes only",
        ));
    }
    if has("kmesh") {
        findings.push(Finding::failed(
            "conflicts.kmesh",
            "Kmesh runs, which takes connections at the same hooks",
            "remove it before installing Karst",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::{Finding, cilium, felix, meshes};

    fn ids(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn cilium_must_leave_pods_sockets_and_other_cni_entries_alone() {
        let check = |pairs: &[(&str, &str)], expected: &[&str]| {
            let data: BTreeMap<_, _> = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            assert_eq!(ids(&cilium(&data)), expected, "{pairs:?}");
        };
        check(&[("cni-exclusive", "false")], &[]);
        check(&[], &["conflicts.cni-exclusive"]);
        check(
            &[
                ("kube-proxy-replacement", "true"),
                ("cni-exclusive", "false"),
            ],
            &["conflicts.socket-lb"],
        );
        check(
            &[
                ("bpf-lb-sock", "true"),
                ("bpf-lb-sock-hostns-only", "true"),
                ("cni-exclusive", "false"),
            ],
            &[],
        );
        check(
            &[
                ("enable-bpf-masquerade", "true"),
                ("cni-exclusive", "false"),
            ],
            &["conflicts.masquerade"],
        );
    }

    #[test]
    fn calico_must_not_balance_at_connect() {
        let config =
            |mode: &str| json!({"spec": {"bpfEnabled": true, "bpfConnectTimeLoadBalancing": mode}});
        assert_eq!(ids(&felix(&config("Enabled"))), ["conflicts.socket-lb"]);
        assert!(felix(&config("TCP-disabled")).is_empty());
        assert!(felix(&json!({"spec": {}})).is_empty());
    }

    #[test]
    fn another_mesh_is_seen() {
        let check = |sets: &[&str], ambient: &[&str], expected: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            assert_eq!(ids(&meshes(&own(sets), &own(ambient))), expected);
        };
        check(&["kube-proxy"], &["a"], &[]);
        check(&["ztunnel"], &["a"], &["conflicts.istio-ambient"]);
        check(&["ztunnel", "istio-cni-node"], &[], &["conflicts.istio"]);
        check(&["kmesh"], &[], &["conflicts.kmesh"]);
    }
}
