//! The `baggage` header with OpenTelemetry's Kubernetes attribute names.

use http::HeaderValue;

/// Members of a `baggage` header that are looked at. The W3C recommendation asks for 64.
const MAX_MEMBERS: usize = 64;
/// Longest value that is kept, bytes: Kubernetes names and labels have at most 253.
const MAX_VALUE_BYTES: usize = 253;

/// What kind of object a workload belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A Job.
    Job,
    /// A Pod of its own.
    #[default]
    Pod,
}

impl WorkloadKind {
    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Job => "k8s.job.name",
            Self::Pod => "k8s.pod.name",
        }
    }
}

/// What one end of a connection says about its workload. Empty means not said.
///
/// It is a peer's word: fit for metrics and logs, never for decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Cluster id.
    pub cluster: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// What `workload_name` names.
    pub workload_kind: WorkloadKind,
    /// Name of the Deployment, CronJob, Job or Pod.
    pub workload_name: String,
    /// Canonical service name.
    pub service_name: String,
    /// Canonical service revision.
    pub service_version: String,
    /// Cloud region.
    pub region: String,
    /// Cloud availability zone.
    pub zone: String,
}

impl Baggage {
    /// Reads what is known and makes sense; the first of two equal keys wins.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut baggage = Self::default();
        for member in bytes.split(|b| *b == b',').take(MAX_MEMBERS) {
            let Ok(member) = std::str::from_utf8(member) else {
                continue;
            };
            // Properties follow a semicolon; none are ours.
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else {
                continue;
            };
            baggage.set(key.trim(), value.trim());
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &str) {
        if !is_value(value) {
            return;
        }
        let kind = match key {
            "k8s.deployment.name" => Some(WorkloadKind::Deployment),
            "k8s.cronjob.name" => Some(WorkloadKind::CronJob),
            "k8s.job.name" => Some(WorkloadKind::Job),
            "k8s.pod.name" => Some(WorkloadKind::Pod),
            _ => None,
        };
        let slot = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ if kind.is_some() => &mut self.workload_name,
            _ => return,
        };
        if slot.is_empty() {
            value.clone_into(slot);
            self.workload_kind = kind.unwrap_or(self.workload_kind);
        }
    }

    /// The header's value; `None` when there is nothing to say. Parts that could not be read
    /// back are left out.
    #[must_use]
    pub fn to_value(&self) -> Option<HeaderValue> {
        let parts = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (self.workload_kind.key(), &self.workload_name),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut text = String::new();
        for (key, value) in parts.into_iter().filter(|(_, value)| is_value(value)) {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            text.push_str(value);
        }
        if text.is_empty() {
            return None;
        }
        HeaderValue::try_from(text).ok()
    }
}

/// Whether a value survives the header: visible ASCII without the header's own punctuation.
fn is_value(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= MAX_VALUE_BYTES
        && value
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b';' | b'=' | b'"' | b'\\'))
}
