//! What the mesh needs of a BackendTrafficPolicy.

use karst_api::waypoint as wire;
use serde::Deserialize;

use super::{Body, duration, gateway_api::Resource};
use crate::{
    error::{Faults, ObjectError},
    token::is_name,
};

/// Balancing, ejection and limits of services.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TrafficPolicy {
    pub(crate) targets: Vec<Target>,
    pub(crate) policy: wire::TrafficPolicy,
    /// Values that were left out of account.
    pub(crate) problems: Vec<String>,
}

/// A Service, or a port of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) section_name: Option<String>,
}

impl Target {
    pub(crate) fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }
}

/// `spec` of a BackendTrafficPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TrafficPolicySpec {
    target_refs: Vec<Target>,
    load_balancing: Option<Balancing>,
    outlier_detection: Option<Outliers>,
    limits: Option<Limits>,
    retry_budget: Option<Budget>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Balancing {
    algorithm: Option<String>,
    hash: Option<Hash>,
    slow_start: Option<String>,
    locality: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Hash {
    header: Option<String>,
    cookie: Option<Cookie>,
    #[serde(rename = "sourceIP")]
    source_ip: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Cookie {
    name: String,
    ttl: Option<String>,
    path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Outliers {
    consecutive_errors: u32,
    consecutive_gateway_errors: u32,
    base_ejection: Option<String>,
    max_ejection_percent: u32,
    panic_percent: u32,
    success_rate_interval: Option<String>,
    success_rate_stdev_milli: u32,
    disabled: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Limits {
    max_connections: u32,
    max_pending_requests: u32,
    max_requests: u32,
    max_requests_per_connection: u32,
    connect_timeout: Option<String>,
    idle_timeout: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Budget {
    percent: u32,
    min_per_second: u32,
}

/// Notes values that cannot be used.
struct Reader<'a> {
    faults: &'a Faults,
    findings: &'a mut Vec<ObjectError>,
    problems: Vec<String>,
}

impl TrafficPolicy {
    pub(crate) fn body(
        object: Resource<TrafficPolicySpec>,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
    ) -> Result<Body, ObjectError> {
        let spec = object.spec;
        let mut reader = Reader {
            faults,
            findings,
            problems: Vec::new(),
        };
        let policy = wire::TrafficPolicy {
            load_balancing: spec.load_balancing.map(|it| reader.balancing(&it)),
            outlier_detection: spec.outlier_detection.map(|it| reader.outliers(&it)),
            limits: spec.limits.map(|it| reader.limits(&it)),
            retry_budget: spec.retry_budget.map(|it| {
                reader.percent("retryBudget.percent", it.percent);
                wire::RetryBudget {
                    percent: it.percent.min(100),
                    min_per_second: it.min_per_second,
                }
            }),
        };
        let problems = reader.problems;
        Ok(Body::BackendTrafficPolicy(Box::new(Self {
            targets: spec.target_refs,
            policy,
            problems,
        })))
    }
}

impl Reader<'_> {
    fn note(&mut self, field: &str, problem: impl Into<String>, hint: &str) {
        let field = format!("spec.{field}");
        let fault = self.faults.error(field, problem, hint);
        self.problems
            .push(format!("{} {}", fault.field, fault.problem));
        self.findings.push(fault);
    }

    fn milliseconds(&mut self, field: &str, text: Option<&str>) -> u64 {
        let Some(text) = text else { return 0 };
        if let Some(milliseconds) = duration::milliseconds(text) {
            return milliseconds;
        }
        let hint = "write a duration like \"500ms\" or \"10s\"; until then the default holds";
        self.note(field, format!("is {text:?}, which is no duration"), hint);
        0
    }

    fn percent(&mut self, field: &str, percent: u32) {
        if percent > 100 {
            self.note(
                field,
                format!("is {percent}"),
                "use at most 100; until then it counts as 100",
            );
        }
    }

    fn balancing(&mut self, spec: &Balancing) -> wire::LoadBalancing {
        let mut algorithm = match spec.algorithm.as_deref() {
            None | Some("PeakEWMA") => wire::Algorithm::PeakEwma,
            Some("LeastRequest") => wire::Algorithm::LeastRequest,
            Some("RoundRobin") => wire::Algorithm::RoundRobin,
            Some("Random") => wire::Algorithm::Random,
            Some("RingHash") => wire::Algorithm::RingHash,
            Some("Maglev") => wire::Algorithm::Maglev,
            Some(other) => {
                let hint = "use PeakEWMA, LeastRequest, RoundRobin, Random, RingHash or Maglev; until then it is \
                            PeakEWMA";
                self.note("loadBalancing.algorithm", format!("is {other:?}"), hint);
                wire::Algorithm::PeakEwma
            }
        };
        let hash = spec.hash.as_ref().and_then(|hash| self.hash(hash));
        let hashes = matches!(
            algorithm,
            wire::Algorithm::RingHash | wire::Algorithm::Maglev
        );
        if hashes && hash.is_none() {
            let hint = "say what is hashed; until then the algorithm is PeakEWMA";
            self.note("loadBalancing.hash", "is missing", hint);
            algorithm = wire::Algorithm::PeakEwma;
        }
        if !hashes && hash.is_some() {
            let hint = "use RingHash or Maglev; until then nothing is hashed";
            self.note("loadBalancing.hash", "is not used by the algorithm", hint);
        }
        let locality = match spec.locality.as_deref() {
            None | Some("Anywhere") => wire::LocalityPreference::Anywhere,
            Some("SameZone") => wire::LocalityPreference::SameZone,
            Some("SameNode") => wire::LocalityPreference::SameNode,
            Some(other) => {
                let hint = "use Anywhere, SameZone or SameNode; until then it is Anywhere";
                self.note("loadBalancing.locality", format!("is {other:?}"), hint);
                wire::LocalityPreference::Anywhere
            }
        };
        wire::LoadBalancing {
            algorithm: algorithm.into(),
            hash: hash.filter(|_| hashes),
            slow_start_ms: self.milliseconds("loadBalancing.slowStart", spec.slow_start.as_deref()),
            locality: locality.into(),
        }
    }

    fn hash(&mut self, spec: &Hash) -> Option<wire::HashKey> {
        use wire::hash_key::Kind;
        let source = spec.source_ip == Some(true);
        let kind = match (&spec.header, &spec.cookie, source) {
            (Some(header), None, false) if is_name(header) => Kind::Header(header.clone()),
            (None, Some(cookie), false) if is_name(&cookie.name) => {
                let field = "loadBalancing.hash.cookie.ttl";
                let ttl = self.milliseconds(field, cookie.ttl.as_deref());
                Kind::Cookie(wire::HashCookie {
                    name: cookie.name.clone(),
                    ttl_seconds: ttl.div_ceil(1000),
                    path: cookie.path.clone().unwrap_or_default(),
                })
            }
            (None, None, true) => Kind::SourceAddress(true),
            _ => {
                let hint = "set exactly one of header, cookie and sourceIP, with a valid name";
                self.note("loadBalancing.hash", "does not say what is hashed", hint);
                return None;
            }
        };
        Some(wire::HashKey { kind: Some(kind) })
    }

    fn outliers(&mut self, spec: &Outliers) -> wire::OutlierDetection {
        self.percent(
            "outlierDetection.maxEjectionPercent",
            spec.max_ejection_percent,
        );
        self.percent("outlierDetection.panicPercent", spec.panic_percent);
        let base = spec.base_ejection.as_deref();
        let interval = spec.success_rate_interval.as_deref();
        wire::OutlierDetection {
            consecutive_errors: spec.consecutive_errors,
            consecutive_gateway_errors: spec.consecutive_gateway_errors,
            base_ejection_ms: self.milliseconds("outlierDetection.baseEjection", base),
            max_ejection_percent: spec.max_ejection_percent.min(100),
            panic_percent: spec.panic_percent.min(100),
            success_rate_interval_ms: self
                .milliseconds("outlierDetection.successRateInterval", interval),
            success_rate_stdev_milli: spec.success_rate_stdev_milli,
            disabled: spec.disabled,
        }
    }

    fn limits(&mut self, spec: &Limits) -> wire::ConnectionLimits {
        let connect = spec.connect_timeout.as_deref();
        let idle = spec.idle_timeout.as_deref();
        wire::ConnectionLimits {
            max_connections: spec.max_connections,
            max_pending_requests: spec.max_pending_requests,
            max_requests: spec.max_requests,
            max_requests_per_connection: spec.max_requests_per_connection,
            connect_timeout_ms: self.milliseconds("limits.connectTimeout", connect),
            idle_timeout_ms: self.milliseconds("limits.idleTimeout", idle),
        }
    }
}
