//! What the tap's selectors see of requests and connections.

use karst_identity::SpiffeId;
use karst_process::tap::Tap;
use karst_process::tap::facts::{Event, Facts, Http, Party, Service, Verdict};

use crate::access_log::{ConnectionRecord, Destination, EndpointRecord, RequestRecord};
use crate::authz::Denial;
use crate::client::Client;
use crate::reason::Reason;

/// Tells everybody who follows such requests. To be called only while [`Tap::is_on`].
pub(crate) fn request(tap: &Tap, record: &RequestRecord) {
    tap.publish(&of_request(record), record);
}

/// Tells everybody who follows such connections. To be called only while [`Tap::is_on`].
pub(crate) fn connection(tap: &Tap, event: Event, record: &ConnectionRecord) {
    tap.publish(&of_connection(event, record), record);
}

fn of_request(record: &RequestRecord) -> Facts<'_> {
    Facts {
        event: Event::Request,
        verdict: verdict(record.reason, record.denial.as_ref()),
        source: client(&record.client),
        destination: endpoint(record.endpoint.as_ref()),
        service: record.destination.as_deref().map(service),
        direction: None,
        policies: [
            record.denial.as_ref().map(|denial| &*denial.policy),
            record.audited.as_deref(),
        ],
        http: Some(Http {
            method: record.method.as_str(),
            path: record.uri.path(),
            status: record.status,
        }),
        duration: record.duration,
    }
}

fn of_connection(event: Event, record: &ConnectionRecord) -> Facts<'_> {
    Facts {
        event,
        verdict: verdict(record.reason, record.denial.as_ref()),
        source: client(&record.client),
        destination: endpoint(record.endpoint.as_ref()),
        service: record.destination.as_deref().map(service),
        direction: None,
        policies: [record.denial.as_ref().map(|denial| &*denial.policy), None],
        http: None,
        duration: record.duration,
    }
}

fn verdict(reason: Option<Reason>, denial: Option<&Denial>) -> Verdict {
    match reason {
        None => Verdict::Allowed,
        Some(_) if denial.is_some() => Verdict::Denied,
        Some(reason) if is_denial(reason.as_str()) => Verdict::Denied,
        // A filter of the route has answered, as it should.
        Some(reason) if matches!(reason.as_str(), "redirect" | "cors_preflight") => {
            Verdict::Allowed
        }
        Some(_) => Verdict::Failed,
    }
}

/// Reasons of those who decide who may ask for what: policies, external authorizers, and checks of tokens.
fn is_denial(reason: &str) -> bool {
    matches!(
        reason,
        "policy_denied" | "policy_not_ready" | "authentication_not_ready" | "jwks_unavailable"
    ) || reason.starts_with("jwt_")
        || reason.starts_with("custom_")
}

fn client(client: &Client) -> Party<'_> {
    let identity = client.identity.as_ref();
    let (name, namespace) = match &client.workload {
        Some(workload) => (workload.name.as_str(), workload.namespace.as_str()),
        None => ("", ""),
    };
    Party {
        names: [name, ""],
        // The certificate's word goes before the agent's.
        namespace: identity.map_or(namespace, SpiffeId::namespace),
        identity: identity.map(SpiffeId::as_str),
        address: Some(client.address),
    }
}

fn endpoint(endpoint: Option<&EndpointRecord>) -> Party<'_> {
    let Some(endpoint) = endpoint else {
        return Party::default();
    };
    let (namespace, name) = endpoint.namespaced_name();
    let owner = endpoint.workload.as_ref();
    Party {
        names: [name, owner.map_or("", |workload| &workload.name)],
        namespace,
        identity: endpoint.identity.as_ref().map(SpiffeId::as_str),
        address: Some(endpoint.address),
    }
}

fn service(destination: &Destination) -> Service<'_> {
    Service {
        name: &destination.name,
        namespace: &destination.namespace,
        hostname: &destination.hostname,
        port: Some(destination.port),
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
