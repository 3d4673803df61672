//! An HTTP server for tests that answers what it is told to, as an API server could.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::StreamExt;

use super::Cluster;
use crate::metrics::Metrics;

impl Cluster {
    /// The server at an address.
    pub fn at(url: &str, metrics: Metrics) -> Self {
        let mut config = Config::new(url.parse().unwrap());
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        Self::new(client, "karst-system", metrics)
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub body: String,
}

impl Asked {
    /// For a list that is streamed.
    pub fn is_streaming_list(&self) -> bool {
        self.query.contains("sendInitialEvents=true")
    }

    /// For changes only.
    pub fn is_watch(&self) -> bool {
        self.query.contains("watch=true") && !self.is_streaming_list()
    }
}

/// What is answered.
pub struct Answer {
    status: u16,
    after: Duration,
    text: String,
    stays_open: bool,
}

impl Answer {
    /// Any text.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            after: Duration::ZERO,
            text: text.into(),
            stays_open: false,
        }
    }

    /// An object.
    pub fn json(value: &Value) -> Self {
        Self::text(200, value.to_string())
    }

    /// A refusal as the API server words it.
    pub fn refusal(code: u16, message: &str) -> Self {
        Self::text(code, status(code, message).to_string())
    }

    /// Events of a watch that goes on, silently.
    pub fn events(events: &[Value]) -> Self {
        let lines = events.iter().map(|event| format!("{event}\n"));
        Self {
            stays_open: true,
            ..Self::text(200, lines.collect::<String>())
        }
    }

    /// The same, and then it ends.
    pub fn ending(self) -> Self {
        Self {
            stays_open: false,
            ..self
        }
    }

    /// The same, later.
    pub fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }
}

/// A Status object.
pub fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        404 => "NotFound",
        _ => "Test",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

type Handler = Box<dyn FnMut(&Asked) -> Answer + Send>;

struct Shared {
    asked: Mutex<Vec<Asked>>,
    handler: Mutex<Handler>,
}

/// The server; it ends when it is dropped.
pub struct Fake {
    shared: Arc<Shared>,
    /// A client of it.
    pub cluster: Cluster,
    _task: JoinSet<()>,
}

impl Fake {
    /// Answers with what `handler` says.
    pub async fn start(handler: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            asked: Mutex::default(),
            handler: Mutex::new(Box::new(handler)),
        });
        let mut task = JoinSet::new();
        task.spawn(serve(listener, shared.clone()));
        Self {
            shared,
            cluster: Cluster::at(&url, Metrics::default()),
            _task: task,
        }
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// How often it was asked what `wanted` says.
    pub fn count(&self, wanted: impl Fn(&Asked) -> bool) -> usize {
        self.asked().iter().filter(|asked| wanted(asked)).count()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, &shared));
            // The client may go at any time.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tcp), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible> + use<>>, hyper::Error>
{
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let answer = (*lock(&shared.handler))(&asked);
    lock(&shared.asked).push(asked);
    tokio::time::sleep(answer.after).await;
    let first = tokio_stream::once(Ok(Frame::data(Bytes::from(answer.text))));
    let rest: std::pin::Pin<Box<dyn tokio_stream::Stream<Item = _> + Send>> =
        match answer.stays_open {
            true => Box::pin(tokio_stream::pending()),
            false => Box::pin(tokio_stream::empty()),
        };
    let response = Response::builder()
        .status(answer.status)
        .header("content-type", "application/json")
        .body(StreamBody::new(first.chain(rest)));
    Ok(response.unwrap())
}
