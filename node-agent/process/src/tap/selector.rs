//! Which events a subscriber wants: compiled once, evaluated for every event before anything is formatted.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::facts::{Event, Facts, Party, Service, Verdict};
use super::query::Sees;

/// A parameter that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }
}

/// Conditions on events. All kinds that are given must hold; of one kind, one must. Without any, every event is
/// wanted.
///
/// | parameter | value |
/// |---|---|
/// | `from` | `NAMESPACE`, `NAMESPACE/NAME` of a pod or Deployment, a proven identity (`spiffe://…`), an address with or without port |
/// | `to` | the same, or `svc/NAME.NAMESPACE[:PORT]` or `svc/HOST[:PORT]` |
/// | `verdict` | `allowed`, `denied`, `failed` |
/// | `policy` | `NAMESPACE/NAME`, or a name in any namespace; of a policy that refuses, would on trial, or notes |
/// | `method`, `path`, `status` | a method; the beginning of a path; `404`, `5xx` or `400-499` |
/// | `min_duration_ms` | milliseconds |
/// | `direction` | `outbound`, `inbound` |
/// | `event` | `opened`, `closed`, `refused`, `request`; all of these unless said |
///
/// A name may end in `*`, which stands for anything.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    from: Vec<Place>,
    to: Vec<Place>,
    verdicts: Vec<Verdict>,
    policies: Vec<String>,
    methods: Vec<String>,
    paths: Vec<String>,
    statuses: Vec<RangeInclusive<u16>>,
    min_duration: Duration,
    directions: Vec<String>,
    /// Bits of [`Event::bit`]; none for the default.
    events: u8,
    /// What was there already, which comes besides.
    live: bool,
}

/// Where an event comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Identity(String),
    Address(IpAddr, Option<u16>),
    Namespace(String),
    Workload { namespace: String, name: Name },
    Service { host: String, port: Option<u16> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Exactly(String),
    Beginning(String),
}

impl Name {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exactly(text) => text == name,
            Self::Beginning(text) => !name.is_empty() && name.starts_with(text.as_str()),
        }
    }
}

impl Selector {
    /// Adds a condition.
    ///
    /// # Errors
    /// There is no such parameter, or it cannot have this value.
    pub fn add(&mut self, parameter: &str, value: &str) -> Result<(), Invalid> {
        let invalid = |why: &str| Invalid(format!("{parameter}={value}: {why}"));
        match parameter {
            "from" => {
                let place = Place::parse(value).map_err(|why| invalid(&why))?;
                if matches!(place, Place::Service { .. }) {
                    return Err(invalid("a service is something that clients go to"));
                }
                self.from.push(place);
            }
            "to" => self
                .to
                .push(Place::parse(value).map_err(|why| invalid(&why))?),
            "verdict" => {
                let all = [Verdict::Allowed, Verdict::Denied, Verdict::Failed];
                let found = all.into_iter().find(|verdict| verdict.as_str() == value);
                let verdict = found.ok_or_else(|| invalid("it is allowed, denied or failed"))?;
                self.verdicts.push(verdict);
            }
            "policy" if !value.is_empty() => self.policies.push(value.to_owned()),
            "method" => {
                let token =
                    |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                if value.is_empty() || !value.bytes().all(token) {
                    return Err(invalid("no method of HTTP looks like this"));
                }
                self.methods.push(value.to_ascii_uppercase());
            }
            "path" if value.starts_with('/') && !value.contains('?') => {
                self.paths.push(value.to_owned());
            }
            "path" => return Err(invalid("a path begins with / and has no query")),
            "status" => {
                let statuses =
                    statuses(value).ok_or_else(|| invalid("write it as 404, 5xx or 400-499"))?;
                self.statuses.push(statuses);
            }
            "min_duration_ms" => {
                let millis = value.parse().map_err(|_| invalid("it is a number"))?;
                self.min_duration = Duration::from_millis(millis);
            }
            "direction" if matches!(value, "outbound" | "inbound") => {
                self.directions.push(value.to_owned());
            }
            "direction" => return Err(invalid("it is outbound or inbound")),
            "event" if value == "live" => self.live = true,
            "event" => {
                let event = match value {
                    "opened" => Event::Opened,
                    "closed" => Event::Closed,
                    "refused" => Event::Refused,
                    "request" => Event::Request,
                    _ => return Err(invalid("it is opened, closed, refused or request")),
                };
                self.events |= event.bit();
            }
            _ => return Err(invalid("there is no such parameter")),
        }
        Ok(())
    }

    /// Whether the process can see what is selected.
    pub(super) fn check(&self, sees: Sees) -> Result<(), Invalid> {
        let asked = [
            (
                Sees::Requests,
                "method",
                !self.methods.is_empty(),
                "a node agent sees no HTTP; ask a waypoint",
            ),
            (
                Sees::Requests,
                "path",
                !self.paths.is_empty(),
                "a node agent sees no HTTP; ask a waypoint",
            ),
            (
                Sees::Requests,
                "status",
                !self.statuses.is_empty(),
                "a node agent sees no HTTP; ask a waypoint",
            ),
            (
                Sees::Requests,
                "event=request",
                self.events == Event::Request.bit(),
                "a node agent sees no HTTP; ask a waypoint",
            ),
            (
                Sees::Connections,
                "direction",
                !self.directions.is_empty(),
                "what a waypoint sees has no direction; ask a node agent",
            ),
        ];
        match asked
            .into_iter()
            .find(|(needs, _, is_asked, _)| *is_asked && *needs != sees)
        {
            Some((_, parameter, _, why)) => Err(Invalid(format!("{parameter}: {why}"))),
            None => Ok(()),
        }
    }

    /// Whether an event of which this is known is wanted.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.event(facts.event)
            && one_of(&self.verdicts, |verdict| *verdict == facts.verdict)
            && facts.duration >= self.min_duration
            && one_of(&self.directions, |direction| {
                facts.direction == Some(direction.as_str())
            })
            && self.http(facts)
            && one_of(&self.policies, |policy| {
                let mut all = facts.policies.iter().flatten();
                all.any(|name| is_named(name, policy))
            })
            && one_of(&self.from, |place| place.matches(&facts.source, None))
            && one_of(&self.to, |place| {
                place.matches(&facts.destination, facts.service.as_ref())
            })
    }

    fn event(&self, event: Event) -> bool {
        match event {
            Event::Live => self.live,
            _ => self.events == 0 || self.events & event.bit() != 0,
        }
    }

    fn http(&self, facts: &Facts<'_>) -> bool {
        if self.methods.is_empty() && self.paths.is_empty() && self.statuses.is_empty() {
            return true;
        }
        facts.http.is_some_and(|http| {
            one_of(&self.methods, |method| method == http.method)
                && one_of(&self.paths, |path| http.path.starts_with(path.as_str()))
                && one_of(&self.statuses, |range| range.contains(&http.status))
        })
    }
}

/// Whether there are no alternatives, or one of them holds.
fn one_of<T>(alternatives: &[T], holds: impl Fn(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}

/// Whether a policy `NAMESPACE/NAME` is meant by `asked`, which may be its name alone.
fn is_named(policy: &str, asked: &str) -> bool {
    policy == asked
        || policy
            .rsplit_once('/')
            .is_some_and(|(_, name)| name == asked)
}

/// `404`, `5xx` or `400-499`. 0 is what a client has that went before the answer.
fn statuses(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let digits = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let number: u16 = digits.then(|| text.parse().ok()).flatten()?;
        (number == 0 || (100..=999).contains(&number)).then_some(number)
    };
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=9).contains(class))?;
        return Some(class * 100..=class * 100 + 99);
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (number(first)?, number(last)?);
        return (first <= last).then_some(first..=last);
    }
    number(text).map(|status| status..=status)
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe://") {
            return Ok(Self::Identity(text.to_owned()));
        }
        if let Some(service) = text.strip_prefix("svc/") {
            let (host, port) = match service.rsplit_once(':') {
                Some((host, port)) => {
                    let port = port.parse().ok().filter(|port| *port != 0);
                    (host, Some(port.ok_or("a port is 1 to 65535")?))
                }
                None => (service, None),
            };
            if !host.contains('.') || !is_dns(host) {
                return Err("a service is svc/NAME.NAMESPACE[:PORT]".to_owned());
            }
            let host = host.to_owned();
            return Ok(Self::Service { host, port });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(
                address.ip().to_canonical(),
                Some(address.port()),
            ));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical(), None));
        }
        let Some((namespace, name)) = text.split_once('/') else {
            return match is_dns(text) {
                true => Ok(Self::Namespace(text.to_owned())),
                false => Err("it is NAMESPACE, NAMESPACE/POD, svc/NAME.NAMESPACE[:PORT], an address or spiffe://…".to_owned()),
            };
        };
        let (name, name_text) = match name.strip_suffix('*') {
            Some(beginning) => (Name::Beginning(beginning.to_owned()), beginning),
            None => (Name::Exactly(name.to_owned()), name),
        };
        let is_empty = name == Name::Exactly(String::new());
        if !is_dns(namespace) || is_empty || !(name_text.is_empty() || is_dns(name_text)) {
            return Err("it is NAMESPACE/NAME, and a name may end in *".to_owned());
        }
        Ok(Self::Workload {
            namespace: namespace.to_owned(),
            name,
        })
    }

    fn matches(&self, party: &Party<'_>, service: Option<&Service<'_>>) -> bool {
        match self {
            Self::Identity(identity) => party.identity == Some(identity.as_str()),
            Self::Address(ip, port) => party.address.is_some_and(|address| {
                let same = address.ip().to_canonical() == *ip;
                same && port.is_none_or(|port| port == address.port())
            }),
            Self::Namespace(namespace) => {
                let of_service = service.map(|service| service.namespace);
                party.namespace == namespace || of_service == Some(namespace.as_str())
            }
            Self::Workload { namespace, name } => {
                party.namespace == namespace && party.names.iter().any(|own| name.matches(own))
            }
            Self::Service { host, port } => service.is_some_and(|service| {
                let own = service.port.or(party.address.map(|address| address.port()));
                is_host(service, host) && port.is_none_or(|port| own == Some(port))
            }),
        }
    }
}

/// Whether `host` is the service's host name, or its name and namespace.
fn is_host(service: &Service<'_>, host: &str) -> bool {
    let short = host
        .strip_prefix(service.name)
        .and_then(|rest| rest.strip_prefix('.'));
    service.hostname == host || short == Some(service.namespace)
}

fn is_dns(text: &str) -> bool {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !text.is_empty() && text.len() <= 253 && text.bytes().all(fits)
}
