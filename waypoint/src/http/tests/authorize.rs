use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use karst_api::waypoint as wire;
use karst_api::waypoint::{Attribute, PolicyAction};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::support::{
    PATIENCE, Proxy, body_of, channel, echo, get, get2, rule, run, text, with_body,
};
use super::upgrades;
use crate::authz::Outcome;
use crate::authz::testing::{has, header, on_trial, policy, when};
use crate::body::Body;

/// How soon a change of policy must be felt.
const SOON: Duration = Duration::from_secs(1);

const ALLOW: PolicyAction = PolicyAction::ActionAllow;
const DENY: PolicyAction = PolicyAction::ActionDeny;

fn deny_path(path: &str) -> wire::AuthorizationPolicy {
    let rule = when(vec![has(Attribute::Path, &[path])]);
    policy("shop/deny", DENY, vec![rule])
}

fn deny_all() -> wire::AuthorizationPolicy {
    policy("shop/deny", DENY, vec![when(vec![])])
}

/// A service whose application must not see what is refused.
async fn guarded(policies: &[wire::AuthorizationPolicy]) -> Proxy {
    let proxy = Proxy::of(|request: Request<Incoming>| async move {
        assert!(!request.uri().path().starts_with("/admin"));
        text("page").await
    })
    .await;
    for policy in policies {
        proxy.policy(policy);
    }
    proxy.listen(&[]);
    proxy
}

/// A header that does not go on must not open anything, nor hide from a policy.
#[test]
fn what_a_client_has_removed_is_not_there_for_policies() {
    run(async {
        let rule = when(vec![header("x-tenant", &["a"])]);
        let proxy = guarded(&[policy("shop/allow", ALLOW, vec![rule])]).await;
        let ask = async |connection: &str| {
            let request = format!(
                "GET / HTTP/1.1\r\nHost: shop\r\nX-Tenant: a\r\nConnection: {connection}\r\n\r\n"
            );
            proxy.raw(&request).await
        };
        let answer = ask("close").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let answer = ask("close, X-Tenant").await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    });
}

#[test]
fn a_denial_names_its_policy() {
    run(async {
        let proxy = guarded(&[deny_path("/admin/*")]).await;
        let answer = proxy
            .raw("GET /x/../%61dmin/users?q=1 HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(
            answer.contains("karst-reason: policy_denied\r\n"),
            "{answer}"
        );
        assert!(answer.contains("content-type: text/plain\r\n"), "{answer}");
        let body = "\r\n\r\nRBAC: access denied (policy shop/deny, rules[0])";
        assert!(answer.ends_with(body), "{answer}");
        let mut client = proxy.http1().await;
        let answer = client.send_request(get("/public")).await.unwrap();
        assert_eq!(answer.status(), 200);
        proxy.refused("policy_denied", 1).await;
        let counts = proxy.metrics.policies.read();
        assert_eq!(counts, [("shop/deny".into(), Outcome::Denied, 1)]);
    });
}

#[test]
fn whom_nothing_allows_is_refused() {
    run(async {
        let friends = has(Attribute::SourceNamespace, &["friend"]);
        let proxy = guarded(&[policy("shop/allow", ALLOW, vec![when(vec![friends])])]).await;
        let mut client = proxy.http2().await;
        let answer = client.send_request(get2("/admin")).await.unwrap();
        assert_eq!(answer.status(), 403);
        assert_eq!(body_of(answer).await, "RBAC: access denied (implicit_deny)");
        // The client of these tests is of this namespace.
        let own = has(Attribute::SourceNamespace, &["client"]);
        proxy.policy(&policy("shop/allow", ALLOW, vec![when(vec![own])]));
        let answer = client.send_request(get2("/")).await.unwrap();
        assert_eq!(answer.status(), 200);
    });
}

#[test]
fn a_refusal_comes_before_routes_and_their_filters() {
    run(async {
        let proxy = guarded(&[deny_path("/admin")]).await;
        let mut matching = rule(&[("shop", 1)]);
        matching.matches = vec![super::support::prefix("/other")];
        proxy.route(vec![matching]);
        let mut client = proxy.http1().await;
        for (path, status) in [("/admin", 403), ("/unknown", 404), ("/other", 200)] {
            let answer = client.send_request(get(path)).await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            body_of(answer).await;
        }
    });
}

#[test]
fn grpc_is_refused_as_grpc_does() {
    run(async {
        let proxy = guarded(&[deny_path("/admin.Users/*")]).await;
        let mut client = proxy.http2().await;
        let mut request = get2("/admin.Users/List");
        *request.method_mut() = http::Method::POST;
        let content_type = "application/grpc".parse().unwrap();
        request.headers_mut().insert("content-type", content_type);
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["grpc-status"], "7");
        let message = "RBAC: access denied (policy shop/deny, rules[0])";
        assert_eq!(answer.headers()["grpc-message"], message);
        assert_eq!(body_of(answer).await, "");
    });
}

#[test]
fn a_policy_on_trial_decides_nothing() {
    run(async {
        let audit = PolicyAction::ActionAudit;
        let proxy = guarded(&[
            on_trial(policy("shop/trial", DENY, vec![when(vec![])])),
            policy("shop/audit", audit, vec![when(vec![])]),
        ])
        .await;
        let mut client = proxy.http1().await;
        let answer = client.send_request(get("/")).await.unwrap();
        assert_eq!(answer.status(), 200);
        let counts = proxy.metrics.policies.read();
        let expected = [
            ("shop/audit".into(), Outcome::Audited, 1),
            ("shop/trial".into(), Outcome::TrialDenied, 1),
        ];
        assert_eq!(counts, expected);
        assert_eq!(proxy.refusals("policy_denied"), 0);
    });
}

#[test]
fn headers_are_those_of_the_client() {
    run(async {
        // The proxy itself adds this one to what it sends on.
        let own = when(vec![header("x-forwarded-client-cert", &["*"])]);
        let proxy = guarded(&[policy("shop/deny", DENY, vec![own])]).await;
        let mut client = proxy.http1().await;
        let answer = client.send_request(get("/")).await.unwrap();
        assert_eq!(answer.status(), 200);
        body_of(answer).await;
        let mut request = get("/");
        let headers: &mut HeaderMap = request.headers_mut();
        headers.insert("x-forwarded-client-cert", "x".parse().unwrap());
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 403);
    });
}

#[test]
fn a_response_that_is_silent_is_cut() {
    run(async {
        let (sender, body) = channel();
        let body = std::cell::RefCell::new(Some(body));
        let proxy = Proxy::of(move |_: Request<Incoming>| {
            let body = body.borrow_mut().take().unwrap();
            async move { Response::new(body) }
        })
        .await;
        let mut client = proxy.http2().await;
        let mut answer = client.send_request(get2("/events")).await.unwrap();
        sender.data("first");
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "first");
        // What concerns others leaves it alone.
        proxy.policy(&deny_path("/other"));
        proxy.listen(&[]);
        sender.data("second");
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "second");
        let since = Instant::now();
        proxy.policy(&deny_path("/events"));
        let end = timeout(PATIENCE, answer.frame()).await.expect("cut");
        assert!(end.unwrap().is_err());
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
        timeout(PATIENCE, sender.closed())
            .await
            .expect("the application too");
        proxy.refused("policy_denied", 1).await;
    });
}

#[test]
fn a_response_over_http1_is_cut_at_once_as_well() {
    run(async {
        let (sender, body) = channel();
        let body = std::cell::RefCell::new(Some(body));
        let proxy = Proxy::of(move |_: Request<Incoming>| {
            let body = body.borrow_mut().take().unwrap();
            async move { Response::new(body) }
        })
        .await;
        let mut client = proxy.http1().await;
        let mut answer = client.send_request(get("/events")).await.unwrap();
        sender.data("first");
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "first");
        let since = Instant::now();
        proxy.policy(&deny_path("/events"));
        proxy.listen(&[]);
        let end = timeout(PATIENCE, answer.frame()).await.expect("cut");
        assert!(end.unwrap().is_err());
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    });
}

#[test]
fn a_request_that_waits_for_its_answer_is_cut() {
    run(async {
        let proxy = Proxy::of(|_: Request<Incoming>| async {
            std::future::pending::<()>().await;
            text("never").await
        })
        .await;
        let mut client = proxy.http1().await;
        let (upload, body) = channel();
        let mut answer = std::pin::pin!(client.send_request(with_body("/wait", body)));
        upload.data("begun");
        let pause = Duration::from_millis(100);
        assert!(timeout(pause, &mut answer).await.is_err());
        let since = Instant::now();
        proxy.policy(&deny_all());
        proxy.listen(&[]);
        let answer = timeout(PATIENCE, answer).await.expect("cut").unwrap();
        assert_eq!(answer.status(), 403);
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    });
}

#[test]
fn a_web_socket_is_cut() {
    run(async {
        let proxy = Proxy::of(upgrades::web_socket).await;
        let mut client = proxy.connect();
        client.write_all(upgrades::ASK.as_bytes()).await.unwrap();
        let head = upgrades::read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let since = Instant::now();
        proxy.policy(&deny_all());
        proxy.listen(&[]);
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, client.read_to_end(&mut rest)).await;
        let _ = read.expect("cut");
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
        proxy.refused("policy_denied", 1).await;
    });
}

#[test]
fn what_goes_on_is_allowed_by_the_headers_it_came_with() {
    run(async {
        let red = || when(vec![header("x-team", &["red"])]);
        let proxy = Proxy::of(echo).await;
        proxy.policy(&policy("shop/allow", ALLOW, vec![red()]));
        proxy.listen(&[]);
        let mut client = proxy.http1().await;
        let (upload, body) = channel();
        let mut request = with_body("/", body);
        request
            .headers_mut()
            .insert("x-team", "red".parse().unwrap());
        let mut answer = std::pin::pin!(client.send_request(request));
        upload.data("begun");
        assert!(
            timeout(Duration::from_millis(50), &mut answer)
                .await
                .is_err()
        );
        // A change of something else asks again.
        proxy.policy(&deny_path("/other"));
        proxy.listen(&[]);
        assert!(timeout(2 * SOON / 4, &mut answer).await.is_err());
        drop(upload);
        let answer = timeout(PATIENCE, answer).await.expect("answered").unwrap();
        assert_eq!(answer.status(), 200);
    });
}

#[test]
fn the_body_of_a_refused_request_is_not_waited_for() {
    run(async {
        let proxy = guarded(&[deny_all()]).await;
        let mut client = proxy.http2().await;
        let (_upload, body) = channel();
        let mut request = get2("/upload").map(|_: Body| body);
        *request.method_mut() = http::Method::POST;
        let answer = client.send_request(request);
        let answer = timeout(PATIENCE, answer).await.expect("at once").unwrap();
        assert_eq!(answer.status(), 403);
    });
}
