use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use karst_core::ProxyClass;
use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{
        fake::{Answer, Asked, Fake},
        follow::Event,
        proxies::objects::tests::{proxies, wanted},
    },
    store::testing,
};

/// Objects by path, as an API server keeps them.
type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

async fn server(objects: &Objects) -> Fake {
    let objects = objects.clone();
    Fake::start(move |asked| {
        let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
        match asked.method.as_str() {
            "PATCH" => {
                let mut object: Value = serde_json::from_str(&asked.body).unwrap();
                object["metadata"]["uid"] = json!("u");
                objects.insert(asked.path.clone(), object.clone());
                Answer::json(&object)
            }
            "DELETE" => match objects.remove(&asked.path) {
                Some(_) => Answer::json(
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                                                "status": "Success"}),
                ),
                None => Answer::refusal(404, "not there"),
            },
            _ => match objects.get(&asked.path) {
                Some(object) => Answer::json(object),
                None => Answer::refusal(404, "not there"),
            },
        }
    })
    .await
}

fn writer(fake: &Fake) -> Writer {
    Writer {
        cluster: fake.cluster.clone(),
        store: Arc::new(testing::store()),
        facts: Arc::new(Facts::default()),
        proxies: Arc::new(proxies()),
        seen: Arc::new(Seen::default()),
    }
}

/// Lets the writer see what there is.
fn look(writer: &Writer, objects: &Objects) {
    for part in Part::ALL {
        writer.seen.take(part, Event::Started);
        for object in objects.lock().unwrap().values() {
            if object["kind"] == part.kind() {
                let object = serde_json::from_value(object.clone()).unwrap();
                writer.seen.take(part, Event::Listed(object));
            }
        }
        writer.seen.take(part, Event::Synced);
    }
}

fn writes(fake: &Fake) -> Vec<String> {
    let asked = fake.asked().into_iter();
    let writes = asked.filter(|asked| asked.method != "GET");
    writes
        .map(|asked| {
            let kind = asked.path.rsplit('/').nth(1).unwrap().to_owned();
            format!("{} {kind}", asked.method)
        })
        .collect()
}

fn front() -> GatewayName {
    GatewayName::new("shop", "front")
}

#[tokio::test]
async fn everything_is_made_once_and_repaired() {
    let objects = Objects::default();
    let fake = server(&objects).await;
    let writer = writer(&fake);
    let wanted = wanted(ProxyClass::Gateway, &[80]);
    writer.make(&wanted).await.unwrap();
    assert_eq!(
        writes(&fake),
        [
            "PATCH serviceaccounts",
            "PATCH services",
            "PATCH poddisruptionbudgets",
            "PATCH deployments",
            "PATCH horizontalpodautoscalers"
        ]
    );
    let applied =
        |asked: &Asked| asked.query.contains("force=true") && asked.query.contains("fieldManager");
    assert_eq!(fake.count(applied), 5);
    look(&writer, &objects);
    writer.make(&wanted).await.unwrap();
    assert_eq!(writes(&fake).len(), 5, "a second time writes nothing");
    // Somebody gives the proxies another image.
    let path = "/apis/apps/v1/namespaces/shop/deployments/front";
    if let Some(there) = objects.lock().unwrap().get_mut(path) {
        there["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    }
    look(&writer, &objects);
    writer.make(&wanted).await.unwrap();
    assert_eq!(writes(&fake)[5..], ["PATCH deployments"]);
}

#[tokio::test]
async fn what_somebody_else_made_is_not_taken_over() {
    let objects = Objects::default();
    let path = "/api/v1/namespaces/shop/serviceaccounts/front";
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "front"}});
    objects.lock().unwrap().insert(path.to_owned(), account);
    let fake = server(&objects).await;
    let writer = writer(&fake);
    let failure = writer
        .make(&wanted(ProxyClass::Waypoint, &[15008]))
        .await
        .unwrap_err();
    assert_eq!(failure.reason(), "proxy_name_taken");
    assert_eq!(failure.verdict(), Verdict::Again, "it may be removed");
    assert!(failure.to_string().contains("ServiceAccount"), "{failure}");
    assert!(writes(&fake).is_empty());
}

#[tokio::test]
async fn no_gateway_gets_an_account_of_the_mesh() {
    let fake = Fake::start(|_| panic!("nothing is to be asked")).await;
    let writer = writer(&fake);
    for namespace in ["karst-system", "kube-system"] {
        let mut wanted = wanted(ProxyClass::Gateway, &[80]);
        wanted.gateway.namespace = namespace.to_owned();
        let failure = writer.make(&wanted).await.unwrap_err();
        assert_eq!(failure.reason(), "proxy_namespace_reserved");
    }
}

#[tokio::test]
async fn what_is_wanted_no_more_is_removed() {
    let objects = Objects::default();
    let fake = server(&objects).await;
    let writer = writer(&fake);
    writer
        .make(&wanted(ProxyClass::Gateway, &[80]))
        .await
        .unwrap();
    look(&writer, &objects);
    // A Gateway that is not seen: what was its goes with it, by its owner references.
    assert_eq!(writer.bring(&front()).await, Verdict::Done);
    assert_eq!(writes(&fake).len(), 5);
    // It is there, but of another class.
    let gvk = kube::core::GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway");
    let key = ObjectKey {
        kind: Kind::Gateway,
        namespace: "shop".to_owned(),
        name: "front".to_owned(),
    };
    let resource = Arc::new(ApiResource::from_gvk(&gvk));
    let nothing = serde_json::Value::Null;
    writer
        .facts
        .note_status(&key, &resource, String::new(), &nothing);
    assert_eq!(writer.bring(&front()).await, Verdict::Done);
    assert_eq!(
        writes(&fake)[5..],
        [
            "DELETE horizontalpodautoscalers",
            "DELETE deployments",
            "DELETE poddisruptionbudgets",
            "DELETE services",
            "DELETE serviceaccounts"
        ]
    );
    assert!(objects.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_copy_that_says_it_is_a_gateways_is_removed() {
    let objects = Objects::default();
    let fake = server(&objects).await;
    let writer = writer(&fake);
    let wanted = wanted(ProxyClass::Waypoint, &[15008]);
    writer.make(&wanted).await.unwrap();
    let (own, copy) = (
        "/api/v1/namespaces/shop/services/front",
        "/api/v1/namespaces/shop/services/copy",
    );
    {
        let mut objects = objects.lock().unwrap();
        let mut object = objects[own].clone();
        object["metadata"]["name"] = json!("copy");
        objects.insert(copy.to_owned(), object);
    }
    look(&writer, &objects);
    writer.make(&wanted).await.unwrap();
    assert!(!objects.lock().unwrap().contains_key(copy));
    assert!(objects.lock().unwrap().contains_key(own));
}

#[tokio::test]
async fn nothing_is_written_before_it_is_known_what_there_is() {
    // The lists never end.
    let fake = Fake::start(|_| Answer::refusal(500, "not now")).await;
    let store = Arc::new(testing::store());
    testing::apply_gateway(&store, "shop", "front");
    let facts = Arc::new(Facts::default());
    let writing = write(fake.cluster.clone(), store, facts, Arc::new(proxies()));
    let waited = tokio::time::timeout(Duration::from_millis(600), writing).await;
    assert!(waited.is_err(), "it goes on for ever");
    assert!(writes(&fake).is_empty());
}
