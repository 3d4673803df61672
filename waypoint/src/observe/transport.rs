//! Calls collectors as any other backend: through the mesh where they are in it.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TE};
use http::{Method, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use karst_telemetry::export::{ExportError, PATH, Transport};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;

use crate::balance::{Clusters, Outcome, PickRequest};
use crate::body::Body;
use crate::upstream::Upstream;

/// Largest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Calls by the connections of one worker.
pub struct UpstreamTransport {
    clusters: Arc<Clusters>,
    upstream: Rc<Upstream>,
}

impl UpstreamTransport {
    /// By these.
    #[must_use]
    pub fn new(clusters: Arc<Clusters>, upstream: Rc<Upstream>) -> Self {
        Self { clusters, upstream }
    }
}

impl Transport for UpstreamTransport {
    async fn export(
        &self,
        collector: &str,
        message: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, ExportError> {
        let cluster = self.clusters.get(collector);
        let picked = cluster.pick(&PickRequest::default());
        let mut picked = picked.map_err(ExportError::unreachable)?;
        let settings = cluster.settings();
        let request = request(&settings.hostname, &message);
        let response = match self.upstream.send(&picked, Version::HTTP_2, request).await {
            Ok(response) => response,
            Err(error) => {
                picked.finish(error.outcome());
                return Err(ExportError::unreachable(error));
            }
        };
        let (head, body) = response.into_parts();
        picked.observe(Outcome::Response(head.status));
        if head.status != StatusCode::OK {
            let message = format!("HTTP status {}", head.status.as_u16());
            return Err(ExportError {
                // As gRPC maps them to unavailable.
                retry: matches!(head.status.as_u16(), 429 | 502..=504),
                message,
            });
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(ExportError::unreachable)?;
        let status = |headers: &HeaderMap| -> Option<u32> {
            headers.get("grpc-status")?.to_str().ok()?.parse().ok()
        };
        let trailers = body.trailers().and_then(status);
        match trailers.or_else(|| status(&head.headers)) {
            Some(0) => {}
            Some(code) => return Err(ExportError::of_grpc(code, "refused by the collector")),
            None => return Err(ExportError::unreachable("no grpc-status")),
        }
        let bytes = body.to_bytes();
        // An answer that cannot be read says no less that the spans were taken.
        let answer = bytes.get(5..).map(ExportTraceServiceResponse::decode);
        Ok(answer.and_then(Result::ok).unwrap_or_default())
    }
}

fn request(hostname: &str, message: &ExportTraceServiceRequest) -> Request<Body> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    // A batch is some 100 KiB, which is far from where this would end.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    let mut request = Request::new(Body::full(frame.freeze()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(PATH);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if let Ok(host) = HeaderValue::try_from(hostname) {
        headers.insert(HOST, host);
    }
    request
}
