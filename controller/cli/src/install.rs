//! `karst install` and `karst upgrade`: renders the chart, applies what differs, waits until it runs.
//!
//! Everything is server-side applied in order, so that a second run writes nothing and a run after a
//! failure goes on where that stopped. The agents come last, when a controller serves: they mount
//! the root bundle that it publishes. Start with [`run`].

mod apply;
mod plan;
mod prune;
mod record;
mod repair;
pub mod rollout;

use std::time::Duration;

use kube::Client;

use crate::args::{DryRun, Install};
use crate::cluster::kinds::{self, Item};
use crate::cluster::{self, SYSTEM_NAMESPACE};
use crate::failure::Failure;
use crate::style::{self, GOOD, WARN, paint};

pub use apply::{Mode, Outcome, apply};
pub use plan::{Plan, overrides};
pub use record::Record;

use rollout::Nodes;

/// Which of the two commands runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Install, or repair.
    Install,
    /// Only where Karst is already.
    Upgrade,
}

/// How often each outcome came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    created: usize,
    changed: usize,
    unchanged: usize,
    removed: usize,
}

impl Tally {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Created => self.created += 1,
            Outcome::Changed => self.changed += 1,
            Outcome::Unchanged => self.unchanged += 1,
        }
    }

    fn shown(&self) -> String {
        format!(
            "{} created, {} changed, {} unchanged, {} removed",
            self.created, self.changed, self.unchanged, self.removed
        )
    }
}

/// Runs the command; returns what to print at the end.
///
/// # Errors
/// Wrong values, a refusal of the cluster, or something that does not come up in time.
pub fn run(args: &Install, intent: Intent) -> Result<String, Failure> {
    if args.dry_run == Some(DryRun::Client) {
        // Without the cluster, only what is on the command line counts.
        let plan = Plan::new(overrides(&args.values)?)?;
        return Ok(plan.manifest);
    }
    cluster::run(async {
        let client = cluster::client(&args.kubernetes).await?;
        install(args, intent, &client).await
    })
}

async fn install(args: &Install, intent: Intent, client: &Client) -> Result<String, Failure> {
    let recorded = Record::read(client).await?;
    check_intent(intent, recorded.as_ref())?;
    let mut values = overrides(&args.values)?;
    if let Some(record) = recorded.filter(|_| !args.values.reset_values) {
        values.insert(0, record.values);
    }
    let plan = Plan::for_cluster(values, kinds::served(client).await?)?;
    apply::refuse_foreign(client, &plan.items).await?;
    if args.dry_run == Some(DryRun::Server) {
        return try_all(client, &plan).await;
    }
    apply::wait_until_not_ending(client, Duration::from_secs(args.timeout)).await?;

    let mut tally = Tally::default();
    let limit = Duration::from_secs(args.timeout);
    let (agents, others): (Vec<&Item>, Vec<&Item>) = plan
        .items
        .iter()
        .partition(|item| item.kind.resource.kind == "DaemonSet");
    for item in others {
        tally.count(apply_and_say(client, item).await?);
        repair::renew_tokens(client, item).await?;
    }
    let record = Record::new(plan.overrides.clone()).item()?;
    tally.count(apply_and_say(client, &record).await?);
    rollout::wait(client, rollout::CONTROLLER, Nodes::All, limit).await?;
    for item in agents {
        repair::remove_cleaning(client, item, limit).await?;
        tally.count(apply_and_say(client, item).await?);
        repair::renew_tokens(client, item).await?;
    }
    // Before the wait: one agent that does not come is no reason to keep what is not wanted any more.
    tally.removed = prune::prune(client, &plan.items, &record).await?;
    let away = rollout::wait(client, rollout::AGENT, Nodes::Ready, limit).await?;
    if !away.is_empty() {
        anstream::eprintln!(
            "{} these nodes are not ready, and get their agents when they are: {}",
            paint(WARN, "Without an agent of this version:"),
            away.join(", ")
        );
    }
    Ok(format!(
        "Karst {} runs in {SYSTEM_NAMESPACE}: {}.\n\
         Take a namespace into the mesh with `kubectl label namespace NAME karst.dev/dataplane-mode=ambient`.\n",
        env!("CARGO_PKG_VERSION"),
        tally.shown()
    ))
}

fn check_intent(intent: Intent, recorded: Option<&Record>) -> Result<(), Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    match (intent, recorded) {
        (Intent::Upgrade, None) => Err(Failure::not_found(
            "Karst was not installed by `karst install` here; nothing to upgrade",
        )),
        (_, Some(record)) if plan::is_newer(&record.version, ours) => Err(Failure::failed(
            "version_older",
            format!(
                "Karst {} is installed, and this is karst {ours}; use that version or a newer one",
                record.version
            ),
        )),
        (Intent::Install, Some(record)) if record.version != ours => Err(Failure::failed(
            "version_differs",
            format!(
                "Karst {} is installed; `karst upgrade` brings it to {ours}",
                record.version
            ),
        )),
        _ => Ok(()),
    }
}

async fn apply_and_say(client: &Client, item: &Item) -> Result<Outcome, Failure> {
    let outcome = apply(client, item, Mode::Write).await?;
    style::result(outcome.style(), outcome.word(), &item.shown());
    Ok(outcome)
}

/// Lets the API server check every object, and says what an installation would do.
async fn try_all(client: &Client, plan: &Plan) -> Result<String, Failure> {
    let mut tally = Tally::default();
    let fresh = !apply::namespace_exists(client).await?;
    for item in &plan.items {
        if fresh && item.namespace.is_some() {
            // The server refuses objects of a namespace that is not there, even to try them.
            let home = apply::in_namespace(item, "default");
            apply(client, &home, Mode::Try).await?;
            tally.count(Outcome::Created);
            style::result(GOOD, "would be created", &item.shown());
            continue;
        }
        if item.kind.resource.kind == "DaemonSet" && repair::cleaning(client, item).await?.is_some()
        {
            // It would be made anew, and only a new one can show whether the server takes it.
            apply(client, &apply::as_new(item), Mode::Try).await?;
            tally.count(Outcome::Changed);
            style::result(WARN, "would be made anew", &item.shown());
            continue;
        }
        let outcome = apply(client, item, Mode::Try).await?;
        tally.count(outcome);
        let words = match outcome {
            Outcome::Unchanged => "unchanged".to_owned(),
            other => format!("would be {}", other.word()),
        };
        style::result(outcome.style(), &words, &item.shown());
    }
    Ok(format!(
        "{} Nothing was written: {}.\n",
        paint(GOOD, "The API server takes every object."),
        tally.shown()
    ))
}

#[cfg(test)]
mod tests;
