//! Metrics and health over plain HTTP, for the kubelet and Prometheus.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, VARY},
};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_process::metrics::Format;
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tracing::{debug, warn};

/// Connections at a time: a handful of scrapers and probes.
const MAX_CONNECTIONS: usize = 64;

/// A connection must send its request within this time.
const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// Wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves for ever. `/healthz/ready` says what `ready` says; being alive is being able to answer.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>, ready: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(reason = "accept_failed", %error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let registry = registry.clone();
        let ready = ready.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &registry, *ready.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .serve_connection(TokioIo::new(tcp), service)
                .await;
            if let Err(error) = served {
                debug!(%error, "HTTP connection ended");
            }
            drop(place);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    is_ready: bool,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/healthz/live" => text(StatusCode::OK, "ok\n"),
        "/healthz/ready" if is_ready => text(StatusCode::OK, "ok\n"),
        "/healthz/ready" => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for the first state of the cluster and for the authority\n",
        ),
        "/metrics" => {
            let mut body = String::new();
            match prometheus_client::encoding::text::encode(&mut body, registry) {
                Ok(()) => {
                    let format = Format::asked(request.headers().get_all(ACCEPT));
                    let mut response = Response::new(Full::from(format.of(body)));
                    let value = http::HeaderValue::from_static(format.content_type());
                    response.headers_mut().insert(CONTENT_TYPE, value);
                    let value = http::HeaderValue::from_static("accept");
                    response.headers_mut().insert(VARY, value);
                    response
                }
                Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics not encoded\n"),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "see /metrics, /healthz/live, /healthz/ready\n",
        ),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}
