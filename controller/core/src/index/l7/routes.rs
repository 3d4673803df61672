//! Routes: what they refer to, and what they look like on the wire.

use super::{Index, Route, RouteKey, Stored, put};

impl Index {
    pub(super) fn set_route(&mut self, key: RouteKey, route: Option<Stored<Route>>) {
        self.attachment_changed(&key);
        if put(&mut self.l7.routes, key.clone(), route) {
            self.attachment_changed(&key);
            self.l7.dirty.routes.insert(key);
        }
    }

    /// Grants in a namespace have changed: routes of other namespaces may refer to it.
    pub(super) fn grants_changed(&mut self, _namespace: &str) {}

    pub(super) fn flush_routes(&mut self) {
        self.l7.dirty.routes.clear();
    }
}
