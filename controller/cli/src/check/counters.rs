//! What the controllers count, read through the API server's proxy: whether every agent is
//! connected, and whether resources were refused.

use std::collections::BTreeMap;

use kube::Client;

use super::Finding;
use crate::cluster::scrape;
use crate::failure::Failure;
use crate::install::rollout;

/// Where a controller tells its metrics.
const METRICS_PORT: u16 = 15014;

/// Metrics that are looked at, as scraped.
const STREAMS: &str = "karst_controller_xds_streams";
const FAULTY: &str = "karst_controller_source_faulty";
const NACKS: &str = "karst_controller_xds_nacks_total";
const CA_REFUSED: &str = "karst_controller_ca_refused_total";

/// Looks at all ready controllers.
pub async fn all(client: &Client) -> Vec<Finding> {
    const ID: &str = "controller.metrics";
    match sums(client).await {
        Ok((sums, agents)) => findings(&sums, agents),
        Err(failure) => vec![Finding::warning(
            ID,
            format!("cannot be read through the API server: {}", failure.message),
            "where the API server does not reach pods, read port 15014 from inside the cluster",
        )],
    }
}

/// Metrics that tell of something all controllers see alike, so that adding them up would count it
/// several times.
const SHARED: [&str; 1] = [FAULTY];

/// The total of each metric over all controllers, and the number of ready agents.
async fn sums(client: &Client) -> Result<(BTreeMap<String, f64>, usize), Failure> {
    let mut sums = BTreeMap::new();
    for (pod, told) in scrape::metrics(client, rollout::CONTROLLER, METRICS_PORT).await? {
        let text = told.map_err(|why| Failure::failed("proxy", format!("pod {pod}: {why}")))?;
        add(&text, &mut sums);
    }
    let agents = rollout::pods(client, rollout::AGENT).await?;
    Ok((
        sums,
        agents.iter().filter(|pod| rollout::is_ready(pod)).count(),
    ))
}

/// Adds one controller's samples to their metrics' totals, whatever their labels.
fn add(scrape: &str, sums: &mut BTreeMap<String, f64>) {
    let mut own: BTreeMap<&str, f64> = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = series.split('{').next().unwrap_or(series).trim();
        if let Ok(value) = value.parse::<f64>() {
            *own.entry(name).or_default() += value;
        }
    }
    for (name, value) in own {
        let total = sums.entry(name.to_owned()).or_default();
        *total = if SHARED.contains(&name) {
            total.max(value)
        } else {
            *total + value
        };
    }
}

fn findings(sums: &BTreeMap<String, f64>, agents: usize) -> Vec<Finding> {
    let sum = |name: &str| sums.get(name).copied().unwrap_or(0.0);
    let mut findings = Vec::new();
    let streams = sum(STREAMS);
    #[expect(clippy::cast_precision_loss, reason = "a number of nodes")]
    let wanted = agents as f64;
    findings.push(if streams >= wanted {
        Finding::ok(
            "agent.streams",
            format!("{agents} agents are connected to a controller"),
        )
    } else {
        Finding::failed(
            "agent.streams",
            format!("{streams} of {agents} agents are connected to a controller"),
            "the others work by what they know; their logs say why they are not connected",
        )
    });
    for (id, name, what, advice) in [
        (
            "controller.faults",
            FAULTY,
            "objects have faults and are left out or kept as they were",
            "the controller's log names object and field",
        ),
        (
            "controller.nacks",
            NACKS,
            "resources were rejected by agents",
            "agents and controller may be of different versions; the controller's log names them",
        ),
        (
            "controller.refused",
            CA_REFUSED,
            "requests for certificates were refused",
            "the metric's label says why; a few are normal while pods end",
        ),
    ] {
        if sum(name) > 0.0 {
            findings.push(Finding::warning(
                id,
                format!("{} {what}", sum(name)),
                advice,
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{add, findings};
    use crate::check::Level;

    #[test]
    fn samples_are_summed_over_labels_and_controllers() {
        let scrape = "# HELP x y\n# TYPE karst_controller_xds_streams gauge\nkarst_controller_xds_streams 1\n\
                      karst_controller_xds_nacks_total{type=\"a b\"} 2\nkarst_controller_xds_nacks_total{type=\"c\"} 3\n# EOF\n";
        let mut sums = BTreeMap::new();
        add(scrape, &mut sums);
        add(scrape, &mut sums);
        assert_eq!(sums["karst_controller_xds_streams"], 2.0);
        assert_eq!(sums["karst_controller_xds_nacks_total"], 10.0);
        let levels: Vec<_> = findings(&sums, 2).iter().map(|f| f.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Warning]);
        assert_eq!(findings(&sums, 3)[0].level, Level::Failed);
    }

    #[test]
    fn a_fault_that_every_controller_sees_is_one() {
        let mut sums = BTreeMap::new();
        for faulty in [1, 2, 2] {
            add(
                &format!("karst_controller_source_faulty {faulty}\n"),
                &mut sums,
            );
        }
        let findings = findings(&sums, 0);
        let fault = findings.iter().find(|f| f.id == "controller.faults");
        let message = &fault.expect("told").message;
        assert!(message.starts_with("2 objects"), "{message}");
    }
}
