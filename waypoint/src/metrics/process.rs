//! Metrics read at scrape time from where the truth is: backends, the certificate, the stream to the controller.

use std::fmt;
use std::sync::Arc;

use karst_client::{AdsStatus, DeltaAds, TypeReport};
use karst_identity::{CertificateManager, CertificateState};
use karst_process::metrics::{Out, gauge, validity, xds};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use crate::authn::source::KeySources;
use crate::balance::ClusterStats;
use crate::config::{Kind, Listing, State};
use crate::shared::Shared;

/// Reads everything that the data plane does not count itself.
pub struct ProcessMetrics {
    /// Backends and access log.
    pub shared: Arc<Shared>,
    /// The stream to the controller.
    pub ads: watch::Receiver<AdsStatus>,
    /// The same, type by type.
    pub xds: DeltaAds,
    /// Our certificate.
    pub certificates: CertificateManager,
    /// What the controller has sent.
    pub listing: Listing,
    /// Keys of tokens.
    pub key_sources: Arc<KeySources>,
}

impl fmt::Debug for ProcessMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMetrics").finish_non_exhaustive()
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out::new(encoder);
        self.control_plane(&mut out)?;
        self.certificates(&mut out)?;
        self.backends(&mut out)?;
        self.keys(&mut out)?;
        let dropped = self.shared.access_log.dropped();
        let help = "Access log records dropped because the output was too slow";
        out.counter("karst_access_log_dropped", help, dropped)?;
        self.shared.tap.encode(&mut out)?;
        out.process()
    }
}

impl ProcessMetrics {
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
        let items = self.listing.items();
        let kinds = [
            ("listener", Kind::Listener),
            ("route", Kind::Route),
            ("backend", Kind::Backend),
            ("tls_secret", Kind::TlsSecret),
        ];
        let count = |kind| gauge(items.iter().filter(|item| item.kind == kind).count());
        let held = kinds.map(|(name, kind)| (vec![("type", name)], count(kind)));
        out.gauges("karst_xds_resources", "Resources held", held)?;
        let states = [
            ("active", State::Active),
            ("waiting", State::Waiting),
            ("stale", State::Stale),
            ("rejected", State::Rejected),
        ];
        let count = |state| gauge(items.iter().filter(|item| item.state == state).count());
        let held = states.map(|(name, state)| (vec![("state", name)], count(state)));
        let help = "Resources by state: in force, waiting for others, or invalid with and without a former version";
        out.gauges("karst_waypoint_config_resources", help, held)
    }

    fn keys(&self, out: &mut Out<'_>) -> fmt::Result {
        let fetches = self.key_sources.fetches();
        let fetches = fetches
            .iter()
            .map(|(result, count)| (vec![("result", *result)], *count));
        let help = "Fetches of keys for tokens, by result";
        out.counters("karst_waypoint_jwks_fetches", help, fetches)?;
        let health = self.key_sources.health();
        let sources = [
            (vec![("state", "available")], gauge(health.available)),
            (vec![("state", "unavailable")], gauge(health.unavailable)),
        ];
        let help = "Addresses of keys for tokens, by whether there are any";
        out.gauges("karst_waypoint_jwks_sources", help, sources)?;
        let age = i64::try_from(health.oldest.as_secs()).unwrap_or(i64::MAX);
        let help = "Since when the oldest keys for tokens have not been fetched anew";
        out.gauge("karst_waypoint_jwks_age_seconds", help, age)
    }

    fn certificates(&self, out: &mut Out<'_>) -> fmt::Result {
        let list = self.certificates.list();
        let count = |state| gauge(list.iter().filter(|c| c.state == state).count());
        let values = [
            ("available", CertificateState::Available),
            ("initializing", CertificateState::Initializing),
            ("unavailable", CertificateState::Unavailable),
        ];
        let values = values.map(|(name, state)| (vec![("state", name)], count(state)));
        out.gauges(
            "karst_certificates",
            "Identities of this proxy, by state",
            values,
        )?;
        let validity: Vec<_> = list.iter().map(|c| (c.id.as_str(), c.validity)).collect();
        validity::encode(out, &validity)
    }

    /// Sums over all backends: one line for each would be as many as there are services, in every proxy.
    fn backends(&self, out: &mut Out<'_>) -> fmt::Result {
        let all = self.shared.clusters.list();
        let clusters: Vec<ClusterStats> = all.iter().map(|cluster| cluster.stats()).collect();
        let sum = |get: fn(&ClusterStats) -> u64| clusters.iter().map(get).sum::<u64>();
        let level = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let help = "Endpoints, by whether they are chosen from";
        let endpoints = [
            (vec![("state", "active")], level(sum(|s| s.active as u64))),
            (vec![("state", "ejected")], level(sum(|s| s.ejected as u64))),
        ];
        out.gauges("karst_waypoint_endpoints", help, endpoints)?;
        let help = "Endpoints ejected because they failed";
        let ejections = sum(|s| s.ejections_total);
        out.counters("karst_waypoint_ejections", help, [(vec![], ejections)])?;
        let most = gauge(self.shared.max_connections);
        let help = "Clients' connections that there may be at once";
        out.gauges("karst_waypoint_max_connections", help, [(vec![], most)])?;
        let stats = self.shared.upstreams.stats();
        let help = "Connections to endpoints, by whether they came about";
        let opened = [
            (vec![("result", "opened")], stats.opened),
            (vec![("result", "failed")], stats.failed),
        ];
        out.counters("karst_waypoint_upstream_connects", help, opened)?;
        let help = "Requests sent to endpoints, by the connection they went on";
        let requests = [
            (
                vec![("connection", "new")],
                stats.requests.saturating_sub(stats.reused),
            ),
            (vec![("connection", "reused")], stats.reused),
        ];
        out.counters("karst_waypoint_upstream_requests", help, requests)?;
        let help = "Connections to endpoints, and requests that wait for one";
        let pool = [
            (
                vec![("state", "open")],
                level(sum(|s| u64::from(s.connections))),
            ),
            (
                vec![("state", "waited_for")],
                level(sum(|s| u64::from(s.pending))),
            ),
        ];
        out.gauges("karst_waypoint_upstream_connections", help, pool)
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
