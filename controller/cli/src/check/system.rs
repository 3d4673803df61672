//! The installation: its objects, versions, pods, leader and admission policies.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use super::Finding;
use crate::cluster::{self, MANAGED_BY, PART_OF, SYSTEM_NAMESPACE, failure, kinds};
use crate::failure::Failure;
use crate::install::rollout::{self, Workload, is_ready};
use crate::install::{Plan, Record};

/// Restarts of a container that are no accident any more.
const MANY_RESTARTS: i32 = 3;

/// Seconds after which a lease that is not renewed is nobody's, if it does not say itself.
const LEASE_SECONDS: i32 = 15;

/// Kinds of which a value decides whether there are any.
const OPTIONAL: [&str; 4] = [
    "Namespace",
    "NetworkPolicy",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Kinds without which the mesh still carries traffic. GatewayClasses are missing where the Gateway API
/// came after Karst.
const DISPENSABLE: [&str; 2] = ["NetworkPolicy", "GatewayClass"];

/// Who installed, which decides what can be known of it and what mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installer {
    /// This command, which records its values, or kubectl, which has none.
    Karst,
    /// Helm, whose values are its own.
    Helm,
}

impl Installer {
    fn judges(self, kind: &str) -> bool {
        self == Self::Karst || !OPTIONAL.contains(&kind)
    }

    /// What to do when something is missing.
    fn repair(self) -> &'static str {
        match self {
            Self::Karst => "`karst install` installs it, and repairs an installation",
            Self::Helm => "`helm upgrade` with the same chart and values brings it back",
        }
    }

    /// What to do when something is of another version.
    fn upgrade(self) -> &'static str {
        match self {
            Self::Karst => "`karst upgrade` brings all to the version of the command",
            Self::Helm => "`helm upgrade` with the chart of this version brings all to it",
        }
    }
}

/// Every object of the chart is there, and of this version.
pub async fn objects(client: &Client) -> Vec<Finding> {
    match look(client).await {
        Ok(findings) => findings,
        Err(failure) => vec![Finding::unknown("install.objects", &failure)],
    }
}

async fn look(client: &Client) -> Result<Vec<Finding>, Failure> {
    let record = Record::read(client).await?;
    let values = record.map_or_else(Vec::new, |record| vec![record.values]);
    let plan = Plan::for_cluster(values, kinds::served(client).await?)?;
    let mut looked = Vec::new();
    let mut installer = Installer::Karst;
    for item in &plan.items {
        let there = item.api(client).get_metadata_opt(&item.name).await;
        let there = there.map_err(|e| failure(&format!("reading {}", item.shown()), &e))?;
        let labels = there.map(|object| object.metadata.labels.unwrap_or_default());
        let label = |name: &str| labels.as_ref().and_then(|labels| labels.get(name)).cloned();
        let kind = item.kind.resource.kind.clone();
        if kind == "Deployment" && label(MANAGED_BY).as_deref() == Some("Helm") {
            installer = Installer::Helm;
        }
        looked.push(Looked {
            shown: item.shown(),
            version: labels.is_some().then(|| label(VERSION).unwrap_or_default()),
            kind,
        });
    }
    Ok(object_findings(installer, &looked))
}

/// Label with the version that an object was installed with.
const VERSION: &str = "app.kubernetes.io/version";

/// An object that was looked for.
#[derive(Debug)]
struct Looked {
    kind: String,
    shown: String,
    /// Its version, if the object is there.
    version: Option<String>,
}

fn object_findings(installer: Installer, looked: &[Looked]) -> Vec<Finding> {
    const ID: &str = "install.objects";
    // The namespace may be somebody else's making, whoever installed the rest: it tells nothing.
    let versions = || {
        let versioned = looked.iter().filter(|object| object.kind != "Namespace");
        versioned.filter_map(|object| Some((object, object.version.as_deref()?)))
    };
    if versions().next().is_none() {
        let advice = installer.repair();
        return vec![Finding::failed(ID, "Karst is not installed", advice)];
    }
    let mut findings = Vec::new();
    let judged = looked
        .iter()
        .filter(|object| installer.judges(&object.kind));
    let (there, missing): (Vec<&Looked>, Vec<&Looked>) =
        judged.partition(|object| object.version.is_some());
    if missing.is_empty() {
        let count = there.len();
        findings.push(Finding::ok(ID, format!("all {count} objects are there")));
    } else {
        let names: Vec<&str> = missing.iter().map(|object| object.shown.as_str()).collect();
        let message = format!("missing: {}", names.join(", "));
        findings.push(
            if missing
                .iter()
                .any(|object| !DISPENSABLE.contains(&object.kind.as_str()))
            {
                Finding::failed(ID, message, installer.repair())
            } else {
                Finding::warning(ID, message, installer.repair())
            },
        );
    }
    let ours = env!("CARGO_PKG_VERSION");
    let other = versions().find(|(_, version)| *version != ours);
    findings.push(match other {
        None => Finding::ok(
            "install.version",
            format!("installed is {ours}, as is this command"),
        ),
        Some((object, version)) => Finding::warning(
            "install.version",
            format!(
                "{} is of version {version:?}, this command is {ours}",
                object.shown
            ),
            installer.upgrade(),
        ),
    });
    findings
}

/// Controller and agents run everywhere they should, and do not keep restarting.
pub async fn workloads(client: &Client) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, workload) in [
        ("controller.pods", rollout::CONTROLLER),
        ("agent.pods", rollout::AGENT),
    ] {
        findings.extend(
            workload_findings(client, id, workload)
                .await
                .unwrap_or_else(|failure| vec![Finding::unknown(id, &failure)]),
        );
    }
    findings
}

async fn workload_findings(
    client: &Client,
    id: &'static str,
    workload: Workload,
) -> Result<Vec<Finding>, Failure> {
    let state = rollout::state(client, workload).await?;
    let pods = rollout::pods(client, workload).await?;
    let mut findings = Vec::new();
    if state.done {
        findings.push(Finding::ok(id, state.text));
    } else {
        let mut message = state.text;
        for trouble in pods.iter().filter_map(rollout::trouble) {
            message.push_str(&format!("\n{trouble}"));
        }
        findings.push(Finding::failed(
            id,
            message,
            format!(
                "see `kubectl -n {SYSTEM_NAMESPACE} logs -l app.kubernetes.io/name={}`; pods of nodes without \
                 an agent cannot join the mesh, and connections of those that are in it are refused",
                workload.name()
            ),
        ));
    }
    findings.extend(pods.iter().filter_map(|pod| restarts(id, pod)));
    Ok(findings)
}

fn restarts(id: &'static str, pod: &Pod) -> Option<Finding> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let most = statuses.iter().map(|status| status.restart_count).max()?;
    if most < MANY_RESTARTS || !is_ready(pod) {
        // One that is not ready is told of already.
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    Some(Finding::warning(
        id,
        format!("pod {name} was restarted {most} times"),
        format!("`kubectl -n {SYSTEM_NAMESPACE} logs {name} --previous` says why"),
    ))
}

/// One controller leads, so that status is written.
pub async fn leader(client: &Client) -> Vec<Finding> {
    const ID: &str = "controller.leader";
    let api: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let lease = match api.get_opt("karst-controller-leader").await {
        Ok(lease) => lease,
        Err(error) => return vec![Finding::unknown(ID, &failure("reading the lease", &error))],
    };
    let now = match cluster::get(client, "/version").await {
        Ok(answer) => answer.date,
        Err(failure) => return vec![Finding::unknown(ID, &failure)],
    };
    vec![leader_finding(lease.as_ref(), now)]
}

fn leader_finding(lease: Option<&Lease>, now: Option<Timestamp>) -> Finding {
    const ID: &str = "controller.leader";
    let advice = "reports and annotations are not written until a controller leads; see its log";
    let spec = lease.and_then(|lease| lease.spec.as_ref());
    let holder = spec
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default();
    if holder.is_empty() {
        return Finding::failed(ID, "no controller leads", advice);
    }
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let limit = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .unwrap_or(LEASE_SECONDS);
    match (renewed, now) {
        (Some(renewed), Some(now)) => {
            let age = now.as_second() - renewed.0.as_second();
            if age > 2 * i64::from(limit) {
                return Finding::failed(ID, format!("{holder} led until {age} s ago"), advice);
            }
            Finding::ok(ID, format!("{holder} leads"))
        }
        _ => Finding::ok(ID, format!("{holder} leads")),
    }
}

/// The API server understands the admission policies.
pub async fn admission(client: &Client) -> Vec<Finding> {
    const ID: &str = "admission";
    let api: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    match api.list(&ListParams::default().labels(PART_OF)).await {
        Err(error) => vec![Finding::unknown(
            ID,
            &failure("listing admission policies", &error),
        )],
        Ok(policies) => vec![admission_finding(&policies.items)],
    }
}

fn admission_finding(policies: &[ValidatingAdmissionPolicy]) -> Finding {
    const ID: &str = "admission";
    let mut wrong = Vec::new();
    for policy in policies {
        let checked = policy
            .status
            .as_ref()
            .and_then(|status| status.type_checking.as_ref());
        let warnings = checked.and_then(|checked| checked.expression_warnings.as_ref());
        for warning in warnings.into_iter().flatten() {
            let name = policy.metadata.name.as_deref().unwrap_or("?");
            wrong.push(format!(
                "{name}, {}: {}",
                warning.field_ref, warning.warning
            ));
        }
    }
    if policies.is_empty() {
        return Finding::warning(
            ID,
            "labels with wrong values are not refused: there is no admission policy",
            "set the value admissionPolicy.enabled=true",
        );
    }
    if wrong.is_empty() {
        return Finding::ok(ID, "labels with wrong values are refused");
    }
    Finding::warning(
        ID,
        format!("the API server finds fault with: {}", wrong.join("\n")),
        "report this: the policy does not suit this version of Kubernetes",
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::Lease;
    use serde_json::json;

    use super::{Installer, Looked, OPTIONAL, leader_finding, object_findings, objects};
    use crate::check::Level;
    use crate::cluster::MANAGED_BY;
    use crate::install::Plan;
    use crate::testing::ApiServer;

    fn looked(kind: &str, version: Option<&str>) -> Looked {
        Looked {
            kind: kind.to_owned(),
            shown: format!("{kind} n/x"),
            version: version.map(str::to_owned),
        }
    }

    fn levels(installer: Installer, looked: &[Looked]) -> Vec<Level> {
        let findings = object_findings(installer, looked);
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn missing_objects_and_other_versions_are_told() {
        let ours = Some(env!("CARGO_PKG_VERSION"));
        let check = |more: &[(&str, Option<&str>)], expected: &[Level]| {
            let own = [("Namespace", ours), ("Service", ours)];
            let all = own.iter().chain(more);
            let all: Vec<_> = all.map(|(kind, version)| looked(kind, *version)).collect();
            assert_eq!(levels(Installer::Karst, &all), expected, "{more:?}");
        };
        check(&[], &[Level::Ok, Level::Ok]);
        check(&[("Deployment", None)], &[Level::Failed, Level::Ok]);
        check(&[("NetworkPolicy", None)], &[Level::Warning, Level::Ok]);
        check(&[("GatewayClass", None)], &[Level::Warning, Level::Ok]);
        check(
            &[("ValidatingAdmissionPolicy", None)],
            &[Level::Failed, Level::Ok],
        );
        check(&[("Role", Some("0.0.1"))], &[Level::Ok, Level::Warning]);
        check(&[("Role", Some(""))], &[Level::Ok, Level::Warning]);
        let nothing = [looked("Namespace", Some("")), looked("Service", None)];
        assert_eq!(levels(Installer::Karst, &nothing), [Level::Failed]);
    }

    #[test]
    fn what_helm_installed_is_judged_without_its_values() {
        let ours = Some(env!("CARGO_PKG_VERSION"));
        let mut all = vec![
            // Made by `helm install --create-namespace`, without a label.
            looked("Namespace", Some("")),
            looked("Deployment", ours),
            looked("ValidatingAdmissionPolicy", None),
            looked("ValidatingAdmissionPolicyBinding", None),
            looked("NetworkPolicy", None),
        ];
        assert_eq!(levels(Installer::Helm, &all), [Level::Ok, Level::Ok]);
        all.push(looked("Service", None));
        all.push(looked("Role", Some("0.0.1")));
        let findings = object_findings(Installer::Helm, &all);
        assert_eq!(
            levels(Installer::Helm, &all),
            [Level::Failed, Level::Warning]
        );
        assert_eq!(findings[0].message, "missing: Service n/x");
        for finding in findings {
            let advice = finding.advice.unwrap_or_default();
            assert!(
                advice.contains("helm upgrade") && !advice.contains("karst"),
                "{advice}"
            );
        }
    }

    #[tokio::test]
    async fn the_deployment_tells_who_installed() {
        let (server, client) = ApiServer::start().await;
        for item in Plan::new(Vec::new()).expect("plan").items {
            let kind = item.kind.resource.kind.as_str();
            if OPTIONAL.contains(&kind) {
                continue;
            }
            let mut object = item.object.clone();
            object["metadata"]["labels"][MANAGED_BY] = json!("Helm");
            let api = item.api(&client);
            let path = format!("{}/{}", api.resource_url(), item.name);
            server.put(&path, object);
        }
        server.put("/api/v1/namespaces/karst-system", json!({}));
        let found: Vec<_> = objects(&client).await.iter().map(|f| f.level).collect();
        assert_eq!(found, [Level::Ok, Level::Ok]);
    }

    #[test]
    fn a_leader_must_renew_its_lease() {
        let lease = |holder: &str| -> Lease {
            serde_json::from_value(
                json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15,
                "renewTime": "2026-11-22T01:00:00.000000Z"}}),
            )
            .expect("lease")
        };
        let now = |text: &str| Some(text.parse().expect("time"));
        assert_eq!(leader_finding(None, None).level, Level::Failed);
        assert_eq!(leader_finding(Some(&lease("")), None).level, Level::Failed);
        let fresh = leader_finding(Some(&lease("a")), now("2026-11-22T01:00:10Z"));
        assert_eq!(fresh.level, Level::Ok);
        let old = leader_finding(Some(&lease("a")), now("2026-11-22T01:05:00Z"));
        assert_eq!(old.level, Level::Failed);
    }
}
