//! A line of the stream. The fields are those of the access log.

use serde::Deserialize;

/// An event, as far as it is shown. A field that is not there does not apply, or is not known.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Event {
    pub time: String,
    pub event: String,
    pub verdict: String,
    pub node: String,
    pub proxy: String,
    #[serde(rename = "src.addr")]
    pub src_addr: String,
    #[serde(rename = "src.workload")]
    pub src_workload: String,
    #[serde(rename = "src.namespace")]
    pub src_namespace: String,
    #[serde(rename = "src.identity")]
    pub src_identity: String,
    #[serde(rename = "dst.addr")]
    pub dst_addr: String,
    #[serde(rename = "dst.hbone_addr")]
    pub dst_hbone_addr: String,
    #[serde(rename = "dst.service")]
    pub dst_service: String,
    #[serde(rename = "dst.service_port")]
    pub dst_service_port: Option<u16>,
    #[serde(rename = "dst.workload")]
    pub dst_workload: String,
    #[serde(rename = "dst.namespace")]
    pub dst_namespace: String,
    #[serde(rename = "dst.identity")]
    pub dst_identity: String,
    pub direction: String,
    pub reporter: String,
    pub protocol: String,
    pub target: String,
    pub method: String,
    pub authority: String,
    pub path: String,
    pub route: String,
    pub status: Option<u16>,
    pub grpc_status: Option<u32>,
    pub bytes_sent: u64,
    pub bytes_recv: u64,
    pub duration_ms: u64,
    pub connection_security_policy: String,
    #[serde(rename = "policy.name")]
    pub policy_name: String,
    #[serde(rename = "policy.rule")]
    pub policy_rule: Option<u32>,
    #[serde(rename = "dry_run.policy.name")]
    pub dry_run_name: String,
    #[serde(rename = "dry_run.policy.rule")]
    pub dry_run_rule: Option<u32>,
    pub tls_version: String,
    pub cipher: String,
    pub tls_cipher: String,
    pub key_exchange: String,
    pub request_id: String,
    pub trace_id: String,
    pub attempts: Option<u32>,
    pub reason: String,
    pub error: String,
}

/// What was left out of a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// It was not read fast enough.
    pub queue_full: u64,
    /// It was more than `--max-rps`.
    pub rate_limit: u64,
}

impl Dropped {
    /// All of it.
    pub fn total(self) -> u64 {
        self.queue_full.saturating_add(self.rate_limit)
    }
}

/// What a source says about its stream.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// `started`, `status` or `ended`.
    pub tap: String,
    /// Who it is, with `started`.
    pub node: String,
    pub proxy: String,
    /// Why, with `ended`.
    pub reason: String,
    pub dropped: Dropped,
}

/// A line of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    Event(Box<Event>),
    Notice(Notice),
}

impl Line {
    /// Reads a line; `None` if it is neither.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let event: Event = serde_json::from_slice(line).ok()?;
        if !event.event.is_empty() {
            return Some(Self::Event(Box::new(event)));
        }
        let notice: Notice = serde_json::from_slice(line).ok()?;
        (!notice.tap.is_empty()).then_some(Self::Notice(notice))
    }
}

impl Event {
    /// The client for people: pod, else account of its identity, else address.
    pub fn source(&self) -> String {
        let name = (&*self.src_namespace, &*self.src_workload);
        party(name, &self.src_identity, &self.src_addr)
    }

    /// The service with its port, if one was asked for.
    pub fn service(&self) -> Option<String> {
        if self.dst_service.is_empty() {
            return None;
        }
        let host = short(&self.dst_service);
        Some(match self.dst_service_port {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        })
    }

    /// The pod that has, or should have had it, else its account, else the address.
    pub fn endpoint(&self) -> String {
        // A waypoint knows endpoints by uid: `<cluster>//Pod/<namespace>/<name>`.
        let mut parts = self.dst_workload.rsplit('/');
        let name = parts.next().unwrap_or_default();
        let namespace = match parts.next() {
            Some(namespace) => namespace,
            None => &self.dst_namespace,
        };
        let addr = [&self.dst_hbone_addr, &self.dst_addr, &self.target]
            .into_iter()
            .find(|addr| !addr.is_empty());
        let addr = addr.map_or("", String::as_str);
        party((namespace, name), &self.dst_identity, addr)
    }

    /// The service, else the endpoint.
    pub fn destination(&self) -> String {
        self.service().unwrap_or_else(|| self.endpoint())
    }

    /// The policy with its rule.
    pub fn policy(&self) -> Option<String> {
        policy(&self.policy_name, self.policy_rule)
    }

    /// The policy on trial with its rule.
    pub fn dry_run(&self) -> Option<String> {
        policy(&self.dry_run_name, self.dry_run_rule)
    }

    /// Who reports: which way a connection goes, or what kind of proxy it is.
    pub fn side(&self) -> &'static str {
        match (&*self.direction, &*self.reporter) {
            ("outbound", _) => "out",
            ("inbound", _) => "in",
            (_, "gateway") => "gw",
            _ => "wp",
        }
    }
}

fn policy(name: &str, rule: Option<u32>) -> Option<String> {
    let rule = rule.map(|rule| format!("#{rule}")).unwrap_or_default();
    (!name.is_empty()).then(|| format!("{name}{rule}"))
}

fn party((namespace, name): (&str, &str), identity: &str, addr: &str) -> String {
    let clean = |text: String| printable(&text);
    if !name.is_empty() {
        return clean(format!("{namespace}/{name}"));
    }
    let path = identity.strip_prefix("spiffe://");
    let mut parts = path.unwrap_or_default().split('/').skip(1);
    if let (Some("ns"), Some(namespace), Some("sa"), Some(account)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    {
        return clean(format!("{namespace}/sa:{account}"));
    }
    if addr.is_empty() {
        return "-".to_owned();
    }
    clean(addr.to_owned())
}

/// A service's host name without what all of a cluster end in.
fn short(host: &str) -> &str {
    match host.find(".svc.") {
        Some(end) => &host[..end],
        None => host,
    }
}

/// Text that peers have chosen, without what a terminal would obey.
pub fn printable(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return text.to_owned();
    }
    let escaped = text.chars().map(|c| match obeyed(c) {
        true => c.escape_unicode().to_string(),
        false => c.to_string(),
    });
    escaped.collect()
}
