use karst_core::{Index, MeshConfig, Object};
use serde_json::json;

use super::*;
use crate::store::Scope;

fn index(services: &[&str]) -> Index {
    let mut index = Index::new(MeshConfig::default());
    for name in services {
        let value = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
        let object = Object::from_value(value).unwrap().unwrap();
        index.apply(object).unwrap();
    }
    index
}

fn resource(name: &str) -> String {
    format!("shop/{name}.shop.svc.cluster.local")
}

/// What a part says: `+` for a resource, `-` for its end.
fn said(subscription: &mut Subscription, index: &Index, part: Part) -> Option<Vec<String>> {
    let scope = Scope::Node("n".to_owned());
    let view = View::new(index, &scope, ResourceKind::Address);
    let Said::Own(response) = subscription.say(&view, part).unwrap()? else {
        panic!("nothing is shared without a journal");
    };
    let ack = DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(subscription.request(&ack), Ok(Answer::Ack));
    let there = response
        .resources
        .iter()
        .map(|one| format!("+{}", one.name));
    let gone = response
        .removed_resources
        .iter()
        .map(|one| format!("-{one}"));
    Some(there.chain(gone).collect())
}

fn subscription() -> Subscription {
    Subscription::new(ResourceKind::Address, &DeltaDiscoveryRequest::default()).unwrap()
}

fn changed(subscription: &mut Subscription, names: &[&str]) {
    subscription.changed(names.iter().map(|name| resource(name)).collect(), None);
}

#[test]
fn what_is_gone_is_said_in_a_part_of_its_own() {
    let mut subscription = subscription();
    assert!(subscription.has_updates(), "nothing has been said yet");
    let first = said(&mut subscription, &index(&["a", "b"]), Part::Updates);
    assert_eq!(first.unwrap().len(), 2);
    assert!(!subscription.has_updates());
    let now = index(&["b", "c"]);
    changed(&mut subscription, &["a", "c"]);
    assert!(subscription.has_updates());
    let updates = said(&mut subscription, &now, Part::Updates);
    assert_eq!(updates.unwrap(), [format!("+{}", resource("c"))]);
    assert!(!subscription.has_updates() && subscription.has_removals());
    let removals = said(&mut subscription, &now, Part::Removals);
    assert_eq!(removals.unwrap(), [format!("-{}", resource("a"))]);
    assert!(!subscription.has_removals());
    assert_eq!(said(&mut subscription, &now, Part::Updates), None);
}

#[test]
fn what_comes_back_before_its_end_was_said_has_no_end() {
    let mut subscription = subscription();
    said(&mut subscription, &index(&["a"]), Part::Updates);
    changed(&mut subscription, &["a"]);
    assert_eq!(said(&mut subscription, &index(&[]), Part::Updates), None);
    assert!(subscription.has_removals());
    changed(&mut subscription, &["a"]);
    assert_eq!(said(&mut subscription, &index(&["a"]), Part::Updates), None);
    assert!(!subscription.has_removals());
}

#[test]
fn what_a_client_that_comes_back_has_too_much_is_put_aside_as_well() {
    let first = DeltaDiscoveryRequest {
        initial_resource_versions: [(resource("old"), "1".to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut subscription = Subscription::new(ResourceKind::Address, &first).unwrap();
    let now = index(&["a"]);
    let updates = said(&mut subscription, &now, Part::Updates);
    assert_eq!(updates.unwrap(), [format!("+{}", resource("a"))]);
    let removals = said(&mut subscription, &now, Part::Removals);
    assert_eq!(removals.unwrap(), [format!("-{}", resource("old"))]);
}

#[test]
fn an_unanswered_response_keeps_updates_waiting() {
    let mut subscription = subscription();
    let scope = Scope::Node("n".to_owned());
    let now = index(&["a"]);
    let view = View::new(&now, &scope, ResourceKind::Address);
    assert!(subscription.say(&view, Part::Updates).unwrap().is_some());
    assert!(
        !subscription.has_updates(),
        "others may be told what refers to it"
    );
    changed(&mut subscription, &["a"]);
    assert!(subscription.say(&view, Part::Updates).unwrap().is_none());
    assert!(subscription.has_updates(), "others wait");
}

#[test]
fn everything_is_said_at_once_where_no_order_is_needed() {
    let mut subscription = subscription();
    said(&mut subscription, &index(&["a"]), Part::All);
    changed(&mut subscription, &["a", "b"]);
    let both = said(&mut subscription, &index(&["b"]), Part::All).unwrap();
    assert_eq!(
        both,
        [format!("+{}", resource("b")), format!("-{}", resource("a"))]
    );
}

#[test]
fn a_change_is_timed_from_when_it_came_until_it_is_acknowledged() {
    let mut subscription = subscription();
    said(&mut subscription, &index(&["a"]), Part::All);
    assert_eq!(subscription.propagation(), None, "nobody waited for that");
    let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
    let names = |name| BTreeSet::from([resource(name)]);
    subscription.changed(names("b"), ago(20));
    subscription.changed(names("c"), ago(10));
    said(&mut subscription, &index(&["a", "b", "c"]), Part::All);
    let took = subscription.propagation().expect("timed").as_secs();
    assert!((20..30).contains(&took), "the first of both: {took}");
    assert_eq!(subscription.propagation(), None, "told once");
    // What turns out to be nothing new does not make the next change look old.
    subscription.changed(names("a"), ago(1000));
    assert_eq!(
        said(&mut subscription, &index(&["a", "b", "c"]), Part::All),
        None
    );
    subscription.changed(names("d"), ago(5));
    said(&mut subscription, &index(&["a", "b", "c", "d"]), Part::All);
    let took = subscription.propagation().expect("timed").as_secs();
    assert!((5..15).contains(&took), "{took}");
}

#[test]
fn rejections_are_told_of_what_is_made_of_objects() {
    let told = |kind| {
        let first = DeltaDiscoveryRequest::default();
        let mut subscription = Subscription::new(kind, &first).unwrap();
        let rejected = ("v1".to_owned(), "bad rule".to_owned());
        let name = "shop/readers".to_owned();
        subscription.rejected.insert(name, rejected);
        subscription.rejections().into_values().collect::<Vec<_>>()
    };
    for kind in [
        ResourceKind::Route,
        ResourceKind::AuthorizationPolicy,
        ResourceKind::RequestAuthentication,
    ] {
        assert_eq!(told(kind), ["bad rule"], "{kind:?}");
    }
    for kind in [ResourceKind::Backend, ResourceKind::Address] {
        assert_eq!(told(kind), [""; 0], "{kind:?}");
    }
}

/// A client of a journal: what it has been told, taken together.
struct Follower {
    subscription: Subscription,
    has: BTreeMap<String, String>,
}

fn following(first: &DeltaDiscoveryRequest, journal: &Arc<Journal>) -> Follower {
    let kind = ResourceKind::Address;
    let subscription = Subscription::following(kind, first, journal.clone()).unwrap();
    let has = first.initial_resource_versions.clone();
    Follower { subscription, has }
}

impl Follower {
    /// Takes all there is to say; returns names, each with `+` or `-`.
    fn take(&mut self, index: &Index) -> Vec<String> {
        let scope = Scope::Node("n".to_owned());
        let view = View::new(index, &scope, ResourceKind::Address);
        let mut told = Vec::new();
        while let Some(said) = self.subscription.say(&view, Part::All).unwrap() {
            let response = match said {
                Said::Own(response) => response,
                Said::Shared(push) => DeltaDiscoveryResponse::decode(&push.frame[5..]).unwrap(),
            };
            for one in response.resources {
                told.push(format!("+{}", one.name));
                self.has.insert(one.name, one.version);
            }
            for name in response.removed_resources {
                told.push(format!("-{name}"));
                self.has.remove(&name);
            }
            self.answer(&response.nonce);
        }
        assert!(!self.subscription.has_updates());
        told
    }

    fn answer(&mut self, nonce: &str) {
        let ack = DeltaDiscoveryRequest {
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(self.subscription.request(&ack), Ok(Answer::Ack));
    }

    fn has(&self) -> Vec<&str> {
        self.has.keys().map(String::as_str).collect()
    }
}

fn note(journal: &Journal, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| resource(name)).collect();
    journal.note(&names, Instant::now());
}

fn resources(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| resource(name)).collect()
}

#[test]
fn who_follows_everything_has_what_there_is() {
    let journal = Arc::new(Journal::new(ResourceKind::Address));
    let mut follower = following(&DeltaDiscoveryRequest::default(), &journal);
    assert!(follower.subscription.has_updates());
    follower.take(&index(&["a", "b"]));
    assert_eq!(follower.has(), resources(&["a", "b"]));
    note(&journal, &["a", "c"]);
    assert!(follower.subscription.has_updates());
    let now = index(&["b", "c"]);
    follower.take(&now);
    assert_eq!(follower.has(), resources(&["b", "c"]));
    assert!(follower.take(&now).is_empty());
    assert!(
        follower.subscription.has.is_empty(),
        "nothing is kept by name"
    );
    assert!(
        follower.subscription.propagation().is_some(),
        "its time is known"
    );
}

#[test]
fn who_comes_back_is_told_the_difference_and_then_follows() {
    let journal = Arc::new(Journal::new(ResourceKind::Address));
    note(&journal, &["a", "b"]);
    let now = index(&["a", "b"]);
    let mut first = following(&DeltaDiscoveryRequest::default(), &journal);
    first.take(&now);
    let mut versions = first.has.clone();
    versions.insert(resource("old"), "1".to_owned());
    versions.insert(resource("b"), "another".to_owned());
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: versions,
        ..DeltaDiscoveryRequest::default()
    };
    let mut follower = following(&again, &journal);
    let told = follower.take(&now);
    assert_eq!(
        told,
        [
            format!("+{}", resource("b")),
            format!("-{}", resource("old"))
        ]
    );
    assert_eq!(follower.has, first.has);
    assert_eq!(
        follower.subscription.propagation(),
        None,
        "it has not waited"
    );
    note(&journal, &["c"]);
    let told = follower.take(&index(&["a", "b", "c"]));
    assert_eq!(told, [format!("+{}", resource("c"))]);
    assert!(follower.subscription.has.is_empty());
}

#[test]
fn who_has_everything_already_is_told_so() {
    let journal = Arc::new(Journal::new(ResourceKind::Address));
    let now = index(&["a"]);
    let mut first = following(&DeltaDiscoveryRequest::default(), &journal);
    first.take(&now);
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: first.has,
        ..DeltaDiscoveryRequest::default()
    };
    let mut follower = following(&again, &journal);
    let scope = Scope::Node("n".to_owned());
    let view = View::new(&now, &scope, ResourceKind::Address);
    let said = follower.subscription.say(&view, Part::All).unwrap();
    let Some(Said::Own(response)) = said else {
        panic!("the client must learn that its state is complete");
    };
    assert!(response.resources.is_empty() && !response.is_partial());
}

#[test]
fn who_names_resources_is_told_of_those_alone() {
    let journal = Arc::new(Journal::new(ResourceKind::Address));
    note(&journal, &["a", "b"]);
    let first = DeltaDiscoveryRequest {
        resource_names_subscribe: resources(&["a", "later"]),
        ..DeltaDiscoveryRequest::default()
    };
    let mut follower = following(&first, &journal);
    let told = follower.take(&index(&["a", "b"]));
    assert_eq!(
        told,
        [
            format!("+{}", resource("a")),
            format!("-{}", resource("later"))
        ]
    );
    note(&journal, &["b", "later"]);
    let told = follower.take(&index(&["a", "b", "later"]));
    assert_eq!(told, [format!("+{}", resource("later"))]);
    note(&journal, &["a"]);
    follower.take(&index(&["b", "later"]));
    assert_eq!(follower.has(), resources(&["later"]));
}

#[test]
fn who_stops_to_follow_everything_goes_on_with_names() {
    let journal = Arc::new(Journal::new(ResourceKind::Address));
    let mut follower = following(&DeltaDiscoveryRequest::default(), &journal);
    follower.take(&index(&["a", "b"]));
    let change = DeltaDiscoveryRequest {
        resource_names_subscribe: resources(&["a", "b"]),
        resource_names_unsubscribe: vec![WILDCARD.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    // One of them goes before the controller comes to read this.
    note(&journal, &["b", "c"]);
    follower.subscription.request(&change).unwrap();
    follower.take(&index(&["a", "c"]));
    assert_eq!(follower.has(), resources(&["a"]));
    note(&journal, &["a", "c"]);
    let told = follower.take(&index(&["c"]));
    assert_eq!(told, [format!("-{}", resource("a"))]);
    // And back.
    let change = DeltaDiscoveryRequest {
        resource_names_subscribe: vec![WILDCARD.to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    follower.subscription.request(&change).unwrap();
    follower.take(&index(&["c"]));
    assert_eq!(follower.has(), resources(&["c"]));
}

#[test]
fn what_is_rejected_of_a_shared_response_is_known_until_it_is_right() {
    let journal = Arc::new(Journal::new(ResourceKind::Address));
    let mut follower = following(&DeltaDiscoveryRequest::default(), &journal);
    follower.take(&index(&["a"]));
    note(&journal, &["a", "b"]);
    let now = index(&["a", "b"]);
    let scope = Scope::Node("n".to_owned());
    let view = View::new(&now, &scope, ResourceKind::Address);
    let Some(Said::Shared(push)) = follower.subscription.say(&view, Part::All).unwrap() else {
        panic!("all who follow are told the same");
    };
    let rejected = RejectedResource {
        name: resource("b"),
        error: "bad".to_owned(),
    };
    let nack = DeltaDiscoveryRequest {
        response_nonce: push.nonce.clone(),
        error_detail: Some(Status {
            details: vec![prost_types::Any {
                type_url: REJECTED_RESOURCE_TYPE.to_owned(),
                value: rejected.encode_to_vec(),
            }],
            ..Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    };
    assert!(matches!(
        follower.subscription.request(&nack),
        Ok(Answer::Nack(..))
    ));
    let left = |follower: &Follower| follower.subscription.rejected().count();
    assert_eq!(left(&follower), 1);
    note(&journal, &["a"]);
    follower.take(&now);
    assert_eq!(left(&follower), 1, "that was another one");
    note(&journal, &["b"]);
    follower.take(&now);
    assert_eq!(left(&follower), 0);
}
