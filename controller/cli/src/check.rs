//! `karst check`: whether a cluster can run Karst, and whether Karst runs well in it.
//!
//! Each check is a [`Finding`]: what was looked at, how it is, and what to do when it is not well.
//! A check that the caller may not make, or that cannot be made, says so as a warning and never
//! passes in silence. [`before`] is what must hold before an installation, [`conflicts`] looks for
//! other software that would get in the way, [`gateway_api`] at the API that others install, [`system`], [`certificates`] and [`clocks`] look at an
//! installation, and each of its nodes is compared as `karst inspect diff` does. Start with [`run`].

mod before;
mod certificates;
mod clocks;
mod conflicts;
mod counters;
mod finding;
mod gateway_api;
mod mesh;

mod system;

use kube::Client;

use crate::args::Check;
use crate::failure::{Failure, Kind};
use crate::{cluster, diff};

pub use finding::{Finding, Level, Report};

/// Runs the checks; the report, or a failure that carries it.
///
/// # Errors
/// The cluster cannot be asked, or a check failed.
pub fn run(args: &Check) -> Result<String, Failure> {
    let (mut report, there) = cluster::run(async {
        let client = cluster::client(&args.kubernetes).await?;
        checks(args.pre, &client).await
    })?;
    if there && !args.no_nodes {
        report.extend(diff::nodes::all(&args.kubernetes));
    }
    let text = if args.output.is_json() {
        format!("{:#}\n", report.json())
    } else {
        report.text()
    };
    if report.has_failed() {
        return Err(Failure {
            kind: Kind::Unhealthy,
            reason: "check_failed".to_owned(),
            message: text,
        });
    }
    Ok(text)
}

/// The checks that ask the API server alone, and whether Karst is there.
async fn checks(pre: bool, client: &Client) -> Result<(Report, bool), Failure> {
    let mut report = Report::default();
    // The one check without which there are no others.
    report.add(before::api_server(client).await?);
    report.extend(before::nodes(client).await);
    report.extend(conflicts::all(client).await);
    report.extend(clocks::all(client).await);
    report.extend(before::permissions(client).await);
    report.extend(gateway_api::all(client).await);
    if pre {
        report.extend(before::namespace(client).await);
        return Ok((report, false));
    }
    let installed = system::objects(client).await;
    let there = installed
        .iter()
        .all(|finding| finding.level != Level::Failed);
    report.extend(installed);
    if there {
        report.extend(system::workloads(client).await);
        report.extend(system::leader(client).await);
        report.extend(system::admission(client).await);
        report.extend(certificates::all(client).await);
        report.extend(counters::all(client).await);
        report.extend(mesh::all(client).await);
    }
    Ok((report, there))
}
