//! HTTP and gRPC clients.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::client::{Target, addresses};
use crate::http_server::grpc_frame;

/// Arguments of `http`.
#[derive(clap::Args)]
pub struct Http {
    #[command(flatten)]
    target: Target,
    /// The path to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// Speak HTTP/2 (with prior knowledge).
    #[arg(long)]
    http2: bool,
    /// Send this body with POST.
    #[arg(long)]
    body: Option<String>,
    /// How many requests, one after the other on one connection.
    #[arg(long, default_value_t = 1)]
    requests: u32,
}

/// Sends requests and tells the last answer.
pub async fn http(http: &Http) -> Result<Value> {
    let stream = dial(&http.target).await?;
    let local = stream.local_addr()?;
    let mut last = None;
    if http.http2 {
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for _ in 0..http.requests {
            last = Some(read(sender.send_request(request(http, Version::HTTP_2)?).await?).await?);
        }
    } else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for _ in 0..http.requests {
            sender.ready().await?;
            last = Some(
                read(
                    sender
                        .send_request(request(http, Version::HTTP_11)?)
                        .await?,
                )
                .await?,
            );
        }
    }
    let (status, body) = last.context("no request was asked for")?;
    let page = serde_json::from_str(&body).unwrap_or(Value::String(body));
    Ok(json!({"ok": status < 400, "status": status, "page": page, "getsockname": local}))
}

fn request(http: &Http, version: Version) -> Result<Request<Full<Bytes>>> {
    let body = http.body.clone().unwrap_or_default();
    let address = &http.target.address;
    let mut request = Request::builder()
        .method(if http.body.is_some() { "POST" } else { "GET" })
        .version(version)
        .uri(if version == Version::HTTP_2 {
            format!("http://{address}{}", http.path)
        } else {
            http.path.clone()
        });
    if version != Version::HTTP_2 {
        request = request.header("host", address);
    }
    Ok(request.body(Full::new(Bytes::from(body)))?)
}

async fn read(response: Response<Incoming>) -> Result<(u16, String)> {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Calls the echo service's methods and checks messages and trailers.
pub async fn grpc(target: &Target) -> Result<Value> {
    let stream = dial(target).await?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let frame = grpc_frame(b"a message of no meaning");
    let mut counts = Vec::new();
    for method in ["Unary", "Stream"] {
        let request = Request::post(format!(
            "http://{}/karst.test.Echo/{method}",
            target.address
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(frame.clone()))?;
        let body = sender
            .send_request(request)
            .await?
            .into_body()
            .collect()
            .await?;
        let status = body
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .cloned();
        ensure!(
            status.is_some_and(|status| status == "0"),
            "{method} ended without status 0"
        );
        let data = body.to_bytes();
        ensure!(
            data.chunks(frame.len()).all(|chunk| chunk == frame),
            "{method}: another message"
        );
        counts.push(data.len() / frame.len());
    }
    Ok(json!({"ok": true, "unary": counts[0], "stream": counts[1]}))
}

async fn dial(target: &Target) -> Result<TcpStream> {
    let address = addresses(target).await?;
    TcpStream::connect(&*address).await.context("connecting")
}
