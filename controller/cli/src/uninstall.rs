//! `karst uninstall`: takes every pod out of the mesh, then removes every object.
//!
//! The nodes come first, while there is still somebody to clean them: the agents' DaemonSet is
//! turned into one that runs `karst-node-agent cleanup`, which is ready when its node is as before.
//! Then the objects go, those that write others before those that were written. Definitions of
//! kinds of which there are objects stay, as the objects would go with them. Start with [`run`].

mod definitions;
mod leftovers;
mod namespace;
pub mod nodes;

use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, PropagationPolicy};
use kube::{Api, Client};

use crate::args::Uninstall;
use crate::cluster::kinds::{self, Kind, Presence};
use crate::cluster::removal::stuck;
use crate::cluster::{self, MANAGED_BY, PART_OF, SYSTEM_NAMESPACE, failure, is_not_found, is_ours};
use crate::failure::Failure;
use crate::install::rollout::Nodes;
use crate::style::{self, GOOD, WARN};

/// The authority's Secret.
const CA_SECRET: &str = "karst-ca";

/// Between two looks at what is being deleted.
const POLL: Duration = Duration::from_millis(500);

/// Runs the command; returns what to print at the end.
///
/// # Errors
/// A node that cannot be cleaned, or a refusal of the cluster.
pub fn run(args: &Uninstall) -> Result<String, Failure> {
    cluster::run(async {
        let client = cluster::client(&args.kubernetes).await?;
        uninstall(args, &client).await
    })
}

async fn uninstall(args: &Uninstall, client: &Client) -> Result<String, Failure> {
    refuse_helm(client).await?;
    if !args.yes {
        confirm(args.keep_ca)?;
    }
    let limit = Duration::from_secs(args.timeout);
    let warning = match nodes::clean(client, limit).await {
        Ok(()) => None,
        Err(failure) if args.force => Some(failure.message),
        Err(failure) => return Err(failure),
    };
    // The pods of a dead node never end, and with them whatever waits for its dependents.
    let (dependents, awaited) = match args.force {
        true => (PropagationPolicy::Background, Nodes::Ready),
        false => (PropagationPolicy::Foreground, Nodes::All),
    };
    // The controller goes first: it would write again what is removed below.
    let mut removed = 0;
    let kinds = kinds::all();
    for kind in kinds.iter().rev().filter(|kind| is_workload(kind)) {
        removed += delete_all(client, kind, &dependents, limit).await?;
    }
    nodes::wait_until_pods_are_gone(client, awaited, limit).await?;
    removed += leftovers::remove(client).await?;
    let (namespaces, others): (Vec<&Kind>, Vec<&Kind>) = kinds
        .iter()
        .rev()
        .filter(|kind| !is_workload(kind))
        .partition(|kind| kind.resource.kind == "Namespace");
    for kind in others {
        if is_definition(kind) {
            removed += definitions::remove(client, kind, limit).await?;
        } else {
            removed += delete_all(client, kind, &dependents, limit).await?;
        }
    }
    if args.keep_ca {
        style::result(
            GOOD,
            "kept",
            &format!("Secret {SYSTEM_NAMESPACE}/{CA_SECRET}"),
        );
    } else {
        removed += delete_secret(client).await?;
        for kind in namespaces {
            removed += namespace::delete(client, kind, limit).await?;
        }
    }
    if let Some(warning) = warning {
        anstream::eprintln!("{} {warning}", style::paint(WARN, "Not cleaned:"));
    }
    Ok(match removed {
        0 => "Karst is not installed; nothing was removed.\n".to_owned(),
        removed => format!("Karst is gone: {removed} objects removed.\n"),
    })
}

fn is_definition(kind: &Kind) -> bool {
    kind.resource.kind == "CustomResourceDefinition"
}

fn is_workload(kind: &Kind) -> bool {
    matches!(kind.resource.kind.as_str(), "Deployment" | "DaemonSet")
}

/// What Helm installed it must remove, or its own record would say that Karst is there.
async fn refuse_helm(client: &Client) -> Result<(), Failure> {
    let params = ListParams::default().labels(&format!("{PART_OF},{MANAGED_BY}=Helm"));
    for kind in kinds::all().iter().filter(|kind| is_workload(kind)) {
        let api = kinds::api(client, kind, Some(SYSTEM_NAMESPACE));
        let doing = format!("listing {}", kind.resource.plural);
        let found = api.list(&params).await.map_err(|e| failure(&doing, &e))?;
        if !found.items.is_empty() {
            return Err(Failure::failed(
                "managed_by_helm",
                "Karst was installed by Helm: see \"Remove\" in controller/deploy/README.md, then `helm uninstall`",
            ));
        }
    }
    Ok(())
}

fn confirm(keep_ca: bool) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "this takes every pod out of the mesh and removes Karst; say --yes where nobody can be asked",
        ));
    }
    let key = if keep_ca {
        ""
    } else {
        ", and deletes the mesh's root key"
    };
    anstream::eprint!("This takes every pod out of the mesh, removes Karst{key}. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::failed("no_answer", e.to_string()))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed("not_confirmed", "nothing was done")),
    }
}

/// Deletes every object of a kind that is Karst's own, and waits until it is gone.
async fn delete_all(
    client: &Client,
    kind: &Kind,
    dependents: &PropagationPolicy,
    limit: Duration,
) -> Result<usize, Failure> {
    let api = kinds::api(client, kind, kind.namespaced.then_some(SYSTEM_NAMESPACE));
    let params = ListParams::default().labels(PART_OF);
    let deletion = DeleteParams {
        propagation_policy: Some(dependents.clone()),
        ..DeleteParams::default()
    };
    let doing = format!("listing {}", kind.resource.plural);
    let deadline = Instant::now() + limit;
    let mut removed = 0;
    loop {
        let found = match api.list(&params).await {
            Err(error) if kind.presence == Presence::WhereDefined && is_not_found(&error) => {
                return Ok(removed);
            }
            other => other.map_err(|e| failure(&doing, &e))?,
        };
        let ours: Vec<_> = found.iter().filter(|o| is_ours(&o.metadata)).collect();
        if ours.is_empty() {
            return Ok(removed);
        }
        for object in ours {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let shown = kinds::shown(kind, object.metadata.namespace.as_deref(), name);
            if object.metadata.deletion_timestamp.is_some() {
                if Instant::now() >= deadline {
                    return Err(stuck(&shown, object.metadata.finalizers.as_deref()));
                }
                continue;
            }
            match api.delete(name, &deletion).await {
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(failure(&format!("deleting {shown}"), &error)),
                Ok(_) => {
                    style::result(GOOD, "removed", &shown);
                    removed += 1;
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn delete_secret(client: &Client) -> Result<usize, Failure> {
    let api: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let shown = format!("Secret {SYSTEM_NAMESPACE}/{CA_SECRET}");
    match api.delete(CA_SECRET, &DeleteParams::default()).await {
        Err(error) if is_not_found(&error) => Ok(0),
        Err(error) => Err(failure(&format!("deleting {shown}"), &error)),
        Ok(_) => {
            style::result(GOOD, "removed", &shown);
            Ok(1)
        }
    }
}
