//! Asks the agent through its admin socket.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::failure::Failure;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// GET `path`, which answers with JSON.
///
/// # Errors
/// There is no agent, or it answers with an error.
pub fn get(socket: &Path, path: &str) -> Result<Value, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed("runtime", e.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(LIMIT, ask(socket, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(unreachable(socket, "no answer in time")),
        }
    })
}

async fn ask(socket: &Path, path: &str) -> Result<Value, Failure> {
    let broken = |error: hyper::Error| unreachable(socket, &error.to_string());
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| unreachable(socket, &e.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, "karst")
        .body(Empty::<Bytes>::new())
        .map_err(|e| Failure::failed("request", e.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    let value: Value = serde_json::from_slice(&body)
        .map_err(|e| unreachable(socket, &format!("the answer is not JSON: {e}")))?;
    if status.is_success() {
        return Ok(value);
    }
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    Err(Failure::failed(
        text("reason"),
        format!("the agent answered {status}: {}", text("error")),
    ))
}

fn unreachable(socket: &Path, why: &str) -> Failure {
    let message = format!(
        "no agent at {}: {why} (is it running, and are you root?)",
        socket.display()
    );
    Failure::failed("agent_unreachable", message)
}
