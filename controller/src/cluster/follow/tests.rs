use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;
use crate::cluster::fake::{Answer, Asked, Fake, status};

/// Long enough for everything that is waited for here, and much less than a silent watch is given.
const PATIENCE: Duration = Duration::from_secs(10);

fn map(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "a", "resourceVersion": version},
    })
}

fn list(version: &str, names: &[&str]) -> Answer {
    let items: Vec<Value> = names.iter().map(|name| map(name, "1")).collect();
    Answer::json(&json!({
        "apiVersion": "v1", "kind": "ConfigMapList",
        "metadata": {"resourceVersion": version}, "items": items,
    }))
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn end_of_list(version: &str) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    event(
        "BOOKMARK",
        &json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"resourceVersion": version, "annotations": annotations},
        }),
    )
}

fn follower(fake: &Fake) -> Follower<ConfigMap> {
    let api = Api::all(fake.cluster.client());
    Follower::new(&fake.cluster, api, "test")
}

async fn events(follower: &mut Follower<ConfigMap>, count: usize) -> Vec<String> {
    let mut events = Vec::new();
    while events.len() < count {
        let event = tokio::time::timeout(PATIENCE, follower.next()).await;
        let name = |map: ConfigMap| map.metadata.name.unwrap_or_default();
        events.push(match event.unwrap_or_else(|_| panic!("only {events:?}")) {
            Event::Started => "started".to_owned(),
            Event::Listed(map) => format!("listed {}", name(map)),
            Event::Synced => "synced".to_owned(),
            Event::Applied(map) => format!("applied {}", name(map)),
            Event::Deleted(map) => format!("deleted {}", name(map)),
            Event::Unreadable(_) => "unreadable".to_owned(),
        });
    }
    events
}

/// Follows for a while, where no event is expected any more.
async fn nothing(follower: &mut Follower<ConfigMap>, time: Duration) {
    if let Ok(event) = tokio::time::timeout(time, follower.next()).await {
        panic!("{event:?}");
    }
}

/// A server that answers lists as streams in one way, and everything else well.
async fn fallback(streaming: impl Fn() -> Answer + Send + 'static) -> Fake {
    Fake::start(move |asked| {
        if asked.is_streaming_list() {
            streaming()
        } else if asked.is_watch() {
            Answer::events(&[event("MODIFIED", &map("b", "8"))])
        } else {
            list("7", &["a"])
        }
    })
    .await
}

async fn lists_page_by_page(streaming: impl Fn() -> Answer + Send + 'static, found: &[&str]) {
    let fake = fallback(streaming).await;
    let expected = [found, &["started", "listed a", "synced", "applied b"]].concat();
    let got = events(&mut follower(&fake), expected.len()).await;
    assert_eq!(got, expected);
    assert_eq!(fake.count(Asked::is_streaming_list), 1);
    let watch = fake.asked().into_iter().find(Asked::is_watch).unwrap();
    assert!(watch.query.contains("resourceVersion=7"), "{watch:?}");
}

#[tokio::test]
async fn a_list_is_streamed_where_the_server_can() {
    let fake = fallback(|| {
        Answer::events(&[
            event("ADDED", &map("a", "5")),
            end_of_list("6"),
            event("MODIFIED", &map("c", "7")),
        ])
    })
    .await;
    let got = events(&mut follower(&fake), 4).await;
    assert_eq!(got, ["started", "listed a", "synced", "applied c"]);
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn a_server_that_does_not_stream_lists_is_asked_page_by_page() {
    let told_not_to =
        "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    for code in [422, 400, 500] {
        lists_page_by_page(move || Answer::refusal(code, told_not_to), &["started"]).await;
    }
}

#[tokio::test]
async fn a_streamed_list_that_breaks_off_is_asked_for_page_by_page() {
    let error = event("ERROR", &status(500, "etcd does not report its progress"));
    let broken = move || Answer::events(&[event("ADDED", &map("z", "5")), error.clone()]);
    lists_page_by_page(broken, &["started", "listed z"]).await;
    let ended = || Answer::events(&[event("ADDED", &map("z", "5"))]).ending();
    lists_page_by_page(ended, &["started", "listed z"]).await;
}

#[tokio::test]
async fn a_busy_server_is_asked_for_the_same_list_later() {
    for code in [429, 503] {
        let asked = AtomicUsize::new(0);
        let fake = fallback(move || match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::refusal(code, "too many requests"),
            1 => Answer::text(code, "Too many requests, please try again later.\n"),
            _ => Answer::events(&[end_of_list("6")]),
        })
        .await;
        let got = events(&mut follower(&fake), 4).await;
        assert_eq!(got, ["started", "started", "started", "synced"]);
        assert_eq!(fake.asked().len(), 3, "no other kind of list");
    }
}

/// A server whose watches are answered in one way, after a list of version 7.
async fn known(
    watch: impl FnMut(&Asked) -> Answer + Send + 'static,
) -> (Fake, Follower<ConfigMap>) {
    let mut watch = watch;
    let fake = Fake::start(move |asked| {
        if asked.is_streaming_list() {
            Answer::refusal(422, "no")
        } else if asked.is_watch() {
            watch(asked)
        } else {
            list("7", &[])
        }
    })
    .await;
    let mut follower = follower(&fake);
    let got = events(&mut follower, 3).await;
    assert_eq!(got, ["started", "started", "synced"]);
    (fake, follower)
}

#[tokio::test]
async fn a_place_that_is_forgotten_is_not_asked_for_again() {
    // As the status of the answer, and as an event of it; 400 is a place that never was one.
    let forgotten = [
        Answer::refusal(410, "too old"),
        Answer::events(&[event("ERROR", &status(410, "too old"))]),
        Answer::refusal(400, "no version"),
    ];
    for first in forgotten {
        let mut first = Some(first);
        let watch = move |_: &Asked| first.take().unwrap_or_else(|| Answer::events(&[]));
        let (fake, mut follower) = known(watch).await;
        let got = events(&mut follower, 3).await;
        assert_eq!(got, ["started", "started", "synced"], "listed again");
        assert_eq!(fake.count(Asked::is_watch), 1);
    }
}

#[tokio::test]
async fn a_server_that_answers_no_watch_is_not_hammered() {
    let page = "<html>\n<body>\n<h1>502 Bad Gateway</h1>\n</body>\n</html>\n";
    let answers: [fn(&str) -> Answer; 4] = [
        |_| Answer::text(429, "Too many requests, please try again later.\n"),
        |page| Answer::text(502, page),
        |_| Answer::events(&[]).ending(),
        |_| Answer::refusal(500, "leader changed"),
    ];
    for answer in answers {
        let (fake, mut follower) = known(move |_| answer(page)).await;
        // 250, 500, 1000 ms, each at least by half.
        nothing(&mut follower, Duration::from_millis(1500)).await;
        // A busy machine may not have come to the second.
        let ended = Instant::now() + PATIENCE;
        while fake.count(Asked::is_watch) < 2 && Instant::now() < ended {
            nothing(&mut follower, Duration::from_millis(100)).await;
        }
        let watches = fake.count(Asked::is_watch);
        assert!((2..=5).contains(&watches), "{watches}");
        assert_eq!(fake.asked().len(), 2 + watches, "no list");
    }
}

#[tokio::test]
async fn a_watch_that_gave_something_is_soon_taken_up_again() {
    let mut version = 7;
    let watch = move |_: &Asked| {
        version += 1;
        let version = version.to_string();
        Answer::events(&[event("MODIFIED", &map(&version, &version))]).ending()
    };
    let (fake, mut follower) = known(watch).await;
    let begun = Instant::now();
    let got = events(&mut follower, 8).await;
    assert_eq!(got[7], "applied 15");
    // Half a second for each of seven waits; such as grow would come to more than twelve.
    assert!(begun.elapsed() < Duration::from_millis(3500));
    let last = fake.asked().pop().unwrap();
    assert!(last.query.contains("resourceVersion=14"), "{last:?}");
}

#[tokio::test]
async fn an_event_that_cannot_be_read_does_not_stop_the_others() {
    let bad = event("MODIFIED", &json!({"metadata": {"name": 7}}));
    let good = event("MODIFIED", &map("b", "9"));
    let (_fake, mut follower) = known(move |_| Answer::events(&[bad.clone(), good.clone()])).await;
    let got = events(&mut follower, 2).await;
    assert_eq!(got, ["unreadable", "applied b"]);
}

#[tokio::test]
async fn a_follower_in_its_own_task_is_not_interrupted() {
    let slow = Duration::from_millis(500);
    let fake = fallback(move || Answer::events(&[end_of_list("6")]).after(slow)).await;
    let mut followed = follower(&fake).spawn();
    let mut events = 0;
    let ended = Instant::now() + PATIENCE;
    while events < 2 && Instant::now() < ended {
        tokio::select! {
            _ = followed.next() => events += 1,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    assert_eq!(events, 2, "started and synced");
    assert_eq!(fake.asked().len(), 1);
}
