//! What is known of a request or connection that is decided about.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::octets::Joined;
use super::remote;
use crate::authn::Verified;
use crate::client::Client;

/// What a SPIFFE id begins with, and a principal of a policy leaves out.
const SCHEME: &str = "spiffe://";

/// What is known of a request or connection.
pub struct Attributes<'a> {
    /// Who sent it. Its identity was proven to us; no header ever says it.
    pub client: &'a Client,
    /// What the client asked for.
    pub destination: Destination,
    /// Name that the client asked for in TLS.
    pub server_name: ServerName<'a>,
    /// Of a request; `None` below HTTP.
    pub request: Option<RequestAttributes<'a>>,
}

/// Address and port that a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address; `None` where it asked for a name.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: Some(address.ip().to_canonical()),
            port: address.port(),
        }
    }
}

/// The name that a client asked for in TLS, in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerName<'a> {
    /// Nobody has looked, so there may be one.
    Unread,
    /// There is none.
    None,
    /// This one.
    Is(&'a str),
}

impl<'a> ServerName<'a> {
    /// Of a hello that was read.
    #[must_use]
    pub fn read(name: Option<&'a str>) -> Self {
        name.map_or(Self::None, Self::Is)
    }
}

/// What is known of a request besides its connection.
pub struct RequestAttributes<'a> {
    /// Method.
    pub method: &'a str,
    /// Host, as [`crate::route::host_of`] makes it; empty if there is none.
    pub host: &'a str,
    /// Port of the host, if it says one.
    pub port: Option<&'a str>,
    /// Path in its normal form, without query.
    pub path: &'a str,
    /// Headers as the client sent them. `None` when they are known no more: see [`super::recheck`].
    pub headers: Option<&'a HeaderMap>,
    /// How many entries at the end of `x-forwarded-for` are the word of proxies that are trusted.
    pub trusted_hops: usize,
    /// `ISSUER/SUBJECT` of the token, if it has both.
    pub request_principal: Option<&'a str>,
    /// The token, if there is one. It was verified ([`crate::authn`]).
    pub token: Option<&'a Verified>,
}

/// An attribute with one text, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextAttribute {
    Principal,
    Namespace,
    ServiceAccount,
    RequestPrincipal,
    Method,
    Sni,
}

/// An attribute that is an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressAttribute {
    Source,
    Remote,
    Destination,
}

/// What an attribute has.
pub(super) enum Found<T> {
    /// It cannot be known here.
    Unknown,
    /// It is known that there is none.
    Absent,
    Value(T),
}

impl<T> From<Option<T>> for Found<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Value)
    }
}

impl<'a> Attributes<'a> {
    pub(super) fn text(&self, attribute: TextAttribute) -> Found<Joined<'a>> {
        let identity = self.client.identity.as_ref();
        let of_request = |value: fn(&RequestAttributes<'a>) -> Option<&'a str>| {
            self.request.as_ref().map_or(Found::Unknown, |request| {
                value(request).map(Joined::one).into()
            })
        };
        match attribute {
            TextAttribute::Principal => identity
                .map(|id| Joined::one(id.as_str().strip_prefix(SCHEME).unwrap_or_default()))
                .into(),
            TextAttribute::Namespace => identity.map(|id| Joined::one(id.namespace())).into(),
            TextAttribute::ServiceAccount => identity
                .map(|id| Joined([id.namespace(), "/", id.service_account()]))
                .into(),
            TextAttribute::RequestPrincipal => of_request(|request| request.request_principal),
            TextAttribute::Method => of_request(|request| Some(request.method)),
            TextAttribute::Sni => match self.server_name {
                ServerName::Unread => Found::Unknown,
                ServerName::None => Found::Absent,
                ServerName::Is(name) => Found::Value(Joined::one(name)),
            },
        }
    }

    /// Whether a claim of the token, by its names from the outermost, has a text for which `holds`.
    pub(super) fn claim(&self, path: &[String], holds: impl FnMut(&str) -> bool) -> Found<bool> {
        let Some(request) = &self.request else {
            return Found::Unknown;
        };
        let token = request.token;
        token.and_then(|token| token.claim(path, holds)).into()
    }

    /// The host alone, and with its port if it says one.
    pub(super) fn host(&self) -> Found<(Joined<'a>, Option<Joined<'a>>)> {
        let Some(request) = &self.request else {
            return Found::Unknown;
        };
        if request.host.is_empty() {
            return Found::Absent;
        }
        let whole = request.port.map(|port| Joined([request.host, ":", port]));
        Found::Value((Joined::one(request.host), whole))
    }

    pub(super) fn address(&self, attribute: AddressAttribute) -> Found<IpAddr> {
        let source = || self.client.address.ip().to_canonical();
        match attribute {
            AddressAttribute::Source => Found::Value(source()),
            AddressAttribute::Destination => {
                self.destination.ip.map_or(Found::Unknown, Found::Value)
            }
            AddressAttribute::Remote => match &self.request {
                // Below HTTP nobody can say more than the connection does.
                None => Found::Value(source()),
                Some(request) if request.trusted_hops == 0 => Found::Value(source()),
                Some(request) => match request.headers {
                    None => Found::Unknown,
                    Some(headers) => match remote::beyond(headers, request.trusted_hops) {
                        remote::Remote::Direct => Found::Value(source()),
                        remote::Remote::Client(address) => Found::Value(address),
                        remote::Remote::Unreadable => Found::Unknown,
                    },
                },
            },
        }
    }
}
