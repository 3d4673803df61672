//! Services in the mesh: their routes, and whether they need their waypoint.

use super::{Changes, Index, NsName, Service};

impl Index {
    /// A Service is about to change.
    pub(in crate::index) fn service_changed(&mut self, key: &NsName, now: Option<&Service>) {
        if self.services.get(key) != now {
            self.gateway_service_changed(key);
            self.l7.dirty.services.insert(key.clone());
            self.l7.dirty.backends.insert(key.clone());
        }
    }

    pub(super) fn flush_services(&mut self, _changes: &mut Changes) {
        self.l7.dirty.services.clear();
    }

    pub(super) fn flush_proxies(&mut self, _changes: &mut Changes) {
        self.l7.dirty.proxies.clear();
    }

    pub(super) fn flush_gateways(&mut self, changes: &mut Changes) {
        for gateway in std::mem::take(&mut self.l7.dirty.gateways) {
            self.refresh_view(&gateway);
            let wanted = self.wanted_for(&gateway);
            if self.l7.wanted.get(&gateway) != wanted.as_ref() {
                match wanted {
                    Some(wanted) => self.l7.wanted.insert(gateway.clone(), wanted),
                    None => self.l7.wanted.remove(&gateway),
                };
                changes.workloads_wanted.insert(gateway.clone());
            }
            self.l7.dirty.proxies.insert(gateway);
        }
    }
}
