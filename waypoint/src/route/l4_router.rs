//! TLS and TCP rules by server name.

use std::cmp::Reverse;
use std::sync::Arc;

use super::compile::CompiledRoute;
use super::{Attached, NoRoute};
use crate::table::{Backends, Hostname};

/// A rule of a TLSRoute or TCPRoute.
pub struct L4Rule {
    /// The route, `KIND/NAMESPACE/NAME`.
    pub route: Arc<str>,
    /// The rule's own name, or its place in the route.
    pub name: String,
    /// Where connections go.
    pub backends: Backends,
}

/// TLS and TCP rules of one listener.
#[derive(Default)]
pub struct L4Router {
    /// By host name, the most specific first, then by precedence of the routes; TCP rules have none.
    entries: Vec<Entry>,
}

struct Entry {
    hostname: Option<Hostname>,
    /// `None`: the route is missing.
    rule: Option<Arc<L4Rule>>,
}

impl L4Router {
    /// Puts routes in order. HTTP and gRPC routes have no rules here.
    pub fn new<'a>(attached: impl IntoIterator<Item = Attached<'a>>) -> Self {
        let mut entries = Vec::new();
        for attached in attached {
            let order = attached.route.map(CompiledRoute::precedence);
            let rule = match attached.route {
                Some(route) => match route.l4_rule() {
                    Some(rule) => Some(Arc::clone(rule)),
                    None => continue,
                },
                None => None,
            };
            let hostnames = attached.hostnames.iter().cloned().map(Some);
            let all = attached.hostnames.is_empty().then_some(None);
            for hostname in hostnames.chain(all) {
                let rule = rule.clone();
                entries.push((order, Entry { hostname, rule }));
            }
        }
        // A missing route has no order and so comes first among its equals: what it would take is refused.
        entries.sort_by(|(a_order, a), (b_order, b)| {
            let hostname =
                |entry: &Entry| Reverse(entry.hostname.as_ref().map(Hostname::specificity));
            let by_name = hostname(a).cmp(&hostname(b));
            by_name.then_with(|| a_order.cmp(b_order))
        });
        Self {
            entries: entries.into_iter().map(|(_, entry)| entry).collect(),
        }
    }

    /// The rule for a connection with that server name (lower case); `None` if it has none.
    ///
    /// # Errors
    /// When none matches, or when that cannot be said because a route is missing.
    pub fn route(&self, server_name: Option<&str>) -> Result<&Arc<L4Rule>, NoRoute> {
        let fits = |entry: &&Entry| match (&entry.hostname, server_name) {
            (None, _) => true,
            (Some(hostname), Some(name)) => hostname.matches(name),
            (Some(_), None) => false,
        };
        let entry = self.entries.iter().find(fits).ok_or(NoRoute::NotFound)?;
        entry.rule.as_ref().ok_or(NoRoute::NotReady)
    }

    /// All rules with the host name that each is for, in their order; for listings.
    pub fn rules(&self) -> impl Iterator<Item = (Option<&Hostname>, &Arc<L4Rule>)> {
        let entries = self.entries.iter();
        entries.filter_map(|entry| Some((entry.hostname.as_ref(), entry.rule.as_ref()?)))
    }

    /// Whether a server name decides about anything: only then is it worth waiting for one.
    #[must_use]
    pub fn needs_server_name(&self) -> bool {
        self.entries.iter().any(|entry| entry.hostname.is_some())
    }

    /// Whether nothing can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
