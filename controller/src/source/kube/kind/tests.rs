use super::*;
use crate::cluster::annotations::ENROLLED;
use serde_json::json;
use std::collections::BTreeMap;

/// Follows pods of a server that is not there: events are handed over by hand.
fn follow() -> Follow {
    let cluster = Cluster::at("http://127.0.0.1:1", Metrics::default());
    let (messages, _) = mpsc::channel(1);
    Follow::new(Kind::Pod, &cluster, messages, Arc::new(Facts::default()))
}

fn pod(name: &str) -> Raw {
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "a", "uid": format!("uid-{name}"),
            "annotations": {ENROLLED: "true"},
        },
        "spec": {"containers": []},
    }))
    .unwrap()
}

fn taken(follow: &mut Follow, event: Event<Raw>) -> Vec<String> {
    said(follow.take(event))
}

fn said(messages: Vec<Message>) -> Vec<String> {
    let said = |message: Message| match message {
        Message::Initial(_, objects) => {
            let names = objects.into_iter().map(|object| object.key.name);
            format!("initial {}", names.collect::<Vec<_>>().join(" "))
        }
        Message::Apply(object) => format!("apply {}", object.key.name),
        Message::Delete(key) => format!("delete {}", key.name),
    };
    messages.into_iter().map(said).collect()
}

#[tokio::test]
async fn what_only_a_broken_list_had_is_deleted_by_the_next() {
    let mut follow = follow();
    for event in [Event::Started, Event::Listed(pod("a"))] {
        assert!(taken(&mut follow, event).is_empty());
    }
    assert_eq!(taken(&mut follow, Event::Synced), ["initial a"]);
    assert!(taken(&mut follow, Event::Started).is_empty());
    assert_eq!(taken(&mut follow, Event::Listed(pod("x"))), ["apply x"]);
    // It breaks off here, and the pod is gone before the next one.
    assert!(taken(&mut follow, Event::Started).is_empty());
    assert_eq!(taken(&mut follow, Event::Listed(pod("a"))), ["apply a"]);
    assert_eq!(taken(&mut follow, Event::Synced), ["delete x"]);
    assert_eq!(follow.facts.annotated().len(), 1);
}

#[tokio::test]
async fn what_only_a_broken_first_list_had_is_forgotten() {
    let mut follow = follow();
    taken(&mut follow, Event::Started);
    taken(&mut follow, Event::Listed(pod("x")));
    taken(&mut follow, Event::Started);
    taken(&mut follow, Event::Listed(pod("a")));
    assert_eq!(taken(&mut follow, Event::Synced), ["initial a"]);
    let annotated = follow.facts.annotated();
    let names: Vec<&str> = annotated.keys().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["a"]);
}

/// A kind that comes, moves and goes.
fn gateways() -> Follow {
    let cluster = Cluster::at("http://127.0.0.1:1", Metrics::default());
    let (messages, _) = mpsc::channel(1);
    Follow::new(
        Kind::Gateway,
        &cluster,
        messages,
        Arc::new(Facts::default()),
    )
}

fn place(version: &'static str) -> Option<Place> {
    Some(Place {
        version,
        plural: None,
    })
}

fn gateway(name: &str) -> Raw {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": "1"},
        "spec": {"gatewayClassName": "karst", "listeners": []},
        "status": {"conditions": []},
    }))
    .unwrap()
}

fn followed(follow: &mut Follow, place: Option<Place>) -> Vec<String> {
    let messages = follow.follow(place);
    said(messages)
}

#[tokio::test]
async fn a_kind_that_is_not_served_has_an_empty_first_list() {
    let mut follow = gateways();
    assert_eq!(followed(&mut follow, None), ["initial "]);
    // It comes while we run, and moves to another version.
    for version in ["v1beta1", "v1"] {
        assert!(followed(&mut follow, place(version)).is_empty());
        assert_eq!(
            follow.resource.api_version,
            format!("gateway.networking.k8s.io/{version}")
        );
        taken(&mut follow, Event::Started);
        assert_eq!(taken(&mut follow, Event::Listed(gateway("a"))), ["apply a"]);
        assert!(taken(&mut follow, Event::Synced).is_empty());
    }
    let key = follow.objects.known.iter().next().unwrap().clone();
    assert!(follow.facts.seen(&key).is_some());
    // And it goes again, with all objects.
    assert_eq!(followed(&mut follow, None), ["delete a"]);
    assert!(follow.follower.is_none());
    assert!(follow.facts.seen(&key).is_none());
}

#[tokio::test]
async fn a_kind_that_goes_during_its_first_list_leaves_nothing() {
    let mut follow = gateways();
    followed(&mut follow, place("v1"));
    taken(&mut follow, Event::Started);
    taken(&mut follow, Event::Listed(gateway("a")));
    assert_eq!(followed(&mut follow, None), ["initial "]);
    assert!(follow.objects.known.is_empty());
}

#[tokio::test]
async fn a_follower_goes_where_its_kind_is_served() {
    let (server, served) = watch::channel(None);
    let mut served = Some(served);
    let wait = std::time::Duration::from_millis(20);
    let unknown = moved(&mut served, Kind::Gateway, None);
    assert!(tokio::time::timeout(wait, unknown).await.is_err());
    server.send_replace(Some(BTreeMap::new()));
    assert_eq!(moved(&mut served, Kind::Gateway, None).await, None);
    let same = moved(&mut served, Kind::Gateway, Some(&None));
    assert!(tokio::time::timeout(wait, same).await.is_err());
    let now = BTreeMap::from([(Kind::Gateway, place("v1").unwrap())]);
    server.send_replace(Some(now));
    assert_eq!(
        moved(&mut served, Kind::Gateway, Some(&None)).await,
        place("v1")
    );
}

#[tokio::test]
async fn only_certificates_leave_the_server() {
    let fake =
        crate::cluster::fake::Fake::start(|_| crate::cluster::fake::Answer::refusal(403, "no"))
            .await;
    for (kind, selector) in [
        (Kind::Secret, "type%3Dkubernetes.io%2Ftls"),
        (Kind::ConfigMap, "metadata.name%21%3Dkarst-ca-root-cert"),
    ] {
        let (messages, _) = mpsc::channel(1);
        let facts = Arc::new(Facts::default());
        let follow = Follow::new(kind, &fake.cluster, messages, facts);
        let wait = std::time::Duration::from_secs(10);
        tokio::select! {
            () = follow.run(None) => panic!("it goes on for ever"),
            () = tokio::time::sleep(wait) => panic!("nothing was asked"),
            () = async { while fake.count(|asked| asked.query.contains(selector)) < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            } } => {}
        }
        let others = fake.count(|asked| {
            let plural = format!("/{}s", kind.name().to_lowercase());
            asked.path.ends_with(&plural) && !asked.query.contains(selector)
        });
        assert_eq!(others, 0, "{kind:?}");
    }
}
