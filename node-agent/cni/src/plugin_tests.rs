//! The commands against an agent that answers what it is told to.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use super::run;
use crate::config::Environment;
use crate::error::CniError;

const RESULT: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"}], "x":1.0}"#;

/// An agent that answers one request; gives what it was asked.
fn agent(
    status: &'static str,
    body: &'static str,
) -> (tempfile::TempDir, PathBuf, JoinHandle<String>) {
    let dir = tempfile::tempdir().expect("dir");
    let socket = dir.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut request = Vec::new();
        let mut part = [0; 4096];
        loop {
            let read = stream.read(&mut part).expect("read");
            request.extend_from_slice(&part[..read]);
            // Our bodies end with the object.
            if request.ends_with(b"}") || read == 0 {
                break;
            }
        }
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).expect("answered");
        String::from_utf8(request).expect("text")
    });
    (dir, socket, served)
}

fn env(command: &str, namespace: &str) -> Environment {
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-0;K8S_POD_UID=u-1;K8S_POD_INFRA_CONTAINER_ID=c-1"
    );
    Environment::of(&[
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c-1"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", &args),
    ])
}

fn input(socket: &Path) -> Vec<u8> {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"net","type":"karst-cni","socket":"{}","prevResult":{RESULT}}}"#,
        socket.display()
    )
    .into_bytes()
}

#[test]
fn add_asks_the_agent_and_passes_the_result_on() {
    let (_dir, socket, agent) = agent("200 OK", r#"{"enrolled":true}"#);
    let out = run(&env("ADD", "shop"), &input(&socket)).expect("added");
    assert_eq!(out, RESULT, "byte by byte");
    let request = agent.join().expect("served");
    let (head, body) = request.split_once("\r\n\r\n").expect("a request");
    assert!(head.starts_with("POST /v1/cni/add HTTP/1.1"), "{head}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    for (field, value) in [
        ("pod_uid", json!("u-1")),
        ("namespace", json!("shop")),
        ("name", json!("web-0")),
        ("container_id", json!("c-1")),
        ("netns", json!("/proc/self/ns/net")),
        ("addresses", json!(["10.0.0.5"])),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    assert!(body["netns_id"]["ino"].is_u64(), "{body}");
}

#[test]
fn a_refusal_fails_the_sandbox_with_a_reason_and_advice() {
    let (_dir, socket, agent) = agent(
        "503 X",
        r#"{"reason":"cni_pod_unknown","error":"not heard of"}"#,
    );
    let error = run(&env("ADD", "shop"), &input(&socket)).expect_err("refused");
    agent.join().expect("served");
    let result = error.result("1.0.0");
    assert_eq!(result["code"], 101);
    assert_eq!(result["cniVersion"], "1.0.0");
    let text = result.to_string();
    for part in [
        "shop/web-0",
        "cni_pod_unknown",
        "not heard of",
        "karst-controller",
    ] {
        assert!(text.contains(part), "{part} missing in {text}");
    }
}

#[test]
fn an_answer_that_is_none_fails_the_sandbox() {
    let (_dir, socket, agent) = agent("200 OK", "[]");
    let error = run(&env("ADD", "shop"), &input(&socket)).expect_err("no answer");
    agent.join().expect("served");
    assert!(matches!(error, CniError::Answer(_)), "{error}");
}

#[test]
fn without_an_agent_only_add_and_check_of_pods_fail() {
    let nobody = input(Path::new("/nowhere/cni.sock"));
    let check = |command: &str, namespace: &str, expected: Result<&str, u32>| {
        let got = run(&env(command, namespace), &nobody);
        let got = got.as_deref().map_err(CniError::code);
        assert_eq!(got, expected, "{command} in {namespace}");
    };
    check("ADD", "shop", Err(100));
    check("ADD", "karst-system", Ok(RESULT));
    check("ADD", "kube-system", Ok(RESULT));
    check("CHECK", "shop", Err(100));
    check("CHECK", "kube-system", Ok(""));
    check("DEL", "shop", Ok(""));
    check("GC", "shop", Ok(""));
    check("STATUS", "shop", Ok(""));
    check("NONSENSE", "shop", Err(4));
}

#[test]
fn versions_are_told_whatever_the_input() {
    for (input, version) in [
        (&br#"{"cniVersion":"0.4.0"}"#[..], "0.4.0"),
        (b"garbage", "1.0.0"),
        (b"", "1.0.0"),
    ] {
        let out = run(&env("VERSION", "x"), input).expect("told");
        let out: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(out["cniVersion"], version);
        assert!(
            out["supportedVersions"]
                .as_array()
                .is_some_and(|v| v.contains(&json!("1.1.0")))
        );
    }
}

#[test]
fn a_container_that_is_no_pod_is_left_alone() {
    let env = Environment::of(&[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", "/proc/self/ns/net"),
    ]);
    let out = run(&env, &input(Path::new("/nowhere"))).expect("passed");
    assert_eq!(out, RESULT);
}

#[test]
fn calls_are_logged_where_asked() {
    let dir = tempfile::tempdir().expect("dir");
    let log = dir.path().join("cni.log");
    let input = format!(
        r#"{{"cniVersion":"1.0.0","socket":"/nowhere","logFile":"{}","prevResult":{RESULT}}}"#,
        log.display()
    );
    run(&env("DEL", "shop"), input.as_bytes()).expect("done");
    run(&env("NONSENSE", "shop"), input.as_bytes()).expect_err("refused");
    let lines: Vec<Value> = std::fs::read_to_string(&log)
        .expect("written")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["pod"], "shop/web-0");
    assert_eq!(lines[0].get("reason"), None);
    assert_eq!(lines[1]["reason"], "cni_environment_invalid");
}
