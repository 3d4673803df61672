//! Why what is wanted is not in force: resources that proxies rejected, and proxies that could not be
//! made. For the status of the objects concerned.
//!
//! Each replica knows of the proxies that are connected to it only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use karst_core::{GatewayName, Kind, ObjectKey, ProxyKind};

/// Rejections of one stream and kind that are kept.
const MAX_REJECTED: usize = 100;

/// Longest reason that is kept, in characters.
const MAX_REASON_CHARS: usize = 500;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Problems(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By stream and kind.
    rejected: HashMap<(u64, ProxyKind), BTreeMap<String, String>>,
    unmade: HashMap<GatewayName, String>,
}

impl Problems {
    /// Whether each resource of a kind is made of one object, which can say what is wrong.
    pub fn is_of_objects(kind: ProxyKind) -> bool {
        match kind {
            ProxyKind::Route
            | ProxyKind::AuthorizationPolicy
            | ProxyKind::RequestAuthentication => true,
            ProxyKind::Listener | ProxyKind::Backend | ProxyKind::TlsSecret => false,
        }
    }

    /// What a stream's proxy rejects of a kind, by name, with its reasons. Returns the objects whose
    /// problems changed.
    pub fn set_rejected(
        &self,
        stream: u64,
        gateway: &GatewayName,
        kind: ProxyKind,
        rejected: BTreeMap<String, String>,
    ) -> BTreeSet<ObjectKey> {
        let worded = |(name, reason): (String, String)| {
            let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
            (
                name,
                format!("rejected by the proxy of {gateway}: {reason}"),
            )
        };
        let rejected = rejected.into_iter().take(MAX_REJECTED).map(worded);
        let rejected: BTreeMap<String, String> = rejected.collect();
        let mut state = self.state();
        let former = match rejected.is_empty() {
            true => state.rejected.remove(&(stream, kind)),
            false => state.rejected.insert((stream, kind), rejected.clone()),
        };
        let former = former.unwrap_or_default();
        let names = former.keys().chain(rejected.keys());
        let changed = names.filter(|name| former.get(*name) != rejected.get(*name));
        changed.filter_map(|name| object(kind, name)).collect()
    }

    /// A stream is gone, and what its proxy rejected with it.
    pub fn ended(&self, stream: u64) -> BTreeSet<ObjectKey> {
        let mut state = self.state();
        let mut changed = BTreeSet::new();
        state.rejected.retain(|(of, kind), names| {
            if *of == stream {
                changed.extend(names.keys().filter_map(|name| object(*kind, name)));
            }
            *of != stream
        });
        changed
    }

    /// Why a Gateway's proxies could not be made.
    pub fn set_unmade(
        &self,
        gateway: &GatewayName,
        problem: Option<String>,
    ) -> BTreeSet<ObjectKey> {
        let mut state = self.state();
        let former = match problem.clone() {
            Some(problem) => state.unmade.insert(gateway.clone(), problem),
            None => state.unmade.remove(gateway),
        };
        let key = ObjectKey {
            kind: Kind::Gateway,
            namespace: gateway.namespace.clone(),
            name: gateway.name.clone(),
        };
        (former != problem).then_some(key).into_iter().collect()
    }

    /// The first problem with an object.
    pub fn of(&self, key: &ObjectKey) -> Option<String> {
        let state = self.state();
        if key.kind == Kind::Gateway {
            let gateway = GatewayName::new(&key.namespace, &key.name);
            return state.unmade.get(&gateway).cloned();
        }
        let (wanted, name) = resource(key)?;
        let all = state.rejected.iter();
        let all = all.filter(|((_, kind), _)| *kind == wanted);
        // The same one each time, however many proxies say so.
        all.filter_map(|(_, names)| names.get(&name)).min().cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The resource that is made of an object, where one is: a route's has its kind in its name.
fn resource(key: &ObjectKey) -> Option<(ProxyKind, String)> {
    let name = format!("{}/{}", key.namespace, key.name);
    match key.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            Some((ProxyKind::Route, format!("{}/{name}", key.kind.name())))
        }
        Kind::AuthorizationPolicy => Some((ProxyKind::AuthorizationPolicy, name)),
        Kind::RequestAuthentication => Some((ProxyKind::RequestAuthentication, name)),
        _ => None,
    }
}

/// The object that a resource is made of, where it is made of one.
fn object(kind: ProxyKind, resource: &str) -> Option<ObjectKey> {
    let (kind, rest) = match kind {
        ProxyKind::Route => {
            let (kind, rest) = resource.split_once('/')?;
            (Kind::ALL.into_iter().find(|one| one.name() == kind)?, rest)
        }
        ProxyKind::AuthorizationPolicy => (Kind::AuthorizationPolicy, resource),
        ProxyKind::RequestAuthentication => (Kind::RequestAuthentication, resource),
        ProxyKind::Listener | ProxyKind::Backend | ProxyKind::TlsSecret => return None,
    };
    let (namespace, name) = rest.split_once('/')?;
    Some(ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(reason: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("HTTPRoute/shop/web".to_owned(), reason.to_owned())])
    }

    fn route() -> ObjectKey {
        ObjectKey {
            kind: Kind::HttpRoute,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        }
    }

    #[test]
    fn a_rejected_route_has_a_problem_until_no_proxy_rejects_it() {
        let problems = Problems::default();
        let gateway = GatewayName::new("shop", "front");
        let set = |stream, reason: Option<&str>| {
            let names = reason.map(rejected).unwrap_or_default();
            problems.set_rejected(stream, &gateway, ProxyKind::Route, names)
        };
        assert_eq!(set(1, Some("bad path")), BTreeSet::from([route()]));
        assert!(set(1, Some("bad path")).is_empty(), "nothing is new");
        set(2, Some("bad path"));
        let text = problems.of(&route()).unwrap();
        assert_eq!(text, "rejected by the proxy of shop/front: bad path");
        assert_eq!(problems.ended(1), BTreeSet::from([route()]));
        assert!(problems.of(&route()).is_some());
        assert_eq!(set(2, None), BTreeSet::from([route()]));
        assert_eq!(problems.of(&route()), None);
        let backend = BTreeMap::from([("shop/web/80".to_owned(), "x".to_owned())]);
        let none = problems.set_rejected(2, &gateway, ProxyKind::Backend, backend);
        assert!(none.is_empty(), "no object is a backend");
    }

    #[test]
    fn a_rejected_policy_has_a_problem() {
        let problems = Problems::default();
        let gateway = GatewayName::new("shop", "front");
        for (kind, object) in [
            (ProxyKind::AuthorizationPolicy, Kind::AuthorizationPolicy),
            (
                ProxyKind::RequestAuthentication,
                Kind::RequestAuthentication,
            ),
        ] {
            let key = ObjectKey {
                kind: object,
                namespace: "shop".to_owned(),
                name: "readers".to_owned(),
            };
            let names = BTreeMap::from([("shop/readers".to_owned(), "bad rule".to_owned())]);
            let changed = problems.set_rejected(1, &gateway, kind, names);
            assert_eq!(changed, BTreeSet::from([key.clone()]));
            let text = problems.of(&key).unwrap();
            assert_eq!(text, "rejected by the proxy of shop/front: bad rule");
            let changed = problems.set_rejected(1, &gateway, kind, BTreeMap::new());
            assert_eq!(changed, BTreeSet::from([key.clone()]));
            assert_eq!(problems.of(&key), None);
        }
    }

    #[test]
    fn a_gateway_without_proxies_has_a_problem() {
        let problems = Problems::default();
        let gateway = GatewayName::new("shop", "front");
        let changed = problems.set_unmade(&gateway, Some("taken".to_owned()));
        let key = changed.first().unwrap();
        assert_eq!(key.to_string(), "Gateway shop/front");
        assert_eq!(problems.of(key).unwrap(), "taken");
        assert!(
            problems
                .set_unmade(&gateway, Some("taken".to_owned()))
                .is_empty()
        );
        assert_eq!(problems.set_unmade(&gateway, None).len(), 1);
        assert_eq!(problems.of(key), None);
    }
}
