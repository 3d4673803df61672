use karst_core::ProxyChange;

use super::*;

fn account(name: &str) -> Scope {
    Scope::Proxy(ServiceAccount {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    })
}

fn changed(gateway: &str, name: &str) -> Changes {
    let mut changes = Changes::default();
    changes.proxies.insert(ProxyChange {
        gateway: GatewayName::new("shop", gateway),
        kind: ProxyKind::Route,
        name: name.to_owned(),
    });
    changes.addresses.insert("shop/web".to_owned());
    changes
}

#[test]
fn a_proxy_is_told_of_its_own_gateway_only() {
    let store = testing::store();
    testing::apply_gateway(&store, "shop", "front");
    let (front, other) = (
        store.register(account("front")),
        store.register(account("other")),
    );
    let node = store.register(Scope::Node("n".to_owned()));
    store.announce(&changed("front", "a"), Instant::now());
    let dirty = front.queue.take();
    assert!(!dirty.everything && !dirty.addresses);
    assert_eq!(
        dirty.proxies[&ProxyKind::Route],
        BTreeSet::from(["a".to_owned()])
    );
    assert!(front.queue.take().proxies.is_empty(), "it was taken");
    let dirty = other.queue.take();
    assert!(!dirty.everything && dirty.proxies.is_empty());
    let dirty = node.queue.take();
    assert!(dirty.proxies.is_empty() && dirty.addresses);
}

#[test]
fn a_proxy_compares_everything_when_its_gateway_comes_or_goes() {
    let store = testing::store();
    let late = store.register(account("late"));
    testing::apply_gateway(&store, "shop", "late");
    store.announce(&changed("late", "a"), Instant::now());
    assert!(late.queue.take().everything);
    store.announce(&changed("late", "b"), Instant::now());
    assert!(!late.queue.take().everything);
    testing::delete_gateway(&store, "shop", "late");
    store.announce(&changed("late", "b"), Instant::now());
    assert!(late.queue.take().everything);
}

#[test]
fn a_stream_that_is_far_behind_keeps_no_names() {
    let store = testing::store();
    testing::apply_gateway(&store, "shop", "front");
    let front = store.register(account("front"));
    for number in 0..=MAX_DIRTY_EXTRA {
        store.announce(&changed("front", &number.to_string()), Instant::now());
    }
    let dirty = front.queue.take();
    assert!(dirty.everything && dirty.proxies.is_empty());
}
