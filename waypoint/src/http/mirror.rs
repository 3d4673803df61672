//! Copies of requests, whose answers nobody waits for.

use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Version};
use http_body_util::BodyExt as _;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::HttpServer;
use super::exchange::Exchange;
use super::limits::{MAX_MIRRORS, MIRROR_TIMEOUT};
use crate::balance::{Cluster, Outcome, PickRequest};
use crate::body::Body;
use crate::filter::Mirror;

/// Counts a mirrored request while it is under way.
struct Place(Rc<HttpServer>);

impl Place {
    fn take(server: &Rc<HttpServer>) -> Option<Self> {
        let used = server.mirrors.get();
        if used >= MAX_MIRRORS {
            return None;
        }
        server.mirrors.set(used + 1);
        Some(Self(Rc::clone(server)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get().saturating_sub(1));
    }
}

/// Sends a copy of a request, if it is one of those to be copied. Its body is copied as the original is read.
pub(super) fn start(exchange: &Exchange, parts: &Parts, mirror: &Mirror) {
    let Some(cluster) = &mirror.cluster else {
        return;
    };
    let server = &exchange.connection.server;
    if !mirror.takes(rand::random()) {
        return;
    }
    let Some(place) = Place::take(server) else {
        return;
    };
    server.recorder.metrics().mirrors.inc();
    let body = match &exchange.upload {
        Some(upload) => Body::boxed(upload.copy()),
        None => Body::Empty,
    };
    let request = Request::from_parts(parts.clone(), body);
    let (cluster, version) = (Arc::clone(cluster), exchange.version);
    spawn_local(async move {
        let sent = send(&place.0, &cluster, version, request);
        if timeout(MIRROR_TIMEOUT, sent).await.is_err() {
            tracing::debug!(backend = %cluster.name(), reason = "mirror_timeout", "mirror failed");
        }
        drop(place);
    });
}

async fn send(
    server: &HttpServer,
    cluster: &Arc<Cluster>,
    version: Version,
    request: Request<Body>,
) {
    let mut picked = match cluster.pick(&PickRequest::default()) {
        Ok(picked) => picked,
        Err(error) => {
            tracing::debug!(backend = %cluster.name(), reason = error.reason(), "mirror failed");
            return;
        }
    };
    let response = match server.upstream.send(&picked, version, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(backend = %cluster.name(), reason = error.reason(), "mirror failed");
            return picked.finish(error.outcome());
        }
    };
    picked.observe(Outcome::Response(response.status()));
    // Read to its end, so that its connection can be used again.
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return picked.finish(Outcome::Reset);
        }
    }
}
