//! A client that asks much and tells who answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use crate::client::{Target, addresses, input_lines};
use crate::http_client::header;
use crate::http_server::grpc_frame;

/// The limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Width of a step of the timeline.
const STEP: Duration = Duration::from_millis(100);
/// Different failures that are told.
const MAX_FAILURES: usize = 20;

/// Arguments of `load`.
#[derive(clap::Args)]
pub struct Load {
    #[command(flatten)]
    target: Target,
    /// How many requests in all.
    #[arg(long, default_value_t = 1000)]
    requests: u64,
    /// Requests a second at most, over all connections; 0 for as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// How many connections, each with one request at a time.
    #[arg(long, default_value_t = 8)]
    connections: u64,
    /// Speak HTTP/2 (with prior knowledge).
    #[arg(long)]
    http2: bool,
    /// Call the gRPC echo service.
    #[arg(long, conflicts_with_all = ["http2", "path"])]
    grpc: bool,
    /// The path to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// A header to send, `NAME: VALUE`; repeatable.
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Ask no more once standard input has ended.
    #[arg(long)]
    until_eof: bool,
}

/// What one connection's requests came to.
#[derive(Default)]
struct Tally {
    made: u64,
    statuses: BTreeMap<String, u64>,
    pods: BTreeMap<String, u64>,
    versions: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    /// By step, the answers of each version.
    timeline: BTreeMap<u64, BTreeMap<String, u64>>,
    micros: Vec<u64>,
}

struct Answer {
    status: String,
    pod: String,
    version: String,
}

struct Plan {
    load: Load,
    target: Vec<SocketAddr>,
    started: Instant,
    next: AtomicU64,
    ended: AtomicBool,
}

/// Sends the requests and tells what came back, and from whom.
pub async fn load(load: Load) -> Result<Value> {
    let plan = Arc::new(Plan {
        target: addresses(&load.target).await?,
        started: Instant::now(),
        next: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        load,
    });
    if plan.load.until_eof {
        let plan = plan.clone();
        tokio::spawn(async move {
            let mut lines = input_lines();
            while lines.recv().await.is_some() {}
            plan.ended.store(true, Ordering::Relaxed);
        });
    }
    let connections = (0..plan.load.connections).map(|_| tokio::spawn(connection(plan.clone())));
    let connections: Vec<_> = connections.collect();
    let mut all = Tally::default();
    for connection in connections {
        all.add(connection.await?);
    }
    all.micros.sort_unstable();
    let at = |percent: usize| {
        let last = all.micros.len().saturating_sub(1);
        all.micros.get(last * percent / 100).copied().unwrap_or(0)
    };
    let failed: u64 = all.failures.values().sum();
    let failures: BTreeMap<_, _> = all.failures.iter().take(MAX_FAILURES).collect();
    Ok(json!({
        "ok": failed == 0,
        "requests": all.made,
        "failed": failed,
        "failures": failures,
        "statuses": all.statuses,
        "pods": all.pods,
        "versions": all.versions,
        "timeline_step_ms": STEP.as_millis(),
        "timeline": all.timeline,
        "micros": {"p50": at(50), "p99": at(99), "max": at(100)},
        "seconds": plan.started.elapsed().as_secs_f64(),
    }))
}

/// Asks on one connection, and on another one when that ends.
async fn connection(plan: Arc<Plan>) -> Tally {
    let mut tally = Tally::default();
    let mut sender = None;
    loop {
        let number = plan.next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.load.requests || plan.ended.load(Ordering::Relaxed) {
            return tally;
        }
        if let Some(at) = (number * 1_000_000).checked_div(plan.load.rate) {
            sleep_until((plan.started + Duration::from_micros(at)).into()).await;
        }
        let begun = Instant::now();
        let asked = timeout(REQUEST_LIMIT, ask(&plan, &mut sender)).await;
        let answer = asked.context("no answer in time").and_then(|answer| answer);
        if answer.is_err() {
            sender = None;
        }
        tally.note(&plan, answer, begun.elapsed());
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

async fn ask(plan: &Plan, sender: &mut Option<Sender>) -> Result<Answer> {
    let usable = match sender {
        Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
        Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
        None => false,
    };
    if !usable {
        *sender = Some(open(plan).await?);
    }
    let request = request(plan)?;
    let response = match sender {
        Some(Sender::Http1(sender)) => sender.send_request(request).await,
        Some(Sender::Http2(sender)) => sender.send_request(request).await,
        None => bail!("no connection"),
    };
    let (parts, body) = response.context("request")?.into_parts();
    let body = body.collect().await.context("body")?;
    let text = |value: Option<&http::HeaderValue>| {
        let text = value.and_then(|value| value.to_str().ok());
        text.unwrap_or_default().to_owned()
    };
    if plan.load.grpc {
        let in_trailers = body
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"));
        let status = in_trailers.or_else(|| parts.headers.get("grpc-status"));
        return Ok(Answer {
            status: text(status),
            pod: text(parts.headers.get("karst-test-pod")),
            version: String::new(),
        });
    }
    let page: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let of_page = |name: &str| page[name].as_str().unwrap_or_default().to_owned();
    Ok(Answer {
        status: parts.status.as_str().to_owned(),
        pod: of_page("pod"),
        version: of_page("app_version"),
    })
}

async fn open(plan: &Plan) -> Result<Sender> {
    let stream = TcpStream::connect(&*plan.target).await.context("connect")?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    if plan.load.http2 || plan.load.grpc {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        return Ok(Sender::Http2(sender));
    }
    let (sender, connection) = http1::handshake(io).await?;
    tokio::spawn(connection);
    Ok(Sender::Http1(sender))
}

fn request(plan: &Plan) -> Result<Request<Full<Bytes>>> {
    let load = &plan.load;
    let address = &load.target.address;
    if load.grpc {
        let call = Request::post(format!("http://{address}/karst.test.Echo/Unary"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        return Ok(call.body(Full::new(grpc_frame(b"a message of no meaning")))?);
    }
    let mut request = match load.http2 {
        true => Request::get(format!("http://{address}{}", load.path)),
        false => Request::get(&load.path).header("host", address),
    };
    for (name, value) in &load.headers {
        request = request.header(name, value);
    }
    Ok(request.body(Full::default())?)
}

impl Tally {
    fn note(&mut self, plan: &Plan, answer: Result<Answer>, took: Duration) {
        self.made += 1;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                *self.failures.entry(format!("{error:#}")).or_default() += 1;
                return;
            }
        };
        self.micros
            .push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let elapsed = plan.started.elapsed().as_millis() / STEP.as_millis();
        let step = self
            .timeline
            .entry(u64::try_from(elapsed).unwrap_or(u64::MAX));
        *step.or_default().entry(answer.version.clone()).or_default() += 1;
        let good = if plan.load.grpc { "0" } else { "200" };
        if answer.status != good {
            *self
                .failures
                .entry(format!("status {}", answer.status))
                .or_default() += 1;
        }
        *self.statuses.entry(answer.status).or_default() += 1;
        *self.pods.entry(answer.pod).or_default() += 1;
        *self.versions.entry(answer.version).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        self.made += other.made;
        self.micros.extend(other.micros);
        for (mine, theirs) in [
            (&mut self.statuses, other.statuses),
            (&mut self.pods, other.pods),
            (&mut self.versions, other.versions),
            (&mut self.failures, other.failures),
        ] {
            sum(mine, theirs);
        }
        for (step, versions) in other.timeline {
            sum(self.timeline.entry(step).or_default(), versions);
        }
    }
}

fn sum(to: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>) {
    for (name, count) in from {
        *to.entry(name).or_default() += count;
    }
}
