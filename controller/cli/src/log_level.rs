//! `karst log-level`: the level of the log of an agent, by its admin socket, or of a waypoint, by its admin port.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::args::LogLevel;
use crate::failure::Failure;
use crate::kernel;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Shows or sets the level; returns what to print.
///
/// # Errors
/// Nobody answers, or the level is refused.
pub fn run(args: &LogLevel) -> Result<String, Failure> {
    let (method, path) = request(args);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("runtime", error.to_string()))?;
    let asked = async {
        match args.waypoint {
            Some(address) => {
                let stream = TcpStream::connect(address).await;
                let stream = stream.map_err(|error| silent(&address.to_string(), &error))?;
                ask(stream, method, &path).await
            }
            None => {
                let socket = socket(args)?;
                let stream = UnixStream::connect(&socket).await;
                let stream =
                    stream.map_err(|error| silent(&socket.display().to_string(), &error))?;
                ask(stream, method, &path).await
            }
        }
    };
    let state = runtime.block_on(async { tokio::time::timeout(LIMIT, asked).await });
    let state = state.map_err(|_| Failure::failed("admin_unreachable", "no answer in time"))??;
    Ok(text(args, &state))
}

fn request(args: &LogLevel) -> (Method, String) {
    let Some(level) = &args.level else {
        return (Method::GET, "/v1/logging".to_owned());
    };
    let mut path = format!("/v1/logging?level={}", percent(level));
    if let Some(lasts) = &args.lasts {
        path.push_str("&for=");
        path.push_str(&percent(lasts));
    }
    (Method::PUT, path)
}

fn socket(args: &LogLevel) -> Result<PathBuf, Failure> {
    if let Some(socket) = &args.admin_socket {
        return Ok(socket.clone());
    }
    let node = kernel::node(&args.bpffs_root, args.node.as_deref())?;
    Ok(PathBuf::from("/run/karst")
        .join(node)
        .join("admin/agent.sock"))
}

async fn ask<S>(stream: S, method: Method, path: &str) -> Result<Value, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| Failure::failed("admin_unreachable", error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "karst")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::failed("request", error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(broken)?;
    let value: Value = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Failure::failed("admin_unreachable", format!("no JSON: {error}")))?;
    if status.is_success() {
        return Ok(value);
    }
    let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Err(Failure::failed(field("reason"), field("error")))
}

fn silent(who: &str, error: &std::io::Error) -> Failure {
    let hint = "is it running, and are you root?";
    Failure::failed(
        "admin_unreachable",
        format!("nobody answers at {who}: {error} ({hint})"),
    )
}

fn text(args: &LogLevel, state: &Value) -> String {
    if args.output.pretty {
        return format!("{state:#}\n");
    }
    if args.output.json {
        return format!("{state}\n");
    }
    let mut text = state["level"].as_str().unwrap_or_default().to_owned();
    if let Some(left) = state["seconds_left"].as_u64() {
        let default = state["default_level"].as_str().unwrap_or_default();
        // A String takes all that is written to it.
        let _ = write!(text, ", for {left} s more; then {default}");
    }
    text.push('\n');
    text
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() {
            all.push(char::from(byte));
        } else {
            // A String takes all that is written to it.
            let _ = write!(all, "%{byte:02X}");
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::{request, text};
    use crate::args::{Cli, Command, LogLevel};

    fn parse(args: &[&str]) -> LogLevel {
        let args = ["karst", "log-level"].iter().chain(args);
        match Cli::try_parse_from(args).expect("parses").command {
            Command::LogLevel(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_request_says_what_is_wanted() {
        let (method, path) = request(&parse(&[]));
        assert_eq!((method.as_str(), path.as_str()), ("GET", "/v1/logging"));
        let (method, path) = request(&parse(&["info,karst=debug", "--for", "10m"]));
        assert_eq!(method, "PUT");
        assert_eq!(path, "/v1/logging?level=info%2Ckarst%3Ddebug&for=10m");
        for wrong in [&["--for", "10m"][..], &["--waypoint", "web"]] {
            let args = ["karst", "log-level"].iter().chain(wrong);
            assert!(Cli::try_parse_from(args).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_level_is_shown_with_its_end() {
        let state = json!({"level": "debug", "default_level": "info", "seconds_left": 599});
        assert_eq!(
            text(&parse(&[]), &state),
            "debug, for 599 s more; then info\n"
        );
        let state = json!({"level": "info", "default_level": "info", "seconds_left": null});
        assert_eq!(text(&parse(&[]), &state), "info\n");
        assert_eq!(text(&parse(&["-j"]), &state), format!("{state}\n"));
    }
}
