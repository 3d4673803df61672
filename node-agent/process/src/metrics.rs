//! Metrics as the text of a scrape.

pub mod exemplar;
mod format;
pub mod handshakes;
pub mod histogram;
pub mod validity;
pub mod xds;

use std::fmt;

use http::header::{ACCEPT, HeaderMap, VARY};
use http::{HeaderValue, StatusCode};
use nix::sys::resource::{Resource, getrlimit};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::http_server::{Reply, reply};

pub use format::Format;

use exemplar::{Marked, TracedReading};
use histogram::Reading;

/// The answer to a scrape, in the format that its headers ask for.
pub fn scrape(registry: &Registry, asked: &HeaderMap) -> Reply {
    let format = Format::asked(asked.get_all(ACCEPT));
    match text(registry) {
        Ok(text) => {
            let mut answer = reply(StatusCode::OK, format.content_type(), format.of(text));
            let vary = HeaderValue::from_static("accept");
            answer.headers_mut().insert(VARY, vary);
            answer
        }
        Err(error) => reply(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
}

/// The text of a scrape, in the OpenMetrics format.
///
/// # Errors
/// A collector failed.
pub fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(exemplar::in_place(text))
}

/// A number of things as the value of a gauge.
#[must_use]
pub fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Where a collector writes the values of simple metrics.
#[derive(Debug)]
pub struct Out<'a>(DescriptorEncoder<'a>);

impl<'a> Out<'a> {
    /// Writes to `encoder`.
    #[must_use]
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// A gauge with a value for each set of labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'l str, &'l str)>, i64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            if labels.is_empty() {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A gauge without labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        self.gauges(name, help, [(vec![], value)])
    }

    /// A counter with a value for each set of labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'l str, &'l str)>, u64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            if labels.is_empty() {
                metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            } else {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        Ok(())
    }

    /// A counter without labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(vec![], value)])
    }

    /// A histogram with a reading for each set of labels, none of which may be empty.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn histograms<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'l str, &'l str)>, Reading)>,
    ) -> fmt::Result {
        self.readings(name, help, values)
    }

    /// The same of readings whose buckets may have exemplars.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn traced_histograms<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'l str, &'l str)>, TracedReading)>,
    ) -> fmt::Result {
        let marked = |(labels, TracedReading { reading, exemplars })| {
            (Marked::new(labels, exemplars), reading)
        };
        self.readings(name, help, values.into_iter().map(marked))
    }

    fn readings<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, Reading)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, reading) in values {
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    reading.sum,
                    reading.count,
                    &reading.buckets,
                    None,
                )?;
        }
        Ok(())
    }

    /// A counter of something that is no whole number, such as seconds.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn sums<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'l str, &'l str)>, f64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    /// The version of a component, under Istio's name.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn build(&mut self, component: &str, version: &str) -> fmt::Result {
        let labels = vec![("component", component), ("tag", version)];
        self.gauges("istio_build", "Version of this component", [(labels, 1)])
    }

    /// What Prometheus' own client libraries report of a process, as far as it helps here.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn process(&mut self) -> fmt::Result {
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count());
        self.gauge("process_open_fds", "Open file descriptors", gauge(open))?;
        let limit = getrlimit(Resource::RLIMIT_NOFILE);
        let limit = limit.map_or(0, |(soft, _)| i64::try_from(soft).unwrap_or(i64::MAX));
        self.gauge("process_max_fds", "Limit of open file descriptors", limit)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::DescriptorEncoder;
    use prometheus_client::registry::Registry;

    use super::{Out, text};

    #[derive(Debug)]
    struct Some;

    impl Collector for Some {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            let mut out = Out::new(encoder);
            out.counter("a", "A", 1)?;
            let values = [(vec![("x", "y")], 2), (vec![("x", "z")], 3)];
            out.counters("b", "B", values)?;
            out.gauge("c", "C", -4)?;
            out.gauges("d", "D", [(vec![("x", "y")], 5)])?;
            out.process()
        }
    }

    #[test]
    fn values_come_with_and_without_labels() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Some));
        let text = text(&registry).expect("encodes");
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let (own, process) = values.split_at(5);
        assert_eq!(
            own,
            [
                "a_total 1",
                "b_total{x=\"y\"} 2",
                "b_total{x=\"z\"} 3",
                "c -4",
                "d{x=\"y\"} 5"
            ]
        );
        assert!(process[0].starts_with("process_open_fds "), "{text}");
        assert!(process[1].starts_with("process_max_fds "), "{text}");
    }
}
