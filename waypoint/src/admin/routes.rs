//! The routes in force: what each matches, where it sends what share, and what it is attached to.
//!
//! They are read out of the table that requests are served with, so that this is what happens and not what was
//! sent. Conditions on headers and query parameters are shown by name only: their values may be somebody's key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::{Item, Kind, State};
use crate::route::MatchView;
use crate::table::{BackendTarget, Backends, HttpRule, Routes, Table};

/// A route.
#[derive(Default, Serialize)]
pub(super) struct RouteView {
    /// `HTTPRoute`, `GRPCRoute`, `TLSRoute` or `TCPRoute`.
    kind: String,
    namespace: String,
    name: String,
    /// The newest version that was received; empty for a route that a listener names and nobody sent.
    version: String,
    state: Option<State>,
    problems: Vec<String>,
    /// Services and listeners that it is in force for.
    attached_to: BTreeSet<String>,
    /// Host names that it is in force for; empty for all.
    hostnames: BTreeSet<String>,
    rules: Vec<RuleView>,
    /// Addresses of rules and matches that have been taken: a route may be attached to several.
    #[serde(skip)]
    seen: BTreeMap<usize, usize>,
    #[serde(skip)]
    seen_matches: BTreeSet<usize>,
}

#[derive(Serialize)]
struct RuleView {
    name: String,
    /// Alternatives; empty where the rule takes whole connections.
    matches: Vec<MatchView>,
    backends: Vec<BackendView>,
    filters: usize,
    request_timeout_ms: Option<u64>,
    backend_timeout_ms: Option<u64>,
    retries: u32,
}

#[derive(Serialize)]
struct BackendView {
    /// Name of the backend, which `/v1/clusters` has; `None` for one that cannot be used.
    backend: Option<String>,
    weight: u32,
    /// Of all that the rule takes.
    percent: f64,
    /// Why what goes there is refused.
    invalid: Option<String>,
}

/// All routes that are held or in force, by name.
pub(super) fn page(table: &Table, held: &[Item]) -> Vec<RouteView> {
    let mut routes = BTreeMap::new();
    for item in held.iter().filter(|item| item.kind == Kind::Route) {
        let view = entry(&mut routes, &item.name);
        view.version.clone_from(&item.version);
        view.state = Some(item.state);
        view.problems.clone_from(&item.problems);
    }
    for service in table.names.values() {
        let of = format!("service {}:{}", service.hostname, service.port);
        add(&mut routes, &of, &service.producer_routes);
        for (namespace, list) in &service.consumer_routes {
            let of = format!("{of} for clients in {namespace}");
            add(&mut routes, &of, list);
        }
    }
    for listener in table.sockets.values().flat_map(|socket| &socket.listeners) {
        add(
            &mut routes,
            &format!("listener {}", listener.name),
            &listener.routes,
        );
    }
    routes.into_values().collect()
}

fn entry<'a>(routes: &'a mut BTreeMap<String, RouteView>, full: &str) -> &'a mut RouteView {
    routes.entry(full.to_owned()).or_insert_with(|| {
        let mut parts = full.splitn(3, '/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        RouteView {
            kind: part(),
            namespace: part(),
            name: part(),
            ..RouteView::default()
        }
    })
}

fn add(routes: &mut BTreeMap<String, RouteView>, of: &str, list: &Routes) {
    match list {
        Routes::None => {}
        Routes::Http(router) => {
            for (hostname, matched) in router.matches() {
                let rule = matched.rule();
                let view = entry(routes, &rule.route);
                view.attached_to.insert(of.to_owned());
                view.hostnames.extend(hostname);
                let place = view.rule(Arc::as_ptr(rule).addr(), || http_rule(rule));
                if view.seen_matches.insert(Arc::as_ptr(matched).addr())
                    && let Some(rule) = view.rules.get_mut(place)
                {
                    rule.matches.push(matched.view());
                }
            }
        }
        Routes::L4(router) => {
            for (hostname, rule) in router.rules() {
                let view = entry(routes, &rule.route);
                view.attached_to.insert(of.to_owned());
                view.hostnames.extend(hostname.map(ToString::to_string));
                view.rule(Arc::as_ptr(rule).addr(), || RuleView {
                    name: rule.name.clone(),
                    matches: Vec::new(),
                    backends: backends(&rule.backends),
                    filters: 0,
                    request_timeout_ms: None,
                    backend_timeout_ms: None,
                    retries: 0,
                });
            }
        }
    }
}

impl RouteView {
    /// Place of a rule, which is made when it is new.
    fn rule(&mut self, address: usize, make: impl FnOnce() -> RuleView) -> usize {
        *self.seen.entry(address).or_insert_with(|| {
            self.rules.push(make());
            self.rules.len() - 1
        })
    }
}

fn http_rule(rule: &HttpRule) -> RuleView {
    RuleView {
        name: rule.name.clone(),
        matches: Vec::new(),
        backends: backends(&rule.backends),
        filters: rule.filters.len(),
        request_timeout_ms: rule.request_timeout.map(milliseconds),
        backend_timeout_ms: rule.backend_timeout.map(milliseconds),
        retries: rule.retry.as_ref().map_or(0, |retry| retry.attempts),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn backends(backends: &Backends) -> Vec<BackendView> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share needs a few digits only"
    )]
    let total = backends.total as f64;
    let view = |backend: &crate::table::WeightedBackend| {
        let (name, invalid) = match &backend.target {
            BackendTarget::Cluster(cluster) => (Some(cluster.name().to_string()), None),
            BackendTarget::Invalid(reason) => (None, Some(reason.clone())),
        };
        BackendView {
            backend: name,
            weight: backend.weight,
            percent: (f64::from(backend.weight) * 10_000.0 / total).round() / 100.0,
            invalid,
        }
    };
    backends.list.iter().map(view).collect()
}
