//! What the tap's selectors see of a connection.

use karst_identity::SpiffeId;
use karst_process::tap::Tap;
use karst_process::tap::facts::{self, Event, Facts, Verdict};

use crate::access_log::{Party, Record};
use crate::reason::{Reason, ResponseFlag};

/// Tells everybody who follows such connections. To be called only while [`Tap::is_on`].
pub fn publish(tap: &Tap, event: Event, record: &Record) {
    tap.publish(&facts(event, record), record);
}

/// What selectors see of `record`.
pub fn facts(event: Event, record: &Record) -> Facts<'_> {
    let service = record.service.as_ref().map(|service| facts::Service {
        name: &service.spec.name,
        namespace: &service.spec.namespace,
        hostname: &service.spec.hostname,
        port: record.service_port,
    });
    let denial = record.denial.as_ref();
    let dry_run = record.dry_run.as_ref();
    Facts {
        event,
        verdict: verdict(record.reason),
        source: party(&record.source),
        destination: party(&record.destination),
        service,
        direction: Some(record.direction.as_str()),
        policies: [denial, dry_run].map(|denial| denial.map(|denial| denial.policy_name())),
        http: None,
        duration: record.duration,
    }
}

fn verdict(reason: Option<Reason>) -> Verdict {
    match reason {
        None => Verdict::Allowed,
        Some(reason) if reason.response_flag() == ResponseFlag::Deny => Verdict::Denied,
        Some(_) => Verdict::Failed,
    }
}

fn party(party: &Party) -> facts::Party<'_> {
    let identity = party.identity.as_ref();
    let (names, namespace) = match &party.workload {
        Some(workload) => {
            let names: [&str; 2] = [&workload.name, &workload.workload_name];
            (names, &*workload.namespace)
        }
        None => ([""; 2], identity.map_or("", SpiffeId::namespace)),
    };
    facts::Party {
        names,
        namespace,
        identity: identity.map(SpiffeId::as_str),
        address: party.addr,
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
