//! Metrics read at scrape time from where the truth is: the kernel, the
//! certificate manager, the control-plane session, the enrolment.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use karst_client::{AdsStatus, DeltaAds, TypeReport};
use karst_datapath::ProgramRuns;
use karst_identity::CertificateState;
use karst_process::metrics::{Out, gauge, validity, xds};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use crate::cni::install::InstallStatus;
use crate::context::Context;
use crate::enrol::PodTable;

/// Reads everything that is not counted by the data plane itself.
pub struct NodeMetrics {
    /// Kernel, certificates, state.
    pub context: Arc<Context>,
    /// The control-plane session.
    pub ads: watch::Receiver<AdsStatus>,
    /// The same, type by type.
    pub xds: DeltaAds,
    /// Enrolment as last published.
    pub pods: watch::Receiver<Arc<PodTable>>,
    /// The CNI plugin on this node, if the agent looks after it.
    pub install: Option<Arc<InstallStatus>>,
}

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeMetrics").finish_non_exhaustive()
    }
}

impl Collector for NodeMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out::new(encoder);
        out.build("karst-node-agent", env!("CARGO_PKG_VERSION"))?;
        self.context.metrics.handshakes.encode(&mut out)?;
        self.kernel(&mut out)?;
        self.control_plane(&mut out)?;
        self.certificates(&mut out)?;
        let (held, left_out) = self.context.state.outside_table().counts();
        out.gauges(
            "karst_outside_addresses",
            "Addresses and blocks of hosts outside: known, and beyond the limits",
            [
                (vec![("state", "held")], gauge(held)),
                (vec![("state", "left_out")], gauge(left_out)),
            ],
        )?;
        let pods = self.pods.borrow().clone();
        let (wanted, enrolled) = pods.counts();
        out.gauges(
            "karst_pods",
            "Pods of this node, by enrolment",
            [
                (vec![("state", "registered")], gauge(pods.pods.len())),
                (vec![("state", "wanted")], gauge(wanted)),
                (vec![("state", "enrolled")], gauge(enrolled)),
            ],
        )?;
        let help = "Sandboxes found without the container runtime's word";
        out.counter("karst_pods_discovered", help, pods.discovered)?;
        if let Some(install) = &self.install {
            let (in_place, changes) = install.read();
            let help = "Whether the CNI plugin is installed and in the runtime's configuration";
            out.gauge("karst_cni_installed", help, i64::from(in_place))?;
            let help = "Files written or removed to put the CNI plugin in place";
            out.counter("karst_cni_install_changes", help, changes)?;
        }
        let dropped = self.context.access_log.dropped();
        let help = "Access log records dropped because the output was too slow";
        out.counter("karst_access_log_dropped", help, dropped)?;
        self.context.tap.encode(&mut out)?;
        out.process()
    }
}

impl NodeMetrics {
    fn kernel(&self, out: &mut Out<'_>) -> fmt::Result {
        let counters = self.context.kernel.counters().unwrap_or_else(|error| {
            tracing::warn!(%error, reason = error.reason(), "BPF counters cannot be read");
            Vec::new()
        });
        let values = counters
            .iter()
            .map(|c| (vec![("reason", c.reason)], c.value));
        out.counters(
            "karst_bpf_events",
            "Events counted by the BPF programs",
            values,
        )?;
        let fill = self.context.kernel.map_fill().unwrap_or_else(|error| {
            tracing::warn!(%error, reason = error.reason(), "BPF maps cannot be read");
            Vec::new()
        });
        let entries = fill
            .iter()
            .map(|m| (vec![("map", m.map)], i64::from(m.entries)));
        out.gauges("karst_bpf_map_entries", "Entries of the BPF maps", entries)?;
        let limits = fill
            .iter()
            .map(|m| (vec![("map", m.map)], i64::from(m.max_entries)));
        out.gauges(
            "karst_bpf_map_max_entries",
            "Limits of the BPF maps",
            limits,
        )?;
        self.programs(out)
    }

    fn programs(&self, out: &mut Out<'_>) -> fmt::Result {
        let runs = self.context.kernel.program_runs().unwrap_or_else(|error| {
            tracing::warn!(%error, reason = error.reason(), "BPF programs cannot be read");
            Vec::new()
        });
        fn labels(run: &ProgramRuns) -> Vec<(&str, &str)> {
            vec![("program", run.program.as_str())]
        }
        let help = "Runs of the BPF programs, while kernel.bpf_stats_enabled is on";
        let counts = runs.iter().map(|run| (labels(run), run.count));
        out.counters("karst_bpf_program_runs", help, counts)?;
        let help = "Time spent in the BPF programs, while kernel.bpf_stats_enabled is on";
        let times = runs.iter().map(|run| {
            let time = Duration::from_nanos(run.nanoseconds);
            (labels(run), time.as_secs_f64())
        });
        out.sums("karst_bpf_program_run_seconds", help, times)
    }

    fn control_plane(&self, out: &mut Out<'_>) -> fmt::Result {
        let ads = self.ads.borrow().clone();
        let help = "Whether the stream to the controller is up";
        out.gauge("karst_xds_connected", help, i64::from(ads.connected))?;
        let help = "Whether a complete state has been received since the start";
        out.gauge("karst_xds_synced", help, i64::from(ads.synced))?;
        let help = "Streams opened to the controller";
        out.counter("karst_xds_streams", help, ads.streams)?;
        let help = "Resources rejected as invalid";
        out.counter("karst_xds_rejected_resources", help, ads.rejected)?;
        let types = self.xds.types();
        let answers: Vec<_> = types.iter().map(answers).collect();
        xds::encode(out, &answers)?;
        let (workloads, services) = self.context.state.counts();
        out.gauges(
            "karst_xds_resources",
            "Resources held",
            [
                (vec![("type", "workload")], gauge(workloads)),
                (vec![("type", "service")], gauge(services)),
            ],
        )
    }

    fn certificates(&self, out: &mut Out<'_>) -> fmt::Result {
        let list = self.context.certificates.list();
        let count = |state| gauge(list.iter().filter(|c| c.state == state).count());
        let values = [
            ("available", CertificateState::Available),
            ("initializing", CertificateState::Initializing),
            ("unavailable", CertificateState::Unavailable),
        ];
        let values = values.map(|(name, state)| (vec![("state", name)], count(state)));
        out.gauges(
            "karst_certificates",
            "Identities of this node, by state",
            values,
        )?;
        let validity: Vec<_> = list.iter().map(|c| (c.id.as_str(), c.validity)).collect();
        validity::encode(out, &validity)
    }
}

fn answers(of: &TypeReport) -> xds::Answers<'_> {
    xds::Answers {
        type_url: of.type_url,
        acks: of.acks,
        nacks: of.nacks,
        last_ack: of.last_ack,
        last_nack: of.last_nack.as_ref().map(|nack| nack.at),
    }
}
