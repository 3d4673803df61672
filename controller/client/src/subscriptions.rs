//! What the client wants and what it holds, per resource type; survives reconnects.

use std::collections::{BTreeMap, BTreeSet};

use karst_api::{
    WILDCARD,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

use crate::config::InitialSubscription;
use crate::held::Held;
use crate::report::{Answers, TypeReport, cut};

/// Rejected resources of one type that are remembered, for an operator to read. All are counted.
const MAX_REJECTED: usize = 256;

/// Names one type may be subscribed to on demand. More than this is a fault of the caller, and the
/// controller would refuse them as well.
pub(crate) const MAX_NAMES: usize = 100_000;

/// One resource type.
#[derive(Debug)]
pub(crate) struct TypeState {
    initial: InitialSubscription,
    /// Names wanted now.
    wanted: BTreeSet<String>,
    /// Names the current stream has been told of.
    told: BTreeSet<String>,
    /// Resource name to the version held; rejected versions never get in.
    held: Held,
    /// A complete response has arrived, in this or an earlier stream.
    pub(crate) synced: bool,
    /// What was answered to responses.
    pub(crate) answers: Answers,
    /// Names whose newest version was rejected and that have not been got right since, with the reason.
    rejected: BTreeMap<String, String>,
}

impl TypeState {
    pub(crate) fn new(initial: InitialSubscription) -> Self {
        Self {
            initial,
            wanted: BTreeSet::new(),
            told: BTreeSet::new(),
            held: Held::default(),
            synced: false,
            answers: Answers::default(),
            rejected: BTreeMap::new(),
        }
    }

    /// Adds names. Returns whether anything is new.
    pub(crate) fn want(&mut self, names: impl IntoIterator<Item = String>) -> bool {
        let before = self.wanted.len();
        for name in names {
            if self.wanted.len() < MAX_NAMES {
                self.wanted.insert(name);
            }
        }
        self.wanted.len() != before
    }

    /// Drops names. Returns whether any was wanted.
    pub(crate) fn drop_names(&mut self, names: &[String]) -> bool {
        let before = self.wanted.len();
        for name in names {
            self.wanted.remove(name);
        }
        self.wanted.len() != before
    }

    /// The first request of a new stream.
    pub(crate) fn first_request(&mut self, type_url: &str) -> DeltaDiscoveryRequest {
        self.told.clone_from(&self.wanted);
        let mut subscribe: Vec<String> = self.wanted.iter().cloned().collect();
        let mut unsubscribe = Vec::new();
        match self.initial {
            // Naming nothing means everything; once something is named, everything must be too.
            InitialSubscription::Everything if !subscribe.is_empty() => {
                subscribe.push(WILDCARD.to_owned());
            }
            InitialSubscription::Everything => {}
            // Naming nothing would mean everything, so that is taken back in the same breath.
            InitialSubscription::OnDemand if subscribe.is_empty() => {
                subscribe.push(WILDCARD.to_owned());
                unsubscribe.push(WILDCARD.to_owned());
            }
            InitialSubscription::OnDemand => {}
        }
        // What was rejected last is asked for again by a version that there is not. A controller that is back at the one
        // that is held would have nothing to say of it, and it would count as rejected for ever.
        let mut versions: BTreeMap<String, String> = self.held.iter().collect();
        let rejected = self.rejected.keys();
        versions.extend(rejected.map(|name| (name.clone(), String::new())));
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: versions,
            ..Default::default()
        }
    }

    /// A request for what changed since the last one, if anything did.
    pub(crate) fn change_request(&mut self, type_url: &str) -> Option<DeltaDiscoveryRequest> {
        if self.wanted == self.told {
            return None;
        }
        let subscribe = self.wanted.difference(&self.told).cloned().collect();
        let unsubscribe = self.told.difference(&self.wanted).cloned().collect();
        self.told.clone_from(&self.wanted);
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..Default::default()
        })
    }

    /// Records what a response changed, except for what the handler rejected: the last good
    /// version of those is still what is held.
    pub(crate) fn record(
        &mut self,
        versions: Vec<(String, String)>,
        removed: &[String],
        rejected: &[(String, String)],
    ) {
        for (name, _) in &versions {
            self.rejected.remove(name);
        }
        for name in removed {
            self.rejected.remove(name);
        }
        for (name, error) in rejected {
            // A name that is known already takes the newer reason, whatever the room.
            if self.rejected.len() < MAX_REJECTED || self.rejected.contains_key(name) {
                self.rejected.insert(name.clone(), cut(error));
            }
        }
        for (name, version) in versions {
            if !rejected.iter().any(|(bad, _)| *bad == name) {
                self.held.insert(name, &version);
            }
        }
        for name in removed {
            if !rejected.iter().any(|(bad, _)| bad == name) {
                self.held.remove(name);
            }
        }
    }

    /// The type in numbers, and its last answers.
    pub(crate) fn report(&self, type_url: &'static str) -> TypeReport {
        let answers = &self.answers;
        TypeReport {
            type_url,
            wildcard: self.initial == InitialSubscription::Everything,
            subscribed: self.wanted.len(),
            held: self.held.len(),
            synced: self.synced,
            version: answers.version.clone(),
            nonce: answers.nonce.clone(),
            acks: answers.acks,
            nacks: answers.nacks,
            last_ack: answers.last_ack,
            last_nack: answers.last_nack.clone(),
        }
    }

    /// What was rejected and has not been got right since: name and reason.
    pub(crate) fn rejected(&self) -> impl Iterator<Item = (&String, &String)> {
        self.rejected.iter()
    }

    /// Number of resources held.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }
}

/// Name and version of each resource of a response.
pub(crate) fn versions(response: &DeltaDiscoveryResponse) -> Vec<(String, String)> {
    response
        .resources
        .iter()
        .map(|resource| (resource.name.clone(), resource.version.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_is_asked_for_by_naming_nothing() {
        let mut state = TypeState::new(InitialSubscription::Everything);
        let request = state.first_request("t");
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.resource_names_unsubscribe.is_empty());
    }

    #[test]
    fn everything_and_a_name_asks_for_both() {
        let mut state = TypeState::new(InitialSubscription::Everything);
        state.want(names(&["a"]));
        let request = state.first_request("t");
        assert_eq!(request.resource_names_subscribe, names(&["a", "*"]));
    }

    #[test]
    fn on_demand_without_a_name_takes_the_wildcard_back() {
        let mut state = TypeState::new(InitialSubscription::OnDemand);
        let request = state.first_request("t");
        assert_eq!(request.resource_names_subscribe, names(&["*"]));
        assert_eq!(request.resource_names_unsubscribe, names(&["*"]));
    }

    #[test]
    fn a_new_stream_names_all_wanted_and_held() {
        let mut state = TypeState::new(InitialSubscription::OnDemand);
        state.want(names(&["b", "a"]));
        state.record(vec![("a".into(), "1".into())], &[], &[]);
        let request = state.first_request("t");
        assert_eq!(request.resource_names_subscribe, names(&["a", "b"]));
        assert_eq!(request.initial_resource_versions["a"], "1");
        assert_eq!(state.change_request("t"), None);
    }

    #[test]
    fn a_change_names_only_the_difference() {
        let mut state = TypeState::new(InitialSubscription::OnDemand);
        state.want(names(&["a", "b"]));
        state.first_request("t");
        assert!(state.want(names(&["c"])));
        assert!(!state.want(names(&["c"])));
        assert!(state.drop_names(&names(&["a", "b"])));
        let request = state.change_request("t").unwrap();
        assert_eq!(request.resource_names_subscribe, names(&["c"]));
        assert_eq!(request.resource_names_unsubscribe, names(&["a", "b"]));
        assert!(request.initial_resource_versions.is_empty());
    }

    #[test]
    fn a_rejected_version_is_not_held_and_the_former_one_stays() {
        let mut state = TypeState::new(InitialSubscription::Everything);
        state.record(vec![("a".into(), "1".into())], &[], &[]);
        state.record(
            vec![("a".into(), "2".into()), ("b".into(), "1".into())],
            &[],
            &[("a".into(), "bad".into())],
        );
        assert_eq!(state.held.version("a").as_deref(), Some("1"));
        assert_eq!(state.held.version("b").as_deref(), Some("1"));
        state.record(Vec::new(), &names(&["a"]), &[]);
        assert_eq!(state.held(), 1);
    }

    #[test]
    fn a_new_stream_asks_again_for_what_was_rejected() {
        let version = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let mut state = TypeState::new(InitialSubscription::Everything);
        state.record(vec![version("a", "1"), version("b", "1")], &[], &[]);
        let bad = [
            ("a".to_owned(), "bad".to_owned()),
            ("new".to_owned(), "bad".to_owned()),
        ];
        state.record(vec![version("a", "2"), version("new", "1")], &[], &bad);
        let asked = state.first_request("t").initial_resource_versions;
        let expected = [version("a", ""), version("b", "1"), version("new", "")];
        assert_eq!(asked, expected.into());
        // The controller is back at the version that is held, and has the other one no more.
        state.record(vec![version("a", "1")], &names(&["new"]), &[]);
        assert_eq!(state.rejected().count(), 0);
        let asked = state.first_request("t").initial_resource_versions;
        assert_eq!(asked, [version("a", "1"), version("b", "1")].into());
    }

    #[test]
    fn a_rejection_is_remembered_until_it_is_got_right() {
        let version = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let bad = |name: &str, error: &str| (name.to_owned(), error.to_owned());
        let mut state = TypeState::new(InitialSubscription::Everything);
        let rejected = |state: &TypeState| {
            let pairs = state
                .rejected()
                .map(|(name, error)| format!("{name}: {error}"));
            pairs.collect::<Vec<_>>()
        };
        let both = vec![version("a", "1"), version("b", "1")];
        state.record(both, &[], &[bad("a", "no"), bad("b", "no")]);
        assert_eq!(rejected(&state), ["a: no", "b: no"]);
        state.record(vec![version("a", "2")], &[], &[bad("a", "still no")]);
        assert_eq!(rejected(&state), ["a: still no", "b: no"]);
        state.record(vec![version("a", "3")], &names(&["b"]), &[]);
        assert_eq!(rejected(&state), [""; 0]);
        let many = (0..2 * MAX_REJECTED).map(|number| bad(&number.to_string(), "no"));
        state.record(Vec::new(), &[], &many.collect::<Vec<_>>());
        assert_eq!(rejected(&state).len(), MAX_REJECTED);
        let long = "x".repeat(1 << 20);
        let mut state = TypeState::new(InitialSubscription::Everything);
        state.record(Vec::new(), &[], &[bad("a", &long)]);
        assert!(rejected(&state)[0].len() < 1000);
    }
}
