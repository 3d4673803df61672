//! Who is asked, and the lines that come.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::args::Sources;
use crate::failure::Failure;
use crate::kernel;

/// Longest wait for a connection and for the head of an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Longest wait for the next line: twice what passes between two `status` lines, with room for a busy machine.
const SILENCE: Duration = Duration::from_secs(30);

/// Longest line, bytes. Events have some hundred, and a few fields of 2 KiB at most.
const MAX_LINE: usize = 256 << 10;

/// Longest answer that is read at once, bytes: some hundred thousand live connections.
const MAX_ANSWER: usize = 256 << 20;

/// Where events come from. What reaches an agent or a waypoint in another way, such as through the API server, is
/// a variant here that opens its own stream for [`exchange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The node's agent, by its admin socket.
    Agent(PathBuf),
    /// A waypoint or gateway, by its admin port.
    Waypoint(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(socket) => write!(f, "the agent at {}", socket.display()),
            Self::Waypoint(address) => write!(f, "the waypoint at {address}"),
        }
    }
}

impl Source {
    /// Everybody whom the arguments name.
    ///
    /// # Errors
    /// There is no agent here, or several and none is named.
    pub fn all(args: &Sources) -> Result<Vec<Self>, Failure> {
        let waypoints = args.waypoints.iter().cloned().map(Self::Waypoint);
        let mut all: Vec<_> = waypoints.collect();
        if all.is_empty() || args.agent {
            all.insert(0, Self::Agent(socket(args)?));
        }
        Ok(all)
    }

    /// Whether it is a node agent, which sees connections and no HTTP.
    pub fn is_agent(&self) -> bool {
        matches!(self, Self::Agent(_))
    }

    /// Opens `path`, whose answer is lines without an end.
    ///
    /// # Errors
    /// Nobody answers, or with an error.
    pub async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let body = self.ask(path).await?;
        Ok(Lines {
            source: self.to_string(),
            body,
            buffer: BytesMut::new(),
        })
    }

    /// The document at `path`.
    ///
    /// # Errors
    /// Nobody answers, or with an error.
    pub async fn document(&self, path: &str) -> Result<Value, Failure> {
        let body = self.ask(path).await?;
        let read = async {
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let bytes = body.map_err(|error| self.broken(error))?.to_bytes();
            serde_json::from_slice(&bytes).map_err(|error| self.broken(error))
        };
        match tokio::time::timeout(ANSWER, read).await {
            Ok(value) => value,
            Err(_) => Err(self.broken("no answer in time")),
        }
    }

    async fn ask(&self, path: &str) -> Result<Incoming, Failure> {
        let asked = async {
            match self {
                Self::Agent(socket) => match UnixStream::connect(socket).await {
                    Ok(stream) => exchange(self, stream, path).await,
                    Err(error) => Err(self.unreachable(error)),
                },
                Self::Waypoint(address) => match TcpStream::connect(address).await {
                    Ok(stream) => exchange(self, stream, path).await,
                    Err(error) => Err(self.unreachable(error)),
                },
            }
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable("no answer in time")),
        }
    }

    fn unreachable(&self, why: impl fmt::Display) -> Failure {
        let (reason, hint) = match self {
            Self::Agent(_) => ("agent_unreachable", "is it running, and are you root?"),
            Self::Waypoint(_) => (
                "waypoint_unreachable",
                "its admin port is on loopback inside its pod: run this there, or name the local end of a port-forward",
            ),
        };
        Failure::failed(reason, format!("cannot ask {self}: {why} ({hint})"))
    }

    fn broken(&self, why: impl fmt::Display) -> Failure {
        Failure::failed("stream_broken", format!("{self}: {why}"))
    }
}

/// Asks for `path` over a stream to `source`.
async fn exchange<S>(source: &Source, stream: S, path: &str) -> Result<Incoming, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let unreachable = |error: hyper::Error| source.unreachable(error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(unreachable)?;
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, "karst")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::failed("request", error.to_string()))?;
    let response = sender.send_request(request).await.map_err(unreachable)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response.into_body());
    }
    let body = Limited::new(response.into_body(), MAX_LINE).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    let message = format!("{source} answered {status}: {}", text("error"));
    if status == StatusCode::BAD_REQUEST {
        return Err(Failure::usage(message));
    }
    if status == StatusCode::NOT_FOUND {
        let message = format!("{source} does not know {path}: is it of an older version?");
        return Err(Failure::failed("not_supported", message));
    }
    Err(Failure::failed(text("reason"), message))
}

/// Lines that come one after the other.
#[derive(Debug)]
pub struct Lines {
    source: String,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line without its end; `None` at the end of all.
    ///
    /// # Errors
    /// The stream broke off, or nothing came for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let broken = |source: &str, why: &dyn fmt::Display| {
            Failure::failed("stream_broken", format!("{source}: {why}"))
        };
        let mut looked_at = 0;
        loop {
            let end = self.buffer[looked_at..].iter().position(|b| *b == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(looked_at + end).freeze();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            looked_at = self.buffer.len();
            if looked_at > MAX_LINE {
                return Err(broken(&self.source, &"a line is too long"));
            }
            match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(error))) => {
                    return Err(broken(
                        &self.source,
                        &format_args!("the stream broke off: {error}"),
                    ));
                }
                Ok(None) => return Ok(None),
                Err(_) => return Err(broken(&self.source, &"nothing came for 30 s")),
            }
        }
    }
}

fn socket(args: &Sources) -> Result<PathBuf, Failure> {
    if let Some(socket) = &args.admin_socket {
        return Ok(socket.clone());
    }
    let node = kernel::node(&args.bpffs_root, args.node.as_deref()).map_err(|mut failure| {
        failure.message += "; this command asks the agent of the node that it runs on, or waypoints by \
                            --waypoint: reaching them through the API server is not possible yet";
        failure
    })?;
    let folder = Path::new("/run/karst").join(node);
    Ok(folder.join("admin").join("agent.sock"))
}
