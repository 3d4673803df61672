//! Clocks: certificates are valid from one time to another, so they must agree.

use std::time::SystemTime;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use super::Finding;
use crate::cluster::{self, failure};

/// Seconds that clocks may differ without anything noticing.
const TOLERATED: i64 = 10;

/// Seconds of difference that break things: certificates are back-dated by little more.
const BROKEN: i64 = 60;

/// Seconds after which a node that has not renewed its lease counts as away (Kubernetes' default).
const LEASE: i64 = 40;

/// This machine's and every node's clock against the API server's.
pub async fn all(client: &Client) -> Vec<Finding> {
    let server = match cluster::get(client, "/version").await {
        Ok(answer) => answer.date,
        Err(failure) => return vec![Finding::unknown("clock", &failure)],
    };
    let Some(server) = server else {
        return vec![Finding::warning(
            "clock",
            "the API server does not say what time it is",
            "compare the nodes' clocks by hand",
        )];
    };
    let mut findings = Vec::new();
    if let Ok(now) = Timestamp::try_from(SystemTime::now()) {
        findings.push(local(now.as_second() - server.as_second()));
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    match leases.list(&ListParams::default()).await {
        Err(error) => findings.push(Finding::unknown(
            "clock.nodes",
            &failure("listing the leases of nodes", &error),
        )),
        Ok(leases) => {
            let ages: Vec<(String, i64)> = leases
                .items
                .into_iter()
                .filter_map(|lease| {
                    let renewed = lease.spec?.renew_time?.0;
                    Some((
                        lease.metadata.name?,
                        server.as_second() - renewed.as_second(),
                    ))
                })
                .collect();
            findings.extend(nodes(&ages));
        }
    }
    findings
}

fn local(ahead: i64) -> Finding {
    const ID: &str = "clock.local";
    let message = format!("this machine's clock is {ahead} s ahead of the API server's");
    match ahead.abs() {
        ..=TOLERATED => Finding::ok(ID, "this machine's clock agrees with the API server's"),
        _ => Finding::warning(
            ID,
            message,
            "set it by NTP; ages below are reckoned by the API server's clock",
        ),
    }
}

/// A node renews its lease with its own clock, so one from the future is ahead, and one that is too
/// old is behind or away.
fn nodes(ages: &[(String, i64)]) -> Vec<Finding> {
    const ID: &str = "clock.nodes";
    let mut findings = Vec::new();
    for (name, age) in ages {
        if *age < -TOLERATED {
            let message = format!(
                "node {name}'s clock is at least {} s ahead of the API server's",
                -age
            );
            let advice = "set it by NTP: certificates are refused by peers while clocks differ";
            findings.push(if *age < -BROKEN {
                Finding::failed(ID, message, advice)
            } else {
                Finding::warning(ID, message, advice)
            });
        } else if *age > LEASE {
            findings.push(Finding::warning(
                ID,
                format!("node {name} renewed its lease {age} s ago by its own clock"),
                "it is away, or its clock is behind: look at the node",
            ));
        }
    }
    if findings.is_empty() && !ages.is_empty() {
        findings.push(Finding::ok(
            ID,
            format!(
                "the clocks of {} nodes agree with the API server's",
                ages.len()
            ),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{local, nodes};
    use crate::check::Level;

    #[test]
    fn clocks_may_differ_a_little() {
        assert_eq!(local(3).level, Level::Ok);
        assert_eq!(local(-300).level, Level::Warning);
        let level = |age: i64| nodes(&[("n".to_owned(), age)])[0].level;
        assert_eq!(level(5), Level::Ok);
        assert_eq!(level(-30), Level::Warning);
        assert_eq!(level(-90), Level::Failed);
        assert_eq!(level(100), Level::Warning);
        assert!(nodes(&[]).is_empty());
    }
}
