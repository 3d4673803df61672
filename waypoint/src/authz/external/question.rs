//! What an authorizer is asked: by gRPC, and by a request over HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Method, Request, Uri, Version};
use karst_api::ext_authz::attribute_context::{HttpRequest, Peer, TlsSession};
use karst_api::ext_authz::{
    Address, AttributeContext, CHECK_PATH, CheckRequest, SocketAddress, address, attribute_context,
    socket_address,
};
use prost::Message as _;

use super::provider::HttpCheck;
use super::{CheckError, CheckedBody, Provider, Why};
use crate::client::Client;

/// Tells whether an authorizer was sent a part of the body only.
static PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// What is known of a request that an authorizer is asked about.
pub struct Asking<'a> {
    /// Who sent it.
    pub client: &'a Client,
    /// Our own identity.
    pub own_identity: Option<&'a str>,
    /// `x-request-id`.
    pub id: &'a str,
    /// Method; of extended CONNECT the one of the same request over HTTP/1.1.
    pub method: &'a Method,
    /// In its normal form.
    pub uri: &'a Uri,
    /// `Host`.
    pub authority: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// As it came.
    pub version: Version,
    /// In their normal form.
    pub headers: &'a HeaderMap,
    /// Server name of TLS that we have ended.
    pub server_name: Option<&'a str>,
    /// What it is sent of the body.
    pub body: Option<Excerpt>,
}

/// What an authorizer is sent of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The bytes.
    pub bytes: Bytes,
    /// There are more.
    pub partial: bool,
}

impl Asking<'_> {
    fn target(&self) -> &str {
        let target = self.uri.path_and_query();
        target.map_or("/", |target| target.as_str())
    }

    fn partial(&self) -> Option<&'static str> {
        let excerpt = self.body.as_ref()?;
        Some(if excerpt.partial { "true" } else { "false" })
    }

    /// As `CheckRequest`.
    #[must_use]
    pub fn message(&self, settings: Option<CheckedBody>) -> CheckRequest {
        let mut request = HttpRequest {
            id: self.id.to_owned(),
            method: self.method.to_string(),
            headers: self.header_map(),
            path: self.target().to_owned(),
            host: self.authority.to_owned(),
            scheme: self.scheme.to_owned(),
            size: size(self.headers),
            protocol: protocol(self.version).to_owned(),
            ..HttpRequest::default()
        };
        if let Some(excerpt) = &self.body {
            if settings.is_some_and(|settings| settings.as_bytes) {
                request.raw_body = excerpt.bytes.to_vec();
            } else {
                request.body = String::from_utf8_lossy(&excerpt.bytes).into_owned();
            }
        }
        let workload = self.client.workload.as_deref();
        let identity = self.client.identity.as_ref();
        let source = Peer {
            address: Some(address_of(self.client.address)),
            service: workload.map_or_else(String::new, |it| it.service.clone()),
            principal: identity.map_or_else(String::new, |id| id.as_str().to_owned()),
            ..Peer::default()
        };
        let destination = Peer {
            address: self.client.destination.map(address_of),
            principal: self.own_identity.unwrap_or_default().to_owned(),
            ..Peer::default()
        };
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(source),
                destination: Some(destination),
                request: Some(attribute_context::Request {
                    time: Some(now()),
                    http: Some(request),
                }),
                context_extensions: BTreeMap::new(),
                tls_session: self.server_name.map(|sni| TlsSession {
                    sni: sni.to_owned(),
                }),
            }),
        }
    }

    fn header_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != HOST) {
            let value = String::from_utf8_lossy(value.as_bytes());
            map.entry(name.as_str().to_owned())
                .and_modify(|all: &mut String| {
                    all.push(',');
                    all.push_str(&value);
                })
                .or_insert_with(|| value.into_owned());
        }
        for (name, value) in [
            (":method", self.method.as_str()),
            (":path", self.target()),
            (":authority", self.authority),
            (":scheme", self.scheme),
        ] {
            map.insert(name.to_owned(), value.to_owned());
        }
        if let Some(partial) = self.partial() {
            map.insert(PARTIAL_BODY.as_str().to_owned(), partial.to_owned());
        }
        map
    }

    /// As a call of `Authorization/Check`.
    #[must_use]
    pub fn grpc(&self, provider: &Provider) -> Request<Bytes> {
        let message = self.message(provider.body);
        let length = message.encoded_len();
        let mut frame = BytesMut::with_capacity(5 + length);
        frame.put_u8(0);
        // A head is limited to some 60 KiB and a body to 1 MiB, which is far from where this would end.
        frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        frame.extend_from_slice(&message.encode_to_vec());
        let mut request = Request::new(frame.freeze());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(CHECK_PATH);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let timeout = format!("{}m", provider.timeout.as_millis());
        if let Ok(timeout) = HeaderValue::try_from(timeout) {
            headers.insert("grpc-timeout", timeout);
        }
        request
    }

    /// As a request over HTTP.
    ///
    /// # Errors
    /// With the prefix in front the request's target is too long.
    pub fn http(&self, check: &HttpCheck) -> Result<Request<Bytes>, CheckError> {
        let path = match self.target() {
            "*" => "/",
            path => path,
        };
        let target = format!("{}{path}", check.path_prefix);
        let target = Uri::try_from(target);
        // The prefix is a path; it is the client's part that makes it too long.
        let target = target.map_err(|error| CheckError::new(Why::NotAsked, error))?;
        let body = self.body.as_ref().map(|excerpt| excerpt.bytes.clone());
        let mut request = Request::new(body.unwrap_or_default());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = target;
        // Nobody else says so where there is none.
        let is_empty = request.body().is_empty();
        let headers = request.headers_mut();
        for (name, value) in self.headers {
            if check.request_headers.has(name.as_str()) && super::change::is_free(name) {
                headers.append(name, value.clone());
            }
        }
        for (name, value) in &check.additional_headers {
            headers.insert(name, value.clone());
        }
        if let Some(partial) = self.partial() {
            headers.insert(PARTIAL_BODY.clone(), HeaderValue::from_static(partial));
        }
        if is_empty {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        if let Ok(host) = HeaderValue::try_from(self.authority) {
            headers.insert(HOST, host);
        }
        Ok(request)
    }
}

fn address_of(address: SocketAddr) -> Address {
    let port = u32::from(address.port());
    let address = SocketAddress {
        protocol: 0,
        address: address.ip().to_canonical().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
    };
    Address {
        address: Some(address::Address::SocketAddress(address)),
    }
}

fn size(headers: &HeaderMap) -> i64 {
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(-1)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn now() -> prost_types::Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or_default(),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or_default(),
    }
}
