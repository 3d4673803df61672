//! External authorization: providers behind tunnels of their own are asked about requests.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use karst_api::ext_authz as rpc;
use karst_api::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use karst_api::ext_authz::check_response::HttpResponse;
use karst_api::ext_authz::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use karst_api::waypoint::attribute_value::Kind;
use karst_api::waypoint::extension_provider::Kind as ProviderKind;
use karst_api::waypoint::header_name::Kind as NameKind;
use karst_api::waypoint::{
    Attribute, AttributeMatch, AttributeValue, AuthorizationPolicy, AuthorizationRule, CheckedBody,
    ExtensionProvider, GrpcCheck, HeaderName, HttpCheck, HttpMatch, PolicyAction, Protocol,
    ValueMatch, listener, value_match,
};
use karst_waypoint::metrics::checks::CheckResult;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use crate::ca::id;
use crate::support::{World, application, echo, run, talk, until};
use crate::wires;

const SERVICE: &str = "10.96.0.1:80";

/// A CUSTOM, DENY or ALLOW policy of one rule for paths that begin so.
fn policy(name: &str, action: PolicyAction, path: &str) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: name.to_owned(),
        action: action.into(),
        rules: vec![AuthorizationRule {
            when: vec![AttributeMatch {
                attribute: Attribute::Path.into(),
                values: vec![AttributeValue {
                    kind: Some(Kind::Prefix(path.to_owned())),
                }],
                ..AttributeMatch::default()
            }],
            ..AuthorizationRule::default()
        }],
        ..AuthorizationPolicy::default()
    }
}

fn custom(provider: ExtensionProvider) -> AuthorizationPolicy {
    AuthorizationPolicy {
        provider: Some(provider),
        ..policy("test/custom", PolicyAction::ActionCustom, "/guarded")
    }
}

fn by_grpc() -> ExtensionProvider {
    ExtensionProvider {
        name: "auth".to_owned(),
        backend: "auth".to_owned(),
        kind: Some(ProviderKind::Grpc(GrpcCheck {})),
        timeout_ms: 5000,
        ..ExtensionProvider::default()
    }
}

fn by_http(check: HttpCheck) -> ExtensionProvider {
    ExtensionProvider {
        kind: Some(ProviderKind::Http(check)),
        ..by_grpc()
    }
}

fn names(list: &[&str]) -> Vec<HeaderName> {
    let name = |text: &&str| HeaderName {
        kind: Some(NameKind::Exact((*text).to_owned())),
    };
    list.iter().map(name).collect()
}

/// A service of an application, with policies.
async fn guarded(protocol: Protocol, app: SocketAddr, policies: &[AuthorizationPolicy]) -> World {
    let mut world = World::new().await;
    world.backend(&wires::backend("echo", &[app]));
    attach(&mut world, protocol, policies);
    world
}

fn attach(world: &mut World, protocol: Protocol, policies: &[AuthorizationPolicy]) {
    let mut listener = wires::service(protocol, "echo", Vec::new());
    for policy in policies {
        world.policy(policy);
    }
    if let Some(listener::Frontend::Service(service)) = &mut listener.frontend {
        let names = policies.iter().map(|policy| policy.name.clone());
        service.policies = names.collect();
    }
    world.listener(&listener);
}

type Answer = Arc<dyn Fn(&CheckRequest) -> Result<CheckResponse, Status> + Send + Sync>;

/// An authorizer by gRPC; no answer at all where its answer is the status Cancelled.
struct Rpc {
    answer: Answer,
    seen: Arc<Mutex<Vec<CheckRequest>>>,
}

#[tonic::async_trait]
impl Authorization for Rpc {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let answer = (self.answer)(&request);
        self.seen.lock().unwrap().push(request);
        match answer {
            Err(status) if status.code() == Code::Cancelled => std::future::pending().await,
            answer => answer.map(tonic::Response::new),
        }
    }
}

/// An authorizer of its own, on a thread of its own.
struct Authorizer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<CheckRequest>>>,
}

impl Authorizer {
    fn start(
        answer: impl Fn(&CheckRequest) -> Result<CheckResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<CheckRequest>>> = Arc::default();
        let rpc = Rpc {
            answer: Arc::new(answer),
            seen: Arc::clone(&seen),
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                let server = tonic::transport::Server::builder();
                let server = { server }.add_service(AuthorizationServer::new(rpc));
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        Self { address, seen }
    }

    fn asked(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn allowed(ok: OkHttpResponse) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(ok)),
    }
}

fn denied(status: i32, body: &str, headers: &[(&str, &str)]) -> CheckResponse {
    let denied = DeniedHttpResponse {
        status: Some(rpc::HttpStatus { code: status }),
        headers: options(headers),
        body: body.to_owned(),
    };
    CheckResponse {
        status: Some(rpc::Status {
            code: 7,
            message: String::new(),
        }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }
}

fn options(headers: &[(&str, &str)]) -> Vec<rpc::HeaderValueOption> {
    let option = |(name, value): &(&str, &str)| rpc::HeaderValueOption {
        header: Some(rpc::HeaderValue {
            key: (*name).to_owned(),
            value: (*value).to_owned(),
            raw_value: Vec::new(),
        }),
        ..rpc::HeaderValueOption::default()
    };
    headers.iter().map(option).collect()
}

/// An HTTP server.
async fn http<F>(answer: F) -> SocketAddr
where
    F: Fn(Request<Bytes>) -> Response<Full<Bytes>> + 'static,
{
    let answer = Rc::new(answer);
    application(move |tcp| {
        let answer = Rc::clone(&answer);
        async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = Rc::clone(&answer);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(answer(Request::from_parts(head, body)))
                }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(Local);
            let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
        }
    })
    .await
}

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(async move {
            task.await;
        });
    }
}

fn text(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into())).unwrap()
}

/// An application that answers with what it was asked.
async fn looks() -> SocketAddr {
    http(|request| {
        let headers = request.headers().iter();
        let mut lines: Vec<_> = headers
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        let body = String::from_utf8_lossy(request.body());
        let (method, uri) = (request.method(), request.uri());
        let text = format!("{method} {uri}\n{}\n[{body}]", lines.join("\n"));
        self::text(200, &[], text)
    })
    .await
}

/// Sends a request over HTTP/1.1 and reads the whole answer.
async fn ask(world: &World, head: &str, body: &str) -> String {
    let mut io = world.open(SERVICE).await.unwrap();
    let request = format!("{head}host: echo\r\nconnection: close\r\n\r\n{body}");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(world: &World, path: &str) -> String {
    ask(world, &format!("GET {path} HTTP/1.1\r\n"), "").await
}

fn count(world: &World, result: CheckResult) -> u64 {
    world.shared.metrics.checks.of("auth").get(result)
}

#[test]
fn grpc_allows_and_changes_the_request() {
    run(async {
        let auth = Authorizer::start(|_| {
            Ok(allowed(OkHttpResponse {
                headers: options(&[("x-user", "jane")]),
                headers_to_remove: vec!["x-secret".to_owned()],
                response_headers_to_add: options(&[("x-checked", "yes")]),
                query_parameters_to_set: vec![rpc::QueryParameter {
                    key: "b".to_owned(),
                    value: "2".to_owned(),
                }],
                ..OkHttpResponse::default()
            }))
        });
        let app = looks().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(by_grpc())]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let head = "GET /guarded?a=1 HTTP/1.1\r\nx-user: forged\r\nx-secret: s\r\n";
        let answer = ask(&world, head, "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("x-checked: yes\r\n"), "{answer}");
        assert!(answer.contains("GET /guarded?a=1&b=2\n"), "{answer}");
        assert!(answer.contains("x-user: jane\n"), "{answer}");
        assert!(
            !answer.contains("forged") && !answer.contains("x-secret"),
            "{answer}"
        );
        let seen = auth.seen.lock().unwrap()[0].clone();
        let attributes = seen.attributes.unwrap();
        let source = attributes.source.unwrap();
        assert_eq!(source.principal, id("client").to_string());
        let destination = attributes.destination.unwrap();
        assert_eq!(destination.principal, id("waypoint").to_string());
        let request = attributes.request.unwrap().http.unwrap();
        assert_eq!(request.path, "/guarded?a=1");
        assert_eq!(request.headers["x-user"], "forged");
        assert!(
            answer.contains(&format!("x-request-id: {}\n", request.id)),
            "{answer}"
        );
        // What no rule is for is nobody's business.
        let answer = get(&world, "/public").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(auth.asked(), 1);
        assert_eq!(count(&world, CheckResult::Allowed), 1);
    });
}

#[test]
fn grpc_refuses_in_its_own_words() {
    run(async {
        let auth = Authorizer::start(|_| {
            Ok(denied(
                401,
                "log in",
                &[("www-authenticate", "Basic"), ("x-why", "so")],
            ))
        });
        let app = looks().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(by_grpc())]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let answer = get(&world, "/guarded").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nlog in"), "{answer}");
        for header in [
            "www-authenticate: Basic",
            "x-why: so",
            "karst-reason: custom_denied",
            "content-type: text/plain",
        ] {
            assert!(answer.contains(&format!("{header}\r\n")), "{answer}");
        }
        until("counted", async || world.refused("custom_denied") == 1).await;
        assert_eq!(count(&world, CheckResult::Denied), 1);
        let policies = world.shared.metrics.policies.read();
        assert_eq!(&*policies[0].0, "test/custom");
    });
}

/// A call of gRPC; the head of its answer.
async fn call(world: &World, path: &str) -> HeaderMap {
    let io = world.open(SERVICE).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(Local, TokioIo::new(io))
        .await
        .unwrap();
    spawn_local(connection);
    let request = Request::builder()
        .method("POST")
        .version(Version::HTTP_2)
        .uri(format!("http://echo{path}"))
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])))
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.headers().clone()
}

#[test]
fn a_client_of_grpc_is_refused_in_grpc() {
    run(async {
        let auth = Authorizer::start(|request| {
            let http = request
                .attributes
                .clone()
                .unwrap()
                .request
                .unwrap()
                .http
                .unwrap();
            Ok(match http.path.as_str() {
                "/guarded/login" => denied(401, "100% no", &[("x-why", "so")]),
                _ => denied(403, "", &[]),
            })
        });
        let app = looks().await;
        let mut world = guarded(Protocol::Grpc, app, &[custom(by_grpc())]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let head = call(&world, "/guarded/login").await;
        assert_eq!(head["grpc-status"], "16");
        assert_eq!(head["grpc-message"], "100%25 no");
        assert_eq!(head["x-why"], "so");
        let head = call(&world, "/guarded/other").await;
        assert_eq!(head["grpc-status"], "7");
        let message = "RBAC: access denied (policy test/custom, rules[0])";
        assert_eq!(head["grpc-message"], message);
    });
}

/// What becomes of a request with a provider as it is, one with a status of its own, and one that may be passed by.
async fn failing(auth: Option<SocketAddr>, change: impl Fn(&mut ExtensionProvider)) -> [String; 3] {
    let mut answers = Vec::new();
    for (status_on_error, fail_open) in [(0, false), (503, false), (503, true)] {
        let mut provider = ExtensionProvider {
            status_on_error,
            fail_open,
            ..by_grpc()
        };
        change(&mut provider);
        let mut world = guarded(Protocol::Http1, looks().await, &[custom(provider)]).await;
        let endpoints: Vec<_> = auth.into_iter().collect();
        world.backend(&wires::backend("auth", &endpoints));
        let answer = get(&world, "/guarded").await;
        let status = answer.get(9..12).unwrap().to_owned();
        let line = answer
            .lines()
            .find(|line| line.starts_with("karst-reason: "));
        let reason = line.map_or("none", |line| &line["karst-reason: ".len()..]);
        answers.push(format!("{status} {reason}"));
    }
    <[String; 3]>::try_from(answers).unwrap()
}

#[test]
fn without_an_answer_nothing_passes_unless_it_may() {
    run(async {
        let unavailable = [
            "403 custom_provider_unavailable",
            "503 custom_provider_unavailable",
            "200 none",
        ];
        assert_eq!(failing(None, |_| {}).await, unavailable, "no endpoints");
        let closed = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let nobody = closed.local_addr().unwrap();
        drop(closed);
        assert_eq!(
            failing(Some(nobody), |_| {}).await,
            unavailable,
            "nobody listens"
        );
        let failed = Authorizer::start(|_| Err(Status::internal("x")));
        assert_eq!(
            failing(Some(failed.address), |_| {}).await,
            unavailable,
            "gRPC fails"
        );
        let silent = Authorizer::start(|_| Err(Status::cancelled("never answers")));
        let slow = failing(Some(silent.address), |it| it.timeout_ms = 100).await;
        let timeout = [
            "403 custom_provider_timeout",
            "503 custom_provider_timeout",
            "200 none",
        ];
        assert_eq!(slow, timeout);
        let broken = http(|_| text(503, &[], "")).await;
        let by_http = |it: &mut ExtensionProvider| {
            it.kind = Some(ProviderKind::Http(HttpCheck::default()));
        };
        assert_eq!(failing(Some(broken), by_http).await, unavailable, "5xx");
    });
}

#[test]
fn an_answer_that_must_not_be_followed_is_never_passed_by() {
    run(async {
        let invalid = [
            "403 custom_answer_invalid",
            "503 custom_answer_invalid",
            "503 custom_answer_invalid",
        ];
        let framing = Authorizer::start(|_| {
            Ok(allowed(OkHttpResponse {
                headers: options(&[("content-length", "1000")]),
                ..OkHttpResponse::default()
            }))
        });
        assert_eq!(
            failing(Some(framing.address), |_| {}).await,
            invalid,
            "framing"
        );
        let large = Authorizer::start(|_| Ok(denied(403, &"x".repeat(70_000), &[])));
        assert_eq!(
            failing(Some(large.address), |_| {}).await,
            invalid,
            "too large"
        );
        let nobody = [
            "403 custom_provider_invalid",
            "403 custom_provider_invalid",
            "403 custom_provider_invalid",
        ];
        let unusable = failing(None, |it| {
            it.backend.clear();
            it.invalid = "ProviderNotFound".to_owned();
        });
        assert_eq!(unusable.await, nobody);
    });
}

#[test]
fn http_is_asked_for_the_same_path() {
    run(async {
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let auth = {
            let seen = Rc::clone(&seen);
            http(move |request| {
                let path = request.uri().path().to_owned();
                seen.borrow_mut().push(request);
                match path.as_str() {
                    "/check/guarded/ok" => text(
                        200,
                        &[("x-user", "jane"), ("x-other", "o"), ("set-cookie", "s=1")],
                        "",
                    ),
                    "/check/guarded/login" => text(302, &[("location", "/login")], "moved"),
                    _ => text(403, &[("x-why", "so")], "no"),
                }
            })
            .await
        };
        let check = HttpCheck {
            path_prefix: "/check".to_owned(),
            request_headers: names(&["authorization"]),
            upstream_on_allow: names(&["x-user"]),
            downstream_on_allow: names(&["set-cookie"]),
            ..HttpCheck::default()
        };
        let app = looks().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(by_http(check))]).await;
        world.backend(&wires::backend("auth", &[auth]));
        let head =
            "PUT /guarded/ok?a=b HTTP/1.1\r\nauthorization: t\r\nx-own: o\r\ncontent-length: 4\r\n";
        let answer = ask(&world, head, "data").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("set-cookie: s=1\r\n"), "{answer}");
        assert!(answer.contains("x-user: jane\n"), "{answer}");
        assert!(!answer.contains("x-other"), "{answer}");
        assert!(answer.ends_with("[data]"), "{answer}");
        {
            let seen = seen.borrow();
            let check = &seen[0];
            assert_eq!(check.method(), "PUT");
            assert_eq!(check.uri(), "/check/guarded/ok?a=b");
            assert_eq!(check.headers()["host"], "echo");
            assert_eq!(check.headers()["authorization"], "t");
            assert_eq!(check.headers()["content-length"], "0");
            assert!(!check.headers().contains_key("x-own"), "{check:?}");
            assert!(check.body().is_empty());
        }
        let answer = get(&world, "/guarded/login").await;
        assert!(answer.starts_with("HTTP/1.1 302 "), "{answer}");
        assert!(answer.contains("location: /login\r\n"), "{answer}");
        assert!(answer.ends_with("moved"), "{answer}");
        let answer = get(&world, "/guarded/x").await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(
            answer.contains("x-why: so\r\n") && answer.ends_with("no"),
            "{answer}"
        );
    });
}

#[test]
fn a_body_is_seen_by_both() {
    run(async {
        let auth = Authorizer::start(|_| Ok(allowed(OkHttpResponse::default())));
        let provider = |allow_partial| ExtensionProvider {
            body: Some(CheckedBody {
                max_bytes: 8,
                allow_partial,
                as_bytes: true,
            }),
            ..by_grpc()
        };
        let app = looks().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(provider(false))]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let head = "POST /guarded HTTP/1.1\r\n";
        let chunked = format!("{head}transfer-encoding: chunked\r\n");
        let sized = |body: &str| format!("{head}content-length: {}\r\n", body.len());
        let seen = || {
            let seen = auth.seen.lock().unwrap();
            let attributes = seen.last().unwrap().attributes.clone().unwrap();
            let http = attributes.request.unwrap().http.unwrap();
            let partial = http.headers["x-envoy-auth-partial-body"].clone();
            (String::from_utf8(http.raw_body).unwrap(), partial)
        };
        let answer = ask(&world, &sized("12345678"), "12345678").await;
        assert!(answer.ends_with("[12345678]"), "{answer}");
        assert_eq!(seen(), ("12345678".into(), "false".into()));
        let answer = ask(&world, &chunked, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
        assert!(answer.ends_with("[abcde]"), "{answer}");
        assert_eq!(seen(), ("abcde".into(), "false".into()));
        assert_eq!(auth.asked(), 2);
        let large = "7\r\n1234567\r\n7\r\n1234567\r\n0\r\n\r\n";
        for (head, body) in [(sized("123456789"), "123456789"), (chunked.clone(), large)] {
            let answer = ask(&world, &head, body).await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert!(
                answer.contains("karst-reason: custom_body_too_large"),
                "{answer}"
            );
        }
        assert_eq!(auth.asked(), 2);
        world.policy(&custom(provider(true)));
        let answer = ask(&world, &sized("123456789"), "123456789").await;
        assert!(answer.ends_with("[123456789]"), "{answer}");
        assert_eq!(seen(), ("12345678".into(), "true".into()));
        let answer = ask(&world, &chunked, large).await;
        assert!(answer.ends_with("[12345671234567]"), "{answer}");
        assert_eq!(seen(), ("12345671".into(), "true".into()));
        // A request without a body is asked about as well.
        let answer = get(&world, "/guarded").await;
        assert!(answer.ends_with("[]"), "{answer}");
        assert_eq!(seen(), (String::new(), "false".into()));
    });
}

#[test]
fn the_provider_comes_before_the_other_policies() {
    run(async {
        let auth = Authorizer::start(|request| {
            let http = request
                .attributes
                .clone()
                .unwrap()
                .request
                .unwrap()
                .http
                .unwrap();
            Ok(match http.path.as_str() {
                "/guarded/deny/both" => denied(401, "", &[]),
                _ => allowed(OkHttpResponse {
                    headers: options(&[("x-role", "admin")]),
                    ..OkHttpResponse::default()
                }),
            })
        });
        let deny = policy("test/deny", PolicyAction::ActionDeny, "/guarded/deny");
        let mut allow = policy("test/allow", PolicyAction::ActionAllow, "/");
        let role = AttributeMatch {
            attribute: Attribute::Header.into(),
            key: "x-role".to_owned(),
            values: vec![AttributeValue {
                kind: Some(Kind::Exact("admin".to_owned())),
            }],
            ..AttributeMatch::default()
        };
        allow.rules[0].when.push(role);
        let policies = [custom(by_grpc()), deny, allow];
        let mut world = guarded(Protocol::Http1, looks().await, &policies).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        for (path, status, words, asked) in [
            ("/guarded/deny/both", 401, "custom_denied", 1),
            ("/guarded/deny/one", 403, "policy test/deny", 2),
            ("/guarded/fine", 200, "x-role: admin", 3),
            ("/public", 403, "implicit_deny", 3),
        ] {
            let answer = get(&world, path).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains(words), "{path}: {answer}");
            assert_eq!(auth.asked(), asked, "{path}");
        }
    });
}

#[test]
fn a_route_is_chosen_by_what_the_client_sent_unless_it_may_change() {
    run(async {
        let auth = Authorizer::start(|_| {
            Ok(allowed(OkHttpResponse {
                headers: options(&[("x-team", "red")]),
                ..OkHttpResponse::default()
            }))
        });
        let plain = http(|_| text(200, &[], "for all")).await;
        let red = http(|request| {
            assert_eq!(request.headers()["x-team"], "red");
            text(200, &[], "for red")
        });
        let red = red.await;
        let mut world = World::new().await;
        world.backend(&wires::backend("echo", &[plain]));
        world.backend(&wires::backend("red", &[red]));
        world.backend(&wires::backend("auth", &[auth.address]));
        let mut route = wires::http_route("HTTPRoute/test/r", "echo");
        let mut first = route.http_rules[0].clone();
        first.backends = vec![wires::weighted("red")];
        first.matches = vec![HttpMatch {
            headers: vec![ValueMatch {
                name: "x-team".to_owned(),
                kind: Some(value_match::Kind::Exact("red".to_owned())),
            }],
            ..HttpMatch::default()
        }];
        route.http_rules.insert(0, first);
        world.route(&route);
        let sets = wires::routes(&["HTTPRoute/test/r"]);
        let mut listener = wires::service(Protocol::Http1, "echo", sets);
        if let Some(listener::Frontend::Service(service)) = &mut listener.frontend {
            service.policies = vec!["test/custom".to_owned()];
        }
        for (clear_route_cache, expected) in [(false, "for all"), (true, "for red")] {
            world.policy(&custom(ExtensionProvider {
                clear_route_cache,
                ..by_grpc()
            }));
            world.listener(&listener);
            let answer = get(&world, "/guarded").await;
            assert!(answer.ends_with(expected), "{clear_route_cache}: {answer}");
        }
    });
}

#[test]
fn providers_that_disagree_are_not_asked() {
    run(async {
        let auth = Authorizer::start(|_| Ok(allowed(OkHttpResponse::default())));
        let other = ExtensionProvider {
            name: "other".to_owned(),
            ..by_grpc()
        };
        let other = AuthorizationPolicy {
            name: "test/other".to_owned(),
            ..custom(other)
        };
        let mut elsewhere = other.clone();
        elsewhere.rules = policy("", PolicyAction::ActionCustom, "/elsewhere").rules;
        let app = looks().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(by_grpc()), elsewhere]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        for path in ["/guarded", "/elsewhere"] {
            let answer = get(&world, path).await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
            assert!(
                answer.contains("karst-reason: custom_provider_conflict"),
                "{answer}"
            );
        }
        let answer = get(&world, "/public").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(auth.asked(), 0);
    });
}

#[test]
fn on_trial_nobody_is_asked() {
    run(async {
        let auth = Authorizer::start(|_| Ok(denied(403, "", &[])));
        let trial = AuthorizationPolicy {
            dry_run: true,
            ..custom(by_grpc())
        };
        let mut world = guarded(Protocol::Http1, looks().await, &[trial]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let answer = get(&world, "/guarded").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(auth.asked(), 0);
        let policies = world.shared.metrics.policies.read();
        let said: Vec<_> = policies.iter().map(|it| (it.1.as_str(), it.2)).collect();
        assert_eq!(said, [("dry_run_asked", 1)]);
    });
}

#[test]
fn bytes_cannot_be_asked_about() {
    run(async {
        let auth = Authorizer::start(|_| Ok(allowed(OkHttpResponse::default())));
        let app = application(echo).await;
        let mut world = guarded(Protocol::Tcp, app, &[custom(by_grpc())]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let mut io = world.open(SERVICE).await.unwrap();
        assert!(talk(&mut io, "x").await.is_err());
        until("counted", async || world.refused("custom_not_asked") == 1).await;
        assert_eq!(auth.asked(), 0);
    });
}

/// An application whose answers begin and do not end.
async fn endless() -> SocketAddr {
    application(|mut tcp| async move {
        let mut head = [0; 4096];
        let _ = tcp.read(&mut head).await;
        let begun = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n";
        let _ = tcp.write_all(begun).await;
        let _ = tcp.read(&mut head).await;
    })
    .await
}

#[test]
fn a_live_request_keeps_its_verdict_and_ends_with_one_it_never_had() {
    run(async {
        let auth = Authorizer::start(|_| Ok(allowed(OkHttpResponse::default())));
        let app = endless().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(by_grpc())]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let mut io = world.open(SERVICE).await.unwrap();
        let request = b"GET /guarded HTTP/1.1\r\nhost: echo\r\n\r\n";
        io.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"begun\r\n") {
            assert!(io.read_buf(&mut answer).await.unwrap() > 0);
        }
        // Another version of the same policy, and a policy for others.
        let slower = ExtensionProvider {
            timeout_ms: 1000,
            ..by_grpc()
        };
        let other = AuthorizationPolicy {
            name: "test/other".to_owned(),
            provider: Some(by_grpc()),
            ..policy("", PolicyAction::ActionCustom, "/other")
        };
        attach(
            &mut world,
            Protocol::Http1,
            &[custom(slower.clone()), other],
        );
        let mut more = [0; 64];
        let silent = timeout(Duration::from_millis(700), io.read(&mut more)).await;
        assert!(silent.is_err(), "it goes on");
        let new = AuthorizationPolicy {
            name: "test/new".to_owned(),
            ..custom(by_grpc())
        };
        let since = Instant::now();
        attach(&mut world, Protocol::Http1, &[custom(slower), new]);
        until("counted", async || world.refused("custom_not_asked") == 1).await;
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{:?}",
            since.elapsed()
        );
        // The connection waits a little for what its client may still send.
        let mut rest = Vec::new();
        let cut = timeout(Duration::from_secs(20), io.read_to_end(&mut rest)).await;
        let _ = cut.expect("cut");
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
        assert_eq!(auth.asked(), 1);
    });
}

#[test]
fn a_check_ends_with_its_client() {
    run(async {
        let auth = Authorizer::start(|_| Err(Status::cancelled("never answers")));
        let app = looks().await;
        let mut world = guarded(Protocol::Http1, app, &[custom(by_grpc())]).await;
        world.backend(&wires::backend("auth", &[auth.address]));
        let mut io = world.open(SERVICE).await.unwrap();
        let request = b"GET /guarded HTTP/1.1\r\nhost: echo\r\n\r\n";
        io.write_all(request).await.unwrap();
        until("asked", async || auth.asked() == 1).await;
        assert_eq!(world.shared.metrics.checks.of("auth").active(), 1);
        drop(io);
        let active = || world.shared.metrics.checks.of("auth").active();
        until("ended", async || active() == 0).await;
        assert_eq!(count(&world, CheckResult::Allowed), 0);
    });
}
