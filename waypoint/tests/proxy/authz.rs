//! Policies, from the wire to what a client sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use karst_api::waypoint::attribute_value::Kind;
use karst_api::waypoint::{
    Attribute, AttributeMatch, AttributeValue, AuthorizationPolicy, AuthorizationRule, Listener,
    ListenerProtocol, PolicyAction, Protocol, RouteKind, listener,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::ca::id;
use crate::ports;
use crate::support::{LOOPBACK, World, application, echo, get, mirror, run, talk, until};
use crate::wires;

const SERVICE: &str = "10.96.0.1:80";

/// A policy of one rule, with values of one attribute.
fn policy(action: PolicyAction, attribute: Attribute, values: &[&str]) -> AuthorizationPolicy {
    let value = |text: &&str| AttributeValue {
        kind: Some(Kind::Exact((*text).to_owned())),
    };
    AuthorizationPolicy {
        name: "test/guard".to_owned(),
        action: action.into(),
        dry_run: false,
        provider: None,
        rules: vec![AuthorizationRule {
            when: vec![AttributeMatch {
                attribute: attribute.into(),
                values: values.iter().map(value).collect(),
                ..AttributeMatch::default()
            }],
            ..AuthorizationRule::default()
        }],
    }
}

fn allow(accounts: &[&str]) -> AuthorizationPolicy {
    let (action, attribute) = (PolicyAction::ActionAllow, Attribute::SourceServiceAccount);
    policy(action, attribute, accounts)
}

fn guarded(mut listener: Listener) -> Listener {
    let names = vec!["test/guard".to_owned()];
    match &mut listener.frontend {
        Some(listener::Frontend::Service(service)) => service.policies = names,
        Some(listener::Frontend::Workload(workload)) => workload.policies = names,
        Some(listener::Frontend::Socket(socket)) => {
            for listener in &mut socket.listeners {
                listener.policies.clone_from(&names);
            }
        }
        None => {}
    }
    listener
}

/// `NAMESPACE/ACCOUNT` of a client of these tests.
fn account(name: &str) -> String {
    let id = id(name);
    format!("{}/{}", id.namespace(), id.service_account())
}

async fn world(protocol: Protocol, application: SocketAddr, first: &AuthorizationPolicy) -> World {
    let mut world = World::new().await;
    world.backend(&wires::backend("echo", &[application]));
    world.policy(first);
    world.listener(&guarded(wires::service(protocol, "echo", Vec::new())));
    world
}

#[test]
fn requests_go_by_who_asks() {
    run(async {
        let policy = allow(&[&account("client")]);
        let world = world(Protocol::Http1, application(mirror).await, &policy).await;
        let mut io = world.open(SERVICE).await.unwrap();
        let answer = get(&mut io, "echo").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let other = Arc::new(world.ca.issue(&id("other")));
        let mut io = world.open_as(&other, SERVICE).await.unwrap();
        let answer = get(&mut io, "echo").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(
            answer.ends_with("RBAC: access denied (implicit_deny)"),
            "{answer}"
        );
        until("counted", async || world.refused("policy_denied") == 1).await;
    });
}

#[test]
fn bytes_go_by_who_asks() {
    run(async {
        let policy = allow(&[&account("client")]);
        let world = world(Protocol::Tcp, application(echo).await, &policy).await;
        let mut io = world.open(SERVICE).await.unwrap();
        assert_eq!(talk(&mut io, "x").await.unwrap(), "xbye");
        let other = Arc::new(world.ca.issue(&id("other")));
        let mut io = world.open_as(&other, SERVICE).await.unwrap();
        let error = talk(&mut io, "x").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        until("counted", async || world.refused("policy_denied") == 1).await;
    });
}

#[test]
fn bytes_are_refused_where_requests_of_a_kind_are() {
    run(async {
        let deny = policy(PolicyAction::ActionDeny, Attribute::Method, &["POST"]);
        // Nothing is declared: what this client says is found to be no HTTP.
        let world = world(Protocol::Undeclared, application(echo).await, &deny).await;
        let mut io = world.open(SERVICE).await.unwrap();
        assert!(talk(&mut io, "PING\r\n").await.is_err());
        until("counted", async || world.refused("policy_denied") == 1).await;
    });
}

#[test]
fn a_live_connection_ends_with_the_policy_that_allowed_it() {
    run(async {
        let policy = allow(&[&account("client")]);
        let mut world = world(Protocol::Tcp, application(echo).await, &policy).await;
        let mut io = world.open(SERVICE).await.unwrap();
        let mut echoed = [0; 4];
        io.write_all(b"ping").await.unwrap();
        io.read_exact(&mut echoed).await.unwrap();
        // Still allowed by another version.
        world.policy(&allow(&[&account("other"), &account("client")]));
        io.write_all(b"ping").await.unwrap();
        io.read_exact(&mut echoed).await.unwrap();
        let since = Instant::now();
        world.policy(&allow(&[&account("other")]));
        let cut = timeout(Duration::from_secs(20), io.read(&mut echoed)).await;
        assert!(cut.unwrap().is_err());
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{:?}",
            since.elapsed()
        );
        until("counted", async || world.refused("policy_denied") == 1).await;
    });
}

#[test]
fn a_workload_by_its_own_address_is_guarded_too() {
    run(async {
        let application = application(mirror).await;
        let mut world = World::new().await;
        world.policy(&allow(&[&account("other")]));
        world.listener(&guarded(wires::workload(application)));
        let mut io = world.open(&application.to_string()).await.unwrap();
        let answer = get(&mut io, "echo").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    });
}

#[test]
fn clients_of_a_gateway_have_no_identity() {
    run(async {
        let mut world = World::new().await;
        world.backend(&wires::backend("web", &[application(mirror).await]));
        world.route(&wires::http_route("HTTPRoute/test/r", "web"));
        let port = ports::free();
        let routes = vec![wires::attached("HTTPRoute/test/r", &[])];
        let http = ListenerProtocol::ListenerHttp;
        let socket = wires::socket(
            port,
            vec![wires::gateway_listener("http", http, "", routes)],
        );
        world.policy(&allow(&[&account("client")]));
        world.listener(&guarded(socket));
        let answer = get(&mut world.dial(port).await, "a.example.com").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        let host = Attribute::Host;
        world.policy(&policy(PolicyAction::ActionAllow, host, &["a.example.com"]));
        let answer = get(&mut world.dial(port).await, "A.example.com:8080").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let answer = get(&mut world.dial(port).await, "b.example.com").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    });
}

#[test]
fn bytes_of_a_gateway_are_guarded() {
    run(async {
        let mut world = World::new().await;
        world.backend(&wires::backend("echo", &[application(echo).await]));
        let backends = vec![wires::weighted("echo")];
        let route = wires::l4_route("TCPRoute/test/r", RouteKind::RouteTcp, backends);
        world.route(&route);
        let port = ports::free();
        let routes = vec![wires::attached("TCPRoute/test/r", &[])];
        let tcp = ListenerProtocol::ListenerTcp;
        let socket = wires::socket(port, vec![wires::gateway_listener("tcp", tcp, "", routes)]);
        let mut deny = policy(PolicyAction::ActionDeny, Attribute::SourceNamespace, &["x"]);
        world.policy(&deny);
        world.listener(&guarded(socket));
        let mut io = world.dial(port).await;
        assert_eq!(talk(&mut io, "x").await.unwrap(), "xbye");
        // Only what has ended here as well is not cut, and counted, by the change.
        until("the end of the first", async || {
            world.shared.connections() == 0
        })
        .await;
        deny.rules[0].when.clear();
        world.policy(&deny);
        // Once only: one that is reset at once has not even come about for its client.
        if let Ok(mut io) = TcpStream::connect((LOOPBACK, port)).await {
            let mut answer = Vec::new();
            let _ = io.write_all(b"x").await;
            assert!(io.read_to_end(&mut answer).await.is_err() || answer.is_empty());
        }
        until("counted", async || world.refused("policy_denied") == 1).await;
    });
}
