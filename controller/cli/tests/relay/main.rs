//! `karst relay` as it is run in an agent's container: bytes both ways, and an end with either end.

#![expect(clippy::expect_used, reason = "it is a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for an end.
const LIMIT: Duration = Duration::from_secs(10);

fn relay(socket: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_karst"))
        .arg("relay")
        .arg("--admin-socket")
        .arg(socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn end(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("asked") {
            return status;
        }
        if start.elapsed() > LIMIT {
            child.kill().expect("killed");
            child.wait().expect("gone");
            assert!(start.elapsed() < LIMIT, "the relay is still there");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A relay with an agent that has got a line and answered with one.
fn answered(folder: &Path) -> (Child, UnixStream) {
    let socket = folder.join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("listens");
    let mut child = relay(&socket);
    let (mut agent, _) = listener.accept().expect("a connection");
    let input = child.stdin.as_mut().expect("input");
    input.write_all(b"question\n").expect("writes");
    let mut line = String::new();
    BufReader::new(&agent).read_line(&mut line).expect("reads");
    assert_eq!(line, "question\n");
    agent.write_all(b"answer\n").expect("writes");
    let mut said = [0; 7];
    let out = child.stdout.as_mut().expect("output");
    out.read_exact(&mut said).expect("reads");
    assert_eq!(&said, b"answer\n");
    (child, agent)
}

#[test]
fn it_ends_with_its_input_although_the_agent_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, mut agent) = answered(folder.path());
    drop(child.stdin.take());
    assert!(end(&mut child).success());
    let mut rest = Vec::new();
    agent.read_to_end(&mut rest).expect("the connection's end");
    assert_eq!(rest, b"");
}

#[test]
fn it_ends_with_its_input_although_nobody_reads_what_it_writes() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, mut agent) = answered(folder.path());
    agent.set_nonblocking(true).expect("set");
    // Until pipe and sockets are full.
    let start = Instant::now();
    let mut full = 0;
    while full < 5 {
        assert!(start.elapsed() < LIMIT, "it never fills");
        if agent.write(&[b'x'; 4096]).is_err() {
            full += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    drop(child.stdin.take());
    assert!(end(&mut child).success());
}

#[test]
fn it_ends_with_the_agent() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, agent) = answered(folder.path());
    drop(agent);
    assert!(end(&mut child).success());
}

#[test]
fn without_an_agent_it_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let mut child = relay(&folder.path().join("agent.sock"));
    assert_eq!(end(&mut child).code(), Some(7));
    let mut said = String::new();
    let mut err = child.stderr.take().expect("errors");
    err.read_to_string(&mut said).expect("text");
    assert!(
        said.starts_with("Error: the agent at ") && said.contains("does not answer"),
        "{said}"
    );
}
