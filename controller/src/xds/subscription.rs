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

use super::{
    journal::{FellBehind, Journal, Push, Snapshot},
    resources::{ResourceKind, View},
};
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

/// The next response.
#[derive(Debug)]
pub enum Said {
    /// To this client alone.
    Own(DeltaDiscoveryResponse),
    /// What others are told as well.
    Shared(Arc<Push>),
}

/// Where the subscription stands in the journal of its kind.
#[derive(Debug)]
struct Followed {
    journal: Arc<Journal>,
    /// Number of the last change that it has looked at.
    at: u64,
    /// Whether the client has, but for what is noted in the subscription, all that there was then. What it has is not
    /// kept by name then.
    is_in_step: bool,
    /// The first state that it is being told, and the next part of it.
    first: Option<(Arc<Snapshot>, usize)>,
    /// When it had been told everything for the first time. Who comes later has not waited for earlier changes.
    told_at: Option<Instant>,
}

/// A response that has not been answered.
#[derive(Debug)]
struct Outstanding {
    nonce: String,
    sent: Vec<Sent>,
    /// What was sent to others as well.
    push: Option<Arc<Push>>,
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
    followed: Option<Followed>,
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
            followed: None,
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

    /// The same for a kind of which a journal says what has changed; [`Subscription::changed`] is then not needed.
    pub fn following(
        kind: ResourceKind,
        first: &DeltaDiscoveryRequest,
        journal: Arc<Journal>,
    ) -> Result<Self, ProtocolError> {
        let mut subscription = Self::new(kind, first)?;
        subscription.followed = Some(Followed {
            journal,
            at: 0,
            is_in_step: false,
            first: None,
            told_at: None,
        });
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
        if self.followed.is_some() {
            return;
        }
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
        let is_behind =
            |followed: &Followed| followed.first.is_some() || followed.at < followed.journal.head();
        self.has_own() || !self.answered_once || self.followed.as_ref().is_some_and(is_behind)
    }

    /// Whether there is something to say that is not in the journal.
    fn has_own(&self) -> bool {
        self.compare || !self.dirty.is_empty() || !self.asked.is_empty()
    }

    /// Whether [`Part::Removals`] has something to say.
    pub fn has_removals(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// The next response, if there is something to say and the last one has been answered.
    ///
    /// # Errors
    /// When what has changed since the client was told last is not known any more.
    pub fn say(&mut self, view: &View<'_>, part: Part) -> Result<Option<Said>, FellBehind> {
        if self.outstanding.is_some() {
            return Ok(None);
        }
        self.follow(view);
        if let Some(followed) = &mut self.followed
            && followed.is_in_step
            && self.dirty.is_empty()
            && self.asked.is_empty()
            && (self.answered_once || followed.first.is_some())
        {
            let push = followed.next(view)?;
            return Ok(push.map(|push| Said::Shared(self.sent(push))));
        }
        Ok(self.respond(view, part).map(Said::Own))
    }

    /// Looks at what the journal says.
    fn follow(&mut self, view: &View<'_>) {
        let Some(followed) = &mut self.followed else {
            return;
        };
        if self.everything {
            if std::mem::take(&mut self.compare) {
                followed.is_in_step = true;
                let has = std::mem::take(&mut self.has);
                if has.is_empty() {
                    let snapshot = followed.journal.snapshot(view);
                    followed.at = snapshot.to;
                    followed.first = Some((snapshot, 0));
                } else {
                    followed.at = followed.journal.head();
                    followed.told_at = Some(Instant::now());
                    let all = view.all().into_iter();
                    let differs = all.filter(|one| has.get(&one.name) != Some(&one.version));
                    self.dirty.extend(differs.map(|one| one.name.clone()));
                    let gone = has.into_keys().filter(|name| view.get(name).is_none());
                    self.dirty.extend(gone);
                }
            }
            return;
        }
        if std::mem::take(&mut followed.is_in_step) {
            // What the client has of the names that it goes on with is not known: it is told again.
            followed.first = None;
            followed.at = followed.journal.head();
            self.dirty.clear();
            self.asked.extend(self.names.iter().cloned());
        }
        let changes = followed.journal.since(followed.at);
        let Ok((names, at, since)) = changes else {
            followed.at = followed.journal.head();
            self.compare = true;
            return;
        };
        followed.at = at;
        let concerns = |name: &str| {
            self.has.contains_key(name) || view.get(name).is_some_and(|one| self.wants(one))
        };
        let names = names.iter().filter(|name| concerns(name));
        let names = names.map(|name| name.to_string()).collect();
        self.changed(names, since);
    }

    /// Notes that a shared response is being sent.
    fn sent(&mut self, push: Arc<Push>) -> Arc<Push> {
        self.answered_once = true;
        let told_at = self.followed.as_ref().and_then(|followed| followed.told_at);
        let is_new = |since: &Instant| told_at.is_some_and(|told_at| *since >= told_at);
        self.outstanding = Some(Outstanding {
            nonce: push.nonce.clone(),
            sent: Vec::new(),
            since: Instant::now(),
            changed_at: push.since.filter(is_new),
            push: Some(push.clone()),
        });
        push
    }

    fn is_in_step(&self) -> bool {
        let followed = self.followed.as_ref();
        followed.is_some_and(|followed| followed.is_in_step)
    }

    /// The next response to this client alone.
    fn respond(&mut self, view: &View<'_>, part: Part) -> Option<DeltaDiscoveryResponse> {
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
            push: None,
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
        (self.is_in_step() || self.has.contains_key(name))
            && !view.get(name).is_some_and(|rendered| self.wants(rendered))
    }

    /// Says what has become of a resource, if the client does not know it yet.
    fn put_changed(&mut self, view: &View<'_>, name: &str, draft: &mut Draft) {
        match view.get(name) {
            Some(rendered) if self.wants(rendered) => {
                if self.is_in_step() || self.has.get(name) != Some(&rendered.version) {
                    self.put(rendered, draft);
                }
            }
            // Gone, or not any more under the name by which the client asked for it.
            _ => {
                if self.has.remove(name).is_some() || self.is_in_step() {
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
        if !self.is_in_step() {
            self.has.insert(rendered.name.clone(), version);
        }
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
            if !self.rejected.is_empty() {
                for (name, _) in outstanding.all() {
                    self.rejected.remove(name);
                }
            }
            self.propagation = outstanding.changed_at.map(|changed| changed.elapsed());
            return Answer::Ack;
        };
        let named = rejected_resources(detail);
        let reasons: HashMap<&str, &str> = named
            .iter()
            .map(|(name, error)| (name.as_str(), error.as_str()))
            .collect();
        for (name, version) in outstanding.all() {
            // A client that does not say which resources it means means all of them.
            let error = match reasons.get(name) {
                Some(error) => *error,
                None if named.is_empty() => detail.message.as_str(),
                None => {
                    self.rejected.remove(name);
                    continue;
                }
            };
            // It counts as told: the same version is not sent again, the next one is.
            let version = version.cloned().unwrap_or_default();
            self.rejected
                .insert(name.to_owned(), (version, error.to_owned()));
        }
        Answer::Nack(named, detail.message.clone())
    }
}

impl Followed {
    /// What everybody who stands here is told next.
    fn next(&mut self, view: &View<'_>) -> Result<Option<Arc<Push>>, FellBehind> {
        if let Some((snapshot, next)) = self.first.take()
            && let Some(part) = snapshot.parts.get(next)
        {
            let part = part.clone();
            if next + 1 < snapshot.parts.len() {
                self.first = Some((snapshot, next + 1));
            } else {
                self.told_at = Some(Instant::now());
            }
            return Ok(Some(part));
        }
        let push = self.journal.push(self.at, view)?;
        if let Some(push) = &push {
            self.at = push.to;
        }
        Ok(push)
    }
}

impl Outstanding {
    /// Names and versions of what was sent; those of a shared response have none.
    fn all(&self) -> impl Iterator<Item = (&str, Option<&String>)> {
        let own = self.sent.iter();
        let own = own.map(|(name, version)| (name.as_str(), version.as_ref()));
        let shared = self.push.iter().flat_map(|push| &push.names);
        own.chain(shared.map(|name| (&**name, None)))
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
