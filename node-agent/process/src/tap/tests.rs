use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::Value;
use tokio::task::LocalSet;

use super::facts::{Event, Facts, Http, Party, Service, Verdict};
use super::query::{DEFAULT_LIMIT, DEFAULT_RATE, Query, Sees};
use super::queue::{QUEUE_BYTES, QUEUE_EVENTS};
use super::selector::Selector;
use super::{MAX_SUBSCRIBERS, Subscription, Tap, answer};
use crate::access_log::{Line, Record};

struct Said(String);

impl Record for Said {
    fn message(&self) -> &'static str {
        "not part of an event"
    }

    fn reason(&self) -> Option<&str> {
        Some("policy_denied")
    }

    fn error(&self) -> Option<&str> {
        None
    }

    fn fields(&self, line: &mut Line<'_>) {
        line.text("path", &self.0);
    }
}

fn facts() -> Facts<'static> {
    Facts {
        event: Event::Request,
        verdict: Verdict::Denied,
        source: Party {
            names: ["cart-0", "cart"],
            namespace: "shop",
            identity: Some("spiffe://cluster.local/ns/shop/sa/cart"),
            address: "10.0.0.1:4000".parse().ok(),
        },
        destination: Party {
            names: ["web-1", ""],
            namespace: "front",
            identity: None,
            address: "[::ffff:10.0.0.2]:8080".parse().ok(),
        },
        service: Some(Service {
            name: "web",
            namespace: "front",
            hostname: "web.front.svc.cluster.local",
            port: Some(80),
        }),
        direction: Some("outbound"),
        policies: [Some("front/nobody"), None],
        http: Some(Http {
            method: "GET",
            path: "/api/v1",
            status: 403,
        }),
        duration: Duration::from_millis(25),
    }
}

fn selector(conditions: &[(&str, &str)]) -> Selector {
    let mut selector = Selector::default();
    for (parameter, value) in conditions {
        selector.add(parameter, value).expect("valid");
    }
    selector
}

/// Conditions that hold for [`facts`], and such that do not.
const CONDITIONS: &[(&str, &str, bool)] = &[
    ("from", "shop", true),
    ("from", "shop/cart-0", true),
    ("from", "shop/cart", true),
    ("from", "shop/ca*", true),
    ("from", "shop/*", true),
    ("from", "10.0.0.1", true),
    ("from", "10.0.0.1:4000", true),
    ("from", "spiffe://cluster.local/ns/shop/sa/cart", true),
    ("from", "front", false),
    ("from", "shop/car", false),
    ("from", "shop/web*", false),
    ("from", "10.0.0.1:4001", false),
    ("from", "spiffe://other/ns/shop/sa/cart", false),
    ("to", "front", true),
    ("to", "front/web-1", true),
    ("to", "10.0.0.2", true),
    ("to", "10.0.0.2:8080", true),
    ("to", "svc/web.front", true),
    ("to", "svc/web.front:80", true),
    ("to", "svc/web.front.svc.cluster.local:80", true),
    ("to", "svc/web.front:8080", false),
    ("to", "svc/web.fron", false),
    ("to", "svc/we.front", false),
    ("to", "shop", false),
    ("to", "spiffe://cluster.local/ns/shop/sa/cart", false),
    ("verdict", "denied", true),
    ("verdict", "allowed", false),
    ("verdict", "failed", false),
    ("policy", "nobody", true),
    ("policy", "front/nobody", true),
    ("policy", "shop/nobody", false),
    ("policy", "body", false),
    ("method", "GET", true),
    ("method", "get", true),
    ("method", "POST", false),
    ("path", "/", true),
    ("path", "/api", true),
    ("path", "/api/v2", false),
    ("status", "403", true),
    ("status", "4xx", true),
    ("status", "400-403", true),
    ("status", "404", false),
    ("status", "5xx", false),
    ("min_duration_ms", "25", true),
    ("min_duration_ms", "26", false),
    ("direction", "outbound", true),
    ("direction", "inbound", false),
    ("event", "request", true),
    ("event", "refused", false),
];

#[test]
fn every_condition_holds_or_does_not() {
    for (parameter, value, holds) in CONDITIONS {
        let matches = selector(&[(parameter, value)]).matches(&facts());
        assert_eq!(matches, *holds, "{parameter}={value}");
    }
}

proptest! {
    /// Of one parameter one value must hold, of different parameters all.
    #[test]
    fn conditions_are_alternatives_within_a_parameter(
        chosen in proptest::collection::vec(0..CONDITIONS.len(), 0..12),
    ) {
        let mut seen_duration = false;
        let chosen: Vec<_> = chosen
            .into_iter()
            .map(|index| CONDITIONS[index])
            // Of these there is one.
            .filter(|(parameter, ..)| {
                *parameter != "min_duration_ms" || !std::mem::replace(&mut seen_duration, true)
            })
            .collect();
        let mut by_parameter = BTreeMap::<&str, bool>::new();
        for (parameter, _, holds) in &chosen {
            *by_parameter.entry(parameter).or_default() |= holds;
        }
        let conditions: Vec<_> = chosen.iter().map(|(name, value, _)| (*name, *value)).collect();
        let expected = by_parameter.values().all(|holds| *holds);
        prop_assert_eq!(selector(&conditions).matches(&facts()), expected);
    }

    #[test]
    fn any_query_is_taken_or_refused(query in "\\PC{0,80}", path in "[a-z_=&/*:.0-9%+-]{0,60}") {
        for sees in [Sees::Connections, Sees::Requests] {
            let _ = Query::parse(&query, sees);
            if let Ok(query) = Query::parse(&path, sees) {
                let _ = query.selector.matches(&facts());
            }
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (query, sees, says) in [
        ("from=svc/web.front", Sees::Connections, "clients go to"),
        ("to=svc/web", Sees::Connections, "svc/NAME.NAMESPACE"),
        ("to=svc/web.front:0", Sees::Connections, "a port"),
        ("from=Shop", Sees::Connections, "NAMESPACE"),
        ("from=shop/", Sees::Connections, "NAMESPACE/NAME"),
        ("from=shop/*0", Sees::Connections, "NAMESPACE/NAME"),
        (
            "verdict=maybe",
            Sees::Connections,
            "allowed, denied or failed",
        ),
        ("method=GET", Sees::Connections, "ask a waypoint"),
        ("path=/", Sees::Connections, "ask a waypoint"),
        ("status=5xx", Sees::Connections, "ask a waypoint"),
        ("event=request", Sees::Connections, "ask a waypoint"),
        ("direction=inbound", Sees::Requests, "ask a node agent"),
        ("live=true", Sees::Requests, "only node agents"),
        ("live=yes", Sees::Connections, "true or false"),
        ("path=/a?b", Sees::Requests, "no query"),
        ("path=/a%3Fb=1", Sees::Requests, "no query"),
        ("status=6", Sees::Requests, "404, 5xx"),
        ("status=500-400", Sees::Requests, "404, 5xx"),
        ("max_rps=0", Sees::Requests, "1 to 10000"),
        ("limit_s=86401", Sees::Requests, "86400"),
        ("colour=red", Sees::Requests, "no such parameter"),
    ] {
        let error = Query::parse(query, sees).expect_err(query).to_string();
        assert!(error.contains(says), "{query}: {error}");
    }
    let long = format!("from={}", "a".repeat(9000));
    assert!(Query::parse(&long, Sees::Requests).is_err());
}

#[test]
fn what_is_there_already_comes_only_when_asked_for() {
    let live = Facts {
        event: Event::Live,
        ..facts()
    };
    let wants = |query| {
        let query = Query::parse(query, Sees::Connections).expect("valid");
        (
            query.selector.matches(&live),
            query.selector.matches(&facts()),
        )
    };
    assert_eq!(wants(""), (false, true));
    assert_eq!(wants("live=true"), (true, true));
    assert_eq!(wants("live=true&event=closed"), (true, false));
    assert_eq!(wants("live=true&from=mesh"), (false, false));
}

fn tap() -> Tap {
    Tap::new(vec![("node", "a".to_owned())])
}

fn query(text: &str) -> Query {
    Query::parse(text, Sees::Requests).expect("valid")
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// The lines of the next chunk.
async fn lines(subscription: &mut Subscription) -> Vec<Value> {
    let frame = subscription
        .frame()
        .await
        .expect("a chunk")
        .expect("no failure");
    let data = frame.into_data().expect("data");
    let lines = data
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect()
}

#[test]
fn an_event_reaches_whom_it_concerns_and_nobody_later() {
    local(async {
        let tap = tap();
        assert!(!tap.is_on());
        let mut shop = tap.subscribe(query("from=shop")).expect("room");
        let mut other = tap.subscribe(query("from=other")).expect("room");
        assert!(tap.is_on());
        assert_eq!(lines(&mut shop).await[0]["tap"], "started");
        assert_eq!(lines(&mut other).await[0]["node"], "a");
        tap.publish(&facts(), &Said("/x".to_owned()));
        let events = lines(&mut shop).await;
        assert_eq!(events.len(), 1);
        for (field, value) in [
            ("event", "request"),
            ("verdict", "denied"),
            ("node", "a"),
            ("path", "/x"),
            ("reason", "policy_denied"),
        ] {
            assert_eq!(events[0][field], value);
        }
        assert_eq!(lines(&mut other).await[0]["tap"], "status");
        drop(shop);
        assert_eq!(tap.subscribers(), 1);
        drop(other);
        assert!(!tap.is_on());
    });
}

#[test]
fn a_reader_that_does_not_read_loses_events_and_is_told() {
    local(async {
        let tap = tap();
        let mut slow = tap.subscribe(query("max_rps=10000")).expect("room");
        assert_eq!(lines(&mut slow).await[0]["tap"], "started");
        for _ in 0..QUEUE_EVENTS + 10 {
            tap.publish(&facts(), &Said("/x".to_owned()));
        }
        let mut events = 0;
        let told = loop {
            let lines = lines(&mut slow).await;
            if lines[0]["tap"] == "status" {
                break lines;
            }
            events += lines.len();
        };
        assert_eq!(events, QUEUE_EVENTS);
        assert_eq!(told[0]["dropped"]["queue_full"], 10);
        assert_eq!(told[0]["events"], QUEUE_EVENTS);
        // There is room again.
        tap.publish(&facts(), &Said("/y".to_owned()));
        assert_eq!(lines(&mut slow).await[0]["path"], "/y");
    });
}

#[test]
fn large_events_fill_the_queue_by_their_bytes() {
    local(async {
        let tap = tap();
        let mut slow = tap.subscribe(query("max_rps=10000")).expect("room");
        let long = "x".repeat(2000);
        let fits = QUEUE_BYTES / 2000;
        for _ in 0..QUEUE_EVENTS {
            tap.publish(&facts(), &Said(long.clone()));
        }
        let [sent, full, _] = slow.totals_for_tests();
        assert!(
            (fits - fits / 10..fits).contains(&(sent as usize)),
            "{sent}"
        );
        assert_eq!(sent + full, QUEUE_EVENTS as u64);
        // What is read makes room, byte by byte.
        assert_eq!(lines(&mut slow).await[0]["tap"], "started");
        let read = lines(&mut slow).await.len();
        for _ in 0..read + 1 {
            tap.publish(&facts(), &Said(long.clone()));
        }
        let [again, ..] = slow.totals_for_tests();
        assert_eq!(again, sent + read as u64);
    });
}

#[test]
fn a_rate_leaves_out_what_is_beyond_it() {
    local(async {
        let tap = tap();
        let mut one = tap.subscribe(query("max_rps=3")).expect("room");
        let mut all = tap.subscribe(query("")).expect("room");
        for _ in 0..10 {
            tap.publish(&facts(), &Said("/x".to_owned()));
        }
        assert_eq!(lines(&mut one).await[0]["max_rps"], 3);
        assert_eq!(lines(&mut all).await[0]["max_rps"], DEFAULT_RATE);
        assert_eq!(lines(&mut one).await.len(), 3);
        assert_eq!(lines(&mut all).await.len(), 10);
        let told = lines(&mut one).await;
        assert_eq!(told[0]["dropped"]["rate_limit"], 7);
    });
}

#[test]
fn a_forgotten_tap_ends() {
    local(async {
        let tap = tap();
        let mut read = tap.subscribe(query("limit_s=3")).expect("room");
        let unread = tap.subscribe(query("limit_s=3")).expect("room");
        let longer = tap.subscribe(query("")).expect("room");
        let mut last = Value::Null;
        while let Some(Ok(frame)) = read.frame().await {
            let data = frame.into_data().expect("data");
            last = serde_json::from_slice(&data).expect("one line");
        }
        assert_eq!(
            (&last["tap"], &last["reason"]),
            (&"ended".into(), &"time_limit".into())
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Nobody has looked at this one.
        assert_eq!(tap.subscribers(), 1);
        tokio::time::sleep(DEFAULT_LIMIT).await;
        assert!(!tap.is_on());
        drop((unread, longer));
    });
}

#[test]
fn there_are_only_so_many_subscribers() {
    local(async {
        let tap = tap();
        let ask = |query: Option<&str>| answer(&tap, Sees::Connections, query, drop);
        let mut all: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| ask(None)).collect();
        assert!(all.iter().all(|reply| reply.status() == 200));
        let refused = ask(None);
        assert_eq!(refused.status(), 503);
        let body = refused
            .into_body()
            .collect()
            .await
            .expect("body")
            .to_bytes();
        let told: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(told["reason"], "tap_too_many_subscribers");
        assert!(told["error"].to_string().contains("there are 8 "), "{told}");
        all.pop();
        assert_eq!(ask(Some("status=5xx")).status(), 400);
        assert_eq!(ask(None).status(), 200);
    });
}

#[test]
fn subscribers_that_panic_give_their_places_back() {
    local(async {
        let tap = tap();
        for _ in 0..2 {
            let readers: Vec<_> = (0..MAX_SUBSCRIBERS)
                .map(|_| {
                    let mut subscription = tap.subscribe(query("")).expect("room");
                    tokio::task::spawn_local(async move {
                        assert_eq!(lines(&mut subscription).await[0]["tap"], "ended");
                    })
                })
                .collect();
            assert!(tap.is_on());
            assert!(tap.subscribe(query("")).is_err());
            for reader in readers {
                assert!(reader.await.expect_err("it has started").is_panic());
            }
            assert!(!tap.is_on());
        }
        // Between the subscription and the answer.
        let begun = catch_unwind(AssertUnwindSafe(|| {
            answer(&tap, Sees::Connections, Some("live=true"), |_| {
                panic!("cannot begin")
            })
        }));
        assert!(begun.is_err());
        assert!(!tap.is_on());
    });
}

#[test]
fn a_subscription_that_cannot_be_made_takes_no_place() {
    let tap = tap();
    // There is no runtime.
    let made = catch_unwind(AssertUnwindSafe(|| tap.subscribe(query(""))));
    assert!(made.is_err());
    assert!(!tap.is_on());
    local(async {
        let all: Vec<_> = (0..MAX_SUBSCRIBERS)
            .map(|_| tap.subscribe(query("")))
            .collect();
        assert!(all.iter().all(Result::is_ok));
    });
    // Its runtime has gone, and with it everybody who read.
    assert!(!tap.is_on());
}

#[test]
fn counts_are_metrics() {
    #[derive(Debug)]
    struct Of(Tap);
    impl prometheus_client::collector::Collector for Of {
        fn encode(
            &self,
            encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
        ) -> std::fmt::Result {
            self.0.encode(&mut crate::metrics::Out::new(encoder))
        }
    }
    local(async {
        let tap = tap();
        let subscription = tap.subscribe(query("max_rps=2")).expect("room");
        for _ in 0..3 {
            tap.publish(&facts(), &Said("/x".to_owned()));
        }
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(Of(tap.clone())));
        let text = crate::metrics::text(&registry).expect("encodes");
        for line in [
            "karst_tap_subscribers 1",
            "karst_tap_events_total 2",
            "karst_tap_events_dropped_total{cause=\"rate_limit\"} 1",
            "karst_tap_events_dropped_total{cause=\"queue_full\"} 0",
            "karst_tap_refused_total 0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        drop(subscription);
    });
}
