//! What filters of the access log can ask for.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::{HeaderValue, Version};
use karst_identity::SpiffeId;
use karst_telemetry::filter::{Attribute, Fact, Facts};
use karst_telemetry::settings::Kept;

use crate::access_log::{ConnectionRecord, RequestRecord};
use crate::client::Client;
use crate::reason::Reason;

pub(super) struct RequestFacts<'a> {
    pub(super) record: &'a RequestRecord,
    pub(super) kept: &'a Kept,
}

pub(super) struct ConnectionFacts<'a> {
    pub(super) record: &'a ConnectionRecord,
}

fn text<'a>(text: impl Into<Cow<'a, str>>) -> Option<Fact<'a>> {
    Some(Fact::Text(text.into()))
}

fn number(number: impl TryInto<i64>) -> Option<Fact<'static>> {
    Some(Fact::Number(number.try_into().unwrap_or(i64::MAX)))
}

fn header(value: &HeaderValue) -> Option<Fact<'_>> {
    text(String::from_utf8_lossy(value.as_bytes()))
}

fn reason(reason: Option<Reason>) -> Option<Fact<'static>> {
    text(reason.map_or("", Reason::as_str))
}

fn address(address: Option<SocketAddr>) -> Option<Fact<'static>> {
    text(address?.to_string())
}

fn port(address: Option<SocketAddr>) -> Option<Fact<'static>> {
    number(address?.port())
}

fn client(client: &Client, attribute: Attribute) -> Option<Fact<'_>> {
    match attribute {
        Attribute::ConnectionMtls => Some(Fact::Bool(client.identity.is_some())),
        Attribute::ConnectionPeer => text(client.identity.as_ref().map_or("", SpiffeId::as_str)),
        Attribute::SourceAddress => address(Some(client.address)),
        Attribute::SourcePort => port(Some(client.address)),
        Attribute::DestinationAddress => address(client.destination),
        Attribute::DestinationPort => port(client.destination),
        _ => None,
    }
}

impl Facts for RequestFacts<'_> {
    fn fact(&self, attribute: Attribute) -> Option<Fact<'_>> {
        let record = self.record;
        let endpoint = record.endpoint.as_ref().map(|endpoint| endpoint.address);
        match attribute {
            Attribute::RequestHost => header(&record.authority),
            Attribute::RequestId => header(record.request_id.as_ref()?),
            Attribute::RequestMethod => text(record.method.as_str()),
            Attribute::RequestPath => {
                let path = record.uri.path_and_query();
                text(path.map_or("/", |path| path.as_str()))
            }
            Attribute::RequestUrlPath => text(record.uri.path()),
            Attribute::RequestProtocol => text(match record.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            }),
            Attribute::RequestScheme => text(record.scheme),
            Attribute::RequestSize => number(record.bytes_received),
            Attribute::ResponseCode => number(record.status),
            Attribute::ResponseDetails | Attribute::ConnectionTermination => reason(record.reason),
            Attribute::ResponseGrpcStatus => number(record.grpc_status?),
            Attribute::ResponseSize => number(record.bytes_sent),
            Attribute::UpstreamAddress => address(endpoint),
            Attribute::UpstreamPort => port(endpoint),
            attribute => client(&record.client, attribute),
        }
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.kept.get(name)
    }
}

impl Facts for ConnectionFacts<'_> {
    fn fact(&self, attribute: Attribute) -> Option<Fact<'_>> {
        let record = self.record;
        let endpoint = record.endpoint.as_ref().map(|endpoint| endpoint.address);
        match attribute {
            Attribute::ConnectionServerName => text(record.sni.as_deref().unwrap_or_default()),
            Attribute::ConnectionTermination => reason(record.reason),
            Attribute::ConnectionTlsVersion => text(record.tls.as_ref()?.version.to_string()),
            Attribute::RequestSize => number(record.bytes_received),
            // As Envoy has it where there is no response.
            Attribute::ResponseCode => number(0_i64),
            Attribute::ResponseSize => number(record.bytes_sent),
            Attribute::UpstreamAddress => address(endpoint),
            Attribute::UpstreamPort => port(endpoint),
            attribute => client(&record.client, attribute),
        }
    }
}
