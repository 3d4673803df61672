//! Asks agents and waypoints: whom, by which way, and the one exchange of HTTP that all commands make with them.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::args::{Kubernetes, NodeArgs};
use crate::cluster;
use crate::failure::{Failure, Kind};
use crate::inspect::place::{self, Local};
use crate::inspect::remote::{self, Forward, Node, Target};

/// Longest wait for a connection and the head of an answer, and then for its body, on this machine.
const LIMIT: Duration = Duration::from_secs(10);

/// The same through the API server, which is asked for pods first.
const FAR_LIMIT: Duration = Duration::from_secs(60);

/// Longest wait for what a command on a node says about its end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Largest page: the workloads of a large mesh take a tenth of it.
const MAX_PAGE: usize = 256 << 20;

/// Largest page that tells of an error.
const MAX_ERROR: usize = 256 << 10;

/// Both ways of a connection.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection to an agent or a waypoint.
pub struct Stream {
    io: Box<dyn Io>,
    /// What lives as long as the connection.
    held: Option<Box<dyn Any + Send>>,
    /// What the command at the other end said when it ended.
    said: Option<JoinHandle<String>>,
}

impl Stream {
    /// A connection without more.
    pub fn new(io: impl Io + 'static) -> Self {
        Self {
            io: Box::new(io),
            held: None,
            said: None,
        }
    }

    /// One that lasts as long as `held` does.
    pub fn holding(self, held: impl Any + Send) -> Self {
        Self {
            held: Some(Box::new(held)),
            ..self
        }
    }

    /// One that a command passes on, which says in the end what went wrong.
    pub fn with_last_words(self, said: JoinHandle<String>) -> Self {
        Self {
            said: Some(said),
            ..self
        }
    }
}

/// Who is asked.
#[derive(Clone, Debug)]
pub enum Source {
    /// An agent, by its admin socket.
    Agent(PathBuf),
    /// A waypoint or gateway, by its admin port.
    Waypoint(String),
    /// The agent of a node, through the API server.
    Node(Node),
    /// A waypoint or gateway, through the API server.
    Forward(Forward),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(socket) => write!(f, "the agent at {}", socket.display()),
            Self::Waypoint(address) => write!(f, "the waypoint at {address}"),
            Self::Node(node) => write!(f, "the agent of {}", node.name()),
            Self::Forward(forward) => write!(f, "the waypoint {forward}"),
        }
    }
}

impl Source {
    /// Whom the arguments name: a waypoint by its pod, else a node's agent.
    ///
    /// # Errors
    /// There is no such pod, nothing is named and this machine has no node or several, or the cluster cannot be
    /// asked.
    pub fn find(args: &NodeArgs, kubernetes: &Kubernetes) -> Result<Self, Failure> {
        let node = match &args.pod {
            Some(pod) => match remote::target(kubernetes, pod, true)? {
                Target::Waypoint(forward) => return Ok(Self::Forward(forward)),
                Target::Node(node) => Some(node),
            },
            None => args.node.clone(),
        };
        match node {
            Some(node) if !place::is_here(args, &node) => {
                Ok(Self::Node(Node::new(kubernetes.clone(), node)))
            }
            node => Ok(Self::Agent(Local::new(args, node).socket()?)),
        }
    }

    /// Whether it is a node agent, which sees connections and no HTTP.
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::Node(_))
    }

    /// A page, which is JSON.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn page(&self, path: &str) -> Result<Value, Failure> {
        cluster::run(self.document(Method::GET, path))
    }

    /// The document that answers.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub async fn document(&self, method: Method, path: &str) -> Result<Value, Failure> {
        let stream = self.open(method, path).await?;
        self.read(stream).await
    }

    /// The document at a path, asked for over a connection that is there already.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub async fn document_over(&self, stream: Stream, path: &str) -> Result<Value, Failure> {
        let body = self.open_over(stream, path).await?;
        self.read(body).await
    }

    /// The body of an answer that is no error, likewise.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub async fn open_over(&self, stream: Stream, path: &str) -> Result<Incoming, Failure> {
        let asked = self.exchange(stream, Method::GET, path);
        self.in_time(asked).await
    }

    async fn read(&self, body: Incoming) -> Result<Value, Failure> {
        let read = async {
            let body = Limited::new(body, MAX_PAGE).collect().await;
            let bytes = body.map_err(|error| self.unreachable(error))?.to_bytes();
            let no_json = |error| self.unreachable(format_args!("the answer is not JSON: {error}"));
            serde_json::from_slice(&bytes).map_err(no_json)
        };
        self.in_time(read).await
    }

    /// The body of an answer that is no error.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub async fn open(&self, method: Method, path: &str) -> Result<Incoming, Failure> {
        let asked = async {
            let stream = self.connect().await?;
            self.exchange(stream, method, path).await
        };
        self.in_time(asked).await
    }

    async fn in_time<T>(
        &self,
        doing: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = match self {
            Self::Agent(_) | Self::Waypoint(_) => LIMIT,
            Self::Node(_) | Self::Forward(_) => FAR_LIMIT,
        };
        match tokio::time::timeout(limit, doing).await {
            Ok(done) => done,
            Err(_) => Err(self.unreachable("no answer in time")),
        }
    }

    async fn connect(&self) -> Result<Stream, Failure> {
        match self {
            Self::Agent(socket) => match UnixStream::connect(socket).await {
                Ok(stream) => Ok(Stream::new(stream)),
                Err(error) => Err(self.unreachable(error)),
            },
            Self::Waypoint(address) => match TcpStream::connect(address).await {
                Ok(stream) => Ok(Stream::new(stream)),
                Err(error) => Err(self.unreachable(error)),
            },
            Self::Node(node) => node.relay().await,
            Self::Forward(forward) => forward.stream().await,
        }
    }

    async fn exchange(
        &self,
        stream: Stream,
        method: Method,
        path: &str,
    ) -> Result<Incoming, Failure> {
        let Stream { io, held, said } = stream;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "karst")
            .body(Empty::<Bytes>::new())
            .map_err(|error| Failure::failed("request", error.to_string()))?;
        let sent = async {
            let io = TokioIo::new(io);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(async move {
                // How it ended is seen where the answer is read.
                let _ = connection.await;
                drop(held);
            });
            sender.send_request(request).await
        };
        let response = match sent.await {
            Ok(response) => response,
            Err(error) => {
                let said = match said {
                    Some(said) => tokio::time::timeout(LAST_WORDS, said).await,
                    None => return Err(self.unreachable(error)),
                };
                let said = said.ok().and_then(Result::ok);
                return Err(match said.filter(|said| !said.is_empty()) {
                    Some(said) => self.unreachable(said),
                    None => self.unreachable(error),
                });
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let body = Limited::new(response.into_body(), MAX_ERROR)
            .collect()
            .await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let told: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| told.get(key).and_then(Value::as_str).unwrap_or_default();
        let message = format!("{self} answered {status}: {}", text("error"));
        // An older agent or waypoint, which does not have the page.
        if status == StatusCode::NOT_FOUND {
            return Err(Failure::unsupported(message));
        }
        Err(Failure::failed(text("reason"), message))
    }

    /// The failure that it does not answer.
    pub fn unreachable(&self, why: impl fmt::Display) -> Failure {
        let hint = match self {
            Self::Agent(_) => " (is it running, and are you root?)",
            Self::Waypoint(_) => {
                " (its admin port is on loopback inside its pod: run this there, or name the pod with --pod)"
            }
            Self::Node(_) | Self::Forward(_) => "",
        };
        Failure {
            kind: Kind::Unreachable,
            reason: "unreachable".to_owned(),
            message: format!("{self} does not answer: {why}{hint}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    fn far() -> Source {
        Source::Node(Node::new(Kubernetes::default(), "worker-1".to_owned()))
    }

    async fn answer(mut end: DuplexStream, text: &str) -> DuplexStream {
        let mut request = [0; 1024];
        let read = end.read(&mut request).await.expect("a request");
        assert!(request[..read].starts_with(b"GET /v1/x HTTP/1.1\r\n"));
        end.write_all(text.as_bytes()).await.expect("writes");
        end
    }

    struct Flag(Arc<AtomicBool>);

    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_holds_a_connection_goes_with_its_answer() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let gone = Arc::new(AtomicBool::new(false));
        let stream = Stream::new(ours).holding(Flag(Arc::clone(&gone)));
        let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let source = far();
        let (body, _theirs) = tokio::join!(source.open_over(stream, "/v1/x"), answer(theirs, text));
        let body = body.expect("an answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!gone.load(Ordering::SeqCst), "while it is read");
        drop(body);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(gone.load(Ordering::SeqCst), "when nobody reads it any more");
    }

    #[tokio::test]
    async fn the_last_words_of_a_relay_say_why_there_is_no_answer() {
        let (ours, theirs) = tokio::io::duplex(1024);
        drop(theirs);
        let said = tokio::spawn(async { "no agent at /x".to_owned() });
        let stream = Stream::new(ours).with_last_words(said);
        let failure = far().document_over(stream, "/v1/x").await;
        let failure = failure.expect_err("nobody");
        assert_eq!(failure.kind, Kind::Unreachable);
        assert_eq!(
            failure.message,
            "the agent of worker-1 does not answer: no agent at /x"
        );
    }

    #[tokio::test]
    async fn errors_keep_their_reason() {
        let ask = async |text: &str| {
            let (ours, theirs) = tokio::io::duplex(1024);
            let source = far();
            let asked = source.document_over(Stream::new(ours), "/v1/x");
            let (found, _) = tokio::join!(asked, answer(theirs, text));
            found
        };
        let of = |status: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
        };
        let found = ask(&of("200 OK", "{\"a\": 1}")).await;
        assert_eq!(found, Ok(serde_json::json!({"a": 1})));
        let told = "{\"error\": \"no\", \"reason\": \"tap_full\"}";
        let failure = ask(&of("503 Service Unavailable", told)).await;
        let failure = failure.expect_err("refused");
        assert_eq!((failure.kind, &*failure.reason), (Kind::Failed, "tap_full"));
        let failure = ask(&of("404 Not Found", "")).await.expect_err("older");
        assert_eq!(failure.kind, Kind::Unsupported);
        let failure = ask(&of("200 OK", "{")).await.expect_err("no JSON");
        assert_eq!(failure.kind, Kind::Unreachable);
    }
}
