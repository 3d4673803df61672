//! One condition on one attribute.

use http::header::HeaderName;
use karst_api::convert::port;
use karst_api::waypoint as wire;
use karst_api::waypoint::Attribute;
use karst_api::waypoint::attribute_value::Kind;

use super::address::Block;
use super::attributes::{AddressAttribute, Attributes, Found, TextAttribute};
use super::octets::Lines;
use super::strings::{Form, MAX_VALUES, Strings};
use crate::authn::MAX_DEPTH;
use crate::config::{ConfigError, at_most};

/// What a match leads to; it decides which way doubts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Something is allowed: what is in doubt does not match.
    Opens,
    /// Something is refused or logged: what is in doubt matches.
    Closes,
}

impl Effect {
    fn in_doubt(self) -> bool {
        self == Self::Closes
    }
}

/// Values of which there is one, if there are any, and others of which there is none.
#[derive(Debug)]
pub(super) struct Either<T> {
    values: T,
    not_values: T,
}

/// A condition on one attribute.
#[derive(Debug)]
pub(super) enum Condition {
    Text(TextAttribute, Either<Strings>),
    Host(Either<Strings>),
    Path(Either<Strings>),
    Header(HeaderName, Either<Strings>),
    /// A claim of a token, by its names from the outermost.
    Claim(Vec<String>, Either<Strings>),
    Address(AddressAttribute, Either<Vec<Block>>),
    Port(Either<Vec<u16>>),
}

impl Condition {
    pub(super) fn new(wire: &wire::AttributeMatch) -> Result<Self, ConfigError> {
        if wire.values.is_empty() && wire.not_values.is_empty() {
            return Err(ConfigError::new("values", "is empty, and so is not_values"));
        }
        let keyed = matches!(
            wire.attribute(),
            Attribute::Header | Attribute::RequestClaim
        );
        if keyed == wire.key.is_empty() {
            let problem = if keyed {
                "is missing"
            } else {
                "is not for this attribute"
            };
            return Err(ConfigError::new("key", problem));
        }
        let text = |attribute| Ok(Self::Text(attribute, strings(wire, Form::Verbatim)?));
        let claim = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            Ok(Self::Claim(names, strings(wire, Form::Verbatim)?))
        };
        let address = |attribute| {
            Ok(Self::Address(
                attribute,
                Either {
                    values: Block::list("values", &wire.values)?,
                    not_values: Block::list("not_values", &wire.not_values)?,
                },
            ))
        };
        match wire.attribute() {
            Attribute::SourcePrincipal => text(TextAttribute::Principal),
            Attribute::SourceNamespace => text(TextAttribute::Namespace),
            Attribute::SourceServiceAccount => text(TextAttribute::ServiceAccount),
            Attribute::RequestPrincipal => text(TextAttribute::RequestPrincipal),
            Attribute::RequestAudiences => claim(&["aud"]),
            Attribute::RequestPresenter => claim(&["azp"]),
            Attribute::RequestClaim => {
                let names: Vec<&str> = wire.key.split("][").collect();
                at_most("key", names.len(), MAX_DEPTH)?;
                claim(&names)
            }
            Attribute::Method => text(TextAttribute::Method),
            Attribute::Sni => Ok(Self::Text(
                TextAttribute::Sni,
                strings(wire, Form::LowerCase)?,
            )),
            Attribute::Host => Ok(Self::Host(strings(wire, Form::LowerCase)?)),
            Attribute::Path => Ok(Self::Path(strings(wire, Form::Path)?)),
            Attribute::Header => {
                let name = HeaderName::from_bytes(wire.key.as_bytes()).map_err(|_| {
                    let problem = format!("is {:?}, which is no name of a header", wire.key);
                    ConfigError::new("key", problem)
                })?;
                Ok(Self::Header(name, strings(wire, Form::Verbatim)?))
            }
            Attribute::SourceIp => address(AddressAttribute::Source),
            Attribute::RemoteIp => address(AddressAttribute::Remote),
            Attribute::DestinationIp => address(AddressAttribute::Destination),
            Attribute::DestinationPort => Ok(Self::Port(Either {
                values: ports("values", &wire.values)?,
                not_values: ports("not_values", &wire.not_values)?,
            })),
            Attribute::Unspecified => Err(ConfigError::new(
                "attribute",
                "is missing, or not known to this version",
            )),
        }
    }

    /// Whether it can only be answered with the headers of a request.
    pub(super) fn asks_headers(&self) -> bool {
        matches!(
            self,
            Self::Header(..) | Self::Address(AddressAttribute::Remote, _)
        )
    }

    /// Whether it can only be answered once a token was looked for.
    pub(super) fn asks_token(&self) -> bool {
        matches!(
            self,
            Self::Claim(..) | Self::Text(TextAttribute::RequestPrincipal, _)
        )
    }

    pub(super) fn holds(&self, attributes: &Attributes<'_>, effect: Effect) -> bool {
        match self {
            Self::Text(attribute, either) => {
                let found = attributes.text(*attribute);
                either.decide(found, effect, |list, text| list.matches(text))
            }
            Self::Host(either) => {
                // Routes do not see the port of a host either, so that it makes no other request of it.
                either.decide(attributes.host(), effect, |list, (host, whole)| {
                    list.matches(host) || whole.as_ref().is_some_and(|whole| list.matches(whole))
                })
            }
            Self::Path(either) => {
                let path = attributes.request.as_ref().map(|request| request.path);
                let found = path.map_or(Found::Unknown, Found::Value);
                either.decide(found, effect, |list, path| list.matches_path(path))
            }
            Self::Header(name, either) => header(attributes, name, either, effect),
            Self::Claim(path, either) => claim(attributes, path, either, effect),
            Self::Address(attribute, either) => {
                let found = attributes.address(*attribute);
                either.decide(found, effect, |list, address| {
                    list.iter().any(|block| block.contains(*address))
                })
            }
            Self::Port(either) => {
                let found = Found::Value(attributes.destination.port);
                either.decide(found, effect, |list, port| list.binary_search(port).is_ok())
            }
        }
    }
}

/// A list of values.
pub(super) trait List {
    fn is_empty(&self) -> bool;
}

impl List for Strings {
    fn is_empty(&self) -> bool {
        Strings::is_empty(self)
    }
}

impl<T> List for Vec<T> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

impl<T: List> Either<T> {
    fn decide<V>(&self, found: Found<V>, effect: Effect, has: impl Fn(&T, &V) -> bool) -> bool {
        match found {
            Found::Unknown => effect.in_doubt(),
            Found::Absent => self.values.is_empty(),
            Found::Value(value) => {
                (self.values.is_empty() || has(&self.values, &value))
                    && !has(&self.not_values, &value)
            }
        }
    }
}

/// Applications make different things of a header that comes in several lines. Where a match opens, each line
/// must match; where it closes, any line will do, and all of them joined.
fn header(
    attributes: &Attributes<'_>,
    name: &HeaderName,
    either: &Either<Strings>,
    effect: Effect,
) -> bool {
    let Some(headers) = attributes.request.as_ref().and_then(|each| each.headers) else {
        return effect.in_doubt();
    };
    let lines = Lines::new(headers, name);
    let is_there = headers.contains_key(name);
    let wide = |list: &Strings| {
        (is_there && (list.present || list.matches(&lines)))
            || lines.iter().any(|line| list.matches(line))
    };
    let narrow = |list: &Strings| is_there && lines.iter().all(|line| list.matches(line));
    let (values, not_values) = (&either.values, &either.not_values);
    match effect {
        Effect::Opens => (values.is_empty() || narrow(values)) && !wide(not_values),
        Effect::Closes => (values.is_empty() || wide(values)) && !narrow(not_values),
    }
}

/// Of a claim with several texts, any one is enough, for values as for those that may not be.
fn claim(
    attributes: &Attributes<'_>,
    path: &[String],
    either: &Either<Strings>,
    effect: Effect,
) -> bool {
    let has = |list: &Strings| attributes.claim(path, |text| list.matches(text.as_bytes()));
    let (values, not_values) = (&either.values, &either.not_values);
    match (has(values), has(not_values)) {
        (Found::Unknown, _) | (_, Found::Unknown) => effect.in_doubt(),
        (Found::Absent, _) | (_, Found::Absent) => values.is_empty(),
        (Found::Value(is), Found::Value(is_not)) => (values.is_empty() || is) && !is_not,
    }
}

fn strings(wire: &wire::AttributeMatch, form: Form) -> Result<Either<Strings>, ConfigError> {
    Ok(Either {
        values: Strings::new("values", &wire.values, form)?,
        not_values: Strings::new("not_values", &wire.not_values, form)?,
    })
}

fn ports(field: &str, wire: &[wire::AttributeValue]) -> Result<Vec<u16>, ConfigError> {
    at_most(field, wire.len(), MAX_VALUES)?;
    let one = |(index, value): (usize, &wire::AttributeValue)| match value.kind {
        Some(Kind::Port(number)) => port("port", number)
            .map_err(|e| ConfigError::from(e).within(format!("{field}[{index}]"))),
        _ => Err(ConfigError::new(
            format!("{field}[{index}]"),
            "is no port, which this attribute wants",
        )),
    };
    let mut ports: Vec<u16> = wire.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    ports.sort_unstable();
    Ok(ports)
}
