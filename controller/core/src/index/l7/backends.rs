//! Backends: where requests for a port of a Service go.

use super::{Changes, Index, NsName, Stored, TrafficPolicy, put};

impl Index {
    pub(super) fn set_traffic_policy(
        &mut self,
        name: NsName,
        policy: Option<Stored<TrafficPolicy>>,
    ) {
        put(&mut self.l7.policies, name, policy);
    }

    /// A pod has changed, or is about to.
    pub(in crate::index) fn pod_changed(&mut self, key: &NsName) {
        self.gateway_pod_changed(key);
        self.l7.dirty.pods.insert(key.clone());
    }

    /// A slice has changed, or is about to.
    pub(in crate::index) fn slice_changed(&mut self, _key: &NsName) {}

    pub(super) fn flush_backends(&mut self, _changes: &mut Changes) {
        self.l7.dirty.backends.clear();
    }
}
