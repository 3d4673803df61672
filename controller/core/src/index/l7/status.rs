//! Statuses: worked out anew for what may have changed, announced when they differ.

use super::{Changes, Index};
use crate::{
    object::{Kind, ObjectKey},
    status::ObjectStatus,
};

impl Index {
    pub(super) fn flush_statuses(&mut self, changes: &mut Changes) {
        for key in std::mem::take(&mut self.l7.dirty.statuses) {
            let former = self.l7.statuses.get(&key);
            let now = self.status_of(&key);
            if former == now.as_ref() {
                continue;
            }
            match now {
                Some(now) => self.l7.statuses.insert(key.clone(), now),
                None => self.l7.statuses.remove(&key),
            };
            changes.statuses.insert(key);
        }
    }

    fn status_of(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        match key.kind {
            Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet => self.gateway_status(key),
            Kind::BackendTlsPolicy => self.backend_tls_status(key),
            _ => None,
        }
    }
}
