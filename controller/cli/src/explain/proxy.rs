//! What a waypoint or gateway decides, by its own code, and where it sends what it lets in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Uri};
use karst_api::waypoint as wire;
use karst_api::waypoint::attribute_value::Kind as ValueKind;
use karst_api::waypoint::{Attribute, ListenerProtocol, PolicyAction, Protocol, Tunnel};
use karst_core::{GatewayName, Kind, ObjectKey, ProxyClass};
use karst_identity::SpiffeId;
use karst_node_agent::state::Address;
use karst_node_agent::state::workload::Workload;
use karst_waypoint::authn::{Authentication, Passed, Refusal, Verified};
use karst_waypoint::authz::explain::{Unmet, explain};
use karst_waypoint::authz::external::Ask;
use karst_waypoint::authz::{
    Attributes, Authorization, Destination, Outcome, RequestAttributes, ServerName,
};
use karst_waypoint::balance::Cluster;
use karst_waypoint::client::Client;
use karst_waypoint::http::path;
use karst_waypoint::route::{RequestHead, host_of};
use karst_waypoint::table::{BackendTarget, Backends, Routes};

use super::agent::Seen;
use super::conditions;
use super::hop::{Asks, Hop, PolicyView, RuleView, values};
use super::token;
use super::world::{Proxy, World, endpoint_address};
use crate::failure::Failure;

/// A request as it was asked about.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path in its normal form, without query.
    pub path: String,
    /// Query.
    pub query: Option<String>,
    /// Host with its port, if it says one.
    pub authority: String,
    /// Headers.
    pub headers: HeaderMap,
}

impl Request {
    /// Checks what was asked about.
    ///
    /// # Errors
    /// Something of it cannot be in a request.
    pub fn new(
        method: &str,
        target: &str,
        authority: &str,
        lines: &[String],
    ) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::usage(what);
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| wrong(format!("--method {method:?} is no method")))?;
        let uri: Uri = target
            .parse()
            .ok()
            .filter(|_| target.starts_with('/'))
            .ok_or_else(|| {
                wrong(format!(
                    "--path {target:?} is no path; it begins with a slash"
                ))
            })?;
        let normal = path::normalise(uri.path()).map_err(|_| {
            wrong(format!(
                "--path {target:?} has no normal form: it is answered with 400"
            ))
        })?;
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| wrong("--header is NAME:VALUE".to_owned()))?;
            let name = http::HeaderName::from_bytes(name.trim().as_bytes())
                .map_err(|_| wrong(format!("--header {:?} is no name of a header", name.trim())))?;
            let value = value.trim().parse::<http::HeaderValue>();
            // The value may be a secret, so that it is not said.
            let value = value
                .map_err(|_| wrong(format!("--header {name} has a value that cannot be sent")))?;
            headers.append(name, value);
        }
        Ok(Self {
            method,
            path: normal.unwrap_or_else(|| uri.path().to_owned()),
            query: uri.query().map(str::to_owned),
            authority: authority.to_owned(),
            headers,
        })
    }

    /// Checks the token, if it has one, and takes out and writes what the proxy does.
    fn check_token(&mut self, authentication: &Authentication) -> Result<Passed, Refusal> {
        let target = match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        };
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method.clone();
        // A path that has its normal form is one of a URI.
        parts.uri = target.parse().unwrap_or_default();
        parts.headers = std::mem::take(&mut self.headers);
        let checked = token::check(authentication, &mut parts);
        self.query = parts.uri.query().map(str::to_owned);
        self.headers = parts.headers;
        checked
    }

    fn port(&self) -> Option<&str> {
        let (_, port) = self.authority.rsplit_once(':')?;
        (!port.is_empty() && !port.contains(']')).then_some(port)
    }
}

/// Where a proxy sends what it lets in.
#[derive(Clone, Debug)]
pub enum Next {
    /// To a pod, by a tunnel with the proxy's identity, or plainly.
    Pod(Arc<Workload>, SocketAddr, Option<SpiffeId>),
    /// To another waypoint, which is asked for that.
    Waypoint(GatewayName, SocketAddr),
    /// To something that is no pod the mesh knows.
    Plain(SocketAddr),
}

/// A proxy of a Gateway.
pub struct At<'a> {
    /// The mesh.
    pub world: &'a World,
    /// The Gateway.
    pub gateway: &'a GatewayName,
    /// What it is for.
    pub class: ProxyClass,
    /// What is asked of it; `None` below HTTP, unless what is served is declared to be HTTP.
    pub request: Option<&'a Request>,
    /// What a request is where nothing is said of one.
    pub assumed: &'a Request,
    /// Whether a mesh configuration is known, which has the providers of CUSTOM policies.
    pub providers_known: bool,
}

/// What is served at a place.
struct Served<'p> {
    name: String,
    authorization: &'p Authorization,
    authentication: &'p Authentication,
    routes: Option<&'p Routes>,
    cluster: Option<&'p Arc<Cluster>>,
    http: bool,
    port: u16,
}

fn attributes<'a>(
    client: &'a Client,
    destination: Destination,
    request: Option<&'a Request>,
    host: &'a str,
    token: Option<&'a Verified>,
) -> Attributes<'a> {
    Attributes {
        client,
        destination,
        server_name: if request.is_some() {
            ServerName::None
        } else {
            ServerName::Unread
        },
        request: request.map(|one| RequestAttributes {
            method: one.method.as_str(),
            host,
            port: one.port(),
            path: &one.path,
            headers: Some(&one.headers),
            trusted_hops: 0,
            request_principal: token.and_then(Verified::principal),
            token,
        }),
    }
}

impl At<'_> {
    /// Decides about what a client asks for.
    pub fn decide(&self, seen: &Seen, asked: SocketAddr) -> (Hop, Vec<Next>) {
        let proxy = self.world.proxy(self.gateway);
        let by = match self.class {
            ProxyClass::Waypoint => "waypoint",
            ProxyClass::Gateway => "gateway",
        };
        let client = seen.address.ip();
        let mut hop = Hop::new(by, self.gateway.to_string(), seen.identity.clone(), client);
        hop.destination = Some(asked);
        let rejected = proxy.rejected.iter();
        hop.notes
            .extend(rejected.map(|(name, error)| format!("the proxy rejects {name}: {error}")));
        let served = match self.served(&proxy, asked) {
            Ok(served) => served,
            Err((reason, because)) => {
                (hop.reason, hop.because) = (Some(reason), because);
                return (hop, Vec::new());
            }
        };
        hop.notes.push(format!("it serves {}", served.name));
        let request = self.request.or_else(|| served.http.then_some(self.assumed));
        if request.is_none() {
            hop.notes.push("decided as a connection of bytes, as no request was asked about and none is declared".to_owned());
        } else if self.request.is_none() {
            hop.notes
                .push("what is served is HTTP, so that a plain GET of / is assumed".to_owned());
        }
        hop.request = request.map(|one| format!("{} {}{}", one.method, one.authority, one.path));
        let mut client = Client::new(seen.address, seen.identity.clone());
        client.destination = Some(asked);
        let host = request.map(|one| host_of(&one.authority));
        let host = host.as_deref().unwrap_or_default();
        let destination = Destination {
            ip: Some(asked.ip()),
            port: served.port,
        };
        // Providers see what the client sent, but for what only the proxy may write.
        let sent = request.cloned().map(|mut one| {
            served.authentication.clean(&mut one.headers);
            one
        });
        let (sent, mut goes_on) = (sent.as_ref(), sent.clone());
        let token = goes_on
            .as_mut()
            .map(|one| one.check_token(served.authentication));
        let passed = match &token {
            Some(Ok(passed)) => passed.token.as_deref(),
            Some(Err(_)) | None => None,
        };
        hop.request_principal = passed.and_then(Verified::principal).map(str::to_owned);
        let is_sent = |one: &Request| one.headers.contains_key(AUTHORIZATION);
        if served.authentication.is_empty() && sent.is_some_and(is_sent) {
            hop.notes.push(
                "no RequestAuthentication is for it, so that tokens are not looked at".to_owned(),
            );
        }
        let before = attributes(&client, destination, sent, host, None);
        let attributes = attributes(&client, destination, goes_on.as_ref(), host, passed);
        for policy in served.authorization.attached() {
            let wire = proxy.policies.get(&**policy.name());
            let seen = match policy.provider() {
                Some(_) => &before,
                None => &attributes,
            };
            hop.policies.extend(wire.map(|wire| self.view(wire, seen)));
        }
        let refusal = token.as_ref().and_then(|token| token.as_ref().err());
        self.judge(
            &mut hop,
            served.authorization,
            (&before, refusal.copied(), &attributes),
        );
        if !hop.allowed {
            return (hop, Vec::new());
        }
        let names = match self.route((&proxy, &served), goes_on.as_ref(), &client, &mut hop) {
            Ok(names) => names,
            Err((reason, because)) => {
                hop.allowed = false;
                (hop.reason, hop.because) = (Some(reason), because);
                (hop.policy, hop.rule) = (None, None);
                return (hop, Vec::new());
            }
        };
        let next = match names {
            Some(names) => self.backends(&proxy, &names, &mut hop),
            None => self.own_workload(asked),
        };
        (hop, next)
    }

    /// What is served at an address.
    fn served<'p>(
        &self,
        proxy: &'p Proxy,
        asked: SocketAddr,
    ) -> Result<Served<'p>, (&'static str, String)> {
        let is_http = |protocol: Protocol| {
            matches!(
                protocol,
                Protocol::Http1 | Protocol::Http2 | Protocol::Grpc | Protocol::Websocket
            )
        };
        if self.class == ProxyClass::Waypoint {
            if let Some(service) = proxy.table.services.get(&asked) {
                let client_routes = &service.producer_routes;
                return Ok(Served {
                    name: format!(
                        "Service {}/{} port {}",
                        service.namespace, service.name, service.port
                    ),
                    authorization: &service.authorization,
                    authentication: &service.authentication,
                    routes: Some(client_routes),
                    cluster: Some(&service.cluster),
                    http: is_http(service.protocol),
                    port: service.port,
                });
            }
            let workload = proxy.table.workloads.get(&asked.ip());
            let workload = workload.ok_or_else(|| {
                (
                    "waypoint_unknown_destination",
                    format!("waypoint {} does not serve {asked}", self.gateway),
                )
            })?;
            return Ok(Served {
                name: format!("the pod at {}", asked.ip()),
                authorization: &workload.authorization,
                authentication: &workload.authentication,
                routes: None,
                cluster: None,
                http: workload
                    .ports
                    .get(&asked.port())
                    .is_some_and(|one| is_http(*one)),
                port: asked.port(),
            });
        }
        let no_listener = || {
            let because = format!(
                "no listener of Gateway {} takes this host on port {}",
                self.gateway,
                asked.port()
            );
            ("gateway_no_listener", because)
        };
        let socket = proxy
            .table
            .sockets
            .get(&asked.port())
            .ok_or_else(no_listener)?;
        let request = self.request.unwrap_or(self.assumed);
        let host = host_of(&request.authority);
        let listener = socket
            .listeners
            .iter()
            .find(|one| one.hostname.as_ref().is_none_or(|name| name.matches(&host)));
        let listener = listener.ok_or_else(no_listener)?;
        Ok(Served {
            name: format!("listener {}", listener.name),
            authorization: &listener.authorization,
            authentication: &listener.authentication,
            routes: Some(&listener.routes),
            cluster: None,
            http: matches!(
                listener.protocol,
                ListenerProtocol::ListenerHttp | ListenerProtocol::ListenerHttps
            ),
            port: socket.port,
        })
    }

    /// `before` is what is known before the token was checked.
    fn judge(
        &self,
        hop: &mut Hop,
        authorization: &Authorization,
        (before, refusal, attributes): (&Attributes<'_>, Option<Refusal>, &Attributes<'_>),
    ) {
        authorization.observe(attributes, |seen| {
            let rule = seen
                .rule
                .map(|rule| format!(" rules[{rule}]"))
                .unwrap_or_default();
            let what = match seen.outcome {
                Outcome::Audited => "would have it logged",
                Outcome::TrialAllowed => "would allow it, and only watches",
                _ => "would refuse it, and only watches",
            };
            hop.dry_run.push(format!("{}{rule} {what}", seen.policy));
        });
        // As the proxy does: who is to be asked comes before tokens and what policies decide alone, and nobody can
        // be asked about a connection of bytes.
        let decided = if attributes.request.is_some() {
            authorization.to_ask(before).and_then(|ask| {
                hop.asks = ask.as_ref().map(asks);
                match refusal {
                    // It comes to no policy.
                    Some(_) => Ok(()),
                    None => authorization.decide_locally(attributes),
                }
            })
        } else {
            authorization.decide(attributes)
        };
        if let Some(asks) = &hop.asks {
            hop.notes.push(asks.sentence());
        }
        match (decided, refusal) {
            (Ok(()), Some(refusal)) => {
                hop.reason = Some(refusal.reason());
                hop.because = format!("its token does not count ({})", refusal.status().as_u16());
            }
            (Err(denial), _) => {
                hop.reason = Some(denial.reason());
                hop.because = match denial.rule {
                    Some(rule) if denial.external.is_some() => {
                        self.nobody_asked(&denial.policy, rule, authorization, denial.reason())
                    }
                    Some(rule) => format!("{} rules[{rule}] refuses it", denial.policy),
                    None if denial.unusable => denial.to_string(),
                    None => "implicit deny: there are ALLOW policies, and none matches".to_owned(),
                };
                (hop.policy, hop.rule) = (Some(denial.policy.to_string()), denial.rule);
            }
            (Ok(()), None) => hop.pass_by_policies(),
        }
    }

    /// Why a CUSTOM policy refuses without an answer.
    fn nobody_asked(
        &self,
        name: &str,
        rule: u32,
        authorization: &Authorization,
        reason: &str,
    ) -> String {
        let policy = authorization.attached().find(|one| **one.name() == *name);
        let why = match reason {
            "custom_provider_conflict" => "policies that apply name different providers".to_owned(),
            "custom_not_asked" => "providers are asked about requests only".to_owned(),
            _ => match policy.and_then(|policy| policy.provider()) {
                Some(provider) => match &provider.cluster {
                    Err(why) => format!("provider {}: {why}", provider.name),
                    Ok(_) => format!("provider {}", provider.name),
                },
                None => "the provider cannot be used".to_owned(),
            },
        };
        let unknown = match self.providers_known || reason != "custom_provider_invalid" {
            true => "",
            false => {
                "; no mesh configuration was found, so that no provider is known (--mesh-config)"
            }
        };
        format!("{name} rules[{rule}] (CUSTOM) matches, and nobody can be asked: {why}{unknown}")
    }

    /// Names of the backends that it goes to; `None`: to the workload that was asked for.
    fn route(
        &self,
        (proxy, served): (&Proxy, &Served<'_>),
        request: Option<&Request>,
        client: &Client,
        hop: &mut Hop,
    ) -> Result<Option<BTreeSet<String>>, (&'static str, String)> {
        let Some(proxy_routes) = served.routes else {
            return Ok(None);
        };
        // Routes for the client's own namespace come before those for all.
        let own = hop
            .destination
            .and_then(|asked| proxy.table.services.get(&asked));
        let routes = match own {
            Some(service) => service.routes(client.namespace()),
            None => proxy_routes,
        };
        let no_route = || ("no_route", "it may come, but no route is for it".to_owned());
        match (routes, request) {
            (Routes::Http(router), Some(request)) => {
                let host = host_of(&request.authority);
                let head = RequestHead {
                    method: &request.method,
                    host: &host,
                    path: &request.path,
                    query: request.query.as_deref(),
                    headers: &request.headers,
                };
                let matched = router
                    .route(&head)
                    .map_err(|none| (none.reason(), format!("it may come, but {none}")))?;
                hop.notes.push(format!(
                    "{} rule {} routes it",
                    matched.rule.route, matched.rule.name
                ));
                Ok(Some(named(&matched.rule.backends, hop)))
            }
            (Routes::Http(_), None) => Err((
                "waypoint_not_http",
                "routes for HTTP are attached, which connections of other kinds do not pass"
                    .to_owned(),
            )),
            (Routes::L4(router), _) => {
                // The host that was asked about stands for the server name.
                let host = host_of(&request.unwrap_or(self.assumed).authority).into_owned();
                let rule = router
                    .route(Some(&host))
                    .map_err(|none| (none.reason(), format!("it may come, but {none}")))?;
                hop.notes
                    .push(format!("{} rule {} routes it", rule.route, rule.name));
                Ok(Some(named(&rule.backends, hop)))
            }
            (Routes::None, _) => match served.cluster {
                Some(cluster) => Ok(Some(BTreeSet::from([cluster.name().to_string()]))),
                None => Err(no_route()),
            },
        }
    }

    fn backends(&self, proxy: &Proxy, names: &BTreeSet<String>, hop: &mut Hop) -> Vec<Next> {
        let mut next = Vec::new();
        for name in names {
            let Some(backend) = proxy.backends.get(name) else {
                hop.notes.push(format!("backend {name} is not there"));
                continue;
            };
            if !backend.invalid.is_empty() {
                hop.notes.push(format!(
                    "backend {name} cannot be used: {}",
                    backend.invalid
                ));
            }
            if backend.endpoints.is_empty() {
                hop.notes
                    .push(format!("backend {name} has no endpoint: 503"));
            }
            next.extend(backend.endpoints.iter().filter_map(|one| self.next(one)));
        }
        next
    }

    fn next(&self, endpoint: &wire::Endpoint) -> Option<Next> {
        let address = endpoint_address(endpoint)?;
        let is_tunnel = endpoint.tunnel() == Tunnel::Hbone;
        if is_tunnel && !endpoint.authority.is_empty() {
            let waypoint = SpiffeId::parse(&endpoint.identity).ok()?;
            let asked = endpoint.authority.parse().ok()?;
            let gateway = GatewayName::new(waypoint.namespace(), waypoint.service_account());
            return Some(Next::Waypoint(gateway, asked));
        }
        let workload = self.world.state.workload(&endpoint.uid);
        let workload = workload.or_else(|| self.world.state.workload_at(address.ip()));
        let identity = if is_tunnel { self.identity() } else { None };
        Some(match workload {
            Some(workload) => Next::Pod(workload, address, identity),
            None => Next::Plain(address),
        })
    }

    fn own_workload(&self, asked: SocketAddr) -> Vec<Next> {
        match self.world.state.lookup(asked.ip()) {
            Some(Address::Workload(workload)) => vec![Next::Pod(workload, asked, self.identity())],
            _ => vec![Next::Plain(asked)],
        }
    }

    /// Who the proxy is.
    fn identity(&self) -> Option<SpiffeId> {
        let domain = &self.world.index.config().trust_domain;
        SpiffeId::new(domain, &self.gateway.namespace, &self.gateway.name).ok()
    }

    fn view(&self, policy: &wire::AuthorizationPolicy, attributes: &Attributes<'_>) -> PolicyView {
        let (namespace, name) = policy.name.split_once('/').unwrap_or(("", &policy.name));
        let key = ObjectKey {
            kind: Kind::AuthorizationPolicy,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let action = policy.action().as_str_name();
        let mut view = PolicyView {
            name: policy.name.clone(),
            kind: Kind::AuthorizationPolicy.name(),
            action: (policy.action() != PolicyAction::ActionUnspecified)
                .then(|| action.trim_start_matches("ACTION_").to_owned()),
            scope: "targetRefs",
            dry_run: policy.dry_run,
            matches: false,
            rules: Vec::new(),
            narrowed: conditions::narrowed(self.world, &key),
        };
        match explain(policy, attributes) {
            Ok(rules) => {
                let rules = rules.into_iter().map(|rule| RuleView {
                    index: rule.index,
                    matches: rule.unmet.is_none(),
                    unmet: rule
                        .unmet
                        .map(|unmet| said(&unmet, attributes))
                        .unwrap_or_default(),
                });
                view.rules = rules.collect();
                view.matches = view.rules.iter().any(|rule| rule.matches);
            }
            Err(error) => view.narrowed = Some(error.to_string()),
        }
        view
    }
}

/// Who would be asked.
fn asks(ask: &Ask) -> Asks {
    Asks {
        provider: ask.provider.name.to_string(),
        policies: ask.policies.iter().map(ToString::to_string).collect(),
        fail_open: ask.provider.fail_open,
        answer: "unknown",
    }
}

/// Names of backends that can be used.
fn named(backends: &Backends, hop: &mut Hop) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for backend in &backends.list {
        match &backend.target {
            BackendTarget::Cluster(cluster) => {
                names.insert(cluster.name().to_string());
            }
            BackendTarget::Invalid(why) => {
                hop.notes
                    .push(format!("a backend of the rule cannot be used: {why}"));
            }
        }
    }
    names
}

fn said(unmet: &Unmet, attributes: &Attributes<'_>) -> Vec<String> {
    let conditions = unmet.conditions.iter();
    conditions.map(|one| condition(one, attributes)).collect()
}

fn condition(wire: &wire::AttributeMatch, attributes: &Attributes<'_>) -> String {
    let unknown = || "what is not known below HTTP".to_owned();
    let identity = attributes.client.identity.as_ref();
    let of_identity = |value: fn(&SpiffeId) -> String| {
        identity.map_or_else(|| "a client without identity".to_owned(), value)
    };
    let of_request = |value: fn(&RequestAttributes<'_>) -> String| {
        attributes.request.as_ref().map_or_else(unknown, value)
    };
    let of_token = attributes.request.as_ref().and_then(|one| one.token);
    let principal = || match of_token {
        Some(token) => token
            .principal()
            .unwrap_or("a token without one")
            .to_owned(),
        None => "no validated token".to_owned(),
    };
    let token = || match of_token {
        Some(_) => "what the token says".to_owned(),
        None => "no validated token".to_owned(),
    };
    let address = || attributes.client.address.ip().to_string();
    let (field, has) = match wire.attribute() {
        Attribute::SourcePrincipal => ("principals", of_identity(|id| id.principal().to_owned())),
        Attribute::SourceNamespace => ("namespaces", of_identity(|id| id.namespace().to_owned())),
        Attribute::SourceServiceAccount => (
            "serviceAccounts",
            of_identity(|id| format!("{}/{}", id.namespace(), id.service_account())),
        ),
        Attribute::SourceIp => ("ipBlocks", address()),
        Attribute::RemoteIp => ("remoteIpBlocks", address()),
        Attribute::RequestPrincipal => ("requestPrincipals", principal()),
        Attribute::RequestAudiences => ("request.auth.audiences", token()),
        Attribute::RequestPresenter => ("request.auth.presenter", token()),
        Attribute::RequestClaim => ("request.auth.claims", token()),
        Attribute::Host => ("hosts", of_request(|one| one.host.to_owned())),
        Attribute::Method => ("methods", of_request(|one| one.method.to_owned())),
        Attribute::Path => ("paths", of_request(|one| one.path.to_owned())),
        Attribute::Header => {
            let headers = attributes.request.as_ref().and_then(|one| one.headers);
            let is_there = headers.is_some_and(|all| all.contains_key(wire.key.as_str()));
            let has = if is_there {
                "the header's value"
            } else {
                "a request without the header"
            };
            ("request.headers", has.to_owned())
        }
        Attribute::DestinationIp => (
            "destination.ip",
            attributes
                .destination
                .ip
                .map_or_else(unknown, |ip| ip.to_string()),
        ),
        Attribute::DestinationPort => ("ports", attributes.destination.port.to_string()),
        Attribute::Sni => ("connection.sni", "the connection's server name".to_owned()),
        Attribute::Unspecified => ("attribute", unknown()),
    };
    let key = if wire.key.is_empty() {
        String::new()
    } else {
        format!("[{}]", wire.key)
    };
    let listed = |list: &[wire::AttributeValue]| values(&list.iter().map(text).collect::<Vec<_>>());
    match (wire.values.is_empty(), wire.not_values.is_empty()) {
        (false, true) => format!("{field}{key}: {has} is none of {}", listed(&wire.values)),
        (true, _) => format!(
            "{field}{key}: {has} is one of those excluded, {}",
            listed(&wire.not_values)
        ),
        (false, false) => format!(
            "{field}{key}: {has} is none of {}, or one of those excluded, {}",
            listed(&wire.values),
            listed(&wire.not_values)
        ),
    }
}

fn text(value: &wire::AttributeValue) -> String {
    match &value.kind {
        Some(ValueKind::Exact(text) | ValueKind::PathTemplate(text)) => text.clone(),
        Some(ValueKind::Prefix(text)) => format!("{text}*"),
        Some(ValueKind::Suffix(text)) => format!("*{text}"),
        Some(ValueKind::Present(_)) => "*".to_owned(),
        Some(ValueKind::IpBlock(block)) => {
            let ip = karst_api::convert::ip_address("address", &block.address);
            ip.map_or_else(|_| "?".to_owned(), |ip| format!("{ip}/{}", block.length))
        }
        Some(ValueKind::Port(port)) => port.to_string(),
        None => "?".to_owned(),
    }
}
