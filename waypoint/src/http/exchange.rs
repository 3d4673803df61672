//! A request and its response: what is known of them, until both have ended and are counted and logged.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version};
use http_body::Frame;
use tokio::time::Instant;

use super::authorize::Standing;
use super::connection::Connection;
use super::messages::Messages;
use super::reply;
use super::upload::{Upload, UploadError};
use crate::access_log::{Check, Destination, EndpointRecord, RequestRecord, Spoken};
use crate::authn::Verified;
use crate::authz::Denial;
use crate::balance::{Outcome, Picked, RetryPermit};
use crate::filter::RequestScheme;
use crate::observe::Observed;
use crate::reason::Reason;

/// How an exchange ended.
pub(super) enum Ending {
    /// The whole response was handed over.
    Complete,
    /// It broke off.
    Broken(Reason, Option<String>),
}

/// A request under way. Dropping it ends it: the client has gone.
pub(super) struct Exchange {
    pub(super) connection: Rc<Connection>,
    pub(super) started: Instant,
    pub(super) method: Method,
    pub(super) version: Version,
    /// As it came.
    pub(super) uri: Uri,
    /// `Host`, as it came.
    pub(super) authority: HeaderValue,
    pub(super) grpc: bool,
    pub(super) listener: Option<Arc<str>>,
    pub(super) route: Option<Arc<str>>,
    pub(super) destination: Option<Arc<Destination>>,
    pub(super) picked: Option<Picked>,
    /// Counts as a retry until the end.
    pub(super) permit: Option<RetryPermit>,
    pub(super) attempts: u32,
    pub(super) upload: Option<Rc<Upload>>,
    pub(super) request_id: Option<HeaderValue>,
    /// What brings it back to its policies.
    pub(super) standing: Option<Standing>,
    /// What its token says.
    pub(super) token: Option<Arc<Verified>>,
    /// The AUDIT policy that it matched first.
    pub(super) audited: Option<Arc<str>>,
    /// What came of asking a provider.
    pub(super) check: Option<Check>,
    /// What is reported besides metrics.
    pub(super) observed: Option<Box<Observed>>,
    /// When the whole request must have ended.
    pub(super) deadline: Option<Instant>,
    status: Option<StatusCode>,
    grpc_status: Option<u32>,
    reason: Option<Reason>,
    error: Option<String>,
    denial: Option<Denial>,
    sent: u64,
    /// Of a response of gRPC.
    messages: Option<Messages>,
    head_at: Option<Instant>,
    ended: bool,
}

impl Exchange {
    pub(super) fn new(connection: &Rc<Connection>, parts: &Parts) -> Box<Self> {
        connection.activity.begin();
        Box::new(Self {
            connection: Rc::clone(connection),
            started: Instant::now(),
            method: parts.method.clone(),
            version: parts.version,
            uri: parts.uri.clone(),
            authority: HeaderValue::from_static(""),
            grpc: reply::is_grpc(&parts.headers),
            listener: None,
            route: None,
            destination: None,
            picked: None,
            permit: None,
            attempts: 0,
            upload: None,
            request_id: None,
            standing: None,
            token: None,
            audited: None,
            check: None,
            observed: None,
            deadline: None,
            status: None,
            grpc_status: None,
            reason: None,
            error: None,
            denial: None,
            sent: 0,
            messages: None,
            head_at: None,
            ended: false,
        })
    }

    /// The endpoint has answered.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.head_at = Some(Instant::now());
        if let Some(picked) = &mut self.picked {
            picked.observe(Outcome::Response(status));
        }
        if let Some(upload) = &self.upload {
            upload.answered();
        }
    }

    /// The head of the response as the client gets it.
    pub(super) fn head(&mut self, status: StatusCode, headers: &http::HeaderMap) {
        self.status = Some(status);
        if self.grpc {
            self.grpc_status = reply::grpc_status_of(headers);
            self.messages = reply::is_grpc(headers).then(Messages::default);
        }
    }

    /// Why the answer is ours.
    pub(super) fn because(&mut self, reason: Reason, error: Option<String>) {
        self.reason = Some(reason);
        self.error = error;
    }

    /// The policy that refuses it.
    pub(super) fn denied_by(&mut self, denial: Denial) {
        self.denial = Some(denial);
    }

    /// A part of the response's body.
    pub(super) fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent += data.len() as u64;
            if let Some(messages) = &mut self.messages {
                messages.pass(data);
            }
        } else if self.grpc
            && let Some(trailers) = frame.trailers_ref()
        {
            self.grpc_status = reply::grpc_status_of(trailers);
        }
    }

    /// Bytes that an upgraded connection carried to the client.
    pub(super) fn carried(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Ends it because the policies allow it no more.
    pub(super) fn end_denied(mut self: Box<Self>, denial: Denial) {
        let ending = Ending::Broken(Reason::Other(denial.reason()), Some(denial.to_string()));
        self.denied_by(denial);
        self.end(ending);
    }

    /// Ends it.
    pub(super) fn end(mut self: Box<Self>, ending: Ending) {
        let outcome = match ending {
            Ending::Complete => None,
            Ending::Broken(reason, error) => {
                self.because(reason, error);
                (reason == Reason::UpstreamReset).then_some(Outcome::Reset)
            }
        };
        if let (Some(outcome), Some(picked)) = (outcome, &mut self.picked) {
            picked.observe(outcome);
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.ended = true;
        let now = Instant::now();
        self.connection.activity.end(now);
        let record = self.record(now);
        self.connection.server.recorder.request_finished(record);
    }

    fn record(&mut self, now: Instant) -> RequestRecord {
        let connection = &self.connection;
        let reporter = connection.entry.reporter();
        let mut record = RequestRecord::new(reporter, connection.client.clone());
        record.protocol = if self.grpc {
            Spoken::Grpc
        } else {
            Spoken::Http
        };
        record.version = self.version;
        record.method = std::mem::take(&mut self.method);
        record.listener = self.listener.take();
        record.route = self.route.take();
        record.destination = self.destination.take();
        record.endpoint = self.picked.as_ref().map(EndpointRecord::of);
        record.status = self.status.map_or(0, |status| status.as_u16());
        record.grpc_status = self.grpc_status;
        record.reason = self.reason;
        record.error = self.error.take();
        record.denial = self.denial.take();
        record.audited = self.audited.take();
        record.token = self.token.take();
        record.check = self.check.take();
        record.bytes_received = self.upload.as_ref().map_or(0, |upload| upload.received());
        record.bytes_sent = self.sent;
        record.messages = (
            self.upload.as_ref().map_or(0, |upload| upload.messages()),
            self.messages.map_or(0, |messages| messages.whole()),
        );
        record.duration = now - self.started;
        record.response_head = self.head_at.map(|at| at - self.started);
        record.attempts = self.attempts;
        record.authority = std::mem::replace(&mut self.authority, HeaderValue::from_static(""));
        record.uri = std::mem::take(&mut self.uri);
        record.request_id = self.request_id.take();
        record.observed = self.observed.take();
        record.scheme = match connection.entry.scheme() {
            RequestScheme::Http => "http",
            RequestScheme::Https => "https",
        };
        record
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            if self.reason.is_none() {
                let paused = self.upload.as_ref().and_then(|upload| upload.error());
                self.reason = Some(match paused {
                    Some(UploadError::Paused) => Reason::Other("request_body_timeout"),
                    _ => Reason::ClientGone,
                });
            }
            self.finish();
        }
    }
}
