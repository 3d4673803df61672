use super::*;
use crate::{
    cluster::fake::{Answer, Asked, Fake},
    store::testing,
};
use karst_core::{GatewayName, ParentStatus, ProxyClass};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

fn route() -> ObjectKey {
    ObjectKey {
        kind: Kind::HttpRoute,
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
    }
}

/// A route of which another controller and we have said something; the index does not know it any more.
fn stale(facts: &Facts, version: &str) {
    let gvk = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let parent = |controller: &str| json!({"parentRef": {"name": "x"}, "controllerName": controller, "conditions": []});
    let status = json!({"parents": [
        parent("example.org/other"), parent(ProxyClass::Waypoint.controller())]});
    facts.note_status(
        &route(),
        &Arc::new(ApiResource::from_gvk(&gvk)),
        version.to_owned(),
        &status,
    );
}

async fn brought(answer: impl Fn(&Asked) -> Answer + Send + 'static) -> (Verdict, Vec<Asked>) {
    let fake = Fake::start(answer).await;
    let (store, facts) = (testing::store(), Facts::default());
    stale(&facts, "7");
    let verdict = bring(&fake.cluster, &store, &facts, &route()).await;
    (verdict, fake.asked())
}

#[tokio::test]
async fn our_part_of_a_status_is_written_and_no_more() {
    let (verdict, asked) = brought(|asked| Answer::text(200, &asked.body)).await;
    assert_eq!(verdict, Verdict::Done);
    let [asked] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(asked.method, "PATCH");
    assert_eq!(
        asked.path,
        "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web/status"
    );
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(body["metadata"]["resourceVersion"], "7");
    let parents = body["status"]["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 1);
    assert_eq!(parents[0]["controllerName"], "example.org/other");
}

#[tokio::test]
async fn a_status_that_somebody_else_writes_is_tried_again() {
    for (code, verdict) in [
        (409, Verdict::Again),
        (500, Verdict::Again),
        (403, Verdict::Again),
        (404, Verdict::Done),
        (422, Verdict::Done),
    ] {
        let (found, _) = brought(move |_| Answer::refusal(code, "no")).await;
        assert_eq!(found, verdict, "{code}");
    }
}

#[tokio::test]
async fn what_is_gone_or_not_ours_is_not_written() {
    let fake = Fake::start(|_| panic!("nothing is to be asked")).await;
    let (store, facts) = (testing::store(), Facts::default());
    assert_eq!(
        bring(&fake.cluster, &store, &facts, &route()).await,
        Verdict::Done
    );
    stale(&facts, "7");
    facts.forget(&route());
    assert_eq!(
        bring(&fake.cluster, &store, &facts, &route()).await,
        Verdict::Done
    );
    let secret = ObjectKey {
        kind: Kind::Secret,
        ..route()
    };
    assert!(wanted(&store, &secret).is_none());
}

#[tokio::test]
async fn a_change_is_written_while_leading() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "PATCH" => Answer::text(200, &asked.body),
        _ => Answer::refusal(500, "not asked"),
    })
    .await;
    let (store, facts) = (Arc::new(testing::store()), Arc::new(Facts::default()));
    stale(&facts, "1");
    let writing = write(fake.cluster.clone(), store.clone(), facts.clone());
    let patches = || fake.count(|asked| asked.method == "PATCH");
    let watching = async {
        while patches() < 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // Our own write as the source sees it, and then somebody else's.
        facts.forget(&route());
        stale(&facts, "2");
        while patches() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = writing => panic!("it goes on for ever"),
        () = watching => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("nothing was written"),
    }
}

#[test]
fn a_problem_shows_in_every_part_that_is_in_force() {
    let mut content = StatusContent::Parents(
        [
            Vec::new(),
            vec![Condition::yes(PROGRAMMED, "Programmed", "")],
        ]
        .into_iter()
        .map(|conditions| ParentStatus {
            parent_ref: Value::Null,
            controller: ProxyClass::Gateway.controller(),
            conditions,
        })
        .collect(),
    );
    for conditions in status_conditions(&mut content) {
        not_in_force(conditions, "rejected");
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].status, ConditionStatus::False);
        assert_eq!(conditions[0].message, "rejected");
        conditions[0].message = "another reason".to_owned();
        not_in_force(conditions, "rejected");
        assert_eq!(conditions[0].message, "another reason");
    }
}

#[test]
fn a_gateway_whose_proxies_cannot_be_made_says_so() {
    let store = testing::store();
    let feed = Arc::new(Feed::default());
    store.statuses.join(&feed);
    let gateway = GatewayName::new("shop", "front");
    store.set_unmade(&gateway, Some("taken".to_owned()));
    let key = ObjectKey {
        kind: Kind::Gateway,
        namespace: "shop".to_owned(),
        name: "front".to_owned(),
    };
    assert_eq!(store.problem(&key).as_deref(), Some("taken"));
}
