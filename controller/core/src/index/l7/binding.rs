//! Which waypoint a service or a pod is behind.

use super::{Changes, GatewayName, Index, Namespace, NsName};
use crate::{labels, object::pod::Pod, proxy::ProxyClass};

impl Index {
    /// The Gateway whose proxy a pod is, by its labels and its service account, which is what others trust.
    pub(in crate::index) fn proxy_of_pod(
        &self,
        key: &NsName,
        pod: &Pod,
    ) -> Option<(GatewayName, ProxyClass)> {
        let gateway = pod.labels.get(labels::GATEWAY_NAME)?;
        let class = self.class_of(pod.labels.get(labels::GATEWAY_CLASS_NAME)?)?;
        (pod.service_account == *gateway).then(|| {
            (
                GatewayName::new(key.namespace.as_str(), gateway.as_str()),
                class,
            )
        })
    }

    pub(in crate::index) fn namespace_changed(&mut self, name: &str, former: &Namespace) {
        let now = self.namespaces.get(name);
        if now.is_none_or(|now| now.labels != former.labels) {
            self.namespace_selected_anew(name);
        }
    }

    pub(super) fn flush_pods(&mut self, _changes: &mut Changes) {
        self.l7.dirty.pods.clear();
    }
}
