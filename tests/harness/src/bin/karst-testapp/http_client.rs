//! HTTP and gRPC clients.

use std::time::Instant;

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
use crate::client_spans::{self, ClientSpan, TRACEPARENT};
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
    /// The method; without it POST where there is a body, else GET.
    #[arg(long)]
    method: Option<String>,
    /// Send this body.
    #[arg(long)]
    body: Option<String>,
    /// A header to send, `NAME: VALUE`; repeatable.
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    /// How many requests, one after the other on one connection.
    #[arg(long, default_value_t = 1)]
    requests: u32,
    /// Begin a trace with each request, pass it on as `traceparent`, and export the client's spans by OTLP over gRPC
    /// to the collector at this host:port.
    #[arg(long, value_name = "HOST:PORT")]
    otlp: Option<String>,
}

impl Http {
    /// The method that requests have.
    fn method(&self) -> &str {
        let usual = if self.body.is_some() { "POST" } else { "GET" };
        self.method.as_deref().unwrap_or(usual)
    }

    fn has_header(&self, name: &str) -> bool {
        let mut headers = self.headers.iter();
        headers.any(|(its_name, _)| its_name.eq_ignore_ascii_case(name))
    }

    /// A span for the next request, if spans are asked for.
    fn span(&self) -> Result<Option<ClientSpan>> {
        if self.otlp.is_none() {
            return Ok(None);
        }
        ensure!(
            !self.has_header(TRACEPARENT),
            "--otlp sends a {TRACEPARENT} of its own; leave the header out"
        );
        Ok(Some(ClientSpan::begin(self.method())))
    }
}

/// `NAME: VALUE` in its parts.
pub fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Sends requests and tells the last answer.
pub async fn http(http: &Http) -> Result<Value> {
    let stream = dial(&http.target).await?;
    let local = stream.local_addr()?;
    let (mut last, mut spans, mut traces) = (None, Vec::new(), Vec::new());
    let mut end = |span: Option<ClientSpan>, answer: Answer| -> Result<()> {
        if let Some(span) = span {
            traces.push(span.traceparent());
            spans.push(span.end(answer.0)?);
        }
        last = Some(answer);
        Ok(())
    };
    if http.http2 {
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for _ in 0..http.requests {
            let span = http.span()?;
            let request = request(http, Version::HTTP_2, span.as_ref())?;
            end(span, read(sender.send_request(request).await?).await?)?;
        }
    } else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for _ in 0..http.requests {
            sender.ready().await?;
            let span = http.span()?;
            let request = request(http, Version::HTTP_11, span.as_ref())?;
            end(span, read(sender.send_request(request).await?).await?)?;
        }
    }
    if let Some(collector) = &http.otlp {
        client_spans::export(collector, spans).await?;
    }
    let (status, headers, body) = last.context("no request was asked for")?;
    let page = serde_json::from_str(&body).unwrap_or(Value::String(body));
    Ok(
        json!({"ok": status < 400, "status": status, "headers": headers, "page": page, "getsockname": local, "traceparents": traces}),
    )
}

/// Reads a page that comes bit by bit, and tells when each bit came.
pub async fn events(http: &Http) -> Result<Value> {
    ensure!(http.otlp.is_none(), "--otlp is for `http` alone");
    let stream = dial(&http.target).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let begun = Instant::now();
    let response = sender
        .send_request(request(http, Version::HTTP_11, None)?)
        .await?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut arrivals = Vec::new();
    while let Some(frame) = body.frame().await {
        if frame?.is_data() {
            arrivals.push(begun.elapsed().as_millis());
        }
    }
    Ok(json!({"ok": status < 400, "status": status, "arrivals_ms": arrivals}))
}

fn request(
    http: &Http,
    version: Version,
    span: Option<&ClientSpan>,
) -> Result<Request<Full<Bytes>>> {
    let body = http.body.clone().unwrap_or_default();
    let address = &http.target.address;
    let mut request = Request::builder()
        .method(http.method())
        .version(version)
        .uri(if version == Version::HTTP_2 {
            format!("http://{address}{}", http.path)
        } else {
            http.path.clone()
        });
    if version != Version::HTTP_2 && !http.has_header("host") {
        request = request.header("host", address);
    }
    for (name, value) in &http.headers {
        request = request.header(name, value);
    }
    if let Some(span) = span {
        request = request.header(TRACEPARENT, span.traceparent());
    }
    Ok(request.body(Full::new(Bytes::from(body)))?)
}

/// Status, headers and body.
type Answer = (u16, Value, String);

async fn read(response: Response<Incoming>) -> Result<Answer> {
    let status = response.status().as_u16();
    let headers: serde_json::Map<String, Value> = response
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                json!(String::from_utf8_lossy(value.as_bytes())),
            )
        })
        .collect();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((
        status,
        Value::Object(headers),
        String::from_utf8_lossy(&body).into_owned(),
    ))
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
