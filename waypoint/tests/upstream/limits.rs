//! Limits of connections: who waits, for what, and how long.

use std::rc::Rc;

use karst_api::waypoint::{ConnectionLimits, Protocol};
use tokio::task::spawn_local;

use crate::app::{Speaks, http};
use crate::support::{Proxy, backend, get};
use crate::tunnel::{on_worker, until};

fn one_connection(millis: u64) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: 1,
        max_pending_requests: 1,
        connect_timeout_ms: millis,
        ..ConnectionLimits::default()
    }
}

#[test]
fn a_request_waits_for_a_connection_and_one_too_many_does_not() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let limits = one_connection(10_000);
        let proxy = Rc::new(Proxy::limited(Protocol::Http1, &[app.address], limits));
        let get_text = |path: &'static str| {
            let proxy = Rc::clone(&proxy);
            spawn_local(async move { proxy.text(path).await })
        };
        let first = get_text("/wait");
        until("it waits", || app.seen.waiting.get() == 1).await;
        let second = get_text("/second");
        until("it is pending", || proxy.cluster.stats().pending == 1).await;
        assert_eq!(
            proxy.reason(get("/third")).await,
            ("overloaded_pending_requests", false)
        );
        app.seen.go_on.notify_waiters();
        assert_eq!(first.await.unwrap(), "waited");
        assert_eq!(second.await.unwrap(), "/second");
        assert_eq!(app.seen.connections.get(), 1, "the same connection");
        assert_eq!(proxy.cluster.stats().pending, 0);
    });
}

#[test]
fn it_does_not_wait_for_ever() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = http(Speaks::Http2(1)).await;
            let app = match protocol {
                Protocol::Http1 => http(Speaks::Http1).await,
                _ => app,
            };
            let limits = one_connection(2_000);
            let proxy = Rc::new(Proxy::limited(protocol, &[app.address], limits));
            let first = spawn_local({
                let proxy = Rc::clone(&proxy);
                async move { proxy.text("/wait").await }
            });
            until("it waits", || app.seen.waiting.get() == 1).await;
            assert_eq!(
                proxy.reason(get("/")).await,
                ("overloaded_connections", false)
            );
            app.seen.go_on.notify_waiters();
            assert_eq!(first.await.unwrap(), "waited");
        }
    });
}

#[test]
fn an_unused_connection_to_another_endpoint_makes_room() {
    on_worker(async {
        let (first, second) = (http(Speaks::Http1).await, http(Speaks::Http1).await);
        let apps = [first.address, second.address];
        let mut both = backend(Protocol::Http1, &apps);
        both.policy.get_or_insert_default().limits = Some(one_connection(10_000));
        let policy = both.policy.get_or_insert_default();
        policy.load_balancing.get_or_insert_default().algorithm =
            karst_api::waypoint::Algorithm::RoundRobin.into();
        let proxy = Proxy::new(both, None, Default::default());
        for _ in 0..6 {
            proxy.text("/").await;
        }
        assert_eq!(first.seen.requests.get() + second.seen.requests.get(), 6);
        assert_eq!(
            (first.seen.requests.get(), second.seen.requests.get()),
            (3, 3)
        );
        assert!(proxy.cluster.stats().connections <= 1);
    });
}

#[test]
fn another_workers_unused_connection_makes_room_within_moments() {
    // Two workers share the limits; here both run on one thread, which makes no difference to them.
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let limits = one_connection(10_000);
        let first = Proxy::limited(Protocol::Http1, &[app.address], limits);
        let second = karst_waypoint::upstream::Upstream::new(Rc::new(|| None), Default::default());
        first.text("/").await;
        until("it is idle", || first.upstream.idle() == 1).await;
        let picked = first.pick();
        let version = http::Version::HTTP_11;
        let response = second.send(&picked, version, get("/two")).await.unwrap();
        assert_eq!(crate::support::read(response).await.1, "/two");
        assert_eq!(first.upstream.idle(), 0);
    });
}
