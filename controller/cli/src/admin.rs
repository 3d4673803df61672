//! Asks the agent through its admin socket, and a waypoint through its admin server.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use crate::cluster;
use crate::failure::{Failure, Kind};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Largest page: the workloads of a large mesh take a tenth of it.
const MAX_PAGE: usize = 256 << 20;

/// GET `path` of the agent at `socket`, which answers with JSON.
///
/// # Errors
/// There is no agent, or it answers with an error.
pub fn get(socket: &Path, path: &str) -> Result<Value, Failure> {
    let whom = format!("the agent at {}", socket.display());
    cluster::run(async {
        let stream = tokio::time::timeout(LIMIT, UnixStream::connect(socket)).await;
        match stream {
            Ok(Ok(stream)) => over(TokioIo::new(stream), &whom, path).await,
            Ok(Err(error)) => {
                let hint = "is it running, and are you root?";
                Err(unreachable(&whom, &format!("{error} ({hint})")))
            }
            Err(_) => Err(unreachable(&whom, "no answer in time")),
        }
    })
}

/// GET `path` of the waypoint at `address`, which answers with JSON.
///
/// # Errors
/// There is no waypoint, or it answers with an error.
pub fn get_tcp(address: SocketAddr, path: &str) -> Result<Value, Failure> {
    let whom = format!("the waypoint at {address}");
    cluster::run(async {
        match tokio::time::timeout(LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => over(TokioIo::new(stream), &whom, path).await,
            Ok(Err(error)) => Err(unreachable(&whom, &error.to_string())),
            Err(_) => Err(unreachable(&whom, "no answer in time")),
        }
    })
}

/// GET `path` over a connection to `whom`, which answers with JSON.
///
/// # Errors
/// It does not answer, or with an error.
pub async fn over<S>(stream: S, whom: &str, path: &str) -> Result<Value, Failure>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    match tokio::time::timeout(LIMIT, ask(stream, whom, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(unreachable(whom, "no answer in time")),
    }
}

async fn ask<S>(stream: S, whom: &str, path: &str) -> Result<Value, Failure>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| unreachable(whom, &error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, "karst")
        .body(Empty::<Bytes>::new())
        .map_err(|e| Failure::failed("request", e.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
    let body = body
        .map_err(|error| unreachable(whom, &error.to_string()))?
        .to_bytes();
    let value: Value = serde_json::from_slice(&body)
        .map_err(|e| unreachable(whom, &format!("the answer is not JSON: {e}")))?;
    if status.is_success() {
        return Ok(value);
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let message = format!("{whom} answered {status}: {}", text("error"));
    // An older agent or waypoint, which does not have the page.
    if status == http::StatusCode::NOT_FOUND {
        return Err(Failure::unsupported(message));
    }
    Err(Failure::failed(text("reason"), message))
}

fn unreachable(whom: &str, why: &str) -> Failure {
    Failure {
        kind: Kind::Unreachable,
        reason: "unreachable".to_owned(),
        message: format!("{whom} does not answer: {why}"),
    }
}
