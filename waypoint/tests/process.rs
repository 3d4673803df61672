//! The process without a controller: it starts, says what it waits for, and ends when it is told to.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is wrong"
)]

#[path = "proxy/ports.rs"]
mod ports;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

/// A process that is killed with the test.
struct Process {
    child: Child,
    metrics: SocketAddr,
    readiness: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::free()))
}

fn start() -> Process {
    let (metrics, readiness, admin) = (free(), free(), free());
    let child = Command::new(env!("CARGO_BIN_EXE_karst-waypoint"))
        .env_clear()
        .args([
            "--gateway-namespace=test",
            "--gateway-name=front",
            "--root-cert=/nonexistent/root.pem",
            "--token=/nonexistent/token",
            "--workers=1",
            "--access-log=off",
            "--drain-delay=0",
            "--drain-deadline=5",
        ])
        .arg(format!("--controller={}", free()))
        .arg(format!("--mesh-listen={}", free()))
        .arg(format!("--metrics-listen={metrics}"))
        .arg(format!("--readiness-listen={readiness}"))
        .arg(format!("--admin-listen={admin}"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Process {
        child,
        metrics,
        readiness,
        admin,
    }
}

/// The answer to a request, once somebody listens.
fn get(address: SocketAddr, path: &str) -> String {
    let since = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(since.elapsed() < DEADLINE, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn end(child: &mut Child) -> ExitStatus {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(since.elapsed() < DEADLINE, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_waits_for_its_configuration_and_ends_when_told() {
    let mut process = start();
    let answer = get(process.readiness, "/healthz/ready");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("state_not_ready"), "{answer}");
    let answer = get(process.readiness, "/healthz/live");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = get(process.metrics, "/metrics");
    assert!(answer.contains("\nkarst_xds_synced 0\n"), "{answer}");
    assert!(answer.contains("component=\"karst-waypoint\""), "{answer}");
    for page in ["config", "ports", "clusters", "pools"] {
        let answer = get(process.admin, &format!("/v1/{page}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{page}: {answer}");
    }
    let answer = get(process.admin, "/v1/certificates");
    let identity = "spiffe://cluster.local/ns/test/sa/front";
    assert!(answer.contains(identity), "{answer}");
    assert!(!answer.contains("PRIVATE"), "{answer}");
    assert!(end(&mut process.child).success());
}

#[test]
fn mistakes_in_its_arguments_are_told_together() {
    let output = Command::new(env!("CARGO_BIN_EXE_karst-waypoint"))
        .env_clear()
        .args(["--gateway-namespace=test", "--gateway-name=front"])
        .args(["--controller=nowhere", "--root-cert=r", "--token=/t"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("2 mistake(s)"), "{said}");
    assert!(said.contains("--controller \"nowhere\""), "{said}");
}
