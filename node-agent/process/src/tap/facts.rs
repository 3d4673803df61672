//! What selectors look at: borrowed from what the data plane holds anyway, so that nothing is copied or formatted
//! for an event that nobody wants.

use std::net::SocketAddr;
use std::time::Duration;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection is established.
    Opened,
    /// A connection was there when the subscription began.
    Live,
    /// An established connection has ended.
    Closed,
    /// A connection was refused, or failed before it was established.
    Refused,
    /// A request has ended, with whatever answer.
    Request,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Opened,
        Self::Live,
        Self::Closed,
        Self::Refused,
        Self::Request,
    ];

    /// The value of the field `event`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "connection_opened",
            Self::Live => "connection_live",
            Self::Closed => "connection_closed",
            Self::Refused => "connection_refused",
            Self::Request => "request",
        }
    }

    /// Its place in a set of bits.
    #[must_use]
    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed; of a request, whatever the application answered.
    Allowed,
    /// A policy, or the want of one, refused it.
    Denied,
    /// Something else kept it from its end.
    Failed,
}

impl Verdict {
    /// The value of the field `verdict`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// One end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Party<'a> {
    /// Names that it goes by: of the pod, of its Deployment. Empty ones match nothing.
    pub names: [&'a str; 2],
    /// Namespace, or empty.
    pub namespace: &'a str,
    /// Proven identity.
    pub identity: Option<&'a str>,
    /// Address and port.
    pub address: Option<SocketAddr>,
}

/// The service that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// Name.
    pub name: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Host name.
    pub hostname: &'a str,
    /// Its port, where it is known.
    pub port: Option<u16>,
}

/// What a request has beside a connection.
#[derive(Clone, Copy, Debug)]
pub struct Http<'a> {
    /// Method.
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
}

/// What can be selected by.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What has happened.
    pub event: Event,
    /// What was decided.
    pub verdict: Verdict,
    /// The client.
    pub source: Party<'a>,
    /// The server.
    pub destination: Party<'a>,
    /// The service that was asked for.
    pub service: Option<Service<'a>>,
    /// `outbound` or `inbound`, where a connection has a direction.
    pub direction: Option<&'a str>,
    /// Policies that had a say: that refused, would have on trial, or noted.
    pub policies: [Option<&'a str>; 2],
    /// Of requests.
    pub http: Option<Http<'a>>,
    /// So far, or from the beginning to the end.
    pub duration: Duration,
}
