//! One resource type on one stream: what the client wants, has, and must be told.
//!
//! There is at most one unanswered response a type, and what has to be said next is kept as names,
//! not as messages. So a slow client is told the latest state when it comes to read, its share of
//! memory is bounded by the number of resources, and nothing is sent twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use karst_api::{
    REJECTED_RESOURCE_TYPE, WILDCARD,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, PARTIAL_SUFFIX, Status},
    node::RejectedResource,
};
use karst_core::Rendered;
use prost::Message as _;

use super::resources::{ResourceKind, View};
use crate::store::Problems;

/// Names one type may be subscribed to besides everything.
pub const MAX_NAMES: usize = 100_000;

/// Longest name in bytes: cluster, kind, and a namespace and name of 253 bytes each.
const MAX_NAME_BYTES: usize = 1024;

/// A response is closed when it has this many bytes; what remains follows in the next one.
const RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// Bytes a resource takes in a message besides its content: type URL and framing.
const RESOURCE_OVERHEAD_BYTES: usize = 128;

/// What a client did that no client may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Too many names.
    #[error("a stream may subscribe to {MAX_NAMES} names at most")]
    TooManyNames,
    /// A name of unreasonable length.
    #[error("a resource name may have {MAX_NAME_BYTES} bytes at most")]
    NameTooLong,
}

/// How a client took a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The request was no answer to the latest response.
    None,
    /// Everything was applied.
    Ack,
    /// These resources were not applied, each with the client's reason. An empty list means that
    /// the client did not say which.
    Nack(Vec<(String, String)>, String),
}

/// What a response is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    All,
    /// What is new or has changed. What is gone is put aside.
    Updates,
    /// What was put aside.
    Removals,
}

/// A response that has not been answered.
#[derive(Debug)]
struct Outstanding {
    nonce: String,
    sent: Vec<Sent>,
    since: Instant,
    /// When the first change came that it tells of.
    changed_at: Option<Instant>,
}

/// Name and version (`None`: removal) of what was sent.
type Sent = (String, Option<String>);

/// A response in the making.
#[derive(Debug, Default)]
struct Draft {
    response: DeltaDiscoveryResponse,
    sent: Vec<Sent>,
    /// Names of the resources that are in the response.
    included: HashSet<String>,
    bytes: usize,
}

/// See the module's description.
#[derive(Debug)]
pub struct Subscription {
    kind: ResourceKind,
    everything: bool,
    names: BTreeSet<String>,
    /// Name to version, as last sent or claimed by the client.
    has: HashMap<String, String>,
    /// Resources that the client rejected, with version and reason.
    rejected: HashMap<String, (String, String)>,
    /// Names of resources that may have to be sent.
    dirty: BTreeSet<String>,
    /// Names of resources that the client has and that it is to be told the end of, later.
    withheld: BTreeSet<String>,
    /// Names that were asked for and are to be answered even if there is nothing new.
    asked: BTreeSet<String>,
    /// All resources are to be compared.
    compare: bool,
    /// Names have been taken back, so the client may have resources it does not follow any more.
    prune: bool,
    /// When the first change came that the client has not been told of.
    changed_at: Option<Instant>,
    /// How long the changes of the last response took that was applied.
    propagation: Option<Duration>,
    outstanding: Option<Outstanding>,
    next_nonce: u64,
    answered_once: bool,
}

impl Subscription {
    /// The state after the first request of a type on a stream.
    pub fn new(kind: ResourceKind, first: &DeltaDiscoveryRequest) -> Result<Self, ProtocolError> {
        let mut subscription = Self {
            kind,
            // Naming nothing at all asks for everything.
            everything: first.resource_names_subscribe.is_empty()
                && first.resource_names_unsubscribe.is_empty(),
            names: BTreeSet::new(),
            has: HashMap::new(),
            rejected: HashMap::new(),
            dirty: BTreeSet::new(),
            withheld: BTreeSet::new(),
            asked: BTreeSet::new(),
            compare: true,
            prune: false,
            changed_at: None,
            propagation: None,
            outstanding: None,
            next_nonce: 1,
            answered_once: false,
        };
        subscription.has = first
            .initial_resource_versions
            .iter()
            .map(|(name, version)| (name.clone(), version.clone()))
            .collect();
        subscription.change_names(first)?;
        // What the client says it has need not be sent again, so these are not "asked" but compared.
        for name in std::mem::take(&mut subscription.asked) {
            if !subscription.has.contains_key(&name) {
                subscription.asked.insert(name);
            }
        }
        Ok(subscription)
    }

    /// Takes a later request: an answer, a change of subscription, or both.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Answer, ProtocolError> {
        let answer = self.answer(request);
        self.change_names(request)?;
        Ok(answer)
    }

    /// Takes names of resources that may have changed, the first of them at `since`.
    pub fn changed(&mut self, names: BTreeSet<String>, since: Option<Instant>) {
        if !names.is_empty() {
            self.changed_at = self.changed_at.or(since);
        }
        self.dirty.extend(names);
    }

    /// Everything may have changed, the first of it at `since`.
    pub fn everything_changed(&mut self, since: Option<Instant>) {
        self.changed_at = self.changed_at.or(since);
        self.compare = true;
        self.dirty.clear();
    }

    /// How long it took from the first change that the last response told of until the client said that it
    /// is in force; told once, and not of what a client is told when it comes or asks.
    pub fn propagation(&mut self) -> Option<Duration> {
        self.propagation.take()
    }

    /// Since when a response waits to be answered.
    pub fn waits_since(&self) -> Option<Instant> {
        self.outstanding
            .as_ref()
            .map(|outstanding| outstanding.since)
    }

    /// Resources that the client has rejected and still not got right, with its reasons.
    pub fn rejected(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        let all = self.rejected.iter();
        all.map(|(name, (_, reason))| (name.as_str(), reason.as_str()))
    }

    /// The same for the statuses of what it is made of, by name; nothing where that is no object.
    pub fn rejections(&self) -> BTreeMap<String, String> {
        if !self.kind.proxy().is_some_and(Problems::is_of_objects) {
            return BTreeMap::new();
        }
        self.rejected()
            .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
            .collect()
    }

    /// Whether [`Part::Updates`] may have something to say, now or when the last response is answered.
    pub fn has_updates(&self) -> bool {
        self.compare || !self.dirty.is_empty() || !self.asked.is_empty() || !self.answered_once
    }

    /// Whether [`Part::Removals`] has something to say.
    pub fn has_removals(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// The next response, if there is something to say and the last one has been answered.
    pub fn respond(&mut self, view: &View<'_>, part: Part) -> Option<DeltaDiscoveryResponse> {
        if self.outstanding.is_some() {
            return None;
        }
        self.expand(view);
        if part != Part::Updates {
            self.dirty.append(&mut self.withheld);
        }
        let mut draft = Draft::default();
        while draft.bytes < RESPONSE_BYTES {
            let Some((name, is_asked)) = self.next() else {
                break;
            };
            if is_asked {
                self.put_asked(view, &name, &mut draft);
            } else if part == Part::Updates && self.is_gone(view, &name) {
                self.withheld.insert(name);
            } else {
                self.withheld.remove(&name);
                self.put_changed(view, &name, &mut draft);
            }
        }
        if part == Part::Removals {
            // What did not fit is still the end of something.
            self.withheld.append(&mut self.dirty);
        }
        if draft.sent.is_empty() && self.answered_once {
            // Nothing that the client follows has changed, unless the rest is put aside.
            if self.withheld.is_empty() {
                self.changed_at = None;
            }
            return None;
        }
        self.answered_once = true;
        let nonce = self.next_nonce.to_string();
        self.next_nonce += 1;
        let mut response = draft.response;
        self.kind.type_url().clone_into(&mut response.type_url);
        response.nonce.clone_from(&nonce);
        response.system_version_info.clone_from(&nonce);
        if !self.dirty.is_empty() || !self.asked.is_empty() {
            response.system_version_info.push_str(PARTIAL_SUFFIX);
        }
        self.outstanding = Some(Outstanding {
            nonce,
            sent: draft.sent,
            since: Instant::now(),
            changed_at: self.changed_at,
        });
        if !self.has_updates() && !self.has_removals() {
            self.changed_at = None;
        }
        Some(response)
    }

    /// Turns "compare all" into names.
    fn expand(&mut self, view: &View<'_>) {
        if std::mem::take(&mut self.prune) && !self.everything {
            let mut has = std::mem::take(&mut self.has);
            has.retain(|name, _| view.get(name).is_some_and(|rendered| self.wants(rendered)));
            self.has = has;
        }
        if !std::mem::take(&mut self.compare) {
            return;
        }
        if self.everything {
            let differs =
                |rendered: &&Arc<Rendered>| self.has.get(&rendered.name) != Some(&rendered.version);
            let names = view.all().into_iter().filter(differs);
            self.dirty
                .extend(names.map(|rendered| rendered.name.clone()));
        }
        for name in &self.names {
            let found = view.resolve(name).into_iter();
            self.dirty
                .extend(found.map(|rendered| rendered.name.clone()));
        }
        let gone = self.has.keys().filter(|name| view.get(name).is_none());
        self.dirty.extend(gone.cloned());
    }

    fn next(&mut self) -> Option<(String, bool)> {
        if let Some(name) = self.asked.pop_first() {
            return Some((name, true));
        }
        self.dirty.pop_first().map(|name| (name, false))
    }

    /// Says what there is under a name that was asked for, even if the client has it.
    fn put_asked(&mut self, view: &View<'_>, name: &str, draft: &mut Draft) {
        let found = view.resolve(name);
        for rendered in &found {
            self.put(rendered, draft);
        }
        if found.is_empty() {
            // The client must learn that there is nothing, or it waits for ever.
            self.has.remove(name);
            draft.remove(name);
        }
    }

    /// Whether the client has a resource that it is not to have any more.
    fn is_gone(&self, view: &View<'_>, name: &str) -> bool {
        self.has.contains_key(name) && !view.get(name).is_some_and(|rendered| self.wants(rendered))
    }

    /// Says what has become of a resource, if the client does not know it yet.
    fn put_changed(&mut self, view: &View<'_>, name: &str, draft: &mut Draft) {
        match view.get(name) {
            Some(rendered) if self.wants(rendered) => {
                if self.has.get(name) != Some(&rendered.version) {
                    self.put(rendered, draft);
                }
            }
            // Gone, or not any more under the name by which the client asked for it.
            _ => {
                if self.has.remove(name).is_some() {
                    draft.remove(name);
                }
            }
        }
    }

    fn put(&mut self, rendered: &Rendered, draft: &mut Draft) {
        if !draft.included.insert(rendered.name.clone()) {
            return;
        }
        let resource = rendered.to_resource(self.kind.type_url());
        draft.bytes += rendered.bytes.len() + RESOURCE_OVERHEAD_BYTES;
        draft.response.resources.push(resource);
        let version = rendered.version.clone();
        draft
            .sent
            .push((rendered.name.clone(), Some(version.clone())));
        self.has.insert(rendered.name.clone(), version);
    }

    /// Whether the client has subscribed to a resource, by any of its names.
    fn wants(&self, rendered: &Rendered) -> bool {
        self.everything
            || self.names.contains(&rendered.name)
            || rendered
                .aliases
                .iter()
                .any(|alias| self.names.contains(alias))
    }

    fn change_names(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        for name in &request.resource_names_subscribe {
            if name == WILDCARD {
                self.compare |= !self.everything;
                self.everything = true;
                continue;
            }
            if name.len() > MAX_NAME_BYTES {
                return Err(ProtocolError::NameTooLong);
            }
            self.names.insert(name.clone());
            self.asked.insert(name.clone());
            if self.names.len() > MAX_NAMES {
                return Err(ProtocolError::TooManyNames);
            }
        }
        self.prune |= !request.resource_names_unsubscribe.is_empty();
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.everything = false;
            }
            self.names.remove(name);
            self.asked.remove(name);
        }
        Ok(())
    }

    fn answer(&mut self, request: &DeltaDiscoveryRequest) -> Answer {
        let expected = self.outstanding.as_ref();
        if request.response_nonce.is_empty()
            || expected.is_none_or(|expected| expected.nonce != request.response_nonce)
        {
            return Answer::None;
        }
        let Some(outstanding) = self.outstanding.take() else {
            return Answer::None;
        };
        let Some(detail) = &request.error_detail else {
            for (name, _) in &outstanding.sent {
                self.rejected.remove(name);
            }
            self.propagation = outstanding.changed_at.map(|changed| changed.elapsed());
            return Answer::Ack;
        };
        let named = rejected_resources(detail);
        let reasons: HashMap<&str, &str> = named
            .iter()
            .map(|(name, error)| (name.as_str(), error.as_str()))
            .collect();
        for (name, version) in outstanding.sent {
            // A client that does not say which resources it means means all of them.
            let error = match reasons.get(name.as_str()) {
                Some(error) => *error,
                None if named.is_empty() => detail.message.as_str(),
                None => {
                    self.rejected.remove(&name);
                    continue;
                }
            };
            // It stays in `has`: the same version is not sent again, the next one is.
            let version = version.unwrap_or_default();
            self.rejected.insert(name, (version, error.to_owned()));
        }
        Answer::Nack(named, detail.message.clone())
    }
}

impl Draft {
    fn remove(&mut self, name: &str) {
        self.bytes += name.len();
        self.response.removed_resources.push(name.to_owned());
        self.sent.push((name.to_owned(), None));
    }
}

/// The resources that a client says it rejected.
fn rejected_resources(detail: &Status) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    detail
        .details
        .iter()
        .filter(|any| any.type_url == REJECTED_RESOURCE_TYPE)
        .filter_map(|any| RejectedResource::decode(any.value.as_slice()).ok())
        .filter(|rejected| seen.insert(rejected.name.clone()))
        .map(|rejected| (rejected.name, rejected.error))
        .collect()
}

#[cfg(test)]
mod tests;
