//! Rules of one host name by path.

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;

use super::compile::{CompiledRoute, PathRule, RuleMatch};
use super::{Matched, NoRoute, RequestHead};

/// Matches of one host name. Paths come first: exact ones, then prefixes with the longest first, then regular
/// expressions with the longest first, then matches for any path.
///
/// The specification leaves the place of regular expressions open. They come before the prefix `/` because
/// nothing could ever reach them behind a default.
#[derive(Default)]
pub(super) struct Group {
    exact: HashMap<Box<str>, Box<[Arc<RuleMatch>]>>,
    prefixes: HashMap<Box<str>, Box<[Arc<RuleMatch>]>>,
    /// Lengths of the prefixes in bytes, each once, the longest first: only these can match, however many
    /// elements a path has.
    prefix_lengths: Box<[usize]>,
    regexes: Box<[Arc<RuleMatch>]>,
    any: Box<[Arc<RuleMatch>]>,
    /// A route is missing. Nobody can tell what it would have matched.
    not_ready: bool,
}

impl Group {
    pub(super) fn find<'a>(
        &'a self,
        request: &RequestHead<'_>,
    ) -> Result<Option<Matched<'a>>, NoRoute> {
        if self.not_ready {
            return Err(NoRoute::NotReady);
        }
        Ok(self
            .by_exact(request)
            .or_else(|| self.by_prefix(request))
            .or_else(|| first(&self.regexes, request))
            .or_else(|| first(&self.any, request)))
    }

    fn by_exact<'a>(&'a self, request: &RequestHead<'_>) -> Option<Matched<'a>> {
        first(self.exact.get(request.path)?, request)
    }

    fn by_prefix<'a>(&'a self, request: &RequestHead<'_>) -> Option<Matched<'a>> {
        let path = request.path;
        self.prefix_lengths.iter().find_map(|&length| {
            // A prefix is whole path elements: the path ends with it or goes on with a slash.
            if !matches!(path.as_bytes().get(length), None | Some(b'/')) {
                return None;
            }
            first(self.prefixes.get(path.get(..length)?)?, request)
        })
    }

    pub(super) fn matches(&self) -> impl Iterator<Item = &Arc<RuleMatch>> {
        let named = self.exact.values().chain(self.prefixes.values());
        let named = named.flat_map(|list| list.iter());
        named.chain(&self.regexes[..]).chain(&self.any[..])
    }

    pub(super) fn len(&self) -> usize {
        let named = self.exact.values().chain(self.prefixes.values());
        named.map(|list| list.len()).sum::<usize>() + self.regexes.len() + self.any.len()
    }
}

fn first<'a>(list: &'a [Arc<RuleMatch>], request: &RequestHead<'_>) -> Option<Matched<'a>> {
    list.iter()
        .find(|candidate| candidate.matches(request))
        .map(|found| Matched {
            rule: &found.rule,
            prefix: found.path.prefix(),
        })
}

/// Collects the matches of one host name.
#[derive(Default)]
pub(super) struct GroupBuilder {
    exact: HashMap<Box<str>, Vec<Arc<RuleMatch>>>,
    prefixes: HashMap<Box<str>, Vec<Arc<RuleMatch>>>,
    regexes: Vec<Arc<RuleMatch>>,
    any: Vec<Arc<RuleMatch>>,
    not_ready: bool,
}

impl GroupBuilder {
    pub(super) fn add(&mut self, route: Option<&CompiledRoute>) {
        let Some(route) = route else {
            self.not_ready = true;
            return;
        };
        for candidate in route.matches() {
            let list = match &candidate.path {
                PathRule::Exact(path) => self.exact.entry(path.clone()).or_default(),
                PathRule::Prefix(prefix) => self.prefixes.entry(prefix.clone()).or_default(),
                PathRule::Regex { .. } => &mut self.regexes,
                PathRule::Any => &mut self.any,
            };
            list.push(Arc::clone(candidate));
        }
    }

    pub(super) fn build(mut self) -> Group {
        let mut prefix_lengths: Vec<usize> =
            self.prefixes.keys().map(|prefix| prefix.len()).collect();
        prefix_lengths.sort_unstable_by_key(|length| Reverse(*length));
        prefix_lengths.dedup();
        self.regexes.sort_by(|a, b| {
            let by_length = b.path.pattern_length().cmp(&a.path.pattern_length());
            by_length.then_with(|| a.precedence().cmp(&b.precedence()))
        });
        Group {
            exact: sorted_values(self.exact),
            prefixes: sorted_values(self.prefixes),
            prefix_lengths: prefix_lengths.into(),
            regexes: self.regexes.into(),
            any: sorted(self.any),
            not_ready: self.not_ready,
        }
    }
}

type ByPath<L> = HashMap<Box<str>, L>;

fn sorted_values(map: ByPath<Vec<Arc<RuleMatch>>>) -> ByPath<Box<[Arc<RuleMatch>]>> {
    map.into_iter()
        .map(|(path, list)| (path, sorted(list)))
        .collect()
}

fn sorted(mut list: Vec<Arc<RuleMatch>>) -> Box<[Arc<RuleMatch>]> {
    list.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
    list.into()
}
