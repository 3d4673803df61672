//! The installation: its objects, versions, pods, leader and admission policies.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use super::Finding;
use crate::cluster::{self, PART_OF, SYSTEM_NAMESPACE, failure};
use crate::failure::Failure;
use crate::install::rollout::{self, Workload, is_ready};
use crate::install::{Plan, Record};

/// Restarts of a container that are no accident any more.
const MANY_RESTARTS: i32 = 3;

/// Seconds after which a lease that is not renewed is nobody's, if it does not say itself.
const LEASE_SECONDS: i32 = 15;

/// What is told when Karst is not there.
const INSTALL: &str = "`karst install` installs it, and repairs an installation";

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
    let plan = Plan::new(values)?;
    let (mut missing, mut versions) = (Vec::new(), Vec::new());
    for item in &plan.items {
        let there = item.api(client).get_metadata_opt(&item.name).await;
        let there = there.map_err(|e| failure(&format!("reading {}", item.shown()), &e))?;
        match there {
            None => missing.push(item.shown()),
            Some(object) => {
                let labels = object.metadata.labels.unwrap_or_default();
                let version = labels.get("app.kubernetes.io/version").cloned();
                versions.push((item.shown(), version.unwrap_or_default()));
            }
        }
    }
    Ok(object_findings(plan.items.len(), &missing, &versions))
}

fn object_findings(
    wanted: usize,
    missing: &[String],
    versions: &[(String, String)],
) -> Vec<Finding> {
    const ID: &str = "install.objects";
    // The namespace alone may be somebody else's making.
    let nothing = versions
        .iter()
        .all(|(name, _)| name.starts_with("Namespace "));
    if nothing {
        return vec![Finding::failed(ID, "Karst is not installed", INSTALL)];
    }
    let mut findings = Vec::new();
    if missing.is_empty() {
        findings.push(Finding::ok(ID, format!("all {wanted} objects are there")));
    } else {
        let essential = missing
            .iter()
            .any(|name| !name.starts_with("NetworkPolicy "));
        let message = format!("missing: {}", missing.join(", "));
        findings.push(if essential {
            Finding::failed(ID, message, INSTALL)
        } else {
            Finding::warning(ID, message, INSTALL)
        });
    }
    let ours = env!("CARGO_PKG_VERSION");
    let other = versions.iter().find(|(_, version)| version != ours);
    findings.push(match other {
        None => Finding::ok(
            "install.version",
            format!("installed is {ours}, as is this command"),
        ),
        Some((name, version)) => Finding::warning(
            "install.version",
            format!("{name} is of version {version:?}, this command is {ours}"),
            "`karst upgrade` brings all to the version of the command",
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

    use super::{leader_finding, object_findings};
    use crate::check::Level;

    #[test]
    fn missing_objects_and_other_versions_are_told() {
        let own = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let ours = env!("CARGO_PKG_VERSION");
        let levels = |missing: &[&str], versions: &[(String, String)]| {
            let missing: Vec<_> = missing.iter().map(|m| (*m).to_owned()).collect();
            let findings = object_findings(3, &missing, versions);
            findings
                .iter()
                .map(|finding| finding.level)
                .collect::<Vec<_>>()
        };
        let good = [own("Namespace n", ours), own("Service n/s", ours)];
        assert_eq!(levels(&[], &good), [Level::Ok, Level::Ok]);
        assert_eq!(
            levels(&["Deployment n/d"], &good),
            [Level::Failed, Level::Ok]
        );
        assert_eq!(
            levels(&["NetworkPolicy n/p"], &good),
            [Level::Warning, Level::Ok]
        );
        assert_eq!(
            levels(&[], &[own("Service n/s", "0.0.1")]),
            [Level::Ok, Level::Warning]
        );
        assert_eq!(
            levels(&["Service n/s"], &[own("Namespace n", "")]),
            [Level::Failed]
        );
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
