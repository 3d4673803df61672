use karst_core::{Index, MeshConfig, Object};
use prost::Message as _;
use serde_json::json;

use super::*;
use crate::store::Scope;

/// An index with Services of these names, and the names of their resources.
fn index(names: &[String]) -> Index {
    let mut index = Index::new(MeshConfig::default());
    for name in names {
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

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn view<T>(index: &Index, look: impl FnOnce(&View<'_>) -> T) -> T {
    let scope = Scope::Node("n".to_owned());
    look(&View::new(index, &scope, ResourceKind::Address))
}

fn note(journal: &Journal, list: &[&str]) {
    let list: Vec<String> = list.iter().map(|name| resource(name)).collect();
    journal.note(&list, Instant::now());
}

/// What a push says on the wire: `+` for a resource, `-` for its end.
fn said(push: &Push) -> Vec<String> {
    let prefix = u32::from_be_bytes(push.frame[1..5].try_into().unwrap());
    assert_eq!((push.frame[0], prefix as usize), (0, push.frame.len() - 5));
    let response = DeltaDiscoveryResponse::decode(&push.frame[5..]).unwrap();
    assert_eq!(response.nonce, push.nonce);
    let count = response.resources.len() + response.removed_resources.len();
    assert_eq!(
        (response.resources.len(), count),
        (push.resources, push.names.len())
    );
    let there = response.resources.iter();
    let there = there.map(|one| format!("+{}", one.name));
    let gone = response.removed_resources.iter();
    there.chain(gone.map(|one| format!("-{one}"))).collect()
}

#[test]
fn each_change_is_told_once_as_it_is_now() {
    let journal = Journal::new(ResourceKind::Address);
    note(&journal, &["a", "b"]);
    let begin = journal.head();
    note(&journal, &["a", "c", "gone"]);
    note(&journal, &["c"]);
    view(&index(&names(&["a", "b", "c"])), |view| {
        let push = journal
            .push(begin, view)
            .unwrap()
            .expect("there are changes");
        let expected = [
            format!("+{}", resource("a")),
            format!("+{}", resource("c")),
            format!("-{}", resource("gone")),
        ];
        assert_eq!(said(&push), expected);
        assert_eq!(push.to, journal.head());
        assert!(journal.push(push.to, view).unwrap().is_none());
    });
}

#[test]
fn those_who_stand_at_one_place_share_what_they_are_told() {
    let journal = Journal::new(ResourceKind::Address);
    let index = index(&names(&["a", "b"]));
    note(&journal, &["a"]);
    view(&index, |view| {
        let first = journal.push(0, view).unwrap().unwrap();
        let second = journal.push(0, view).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        // A change makes it another one.
        note(&journal, &["b"]);
        let third = journal.push(0, view).unwrap().unwrap();
        assert_eq!((said(&third).len(), third.to), (2, journal.head()));
        let fourth = journal.push(first.to, view).unwrap().unwrap();
        assert_eq!(said(&fourth), [format!("+{}", resource("b"))]);
    });
}

#[test]
fn a_first_state_comes_in_parts_and_is_shared_while_it_is_told() {
    let journal = Journal::new(ResourceKind::Address);
    let many: Vec<String> = (0..15_000).map(|number| format!("s{number:05}")).collect();
    let index = index(&many);
    note(&journal, &["s00001"]);
    view(&index, |view| {
        let snapshot = journal.snapshot(view);
        assert!(snapshot.parts.len() > 1, "{}", snapshot.parts.len());
        let told: Vec<String> = snapshot.parts.iter().flat_map(|part| said(part)).collect();
        let all: Vec<String> = many
            .iter()
            .map(|name| format!("+{}", resource(name)))
            .collect();
        assert_eq!(told, all);
        let is_partial = |push: &Arc<Push>| {
            let response = DeltaDiscoveryResponse::decode(&push.frame[5..]).unwrap();
            response.is_partial()
        };
        let (last, others) = snapshot.parts.split_last().unwrap();
        assert!(!is_partial(last) && others.iter().all(is_partial));
        assert_eq!(snapshot.to, journal.head());
        assert!(Arc::ptr_eq(&snapshot, &journal.snapshot(view)));
        for _ in 0..=MAX_SNAPSHOT_AGE {
            note(&journal, &["s00002"]);
        }
        let newer = journal.snapshot(view);
        assert_eq!(
            newer.to,
            journal.head(),
            "an old one is not told to those who come"
        );
    });
}

#[test]
fn an_empty_first_state_is_one_part() {
    let journal = Journal::new(ResourceKind::Address);
    view(&index(&[]), |view| {
        let snapshot = journal.snapshot(view);
        assert_eq!(snapshot.parts.len(), 1);
        assert!(said(&snapshot.parts[0]).is_empty());
    });
}

#[test]
fn who_stands_before_what_was_forgotten_fell_behind() {
    let journal = Journal::new(ResourceKind::Address);
    note(&journal, &["a", "b", "c", "d"]);
    journal.state().forget(2);
    view(&index(&[]), |view| {
        assert_eq!(journal.push(1, view).unwrap_err(), FellBehind);
        assert_eq!(journal.since(1).unwrap_err(), FellBehind);
        assert_eq!(said(&journal.push(2, view).unwrap().unwrap()).len(), 2);
        assert_eq!(journal.since(2).unwrap().0.len(), 2);
    });
    // What is at the head has missed nothing, however long ago that was.
    journal.state().forget(0);
    assert_eq!(journal.since(journal.head()).unwrap().0.len(), 0);
}
