//! The W3C `traceparent` header, version 00.

use std::fmt;

use http::HeaderValue;

/// The trace a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceParent {
    /// A new trace that is not sampled.
    #[must_use]
    pub fn new() -> Self {
        Self {
            // All-zero ids are invalid; the lowest bit costs nothing.
            trace_id: rand::random::<u128>() | 1,
            span_id: rand::random::<u64>() | 1,
            flags: 0,
        }
    }

    /// A trace context of these ids, neither of which is 0.
    #[must_use]
    pub fn of(trace_id: u128, span_id: u64, sampled: bool) -> Self {
        Self {
            trace_id,
            span_id,
            flags: u8::from(sampled),
        }
    }

    /// A new trace, sampled if `is_sampled` says so of its id.
    #[must_use]
    pub fn sampled_by(is_sampled: impl FnOnce(u128) -> bool) -> Self {
        let new = Self::new();
        Self::of(new.trace_id, new.span_id, is_sampled(new.trace_id))
    }

    /// Whether the trace is sampled.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// The span id.
    #[must_use]
    pub fn span_id(self) -> u64 {
        self.span_id
    }

    /// The same trace with a new span.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            span_id: rand::random::<u64>() | 1,
            ..self
        }
    }

    /// The trace id.
    #[must_use]
    pub fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// Parses `00-<32 hex>-<16 hex>-<2 hex>`, lower case as the recommendation asks.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let shape = version == "00"
            && parts.next().is_none()
            && (trace.len(), span.len(), flags.len()) == (32, 16, 2);
        let hex = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
        };
        if !shape || ![trace, span, flags].into_iter().all(hex) {
            return None;
        }
        let parent = Self {
            trace_id: u128::from_str_radix(trace, 16).ok()?,
            span_id: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (parent.trace_id != 0 && parent.span_id != 0).then_some(parent)
    }

    /// The header's value.
    #[must_use]
    pub fn to_value(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }
}

impl Default for TraceParent {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}
