//! HTTP and gRPC rules by host name.

use std::sync::Arc;

use hashbrown::HashMap;

use super::group::{Group, GroupBuilder};
use super::{Attached, Matched, NoRoute, RequestHead, RuleMatch};
use crate::table::{Hostname, MAX_HOSTNAME_BYTES};

/// All HTTP rules of one listener, in the order of precedence.
///
/// Host names come first: an exact one before wildcards, of those the longest, then rules for all hosts. If no
/// rule of a host name matches, the next one that fits the host is looked at.
#[derive(Default)]
pub struct HttpRouter {
    exact: HashMap<Box<str>, Group>,
    /// By what follows the `*`, with its dot.
    suffixes: HashMap<Box<str>, Group>,
    any: Group,
}

impl HttpRouter {
    /// Puts routes in order. Routes of other kinds than HTTP and gRPC have no rules here.
    pub fn new<'a>(attached: impl IntoIterator<Item = Attached<'a>>) -> Self {
        let mut by_name: HashMap<Option<&Hostname>, GroupBuilder> = HashMap::new();
        for attached in attached {
            if attached.hostnames.is_empty() {
                by_name.entry(None).or_default().add(attached.route);
            }
            for hostname in attached.hostnames {
                let group = by_name.entry(Some(hostname)).or_default();
                group.add(attached.route);
            }
        }
        let mut router = Self::default();
        for (hostname, builder) in by_name {
            let group = builder.build();
            match hostname {
                Some(Hostname::Exact(name)) => {
                    router.exact.insert(name.as_str().into(), group);
                }
                Some(Hostname::Suffix(suffix)) => {
                    router.suffixes.insert(suffix.as_str().into(), group);
                }
                None => router.any = group,
            }
        }
        router
    }

    /// The rule that comes first of those that match.
    ///
    /// # Errors
    /// When none matches, or when that cannot be said because a route is missing.
    pub fn route<'a>(&'a self, request: &RequestHead<'_>) -> Result<Matched<'a>, NoRoute> {
        if let Some(group) = self.exact.get(request.host)
            && let Some(matched) = group.find(request)?
        {
            return Ok(matched);
        }
        if !self.suffixes.is_empty() && request.host.len() <= MAX_HOSTNAME_BYTES {
            // The first dot begins the longest suffix. A dot in front of everything has no label before it.
            for (at, _) in request.host.match_indices('.').filter(|(at, _)| *at > 0) {
                if let Some(group) = self.suffixes.get(&request.host[at..])
                    && let Some(matched) = group.find(request)?
                {
                    return Ok(matched);
                }
            }
        }
        self.any.find(request)?.ok_or(NoRoute::NotFound)
    }

    /// All matches with the host name that each is for, in no order; for listings.
    pub fn matches(&self) -> impl Iterator<Item = (Option<String>, &Arc<RuleMatch>)> {
        let exact = self.exact.iter();
        let exact = exact.map(|(name, group)| (Some(name.to_string()), group));
        let suffixes = self.suffixes.iter();
        let suffixes = suffixes.map(|(suffix, group)| (Some(format!("*{suffix}")), group));
        let all = exact.chain(suffixes).chain([(None, &self.any)]);
        all.flat_map(|(name, group)| group.matches().map(move |one| (name.clone(), one)))
    }

    /// How many matches there are, over all host names.
    #[must_use]
    pub fn len(&self) -> usize {
        let named = self.exact.values().chain(self.suffixes.values());
        named.map(Group::len).sum::<usize>() + self.any.len()
    }

    /// Whether nothing can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
