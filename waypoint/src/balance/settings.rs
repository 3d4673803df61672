//! A backend's settings: what the wire says, checked, with our defaults where it says nothing.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use karst_api::waypoint::{self as wire, Algorithm, LocalityPreference, Protocol};
use karst_api::{FieldError, convert};

use crate::upstream::BackendTlsConfig;

/// Connections to a backend from this proxy. Beyond it a client opens connections faster than anybody
/// answers; the file descriptors of a process allow about as many.
const MAX_CONNECTIONS: u32 = 10_000;
/// Requests that wait for a connection. Each holds its head and its client's stream.
const MAX_PENDING: u32 = 10_000;
/// Requests under way to a backend.
const MAX_REQUESTS: u32 = 100_000;
/// Time to connect, TLS included. The tunnel's own limit is as long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time an unused connection is kept: shorter than the 60 s after which common servers and load balancers
/// close one, so that it is we who close and no request meets a closing server.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Longest idle or connect time that can be asked for, so that times can be added without a care.
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// Failures in a row that eject.
const CONSECUTIVE_ERRORS: u32 = 5;
/// First ejection.
const BASE_EJECTION: Duration = Duration::from_secs(30);
/// Share of the endpoints ejected at most, percent; one of two or more may always be.
const MAX_EJECTION_PERCENT: u32 = 50;
/// Share of endpoints that must be left for ejections to count, percent.
const PANIC_PERCENT: u32 = 50;
/// Distance from the mean success rate, thousandths of the standard deviation.
const STDEV_MILLI: u32 = 1_900;

/// Retries under way, percent of requests under way.
const RETRY_PERCENT: u32 = 20;
/// Retries each second that are allowed in any case.
const RETRY_MIN_PER_SECOND: u32 = 10;

/// What a backend is and how it is treated.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Namespace of the Service; empty for a workload reached by its own address.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Its fully qualified name.
    pub hostname: Arc<str>,
    /// Service port.
    pub port: u16,
    /// What the endpoints speak.
    pub protocol: Protocol,
    /// TLS towards the application, inside the mesh's own.
    pub tls: Option<Arc<BackendTlsConfig>>,
    /// Why requests must not be sent, as a stable reason.
    pub invalid: Option<Arc<str>>,
    /// Which endpoint.
    pub balancing: Balancing,
    /// Ejection of endpoints that fail; `None`: off.
    pub outliers: Option<OutlierSettings>,
    /// Limits.
    pub limits: Limits,
    /// Limit of retries.
    pub retry_budget: BudgetSettings,
}

impl Default for ClusterSettings {
    /// Those of a backend of which nothing is known.
    fn default() -> Self {
        let nothing: Arc<str> = Arc::default();
        Self {
            namespace: Arc::clone(&nothing),
            service: Arc::clone(&nothing),
            hostname: nothing,
            port: 0,
            protocol: Protocol::Undeclared,
            tls: None,
            invalid: None,
            balancing: Balancing::default(),
            outliers: Some(OutlierSettings::unasked()),
            limits: Limits::default(),
            retry_budget: BudgetSettings::default(),
        }
    }
}

/// Choice of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// How.
    pub algorithm: Algorithm,
    /// What is hashed; used by the consistent algorithms only.
    pub hash: Option<HashBy>,
    /// How long a new endpoint's share grows.
    pub slow_start: Option<Duration>,
    /// Which endpoints are preferred.
    pub locality: LocalityPreference,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::PeakEwma,
            hash: None,
            slow_start: None,
            locality: LocalityPreference::Anywhere,
        }
    }
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// Value of a header.
    Header(HeaderName),
    /// Value of a cookie, which is made where there is none.
    Cookie {
        /// Name.
        name: String,
        /// Lifetime; `None`: the browser's session.
        ttl: Option<Duration>,
        /// Path.
        path: String,
    },
    /// Address of the client.
    SourceAddress,
}

/// Ejection of endpoints that fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierSettings {
    /// Failures in a row (5xx or no answer) that eject; `None`: off.
    pub consecutive_errors: Option<u32>,
    /// 502, 503, 504 or no answer in a row that eject; `None`: off.
    pub consecutive_gateway_errors: Option<u32>,
    /// How long the first ejection lasts.
    pub base_ejection: Duration,
    /// Share of endpoints ejected at most, percent.
    pub max_ejection_percent: u32,
    /// When fewer are healthy, ejections are ignored; percent.
    pub panic_percent: u32,
    /// Comparison of success rates; `None`: off.
    pub success_rate: Option<SuccessRate>,
}

/// Comparison of success rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// How often.
    pub interval: Duration,
    /// Ejected below the mean minus this many thousandths of the standard deviation.
    pub stdev_milli: u32,
}

impl OutlierSettings {
    /// For backends without a policy: only what is no answer of the application itself counts. An
    /// application's 500 may be about one client's request.
    fn unasked() -> Self {
        Self {
            consecutive_errors: None,
            consecutive_gateway_errors: Some(CONSECUTIVE_ERRORS),
            base_ejection: BASE_EJECTION,
            max_ejection_percent: MAX_EJECTION_PERCENT,
            panic_percent: PANIC_PERCENT,
            success_rate: None,
        }
    }
}

/// Limits of a backend, for the whole proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests under way.
    pub requests: u32,
    /// Requests on one connection; `None`: any number.
    pub requests_per_connection: Option<u32>,
    /// Time to connect, waiting for a free connection included.
    pub connect_timeout: Duration,
    /// Time an unused connection is kept.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            pending: MAX_PENDING,
            requests: MAX_REQUESTS,
            requests_per_connection: None,
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
        }
    }
}

/// Limit of retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetSettings {
    /// Retries under way, percent of requests under way.
    pub percent: u32,
    /// Retries each second that are allowed in any case.
    pub min_per_second: u32,
}

impl Default for BudgetSettings {
    fn default() -> Self {
        Self {
            percent: RETRY_PERCENT,
            min_per_second: RETRY_MIN_PER_SECOND,
        }
    }
}

impl ClusterSettings {
    /// Reads a backend, without its endpoints.
    pub(super) fn from_wire(
        backend: &wire::Backend,
        tls: Option<Arc<BackendTlsConfig>>,
    ) -> Result<Self, FieldError> {
        let policy = backend.policy.clone().unwrap_or_default();
        let protocol = Protocol::try_from(backend.protocol)
            .map_err(|_| FieldError::new("protocol", format!("{} is unknown", backend.protocol)))?;
        Ok(Self {
            namespace: backend.namespace.as_str().into(),
            service: backend.service.as_str().into(),
            hostname: backend.hostname.as_str().into(),
            port: convert::port("port", backend.port)?,
            protocol,
            tls,
            invalid: (!backend.invalid.is_empty()).then(|| backend.invalid.as_str().into()),
            balancing: balancing(policy.load_balancing.as_ref())?,
            outliers: outliers(policy.outlier_detection.as_ref())?,
            limits: policy.limits.as_ref().map(limits).unwrap_or_default(),
            retry_budget: budget(policy.retry_budget.as_ref())?,
        })
    }
}

fn balancing(wire: Option<&wire::LoadBalancing>) -> Result<Balancing, FieldError> {
    let Some(wire) = wire else {
        return Ok(Balancing::default());
    };
    let algorithm = Algorithm::try_from(wire.algorithm).map_err(|_| {
        let problem = format!("{} is unknown", wire.algorithm);
        FieldError::new("policy.load_balancing.algorithm", problem)
    })?;
    let locality = LocalityPreference::try_from(wire.locality).map_err(|_| {
        let problem = format!("{} is unknown", wire.locality);
        FieldError::new("policy.load_balancing.locality", problem)
    })?;
    let hash = wire.hash.as_ref().and_then(|hash| hash.kind.as_ref());
    let consistent = matches!(algorithm, Algorithm::RingHash | Algorithm::Maglev);
    if consistent && hash.is_none() {
        return Err(FieldError::new(
            "policy.load_balancing.hash",
            "is missing; RING_HASH and MAGLEV need a header, a cookie or the source address",
        ));
    }
    Ok(Balancing {
        algorithm,
        hash: hash.map(hash_by).transpose()?.flatten(),
        slow_start: time(wire.slow_start_ms),
        locality,
    })
}

fn hash_by(kind: &wire::hash_key::Kind) -> Result<Option<HashBy>, FieldError> {
    use wire::hash_key::Kind;
    Ok(Some(match kind {
        Kind::Header(name) => {
            HashBy::Header(HeaderName::try_from(name.as_str()).map_err(|_| {
                let problem = format!("{name:?} is no header name");
                FieldError::new("policy.load_balancing.hash.header", problem)
            })?)
        }
        Kind::Cookie(cookie) => {
            if !is_cookie_name(&cookie.name) || !is_cookie_path(&cookie.path) {
                let problem = format!("{:?} with path {:?} is no cookie", cookie.name, cookie.path);
                return Err(FieldError::new(
                    "policy.load_balancing.hash.cookie",
                    problem,
                ));
            }
            let path = if cookie.path.is_empty() {
                "/"
            } else {
                &cookie.path
            };
            HashBy::Cookie {
                name: cookie.name.clone(),
                ttl: (cookie.ttl_seconds > 0).then(|| Duration::from_secs(cookie.ttl_seconds)),
                path: path.to_owned(),
            }
        }
        Kind::SourceAddress(true) => HashBy::SourceAddress,
        Kind::SourceAddress(false) => return Ok(None),
    }))
}

/// A token of RFC 9110, as RFC 6265 wants a cookie's name.
fn is_cookie_name(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

/// What may stand in a cookie's attribute.
fn is_cookie_path(path: &str) -> bool {
    path.bytes()
        .all(|b| (b' '..=b'~').contains(&b) && b != b';')
}

fn outliers(wire: Option<&wire::OutlierDetection>) -> Result<Option<OutlierSettings>, FieldError> {
    let Some(wire) = wire else {
        return Ok(Some(OutlierSettings::unasked()));
    };
    if wire.disabled {
        return Ok(None);
    }
    let max = percent(
        "policy.outlier_detection.max_ejection_percent",
        wire.max_ejection_percent,
    )?;
    let panic = percent("policy.outlier_detection.panic_percent", wire.panic_percent)?;
    let stdev = some(wire.success_rate_stdev_milli).unwrap_or(STDEV_MILLI);
    let interval = time(wire.success_rate_interval_ms);
    Ok(Some(OutlierSettings {
        consecutive_errors: Some(some(wire.consecutive_errors).unwrap_or(CONSECUTIVE_ERRORS)),
        consecutive_gateway_errors: some(wire.consecutive_gateway_errors),
        base_ejection: time(wire.base_ejection_ms).unwrap_or(BASE_EJECTION),
        max_ejection_percent: max.unwrap_or(MAX_EJECTION_PERCENT),
        panic_percent: panic.unwrap_or(PANIC_PERCENT),
        success_rate: interval.map(|interval| SuccessRate {
            interval,
            stdev_milli: stdev,
        }),
    }))
}

fn limits(wire: &wire::ConnectionLimits) -> Limits {
    Limits {
        connections: some(wire.max_connections).unwrap_or(MAX_CONNECTIONS),
        pending: some(wire.max_pending_requests).unwrap_or(MAX_PENDING),
        requests: some(wire.max_requests).unwrap_or(MAX_REQUESTS),
        requests_per_connection: some(wire.max_requests_per_connection),
        connect_timeout: time(wire.connect_timeout_ms).unwrap_or(CONNECT_TIMEOUT),
        idle_timeout: time(wire.idle_timeout_ms).unwrap_or(IDLE_TIMEOUT),
    }
}

fn budget(wire: Option<&wire::RetryBudget>) -> Result<BudgetSettings, FieldError> {
    let Some(wire) = wire else {
        return Ok(BudgetSettings::default());
    };
    let share = percent("policy.retry_budget.percent", wire.percent)?;
    Ok(BudgetSettings {
        percent: share.unwrap_or(RETRY_PERCENT),
        min_per_second: some(wire.min_per_second).unwrap_or(RETRY_MIN_PER_SECOND),
    })
}

fn some(value: u32) -> Option<u32> {
    (value > 0).then_some(value)
}

fn time(millis: u64) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis).min(MAX_TIME))
}

fn percent(field: &'static str, value: u32) -> Result<Option<u32>, FieldError> {
    if value > 100 {
        return Err(FieldError::new(
            field,
            format!("is {value}, a share has at most 100 percent"),
        ));
    }
    Ok(some(value))
}
