//! Through the waypoint, by HBONE.

use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_api::waypoint::{Protocol, RouteKind};
use karst_tunnel::TunnelError;
use karst_waypoint::detect::SILENT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::ca::{Leaf, TestCa, id};
use crate::ports;
use crate::support::{CLIENT, World, application, echo, get, greeter, mirror, run, talk, until};
use crate::wires;

const SERVICE: &str = "10.96.0.1:80";

/// A service in front of an application.
async fn world(protocol: Protocol, application: std::net::SocketAddr) -> World {
    let mut world = World::new().await;
    world.backend(&wires::backend("echo", &[application]));
    world.listener(&wires::service(protocol, "echo", Vec::new()));
    world
}

/// What the application saw shows that the request went through HTTP's hands.
fn is_proxied(answer: &str) -> bool {
    let client = CLIENT.split(':').next().unwrap();
    answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("x-forwarded-for: {client}"))
}

/// A request, whose answer ends with the stream.
const REQUEST: &str = "GET /path HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";

/// Says `begin` on a new stream, and after a pause `rest`: HTTP's hands must take it. What is said too late passes as
/// bytes, so that a stream on which a busy machine has made us late ourselves proves nothing, and another is opened.
async fn is_found_out(world: &World, authority: &str, begin: &str, pause: Duration, rest: &str) {
    let mut late = 0;
    let mut io = loop {
        let begun = Instant::now();
        let mut io = world.open(authority).await.unwrap();
        io.write_all(begin.as_bytes()).await.unwrap();
        if begun.elapsed() < SILENT {
            break io;
        }
        late += 1;
        assert!(late < 10, "a stream takes {SILENT:?} and more to open");
    };
    sleep(pause).await;
    io.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(is_proxied(&answer), "{answer}");
}

#[test]
fn a_request_goes_through_and_names_its_client() {
    run(async {
        let world = world(Protocol::Http1, application(mirror).await).await;
        for authority in [SERVICE, "echo.test.svc.cluster.local:80"] {
            let mut io = world.open(authority).await.unwrap();
            let answer = get(&mut io, "echo").await;
            assert!(is_proxied(&answer), "{answer}");
        }
    });
}

#[test]
fn what_is_not_served_is_refused() {
    run(async {
        let world = world(Protocol::Http1, application(mirror).await).await;
        for authority in ["10.96.0.1:81", "10.96.0.9:80", "other.test:80"] {
            let refused = world.open(authority).await.map(|_| ());
            let Err(TunnelError::Refused { status }) = refused else {
                panic!("{authority}: {refused:?}");
            };
            assert_eq!(status, 404);
        }
        assert_eq!(world.refused("waypoint_unknown_destination"), 3);
    });
}

#[test]
fn an_identity_without_a_certificate_of_the_mesh_is_refused() {
    run(async {
        let world = world(Protocol::Http1, application(mirror).await).await;
        let client = id("client");
        // The identity that is let in above, signed by an authority of the client's own.
        let stranger = TestCa::new().issue_trusting(&client, &world.ca, &Leaf::of(&client));
        let refusals = || {
            let all = world.shared.metrics.refusals.read();
            all.iter().map(|(_, count)| *count).sum::<u64>()
        };
        let opened = world.open_as(&Arc::new(stranger), SERVICE).await;
        assert!(opened.is_err());
        until("refused", async || refusals() == 1).await;
        // The waypoint takes the same from the mesh's authority.
        assert!(world.open(SERVICE).await.is_ok());
    });
}

#[test]
fn bytes_go_both_ways_and_each_end_counts() {
    run(async {
        let world = world(Protocol::Tcp, application(echo).await).await;
        let mut io = world.open(SERVICE).await.unwrap();
        let text = "x".repeat(300_000);
        assert_eq!(talk(&mut io, &text).await.unwrap(), format!("{text}bye"));
    });
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    run(async {
        let world = world(Protocol::Undeclared, application(greeter).await).await;
        let mut io = world.open(SERVICE).await.unwrap();
        let since = Instant::now();
        let mut greeting = [0; 11];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "{:?}",
            since.elapsed()
        );
        assert_eq!(talk(&mut io, "quit").await.unwrap(), "quitbye");
    });
}

#[test]
fn http_is_found_out_however_slowly_it_comes() {
    run(async {
        let world = world(Protocol::Undeclared, application(mirror).await).await;
        // The pause is longer than a silent client is waited for.
        let (begin, rest) = REQUEST.split_at(2);
        is_found_out(&world, SERVICE, REQUEST, Duration::ZERO, "").await;
        is_found_out(&world, SERVICE, begin, Duration::from_millis(500), rest).await;
    });
}

#[test]
fn what_is_not_http_passes_where_there_are_no_routes() {
    run(async {
        let world = world(Protocol::Undeclared, application(echo).await).await;
        for text in ["PING\r\n", "\u{16}\u{3}\u{1}...", "G"] {
            let mut io = world.open(SERVICE).await.unwrap();
            assert_eq!(talk(&mut io, text).await.unwrap(), format!("{text}bye"));
        }
    });
}

#[test]
fn what_is_not_http_does_not_pass_http_routes_by() {
    run(async {
        let mut world = world(Protocol::Undeclared, application(echo).await).await;
        world.route(&wires::http_route("HTTPRoute/test/r", "echo"));
        let routes = wires::routes(&["HTTPRoute/test/r"]);
        world.listener(&wires::service(Protocol::Undeclared, "echo", routes));
        let mut io = world.open(SERVICE).await.unwrap();
        let error = talk(&mut io, "PING\r\n").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        assert_eq!(world.refused("waypoint_not_http"), 1);
    });
}

#[test]
fn a_workload_is_reached_by_its_own_address() {
    run(async {
        let application = application(mirror).await;
        let mut world = World::new().await;
        world.listener(&wires::workload(application));
        let authority = application.to_string();
        is_found_out(&world, &authority, REQUEST, Duration::ZERO, "").await;
    });
}

#[test]
fn routes_of_bytes_decide_before_the_service() {
    run(async {
        let mut world = world(Protocol::Tcp, application(echo).await).await;
        world.backend(&wires::backend("greeter", &[application(greeter).await]));
        let backends = vec![wires::weighted("greeter")];
        world.route(&wires::l4_route(
            "TCPRoute/test/r",
            RouteKind::RouteTcp,
            backends,
        ));
        let routes = wires::routes(&["TCPRoute/test/r"]);
        world.listener(&wires::service(Protocol::Tcp, "echo", routes));
        let mut io = world.open(SERVICE).await.unwrap();
        assert_eq!(talk(&mut io, "x").await.unwrap(), "220 hello\r\nxbye");
    });
}

#[test]
fn another_endpoint_is_tried_and_none_is_a_reset() {
    run(async {
        let mut world = world(Protocol::Tcp, application(echo).await).await;
        let nobody = format!("127.0.0.1:{}", ports::free()).parse().unwrap();
        let good = application(echo).await;
        world.backend(&wires::backend("echo", &[nobody, good]));
        for _ in 0..8 {
            let mut io = world.open(SERVICE).await.unwrap();
            assert_eq!(talk(&mut io, "x").await.unwrap(), "xbye");
        }
        world.backend(&wires::backend("echo", &[]));
        let mut io = world.open(SERVICE).await.unwrap();
        assert!(talk(&mut io, "x").await.is_err());
        until("counted", async || world.refused("no_endpoints") > 0).await;
    });
}
