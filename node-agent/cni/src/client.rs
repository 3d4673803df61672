//! One HTTP/1.1 exchange with the agent, bounded in time and size.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::CniError;
use crate::wire::{ENROL_WAIT, POD_WAIT, Refused};

/// Wait for an answer to an ADD: what the agent grants itself, and some seconds.
pub const ADD_LIMIT: Duration = POD_WAIT
    .saturating_add(ENROL_WAIT)
    .saturating_add(Duration::from_secs(5));

/// Wait for any other answer, which the agent gives at once.
pub const QUICK_LIMIT: Duration = Duration::from_secs(10);

/// How long an ADD looks for an agent that is just being replaced. A pod that fails is tried
/// again by the kubelet, but with an event that alarms people.
pub const AGENT_WAIT: Duration = Duration::from_secs(5);

/// Between two looks.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// Largest answer read, in bytes: an answer has a line.
const MAX_ANSWER: u64 = 64 << 10;

/// What the agent answered.
#[derive(Debug)]
pub enum Answer {
    /// The body of a 200.
    Ok(Vec<u8>),
    /// Anything else.
    Refused(Refused),
}

/// How long to try.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection to the agent.
    pub agent: Duration,
    /// For all of it.
    pub total: Duration,
}

/// Sends `body` to the agent and gives its answer.
///
/// # Errors
/// Nobody is there, or no answer comes in time.
pub fn post<T: Serialize>(
    socket: &Path,
    path: &'static str,
    body: &T,
    limits: Limits,
) -> Result<Answer, CniError> {
    let body = serde_json::to_vec(body).map_err(|e| CniError::Internal(e.to_string()))?;
    let (done, answer) = mpsc::channel();
    let target = socket.to_owned();
    // On a thread of its own: a connect to a socket whose owner is stopped has no time limit.
    // When ours is over the process ends, and the thread with it.
    thread::Builder::new()
        .name("exchange".to_owned())
        .spawn(move || {
            let outcome = exchange(&target, path, &body, limits);
            // The asker may have given up.
            let _ = done.send(outcome);
        })
        .map_err(|e| CniError::Internal(e.to_string()))?;
    match answer.recv_timeout(limits.total) {
        Ok(outcome) => outcome,
        Err(_) => Err(CniError::Timeout {
            socket: socket.to_owned(),
            limit: limits.total,
        }),
    }
}

fn exchange(socket: &Path, path: &str, body: &[u8], limits: Limits) -> Result<Answer, CniError> {
    let mut lost = Instant::now();
    loop {
        let asked = Instant::now();
        let error = match attempt(socket, path, body) {
            Ok(answer) => return parse(&answer),
            Err(error) => error,
        };
        if asked.elapsed() > RETRY_EVERY {
            // It was there, and went while we waited for its answer.
            lost = Instant::now();
        }
        if !is_passing(&error) || lost.elapsed() >= limits.agent {
            return Err(CniError::Unreachable {
                socket: socket.to_owned(),
                source: error,
            });
        }
        thread::sleep(RETRY_EVERY);
    }
}

/// What an agent that is being replaced looks like. Asking twice does no harm.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

fn attempt(socket: &Path, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    // In one piece: an agent that answers before it has read all would break our second write.
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: karst\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without an answer",
        ));
    }
    Ok(answer)
}

/// An answer that ends with the connection and says how long it is.
fn parse(answer: &[u8]) -> Result<Answer, CniError> {
    let bad = |problem: &str| CniError::Answer(problem.to_owned());
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(|| bad("no HTTP head"))?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| bad("the head is no text"))?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| bad("no HTTP status"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .ok_or_else(|| bad("no content length"))?;
    let body = answer
        .get(end + 4..)
        .and_then(|body| body.get(..length))
        .ok_or_else(|| bad("it is cut short"))?;
    if status == 200 {
        return Ok(Answer::Ok(body.to_vec()));
    }
    let refused = serde_json::from_slice(body).unwrap_or_else(|_| Refused {
        reason: format!("http_{status}"),
        error: String::from_utf8_lossy(body).trim().to_owned(),
    });
    Ok(Answer::Refused(refused))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::{Answer, Limits, parse, post};
    use crate::error::CniError;

    const SHORT: Limits = Limits {
        agent: Duration::from_millis(300),
        total: Duration::from_millis(900),
    };

    /// For what comes, though the machine be busy.
    const LONG: Limits = Limits {
        agent: Duration::from_secs(30),
        total: Duration::from_secs(60),
    };

    #[test]
    fn answers_are_read_and_garbage_is_not() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert!(matches!(parse(ok), Ok(Answer::Ok(body)) if body == b"{}"));
        let refused =
            b"HTTP/1.1 503 X\r\nContent-Length: 27\r\n\r\n{\"reason\":\"r\",\"error\":\"e\"} ";
        assert!(matches!(parse(refused), Ok(Answer::Refused(r)) if r.reason == "r"));
        let plain = b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\nno";
        assert!(matches!(parse(plain), Ok(Answer::Refused(r)) if r.reason == "http_404"));
        for bad in [
            &b""[..],
            b"nonsense",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
            b"\xff\xff\r\n\r\n",
        ] {
            assert!(matches!(parse(bad), Err(CniError::Answer(_))), "{bad:?}");
        }
    }

    #[test]
    fn an_absent_agent_is_looked_for_and_then_told() {
        let limits = Limits {
            agent: SHORT.agent,
            ..LONG
        };
        let started = Instant::now();
        let error = post(Path::new("/nowhere/cni.sock"), "/x", &(), limits).expect_err("nobody");
        assert!(matches!(error, CniError::Unreachable { .. }), "{error}");
        assert!(started.elapsed() >= SHORT.agent);
    }

    #[test]
    fn an_agent_that_comes_back_is_met() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("s");
        let path = socket.clone();
        let server = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            let listener = UnixListener::bind(path).expect("bind");
            let (mut stream, _) = listener.accept().expect("accept");
            let mut seen = [0; 512];
            let read = stream.read(&mut seen).expect("read");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            String::from_utf8_lossy(&seen[..read]).into_owned()
        });
        let answer = post(&socket, "/v1/x", &(), LONG).expect("answered");
        assert!(matches!(answer, Answer::Ok(_)));
        let seen = server.join().expect("joined");
        assert!(
            seen.starts_with("POST /v1/x HTTP/1.1\r\nHost: karst\r\n"),
            "{seen}"
        );
    }

    #[test]
    fn an_agent_that_hands_over_late_is_as_good_as_one_that_does_early() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = thread::spawn(move || {
            // The first agent waits for the pod for longer than an agent is looked for.
            let (first, _) = listener.accept().expect("accept");
            thread::sleep(SHORT.agent + Duration::from_millis(50));
            drop(first);
            let (mut second, _) = listener.accept().expect("asked again");
            let _ = second.read(&mut [0; 512]);
            let _ = second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        });
        let limits = Limits {
            agent: SHORT.agent,
            ..LONG
        };
        let answer = post(&socket, "/v1/x", &(), limits).expect("answered");
        assert!(matches!(answer, Answer::Ok(_)));
        server.join().expect("joined");
    }

    #[test]
    fn an_agent_that_says_nothing_is_given_up() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).expect("bind");
        let error = post(&socket, "/x", &(), SHORT).expect_err("silence");
        assert!(matches!(error, CniError::Timeout { .. }), "{error}");
    }
}
