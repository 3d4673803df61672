//! What is reported of the connections of a pod, or of what comes to a frontend of a proxy.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use karst_api::telemetry::{
    self as wire, ALL, MAX_TAG_NAME_BYTES, MAX_TAG_VALUE_BYTES, MAX_TAGS, span_tag,
};

use crate::filter::{Facts, Filter};

/// What is reported besides metrics. The default: everything is logged, there are no spans.
#[derive(Debug)]
pub struct Reporting {
    log: Log,
    /// Share of what is logged that has no reason of ours, in millionths.
    sampling: u32,
    tracing: Option<Arc<Tracing>>,
    /// Headers that must be kept until the request has ended.
    headers: Vec<HeaderName>,
}

#[derive(Debug)]
enum Log {
    All,
    Matching(Box<Filter>),
    Nothing,
}

/// Spans: of what, with what, to where.
#[derive(Debug)]
pub struct Tracing {
    /// Where they go, `NAMESPACE/HOSTNAME/PORT`.
    pub collector: Arc<str>,
    /// Share of traces that begin here, in millionths.
    sampling: u32,
    tags: Vec<Tag>,
}

#[derive(Debug)]
struct Tag {
    name: Arc<str>,
    value: TagValue,
}

#[derive(Debug)]
enum TagValue {
    Literal(Arc<str>),
    Header(HeaderName, Arc<str>),
}

/// Why something is not in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skipped {
    /// A Telemetry resource says that nothing is.
    Disabled,
    /// Its filter is not true.
    Filter,
    /// It is not in the sample.
    Sampling,
}

impl Skipped {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Filter => "filter",
            Self::Sampling => "sampling",
        }
    }
}

/// Whether something is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Log,
    /// It is, because the filter could not be evaluated.
    Unknown(String),
    /// It is not.
    Skip(Skipped),
}

impl Default for Reporting {
    fn default() -> Self {
        Self {
            log: Log::All,
            sampling: ALL,
            tracing: None,
            headers: Vec::new(),
        }
    }
}

impl Reporting {
    /// Reads what the controller says. What cannot be understood is left out so that more is logged and less traced,
    /// and is returned too: what is reported must not stop what it is reported of.
    #[must_use]
    pub fn read(wire: &wire::Reporting) -> (Self, Option<String>) {
        let mut problem = None;
        let mut headers = Vec::new();
        let log = if wire.log_disabled {
            Log::Nothing
        } else if wire.log_filter.is_empty() {
            Log::All
        } else {
            match Filter::compile(&wire.log_filter) {
                Ok(filter) => {
                    let names = filter.headers().iter();
                    headers.extend(names.filter_map(|name| name.parse().ok()));
                    Log::Matching(Box::new(filter))
                }
                Err(error) => {
                    problem = Some(format!("log_filter {error}"));
                    Log::All
                }
            }
        };
        let tracing = match wire.tracing.as_ref().map(Tracing::read) {
            None => None,
            Some(Ok(tracing)) => {
                headers.extend(tracing.tags.iter().filter_map(|tag| match &tag.value {
                    TagValue::Header(name, _) => Some(name.clone()),
                    TagValue::Literal(_) => None,
                }));
                Some(Arc::new(tracing))
            }
            Some(Err(error)) => {
                problem = Some(error);
                None
            }
        };
        let this = Self {
            log,
            sampling: wire.log_sampling.unwrap_or(ALL),
            tracing,
            headers,
        };
        (this, problem)
    }

    /// Whether everything is logged and nothing traced, so that nothing need be kept or asked.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.tracing.is_none() && self.logs_all()
    }

    /// Whether everything is logged.
    #[must_use]
    pub fn logs_all(&self) -> bool {
        matches!(self.log, Log::All) && self.sampling >= ALL
    }

    /// What there is of spans.
    #[must_use]
    pub fn tracing(&self) -> Option<&Arc<Tracing>> {
        self.tracing.as_ref()
    }

    /// Copies what filter and tags ask for of a request's headers.
    #[must_use]
    pub fn keep(&self, headers: &HeaderMap) -> Kept {
        let kept = self.headers.iter();
        let kept = kept.filter_map(|name| Some((name.clone(), headers.get(name)?.clone())));
        Kept(kept.collect())
    }

    /// Whether something that has ended is logged. What ended with a reason of ours is in every sample.
    #[must_use]
    pub fn verdict(&self, facts: &dyn Facts, has_reason: bool) -> Verdict {
        self.verdict_by(facts, has_reason, || rand::random_range(0..ALL))
    }

    fn verdict_by(
        &self,
        facts: &dyn Facts,
        has_reason: bool,
        roll: impl FnOnce() -> u32,
    ) -> Verdict {
        let mut verdict = Verdict::Log;
        match &self.log {
            Log::All => {}
            Log::Nothing => return Verdict::Skip(Skipped::Disabled),
            Log::Matching(filter) => match filter.matches(facts) {
                Ok(true) => {}
                Ok(false) => return Verdict::Skip(Skipped::Filter),
                Err(error) => verdict = Verdict::Unknown(error),
            },
        }
        let is_sampled = has_reason || self.sampling >= ALL || roll() < self.sampling;
        match is_sampled {
            true => verdict,
            false => Verdict::Skip(Skipped::Sampling),
        }
    }
}

impl Tracing {
    fn read(wire: &wire::Tracing) -> Result<Self, String> {
        check_collector(&wire.collector)?;
        let tags = wire.tags.iter().take(MAX_TAGS).map(Tag::read);
        Ok(Self {
            collector: wire.collector.as_str().into(),
            sampling: wire.sampling,
            tags: tags.collect::<Result<_, _>>()?,
        })
    }

    /// Whether a trace that begins here is sampled. It goes by the trace's id, so that whoever asks with the same
    /// share gets the same answer.
    #[must_use]
    pub fn samples(&self, trace_id: u128) -> bool {
        // 56 bits, which is what W3C calls random in an id.
        const RANGE: u128 = 1 << 56;
        let limit = u128::from(self.sampling) * RANGE / u128::from(ALL);
        trace_id % RANGE < limit
    }

    /// The attributes that are wanted besides.
    #[must_use]
    pub fn tags(&self, kept: &Kept) -> Vec<(Arc<str>, String)> {
        let tags = self.tags.iter().filter_map(|tag| {
            let value = match &tag.value {
                TagValue::Literal(text) => text.to_string(),
                TagValue::Header(name, default) => match kept.get(name.as_str()) {
                    Some(value) => cut(&value).to_owned(),
                    None if default.is_empty() => return None,
                    None => default.to_string(),
                },
            };
            Some((Arc::clone(&tag.name), value))
        });
        tags.collect()
    }
}

/// A collector is named by a port of a Service, never by an address of its own: what protects the way there follows
/// from the mesh, and nothing here speaks TLS to a collector.
fn check_collector(collector: &str) -> Result<(), String> {
    if collector.contains("://") {
        return Err(
            "tracing.collector is a URL: neither https nor http ones are supported, \
             name a port of a Service that takes OTLP over gRPC"
                .to_owned(),
        );
    }
    let parts: Vec<_> = collector.split('/').collect();
    match parts[..] {
        [namespace, hostname, port]
            if !namespace.is_empty()
                && !hostname.is_empty()
                && port.parse::<u16>().is_ok_and(|port| port != 0) =>
        {
            Ok(())
        }
        _ => Err("tracing.collector is no NAMESPACE/HOSTNAME/PORT".to_owned()),
    }
}

/// As much as fits into a tag.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TAG_VALUE_BYTES)]
}

impl Tag {
    fn read(wire: &wire::SpanTag) -> Result<Self, String> {
        let no = |problem: &str| Err(format!("tracing.tags {problem}"));
        if wire.name.is_empty() || wire.name.len() > MAX_TAG_NAME_BYTES {
            return no("has a name that is empty or too long");
        }
        let value = match &wire.kind {
            Some(span_tag::Kind::Literal(text)) => TagValue::Literal(cut(text).into()),
            Some(span_tag::Kind::Header(header)) => match header.name.parse() {
                Ok(name) => TagValue::Header(name, cut(&header.default_value).into()),
                Err(_) => return no("has a name of a header that is none"),
            },
            None => return no("has a kind that is not known"),
        };
        Ok(Self {
            name: wire.name.as_str().into(),
            value,
        })
    }
}

/// Headers of a request that are needed at its end.
#[derive(Clone, Debug, Default)]
pub struct Kept(Vec<(HeaderName, HeaderValue)>);

impl Kept {
    /// One of them, by its name in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let (_, value) = self.0.iter().find(|(kept, _)| kept.as_str() == name)?;
        Some(String::from_utf8_lossy(value.as_bytes()))
    }
}

#[cfg(test)]
mod tests;
